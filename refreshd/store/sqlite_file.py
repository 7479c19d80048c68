"""One lane's file in SQLite: how it is opened, its schema, what its errors mean."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable

# How long another worker of the same lane may hold it. Batches take milliseconds.
BUSY_TIMEOUT_S = 5.0
# It is asked for in steps of this. SQLite's own waits grow to 100 ms, and who waits long goes
# on missing its turn: of two processes that commit 200 rows every ms, each waited up to
# 550 ms for a commit (p99 80 to 190), and one that commits without a pause kept the other out for
# 3 s. With this p99 is 20 to 24 ms, what it is for one alone; a lock on a file is no better.
BUSY_STEP_S = 0.0005
# Pages of its own that a connection keeps. The kernel keeps the file, too: at 3,000,000 finished tasks with
# random ids a row that is written costs the same with 4, 8, 16 and 64 MiB (25 to 33 µs, whichever), and
# the last is what a worker would grow to, over days.
WRITER_CACHE_KIB = 8_192
READER_CACHE_KIB = 2_048


def translated(error: sqlite3.Error) -> StoreError:
    """What an SQLite error means to the engine. Translated once, here."""
    name = getattr(error, "sqlite_errorname", "") or ""
    text = f"{error} ({name})" if name else str(error)
    if name.startswith(("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreUnavailable(f"the store cannot write: {text}")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreDamaged(f"the store is damaged: {text}; stop the engine and restore the data folder")
    if name in _UNSYNCED:
        return StoreFailed(f"the store could not sync: {text}")
    if name.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_NOMEM")):
        return StoreUnavailable(f"the store cannot write: {text}")
    return StoreFailed(f"the store failed: {text}")


# After these the kernel may have dropped what was written: only a fresh process knows what is there.
_UNSYNCED = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_IOERR_CORRUPTFS"})


def connect(path: Path, cache_kib: int = WRITER_CACHE_KIB) -> sqlite3.Connection:
    """A connection in which every statement is a transaction, unless one was begun. Raises: sqlite3.Error."""
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute(f"PRAGMA cache_size=-{cache_kib}")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def begin(db: sqlite3.Connection) -> None:
    """Begins to write. Waits for another process, up to `BUSY_TIMEOUT_S`. Raises: sqlite3.Error."""
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            if not name.startswith("SQLITE_BUSY") or time.monotonic() >= end:
                raise
        else:
            return
        time.sleep(BUSY_STEP_S)


def from_key(slot: int, sharers: Iterable[int]) -> str:
    """Under which key of `meta` one of the workers that share a lane says its `low`."""
    return f"{_FROM} {slot} of {','.join(map(str, sharers))}"


def stored_low(db: sqlite3.Connection) -> int:
    """All tasks of the lane with smaller serials are finished, or are stragglers.

    That is what every sharer said, of any time.
    What was true when there were other sharers stays true, so the largest counts.
    """
    return max(_lows(db, _OLD, _FROM).values(), default=0)


def stored_old_low(db: sqlite3.Connection) -> int:
    """As `stored_low`, and ids of smaller serials are in the index: what sharers without a journal said."""
    return max(_lows(db, _OLD).values(), default=0)


def is_journaled(db: sqlite3.Connection) -> bool:
    """Whether all that has ended is in the index or in the journal: whether every sharer notes it there.

    A worker says `from`, in place of `low`, once it has all that its predecessor had.
    """
    return any(_lows(db, _FROM).values())


# `low` is what was said before there was a journal: then no id of a smaller serial was waiting for the index.
_OLD, _FROM = "low", "from"


def _lows(db: sqlite3.Connection, *kinds: str) -> dict[str, int]:
    """By group of sharers, as it is in the keys: the smallest of what they said, 0 where one said nothing."""
    groups: dict[str, dict[str, int]] = {}
    for key, value in db.execute("SELECT key, value FROM meta WHERE key LIKE '% % of %'"):
        kind, slot, _, group = key.split(" ")
        if kind in kinds:
            said = groups.setdefault(group, {})
            said[slot] = max(said.get(slot, 0), value)
    return {group: min(said.get(slot, 0) for slot in group.split(",")) for group, said in groups.items()}


def migrate(db: sqlite3.Connection) -> None:
    """Runs the numbered files of schema/sqlite that this file has not seen, each in a transaction."""
    folder = resources.files("refreshd.store") / "schema" / "sqlite"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda f: f.name)
    begin(db)
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(files):
            raise StoreDamaged(
                f"the store has schema {version}, this version knows {len(files)}; run a newer refreshd"
            )
        for number, file in enumerate(files[version:], version + 1):
            for statement in _statements(file.read_text()):
                db.execute(statement)
            db.execute(f"PRAGMA user_version={number}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The statements of a migration, one by one: executescript would commit in between."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
