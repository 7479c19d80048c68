"""A session: how it is set up, what it does about a database that is away, TLS."""

from __future__ import annotations

import gc
import itertools
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl, read_mysql_url
from refreshd.store import mysql_connection
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_errors import Conflict, Lost
from tests.refreshd.store.mysql_tools import Losing
from tools.servers import MariaDb
from tools.servers.waiting import free_port

pytestmark = pytest.mark.needs("mariadbd")


@pytest.fixture
def session(database: MysqlUrl) -> Iterator[Session]:
    session = Session(database)
    yield session
    session.drop()


def number_of(session: Session) -> int:
    return int(session.query(b"SELECT connection_id()")[0].rows[0][0])


def away(url: MysqlUrl) -> MysqlUrl:
    """The same where nobody listens."""
    return msgspec.structs.replace(url, port=free_port())


def test_a_session_is_strict_and_reads_what_is_committed(session: Session) -> None:
    ((mode, isolation, charset, autocommit, idle),) = session.query(
        b"SELECT @@sql_mode, @@tx_isolation, @@character_set_client, @@autocommit, @@idle_transaction_timeout"
    )[0].rows
    assert "STRICT_ALL_TABLES" in mode
    assert (isolation, charset, autocommit) == ("READ-COMMITTED", "utf8mb4", 1)
    assert idle == mysql_connection.IDLE_IN_TRANSACTION_S


def test_statements_of_one_packet_bring_a_result_each(session: Session) -> None:
    one, two, three = session.query(
        b"SELECT 1, x'00ff'", b"INSERT INTO plan VALUES (1, 'a'), (2, 'b')", b"SELECT number FROM plan"
    )
    assert list(one.rows) == [(1, b"\0\xff")]
    assert two.affected == 2
    assert list(three.rows) == [(1,), (2,)]


def test_a_packet_is_as_long_as_the_server_takes(session: Session) -> None:
    size = session.packet_bytes()
    head = b"SELECT length('"
    assert session.query(head + b"x" * (size - len(head) - 2) + b"')")[0].rows[0][0] == size - len(head) - 2


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (b"SELECT nonsense FROM task", StoreDamaged),
        (b"SELECT 1 FROM no_such_table", StoreDamaged),
        (b"SELEKT", StoreFailed),
        (b"INSERT INTO engine VALUES (256, 'x', 1, 1)", StoreFailed),
        (b"INSERT INTO plan VALUES (1, NULL)", StoreFailed),
        (b"SET SESSION max_statement_time=0.01; SELECT SLEEP(2)", StoreUnavailable),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1114", StoreUnavailable),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1021", StoreUnavailable),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1290", StoreUnavailable),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1047", StoreUnavailable),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1213", Conflict),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1205", Conflict),
        (b"SIGNAL SQLSTATE '45000' SET MYSQL_ERRNO=1194", StoreDamaged),
        (b"KILL HARD connection_id()", Lost),
    ],
)
def test_an_error_is_translated_and_ends_the_connection(
    session: Session, database: MysqlUrl, statement: bytes, error: type[StoreError]
) -> None:
    before = number_of(session)
    with pytest.raises(error, match=database.place) as caught:
        session.query(statement)
    assert type(caught.value) is error
    assert number_of(session) != before


def test_nothing_of_a_transaction_that_fails_is_kept(session: Session) -> None:
    def work() -> None:
        session.query(b"INSERT INTO plan VALUES (1, 'a')")
        raise KeyError

    with pytest.raises(KeyError):
        session.atomically(work)
    assert not session.is_unsure
    assert session.query(b"SELECT * FROM plan")[0].rows == ()


def test_a_transaction_in_which_nothing_is_asked_needs_no_database(database: MysqlUrl) -> None:
    assert Session(away(database)).atomically(lambda: 5) == 5


@pytest.mark.parametrize("sent", [False, True])
def test_only_a_commit_that_was_sent_leaves_one_unsure(
    session: Session, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    monkeypatch.setattr(mysql_connection, "RETRIES_MAX", 2)

    def work() -> None:
        session.query(b"REPLACE INTO plan VALUES (1, 'a')")

    with Losing(session, "REPLACE", sent=sent) as lost, pytest.raises(Lost):
        session.atomically(work)
    assert lost.lost == 3
    assert not session.is_unsure
    with Losing(session, "COMMIT", sent=sent), pytest.raises(Lost):
        session.atomically(work)
    assert session.is_unsure
    # One that comes through says all.
    with Losing(session, "COMMIT", sent=sent, times=1):
        session.atomically(work)
    assert not session.is_unsure


def test_retries_are_bounded_in_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_connection, "RETRY_WITHIN_S", -1.0)
    with Losing(session, "SELECT") as lost, pytest.raises(Lost):
        session.atomically(lambda: session.query(b"SELECT 1"))
    assert lost.lost == 1


# ── a database that is away ───────────────────────────────────────────────────────────────


def test_while_it_is_away_all_is_refused_at_once_but_for_a_try_now_and_then(
    database: MysqlUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects: list[float] = []
    now = 100.0
    whole = mysql_connection._connect

    def connect(url: MysqlUrl, timeout_s: float) -> object:
        connects.append(now)
        return whole(url, timeout_s)

    monkeypatch.setattr(mysql_connection, "_connect", connect)
    monkeypatch.setattr(mysql_connection.time, "monotonic", lambda: now)
    session = Session(away(database))
    for _ in range(200):
        with pytest.raises(StoreUnavailable, match=r"cannot be used: .*refused"):
            session.atomically(lambda: session.query(b"SELECT 1"))
        now += 0.0625
    waits = [b - a for a, b in itertools.pairwise(connects)]
    for wait, wanted in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0], strict=False):
        assert wanted <= wait < wanted + 0.0625
    # It is there: the next try finds it, and the backoff begins anew.
    session._url = database
    now += 10.0
    assert number_of(session)
    session.drop()
    session._url = away(database)
    with pytest.raises(StoreUnavailable):
        session.query(b"SELECT 1")
    assert session._backoff_s == mysql_connection.BACKOFF_FIRST_S
    session._url = database
    now += 1.0
    assert number_of(session)
    session.drop()


def test_one_that_accepts_and_says_nothing(database: MysqlUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_connection, "ANSWER_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = msgspec.structs.replace(database, port=silent.getsockname()[1])
        session = Session(url, answer_timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="timed out"):
            session.query(b"SELECT 1")
        with pytest.raises(StoreUnavailable, match="timed out"):
            session.query(b"SELECT 1")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("connected", [False, True])
def test_a_failure_leaves_no_connection_in_memory(
    database: MysqlUrl, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    """Not even one that only a search for rings would find: workers do not search everywhere."""
    made: list[weakref.ref[object]] = []
    whole = mysql_connection.pymysql.connect

    def connect(**how: Any) -> object:
        made.append(weakref.ref(connection := whole(**how)))
        return connection

    monkeypatch.setattr(mysql_connection.pymysql, "connect", connect)
    monkeypatch.setattr(mysql_connection, "BACKOFF_FIRST_S", 0.0)
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = database.port if connected else silent.getsockname()[1]
            session = Session(msgspec.structs.replace(database, port=port), answer_timeout_s=0.2)
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="timed out"):
                    session.query(b"SELECT SLEEP(3)")
            assert len(made) == 3
            assert [connection() for connection in made] == [None] * 3
    finally:
        gc.enable()


def test_silence_is_not_waited_for_twice(database: MysqlUrl) -> None:
    """A client waits for it."""
    session = Session(database, answer_timeout_s=0.2)
    tried = []

    def work() -> None:
        tried.append(1)
        session.query(b"SELECT SLEEP(3)")

    with pytest.raises(Lost, match="timed out"):
        session.atomically(work)
    assert len(tried) == 1


@pytest.mark.parametrize(("answer_timeout_s", "lock_wait_s"), [(0.2, 1), (2.0, 1), (5.0, 2), (3600.0, 2)])
def test_a_lock_is_waited_for_less_long_than_an_answer(
    database: MysqlUrl, answer_timeout_s: float, lock_wait_s: int
) -> None:
    session = Session(database, answer_timeout_s=answer_timeout_s)
    assert session.read(b"SELECT @@innodb_lock_wait_timeout") == ((lock_wait_s,),)
    session.drop()


def test_one_that_stops_answering_amid_a_statement(database: MysqlUrl) -> None:
    session = Session(database, answer_timeout_s=0.2)
    with pytest.raises(Lost, match="timed out"):
        session.query(b"SELECT SLEEP(3)")


@pytest.mark.parametrize("says", [b"", b"\x05\0\0\0hello", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_one_that_is_no_database(database: MysqlUrl, says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            peer.sendall(says)
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        session = Session(msgspec.structs.replace(database, port=server.getsockname()[1]))
        with pytest.raises(StoreError):
            session.query(b"SELECT 1")
        thread.join(10)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"password": "wrong"}, "Access denied"),
        ({"user": "nobody"}, "Access denied"),
        ({"database": "no_such_database"}, "Unknown database|Access denied"),
    ],
)
def test_who_is_not_let_in_is_told_so(database: MysqlUrl, changes: dict[str, str], text: str) -> None:
    session = Session(msgspec.structs.replace(database, **changes))
    with pytest.raises(StoreUnavailable, match=text) as caught:
        session.query(b"SELECT 1")
    assert database.password not in str(caught.value)


def test_over_a_unix_socket(database: MysqlUrl, mariadb: MariaDb) -> None:
    url = msgspec.structs.replace(database, host="", socket=str(mariadb.socket))
    mariadb.query(f"CREATE USER IF NOT EXISTS refreshd@localhost IDENTIFIED BY '{database.password}'")
    mariadb.query(f"GRANT ALL ON `{database.database}`.* TO refreshd@localhost")
    session = Session(url)
    assert number_of(session)
    session.drop()


@pytest.mark.parametrize("version", ["10.5.9-MariaDB-log", "5.5.5-10.3.1-MariaDB", "5.7.44", "Neptune"])
def test_one_that_is_too_old(database: MysqlUrl, version: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"wanted MariaDB 10.6 or MySQL 8.0 or later"):
        mysql_connection._checked_kind(version, database)


@pytest.mark.parametrize(
    ("version", "kind"),
    [("10.11.19-MariaDB-0+deb12u1", "MariaDB"), ("5.5.5-10.6.1-MariaDB", "MariaDB"), ("8.0.36", "MySQL")],
)
def test_one_that_is_not(database: MysqlUrl, version: str, kind: str) -> None:
    assert mysql_connection._checked_kind(version, database) == kind


# ── TLS ───────────────────────────────────────────────────────────────────────────────────


def certificate(folder: Path, name: str, signed_by: str = "", subject: str = "") -> Path:
    """A key and a certificate for `subject` (an address), made with openssl; self-signed unless signed."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)]
    if signed_by:
        command += ["-CA", str(folder / f"{signed_by}.pem"), "-CAkey", str(folder / f"{signed_by}.key")]
        command += [
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            f"subjectAltName=IP:{subject}",
        ]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    return certificate


@pytest.mark.needs("openssl")
def test_tls_is_insisted_on(tmp_path: Path, mariadb_template: Path, database: MysqlUrl) -> None:
    for name in ("ca", "other"):
        certificate(tmp_path, name)
    certificate(tmp_path, "good", "ca", "127.0.0.1")
    certificate(tmp_path, "elsewhere", "ca", "10.9.9.9")

    def cipher(url: str) -> str:
        with closing(_Dropping(read_mysql_url(url))) as session:
            return str(session.query(b"SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0].rows[0][1])

    def settings(name: str) -> tuple[str, str]:
        return f"--ssl-cert={tmp_path / name}.pem", f"--ssl-key={tmp_path / name}.key"

    ca, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    with MariaDb(template=mariadb_template, settings=settings("good")) as server:
        assert cipher(server.url_of("refreshd", f"ssl_ca={ca}")).startswith("TLS_")
        # Where it is offered it is used.
        assert cipher(server.url).startswith("TLS_")
        assert cipher(server.url)
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            cipher(server.url_of("refreshd", f"ssl_ca={other}"))
        with pytest.raises(StoreError, match="No such file"):
            cipher(server.url_of("refreshd", f"ssl_ca={tmp_path}/none.pem"))
    with MariaDb(template=mariadb_template, settings=settings("elsewhere")) as server:
        with pytest.raises(StoreUnavailable, match="certificate"):
            cipher(server.url_of("refreshd", f"ssl_ca={ca}"))
        assert cipher(server.url_of("refreshd", f"ssl_ca={ca}&ssl_verify=ca"))
    with (
        pytest.raises(StoreUnavailable, match="SSL is required"),
        closing(_Dropping(msgspec.structs.replace(database, ssl_ca=str(ca)))) as session,
    ):
        session.query(b"SELECT 1")


class _Dropping(Session):
    def close(self) -> None:
        self.drop()
