"""The schema in MySQL or MariaDB: brought up to date by whichever engine comes first."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from zlib import crc32

from refreshd.errors import StoreDamaged, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_rows import hexed

# How long a statement may take that changes a large table, and how long to wait for an engine that is at it.
STATEMENT_TIMEOUT_S = 3600.0
LOCK_TIMEOUT_S = 600
_MADE = (
    b"SELECT count(*) FROM information_schema.tables"
    b" WHERE table_schema = DATABASE() AND table_name = 'schema_version'"
)
_MAKE = (
    b"CREATE TABLE IF NOT EXISTS schema_version (number INT UNSIGNED NOT NULL PRIMARY KEY,"
    b" at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB"
)
_VERSION = b"SELECT coalesce(max(number), 0) FROM schema_version"


def migrate(url: MysqlUrl) -> None:
    """Runs the numbered files of schema/mysql that this database has not seen, one process at a time.

    Needs no rights but to read where there is nothing to do. DDL commits as it runs:
    a statement may find its work done by a process that was killed, and all are
    written for that. In Galera the lock holds on one node only; there it is Galera
    that puts such statements in order.
    Raises: StoreDamaged when the database is of a newer version; StoreUnavailable, StoreFailed.
    """
    folder = resources.files("refreshd.store") / "schema" / "mysql"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda f: f.name)
    session = Session(url, answer_timeout_s=STATEMENT_TIMEOUT_S)
    try:
        if _version(session, len(files)) < len(files):
            _lock(session)
            for number in range(_version(session, len(files)), len(files)):
                _run(session, number + 1, files[number].read_text())
    finally:
        # The lock goes with it.
        session.drop()


def _run(session: Session, number: int, script: str) -> None:
    session.query(_MAKE)
    for statement in statements(script):
        session.query(statement.encode())
    session.query(b"INSERT IGNORE INTO schema_version (number) VALUES (%d)" % number)


def _lock(session: Session) -> None:
    # Locks have names of up to 64 characters, and all databases of a server share them.
    name = hexed(f"refreshd schema {crc32(session.database.encode())}".encode())
    (result,) = session.query(b"SELECT GET_LOCK(%b, %d)" % (name, LOCK_TIMEOUT_S))
    if result.rows[0][0] != 1:
        raise StoreUnavailable(
            f"another engine has been changing the schema at {session.place} for {LOCK_TIMEOUT_S} s"
        )


def _version(session: Session, known: int) -> int:
    (made,) = session.query(_MADE)
    if not made.rows[0][0]:
        return 0
    (result,) = session.query(_VERSION)
    version = int(result.rows[0][0])
    if version > known:
        raise StoreDamaged(
            f"the database at {session.place} has schema {version}, this version knows {known}; "
            "run a newer refreshd"
        )
    return version


def statements(script: str) -> Iterator[str]:
    """The statements of a migration: each ends at a `;` at the end of a line."""
    statement: list[str] = []
    for line in script.splitlines():
        if line.startswith("--") or not line.strip():
            continue
        statement.append(line)
        if line.endswith(";"):
            yield "\n".join(statement).removesuffix(";")
            statement = []
    if statement:
        raise ValueError(f"a migration ends amid a statement: {statement[0]!r}")
