"""A connection to MySQL or MariaDB: made when it is needed, thrown away after any error.

After an error nobody knows what a connection still has on its way, so it is
closed, and what was amid a transaction is rolled back by the server. Only when a
COMMIT was sent and not answered the outcome is not known (`Session.is_unsure`);
everything that is written here is such that it may be done again then.

Statements are text of our own around numbers and literals that need no escapes
(see mysql_rows.py). Several go in one packet, as a round trip costs more than a row.
"""

from __future__ import annotations

import functools
import random
import re
import ssl
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import pymysql
from pymysql.constants import CLIENT

from refreshd.errors import StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.store.mysql_errors import Conflict, Lost, translated

T = TypeVar("T")

CONNECT_TIMEOUT_S = 2.0
# For the next bytes of an answer. A packet holds at most PACKET_BYTES_MAX of statements, 40 ms of work.
ANSWER_TIMEOUT_S = 5.0
# Packets are filled up to this, or to what the server takes. Longer ones cost memory and gain nothing.
PACKET_BYTES_MAX = 4 << 20
# A transaction is tried again after a deadlock, a lock that was waited for in vain or a lost connection,
# if that came so soon, and so often. Never when nothing was heard for the session's whole answer timeout:
# whoever waits would wait as long again.
RETRY_WITHIN_S = 4.0
_RETRY_WITHIN_PART = 0.75
RETRIES_MAX = 8
# After a connect that failed, all is refused at once for so long; twice as long after each one more.
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 2.0
# How long a statement waits for a row that another transaction holds; half the answer timeout where that
# is less (in whole seconds, and at least one): the server's word must come before the silence counts.
LOCK_WAIT_S = 2
# The server ends a transaction whose owner says nothing for so long: a paused engine, or one whose machine
# is gone, must not keep its own fence waiting. MySQL can only end the connection, idle ones too.
IDLE_IN_TRANSACTION_S = 5
IDLE_MYSQL_S = 15
# Of its own: tests that repeat what they do seed the other one.
_RANDOM = random.Random()
_SQL_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_OLDEST = {"MariaDB": (10, 6), "MySQL": (8, 0)}


class Result(NamedTuple):
    """What a statement brought: rows, or how many it changed."""

    rows: Sequence[tuple[Any, ...]]
    affected: int


class Session:
    """A connection that is used by one thread at a time."""

    def __init__(self, url: MysqlUrl, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Does not connect yet. `answer_timeout_s`: how long nothing may be heard amid an answer."""
        self._url = url
        self._answer_timeout_s = answer_timeout_s
        self._connection: pymysql.Connection[Any] | None = None
        self._begins = False
        self._backoff_s = 0.0
        self._not_before = 0.0
        self._last_error = ""
        self._packet_bytes = PACKET_BYTES_MAX
        self.is_unsure = False
        """Whether the last `atomically` sent a COMMIT of which nobody knows what became."""

    @property
    def place(self) -> str:
        """Where the database is: for messages."""
        return self._url.place

    @property
    def database(self) -> str:
        """Its name."""
        return self._url.database

    def packet_bytes(self) -> int:
        """How long the statements of one `query` may be, with a byte between two. Raises: as `query`."""
        with self._throwing_away():
            return self._packet_bytes

    def query(self, *statements: bytes) -> list[Result]:
        """Runs statements, sent in one packet; outside `atomically` each is a transaction.

        Raises: StoreUnavailable, at once while the database is away; StoreFailed, StoreDamaged.
        """
        begins, self._begins = self._begins, False
        script = (b"START TRANSACTION", *statements) if begins else statements
        with self._throwing_away() as connection:
            cursor = connection.cursor()
            # One statement more or less would shift all results.
            cursor.execute(b";".join(script))
            results = [Result(cursor.fetchall(), cursor.rowcount)]
            while cursor.nextset():
                results.append(Result(cursor.fetchall(), cursor.rowcount))
            if len(results) != len(script):
                raise StoreFailed(f"{len(results)} results came of {len(script)} statements")
        return results[1:] if begins else results

    def read(self, query: bytes) -> Sequence[tuple[Any, ...]]:
        """The rows of a query that changes nothing. Raises: as `query`.

        Asked again, once, if the connection is lost: a server ends those that were idle for long.
        """
        try:
            (result,) = self.query(query)
        except Lost:
            (result,) = self.query(query)
        return result.rows

    def atomically(self, work: Callable[[], T]) -> T:
        """Runs `work` in a transaction that is committed when it returns, and undone when it raises.

        It is run again, within bounds, after a deadlock, a lock that was waited for
        in vain or a lost connection; it must be such that it may be run again although
        it was committed before. Raises: what `work` and `query` raise.
        """
        end = time.monotonic() + min(RETRY_WITHIN_S, _RETRY_WITHIN_PART * self._answer_timeout_s)
        self.is_unsure = False
        for tried in range(RETRIES_MAX + 1):
            try:
                return self._attempt(work)
            except (Conflict, Lost):
                if tried == RETRIES_MAX or time.monotonic() > end:
                    raise
            # Two that met must not meet again.
            time.sleep(_RANDOM.uniform(0.0, 0.004 * (1 << tried)))
        raise AssertionError("not reached")

    def _attempt(self, work: Callable[[], T]) -> T:
        self._begins = True
        try:
            result = work()
            if not self._begins:
                self.is_unsure = True
                self.query(b"COMMIT")
                self.is_unsure = False
        except BaseException:
            self.drop()
            raise
        finally:
            self._begins = False
        return result

    @contextmanager
    def _throwing_away(self) -> Iterator[pymysql.Connection[Any]]:
        """The connection; whatever goes wrong within ends it."""
        try:
            if self._connection is None:
                self._connection = self._connected()
            yield self._connection
        except Exception as error:
            self.drop()
            _let_go(error)
            raise translated(error, self.place) from error
        except BaseException:
            self.drop()
            raise

    def _connected(self) -> pymysql.Connection[Any]:
        if time.monotonic() < self._not_before:
            raise StoreUnavailable(self._last_error)
        try:
            connection = _connect(self._url, self._answer_timeout_s)
        except Exception as error:
            _let_go(error)
            unavailable = translated(error, self.place)
            self._backoff_s = min(max(self._backoff_s * 2, BACKOFF_FIRST_S), BACKOFF_MAX_S)
            self._not_before = time.monotonic() + self._backoff_s
            self._last_error = str(unavailable)
            if isinstance(unavailable, Lost):
                # Not Lost, which is tried again at once: the backoff is there to prevent that.
                raise StoreUnavailable(str(unavailable)) from error
            raise unavailable from error
        self._backoff_s = 0.0
        try:
            self._packet_bytes = _set_up(connection, self._url, self._answer_timeout_s)
        except BaseException:
            _close(connection)
            raise
        return connection

    def drop(self) -> None:
        """Throws the connection away; the server undoes what was not committed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)

    def __repr__(self) -> str:
        return f"<Session {self.place} {'open' if self._connection is not None else 'closed'}>"


def _connect(url: MysqlUrl, answer_timeout_s: float) -> pymysql.Connection[Any]:
    tls = _tls(url)
    connection: pymysql.Connection[Any] = pymysql.connect(
        host=url.host or "localhost",
        port=url.port,
        unix_socket=url.socket or None,
        user=url.user,
        # As bytes: a str would be encoded as Latin-1.
        password=url.password.encode(),
        database=url.database,
        charset="utf8mb4",
        autocommit=True,
        client_flag=CLIENT.MULTI_STATEMENTS,
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=answer_timeout_s,
        write_timeout=answer_timeout_s,
        ssl=tls,
        ssl_disabled=tls is None,
        program_name="refreshd",
        defer_connect=True,
    )
    if tls is None and not url.socket:
        # Its type does not tell of these.
        where_offered: Any = connection
        where_offered.ssl, where_offered.ctx = True, _unchecked_tls()
    connection.connect()
    return connection


@functools.cache
def _unchecked_tls() -> ssl.SSLContext:
    """For a server that offers TLS, and that nobody checks.

    PyMySQL would make one for each connection and read the system's certificates into it, of no use
    here: 0.8 MiB, and 33 ms in which the interpreter is held.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _tls(url: MysqlUrl) -> ssl.SSLContext | None:
    if not url.ssl_ca:
        return None
    context = ssl.create_default_context(cafile=url.ssl_ca)
    context.check_hostname = url.ssl_verify == "host"
    if url.ssl_cert:
        context.load_cert_chain(url.ssl_cert, url.ssl_key or None)
    return context


def _set_up(connection: pymysql.Connection[Any], url: MysqlUrl, answer_timeout_s: float) -> int:
    """What every session starts with. Returns how long a packet may be. Raises: StoreUnavailable."""
    cursor = connection.cursor()
    cursor.execute("SELECT VERSION(), @@max_allowed_packet")
    ((version, packet_bytes),) = cursor.fetchall()
    kind = _checked_kind(version, url)
    limit = (
        f"idle_transaction_timeout={IDLE_IN_TRANSACTION_S}"
        if kind == "MariaDB"
        else f"wait_timeout={IDLE_MYSQL_S}"
    )
    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
    lock_wait_s = max(min(LOCK_WAIT_S, int(answer_timeout_s) // 2), 1)
    cursor.execute(f"SET SESSION sql_mode='{_SQL_MODE}', innodb_lock_wait_timeout={lock_wait_s}, {limit}")
    # Some room for what stands around statements.
    return min(int(packet_bytes) - 1024, PACKET_BYTES_MAX)


def _checked_kind(version: str, url: MysqlUrl) -> str:
    """`MariaDB` or `MySQL`. Raises: StoreUnavailable for one that is too old."""
    kind = "MariaDB" if "mariadb" in version.lower() else "MySQL"
    # MariaDB may say 5.5.5- before its version, for old replicas.
    numbers = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)", version)
    found = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if found < _OLDEST[kind]:
        oldest = " or ".join(f"{name} {major}.{minor}" for name, (major, minor) in _OLDEST.items())
        raise StoreUnavailable(
            f"the database at {url.place} is {kind} {version}, wanted {oldest} or later (for JSON_TABLE)"
        )
    return kind


def _let_go(error: BaseException) -> None:
    """Forgets what the frames that an error went through still hold: a connection, its buffers, its TLS.

    Some name the error, too (PyMySQL's `connect`), which makes a ring. A worker looks for rings among young
    objects only (`Process._tidy`), and a connection that waits for an answer is soon none of these: while a
    database stands still each try would stay in memory.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _close(connection: pymysql.Connection[Any]) -> None:
    """Closes without a word to the server: it may be what does not answer."""
    # Not `close`, which says goodbye first, and may wait to be rid of it. The type stubs do not know it.
    abandoned: Any = connection
    abandoned._force_close()
