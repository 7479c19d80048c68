"""What an error of MySQL, MariaDB or the way there means to the engine. Translated once, here."""

from __future__ import annotations

import pymysql
from pymysql.constants import CR, ER

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable

# Numbers that PyMySQL has no name for: of MariaDB and Galera, or younger than its list.
_ENGINE_FULL = 1030
_WSREP_NOT_READY = 1047
_CONNECTION_KILLED = 1927
_STATEMENT_TIMEOUT = 1969
_READ_ONLY_MODE = 1836
_READ_ONLY_TRANSACTION = 1792
_INDEX_CORRUPT = 1712
_TABLE_CORRUPT = 1877
_IDLE_DISCONNECT = 4031
_ROW_CHANGED = 1020

# Somebody else was in the way: the same transaction may well succeed now.
CONFLICTS = frozenset({ER.LOCK_DEADLOCK, ER.LOCK_WAIT_TIMEOUT, _ROW_CHANGED})
_LOST = frozenset({0, CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, _CONNECTION_KILLED, _IDLE_DISCONNECT})
_AWAY = frozenset(
    {
        CR.CR_CONNECTION_ERROR, CR.CR_CONN_HOST_ERROR, CR.CR_UNKNOWN_HOST, CR.CR_SSL_CONNECTION_ERROR,
        ER.CON_COUNT_ERROR, ER.TOO_MANY_USER_CONNECTIONS, ER.USER_LIMIT_REACHED, ER.HOST_IS_BLOCKED,
        ER.ACCESS_DENIED_ERROR, ER.DBACCESS_DENIED_ERROR, ER.BAD_DB_ERROR, ER.HOST_NOT_PRIVILEGED,
        ER.TABLEACCESS_DENIED_ERROR, ER.COLUMNACCESS_DENIED_ERROR, ER.SPECIFIC_ACCESS_DENIED_ERROR,
        ER.HANDSHAKE_ERROR, ER.SERVER_SHUTDOWN, ER.NORMAL_SHUTDOWN, ER.SHUTDOWN_COMPLETE,
        ER.NET_PACKET_TOO_LARGE, ER.NET_READ_ERROR, ER.NET_READ_INTERRUPTED, ER.NET_ERROR_ON_WRITE,
        ER.NET_WRITE_INTERRUPTED, ER.NEW_ABORTING_CONNECTION, ER.ABORTING_CONNECTION,
        ER.RECORD_FILE_FULL, ER.DISK_FULL, ER.OUTOFMEMORY, ER.OUT_OF_RESOURCES, ER.LOCK_TABLE_FULL,
        ER.OPTION_PREVENTS_STATEMENT, ER.QUERY_INTERRUPTED, ER.ERROR_DURING_COMMIT,
        _WSREP_NOT_READY, _STATEMENT_TIMEOUT, _READ_ONLY_MODE, _READ_ONLY_TRANSACTION,
    }
)  # fmt: skip
_DAMAGED = frozenset(
    {
        ER.NOT_KEYFILE, ER.OLD_KEYFILE, ER.CRASHED_ON_USAGE, ER.CRASHED_ON_REPAIR,
        _INDEX_CORRUPT, _TABLE_CORRUPT,
    }
)  # fmt: skip
_OTHER_SCHEMA = frozenset({ER.NO_SUCH_TABLE, ER.BAD_FIELD_ERROR, ER.BAD_TABLE_ERROR})


class Conflict(StoreUnavailable):
    """Another transaction was in the way."""


class Lost(StoreUnavailable):
    """The connection was lost, and with it what became of the last statement."""


def translated(error: Exception, place: str) -> StoreError:
    """What an error means; `place` is where the database is. What is a StoreError stays as it is."""
    if isinstance(error, StoreError):
        return error
    if not isinstance(error, pymysql.MySQLError):
        return _translated_other(error, place)
    number = error.args[0] if error.args and isinstance(error.args[0], int) else -1
    text = f"{error.args[1] if len(error.args) > 1 else error} ({number})"
    if number in CONFLICTS:
        return Conflict(f"the database at {place} cannot write: {text}")
    if number in _LOST:
        return Lost(f"the database at {place} is gone: {text}")
    if number in _AWAY or (number == _ENGINE_FULL and "28" in text):
        return StoreUnavailable(f"the database at {place} cannot be used: {text}")
    if number in _DAMAGED:
        return StoreDamaged(f"the database at {place} is damaged: {text}; stop the engines and restore it")
    if number in _OTHER_SCHEMA:
        return StoreDamaged(
            f"the database at {place} has another schema than its version says: {text}; "
            "stop the engines and restore it"
        )
    return StoreFailed(f"the database at {place} failed: {text}")


def _translated_other(error: Exception, place: str) -> StoreError:
    """PyMySQL lets some errors of the network through as they are, among them those of TLS."""
    if isinstance(error, OSError | EOFError):
        return Lost(f"the database at {place} is gone: {error!r}")
    return StoreFailed(f"the database at {place} answered what cannot be read: {error!r}")
