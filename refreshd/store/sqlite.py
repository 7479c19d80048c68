"""The store in SQLite: one file a lane, WAL, synced at every commit.

A commit's rows go in as few statements as possible: each is one call that runs
without the interpreter's lock, so the event loop is not held up while the saver
works (executemany takes the lock once a row).

Assumptions: fdatasync means what it says; one host. A sync that fails is never
tried again, as the kernel may have dropped the pages: the process ends, and
what SQLite then finds in the log is the truth.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable
from refreshd.shard import first_serial
from refreshd.store.base import Batch, ProxyRow, Stored, StoredResult, TaskRow
from refreshd.store.ids import PendingIds
from refreshd.task import State

# Rows are inserted in statements of these sizes, largest first; each is compiled
# once. Beyond 256 nothing is gained (2.2 µs a row at 512, 2.3 at 256).
_CHUNKS = (256, 64, 16, 4, 1)
# How long another worker of the same lane may hold it. Batches take milliseconds.
BUSY_TIMEOUT_S = 5.0
# The log is copied into the file when it is this long. Longer: fewer copies of hot
# pages (10 µs a row at 8,000 pages, 14 at 1,000, with random ids) but a longer start.
CHECKPOINT_PAGES = 8_000
# A quarter of this is what a lane's hot pages take at a million tasks.
CACHE_KIB = 65_536
# Finished tasks that are dropped at a time once they are older than the retention.
DROP_ROWS = 1024
# The index of ids is swept in this many pieces, one each time something is dropped.
_SWEEPS = 256
# A task that is unfinished this long after it was accepted is noted as a straggler.
STRAGGLE_MS = 600_000
# Tasks that are looked through for stragglers at a time: about 5 ms.
_STRAGGLE_ROWS = 4_096
# Results whose ids are looked after at a time when the index is brought up to date at start.
_INDEX_ROWS = 32_768


def _translated(error: sqlite3.Error) -> StoreError:
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


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


class SqliteLane:
    """Writes one lane. Used by one thread at a time."""

    def __init__(
        self,
        path: Path,
        retention_s: float,
        now_ms: Callable[[], int] | None = None,
        *,
        slot: int = 0,
        sharers: Sequence[int] = (0,),
    ) -> None:
        """Opens the file and brings its schema up to date; `slot` is one of the `sharers` that write it.

        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        self._low_key = _low_key(slot, sharers)
        self._retention_ms = int(retention_s * 1000)
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._plans_kept: set[int] = set()
        self._pending = PendingIds()
        self._low = 0
        self._drop_from = 0
        self._sweeps_left = 0
        self._sweep_at = 0
        try:
            self._db = _connect(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            _migrate(self._db)
            self._any_finished = self._db.execute("SELECT 1 FROM finished LIMIT 1").fetchone() is not None
            self._low = _low(self._db)
        except sqlite3.Error as error:
            raise _translated(error) from error

    def commit(self, batch: Batch) -> dict[bytes, int]:
        """See `base.Lane`."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            known = self._known(batch.tasks)
            tasks = [row for row in batch.tasks if row[1] not in known] if known else batch.tasks
            self._write(batch, tasks)
            due = self._pending.add(batch.finished)
            self._insert("INSERT OR REPLACE INTO finished VALUES", due)
            if batch.low:
                self._write_low(batch.low)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._pending.undo()
            self._roll_back()
            raise _translated(error) from error
        self._pending.settle()
        self._plans_kept.update(batch.plans)
        self._any_finished = self._any_finished or bool(due)
        return known

    def _write(self, batch: Batch, tasks: Sequence[TaskRow]) -> None:
        plans = [item for item in batch.plans.items() if item[0] not in self._plans_kept]
        self._insert("INSERT OR IGNORE INTO plan VALUES", plans)
        self._insert("INSERT INTO task VALUES", [(*row, crc32(row[3])) for row in tasks])
        self._insert("INSERT OR REPLACE INTO result VALUES", batch.results)
        self._insert("INSERT OR REPLACE INTO proxy VALUES", batch.proxies)
        for name in batch.forgotten:
            self._db.execute("DELETE FROM proxy WHERE name=?", (name,))

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts rows in as few statements as the chunk sizes allow."""
        at, left = 0, len(rows)
        for size in _CHUNKS:
            while left >= size:
                values: list[Any] = []
                for row in rows[at : at + size]:
                    values += row
                one = f"({','.join('?' * len(rows[at]))})"
                self._db.execute(f"{statement} {','.join([one] * size)}", values)
                at += size
                left -= size

    def _known(self, tasks: Sequence[TaskRow]) -> dict[bytes, int]:
        """Those of the tasks' ids that belong to finished tasks, with their serials."""
        if not tasks or not (self._any_finished or self._pending):
            return {}
        known = {row[1]: serial for row in tasks if (serial := self._pending.get(row[1])) is not None}
        wanted = {row[1]: crc32(row[1]) for row in tasks}
        crcs = list(wanted.values())
        for at in range(0, len(crcs), _CHUNKS[0]):
            some = crcs[at : at + _CHUNKS[0]]
            # Filled up to one size, so that one compiled statement serves.
            some += some[-1:] * (_CHUNKS[0] - len(some))
            marks = ",".join("?" * len(some))
            # Joined: an id may outlive its task for a while, see _sweep_ids.
            query = (
                f"SELECT finished.id, serial FROM finished JOIN task USING (serial) WHERE crc IN ({marks})"  # noqa: S608 (marks)
            )
            for task_id, serial in self._db.execute(query, some):
                if task_id in wanted:
                    known[task_id] = serial
        return known

    def _write_low(self, low: int) -> None:
        low = min(low, self._pending.smallest_serial(low))
        if low > self._low:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (self._low_key, low))
            self._low = low

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreFailed(f"the store could not roll back: {error}") from error

    def index_finished(self) -> None:
        """Brings `finished` up to date after a crash.

        Looked at are the results at or above `low`, and those of stragglers, which then are none.
        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        try:
            self._index(
                "SELECT task.id, serial FROM straggler JOIN result USING (serial) JOIN task USING (serial)"
                " WHERE serial >= ? ORDER BY serial LIMIT ?",
                0,
            )
            self._db.execute("DELETE FROM straggler WHERE serial IN (SELECT serial FROM result)")
            self._index(
                "SELECT task.id, serial FROM result JOIN task USING (serial)"
                " WHERE serial >= ? ORDER BY serial LIMIT ?",
                _low(self._db),
            )
        except sqlite3.Error as error:
            self._roll_back()
            raise _translated(error) from error

    def _index(self, query: str, at: int) -> None:
        """Writes the ids that a query finds, from a serial on, a bounded number at a time."""
        while rows := self._db.execute(query, (at, _INDEX_ROWS)).fetchall():
            entries = sorted((crc32(task_id), task_id, serial) for task_id, serial in rows)
            self._db.execute("BEGIN IMMEDIATE")
            self._insert("INSERT OR REPLACE INTO finished VALUES", entries)
            self._db.execute("COMMIT")
            self._any_finished = True
            at = rows[-1][1] + 1

    def finished_serial(self, task_id: bytes) -> int | None:
        """See `base.Lane`."""
        return self._pending.get(task_id)

    def idle(self) -> bool:
        """Drops a few tasks that are past their retention, notes stragglers. See `base.Lane`."""
        try:
            dropped = self._drop_some()
            return self._note_stragglers() or dropped
        except sqlite3.Error as error:
            self._pending.undo()
            self._roll_back()
            raise _translated(error) from error

    def _drop_some(self) -> bool:
        before_ms = self._now_ms() - self._retention_ms
        self._db.execute("BEGIN IMMEDIATE")
        rows = self._db.execute(
            "SELECT serial FROM result WHERE serial >= ? AND serial < ? AND updated_ms < ?"
            " ORDER BY serial LIMIT ?",
            (self._drop_from, first_serial(before_ms), before_ms, DROP_ROWS),
        ).fetchall()
        serials = [row[0] for row in rows]
        for table in ("task", "result", "straggler"):
            for at in range(0, len(serials), _CHUNKS[0]):
                some = serials[at : at + _CHUNKS[0]]
                marks = ",".join("?" * len(some))
                self._db.execute(f"DELETE FROM {table} WHERE serial IN ({marks})", some)  # noqa: S608 (marks)
        # Once round the index after the last task was dropped, then it rests.
        self._sweeps_left = _SWEEPS if serials else max(self._sweeps_left - 1, 0)
        if self._sweeps_left:
            self._sweep_ids(before_ms)
        self._db.execute("COMMIT")
        self._pending.drop(set(serials))
        # Older results that are still wanted are not walked past again and again.
        self._drop_from = serials[-1] if serials else 0
        return bool(serials or self._sweeps_left)

    def _sweep_ids(self, before_ms: int) -> None:
        """Drops the ids of dropped tasks from one stretch of the index, going round it piece by piece.

        Ids are dropped stretch by stretch, not task by task, as neighbours share
        pages. Until its turn comes an id may outlive its task; `_known` sees that.
        """
        width = (1 << 32) // _SWEEPS
        start = self._sweep_at * width
        self._sweep_at = (self._sweep_at + 1) % _SWEEPS
        self._db.execute(
            "DELETE FROM finished WHERE crc >= ? AND crc < ? AND serial < ?"
            " AND NOT EXISTS (SELECT 1 FROM task WHERE task.serial = finished.serial)",
            (start, start + width, first_serial(before_ms)),
        )

    def _note_stragglers(self) -> bool:
        """Raises `low` past what was accepted long ago, piece by piece. Returns whether more is left."""
        limit = first_serial(self._now_ms() - STRAGGLE_MS)
        low = self._low
        if low >= limit:
            return False
        self._db.execute("BEGIN IMMEDIATE")
        (last,) = self._db.execute(
            "SELECT max(serial) FROM"
            " (SELECT serial FROM task WHERE serial >= ? AND serial < ? ORDER BY serial LIMIT ?)",
            (low, limit, _STRAGGLE_ROWS),
        ).fetchone()
        up_to = limit if last is None else last + 1
        self._db.execute(
            "INSERT OR IGNORE INTO straggler SELECT task.serial FROM task LEFT JOIN result USING (serial)"
            " WHERE task.serial >= ? AND task.serial < ? AND result.serial IS NULL",
            (low, up_to),
        )
        # An id that waits to be indexed would be missed below `low`: those go first.
        due = self._pending.take_older(up_to, DROP_ROWS)
        self._insert("INSERT OR REPLACE INTO finished VALUES", due)
        more = bool(due)
        if not more:
            self._write_low(up_to)
        self._db.execute("COMMIT")
        self._pending.settle()
        self._any_finished = self._any_finished or more
        return more or up_to < limit

    def close(self) -> None:
        """Writes what is left of the ids and empties the log, for a quick start."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._insert("INSERT OR REPLACE INTO finished VALUES", self._pending.all())
            self._db.execute("COMMIT")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # Nothing is lost: the next start does this work (index_finished).
            self._roll_back()
        finally:
            self._db.close()


def _low_key(slot: int, sharers: Sequence[int]) -> str:
    return f"low {slot} of {','.join(map(str, sharers))}"


def _low(db: sqlite3.Connection) -> int:
    """All tasks of the lane with smaller serials are finished: what every sharer said, of any time.

    What was true when there were other sharers stays true, so the largest counts.
    """
    said = dict(db.execute("SELECT key, value FROM meta WHERE key LIKE 'low %'").fetchall())
    groups = {key.partition(" of ")[2] for key in said}
    lows = []
    for group in groups:
        slots = [int(slot) for slot in group.split(",")]
        lows.append(min(said.get(_low_key(slot, slots), 0) for slot in slots))
    return max(lows, default=0)


def _migrate(db: sqlite3.Connection) -> None:
    """Runs the numbered files of schema/sqlite that this file has not seen, each in a transaction."""
    folder = resources.files("refreshd.store") / "schema" / "sqlite"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda f: f.name)
    db.execute("BEGIN IMMEDIATE")
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


_STORED = (
    "SELECT task.serial, task.id, plan.text, body, body_crc, state, done, failed, updated_ms, marks"
    " FROM task LEFT JOIN result USING (serial) JOIN plan ON plan.number = task.plan"
)


def _check_body(serial: int, body: bytes, crc: int) -> None:
    """Raises: StoreDamaged for a request line that is not what was written."""
    if crc32(body) != crc:
        raise StoreDamaged(
            f"the store is damaged: the request line of task {serial} is not what was written; "
            "stop the engine and restore the data folder"
        )


class SqliteReader:
    """Reads one lane beside its saver. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: StoreUnavailable, StoreDamaged, StoreFailed."""
        try:
            self._db = _connect(path)
            self._db.execute("PRAGMA query_only=1")
        except sqlite3.Error as error:
            raise _translated(error) from error

    def proxies(self) -> list[ProxyRow]:
        """See `base.Reader`."""
        return [ProxyRow(*row) for row in self._rows("SELECT name, grp, layer FROM proxy ORDER BY name")]

    def plans(self) -> dict[int, str]:
        """See `base.Reader`."""
        return dict(self._rows("SELECT number, text FROM plan"))

    def last_serial(self) -> int:
        """See `base.Reader`."""
        # `low` too: it may be later than any task, and a task must not come to lie below it.
        rows = self._rows("SELECT max(serial) FROM task UNION SELECT max(value) FROM meta")
        return max(int(row[0] or 0) for row in rows)

    def unfinished(self) -> Iterator[tuple[int, int, bytes]]:
        """See `base.Reader`."""
        try:
            for source, compare in (("straggler JOIN task USING (serial)", "<"), ("task", ">=")):
                cursor = self._db.execute(
                    f"SELECT task.serial, plan, body, body_crc FROM {source}"  # noqa: S608 (constants)
                    " LEFT JOIN result ON result.serial = task.serial"
                    f" WHERE task.serial {compare} ? AND result.serial IS NULL ORDER BY task.serial",
                    (_low(self._db),),
                )
                cursor.arraysize = 1000
                while rows := cursor.fetchmany():
                    for serial, plan, body, crc in rows:
                        _check_body(serial, body, crc)
                        yield serial, plan, body
        except sqlite3.Error as error:
            raise _translated(error) from error

    def find(self, task_id: bytes, crc: int) -> Stored | None:
        """See `base.Reader`."""
        rows = self._rows("SELECT serial FROM finished WHERE crc=? AND id=?", (crc, task_id))
        stored = self.serials([rows[0][0]]) if rows else []
        return stored[0] if stored else None

    def serials(self, serials: list[int]) -> list[Stored]:
        """See `base.Reader`."""
        marks = ",".join("?" * len(serials))
        return self._stored(f"{_STORED} WHERE task.serial IN ({marks}) ORDER BY task.serial DESC", serials)

    def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """See `base.Reader`."""
        if unfinished:
            return self._unfinished_page(before, limit)
        where = "task.serial < ?"
        values: list[int] = [before]
        if state is not None:
            # Written out where it is not the common one, so that the partial index serves.
            where += " AND state = ?" if state is State.COMPLETE else " AND state = ? AND state <> 2"
            values.append(int(state))
        order = "result.serial" if state not in (None, State.COMPLETE) else "task.serial"
        return self._stored(f"{_STORED} WHERE {where} ORDER BY {order} DESC LIMIT ?", [*values, limit])

    def _unfinished_page(self, before: int, limit: int) -> list[Stored]:
        """From the newest down to `low`, and below it only the stragglers."""
        low = _low(self._db)
        order = "ORDER BY task.serial DESC LIMIT ?"
        stored = self._stored(
            f"{_STORED} WHERE task.serial < ? AND task.serial >= ? AND result.serial IS NULL {order}",
            [before, low, limit],
        )
        if len(stored) < limit:
            stored += self._stored(
                f"{_STORED} JOIN straggler ON straggler.serial = task.serial"
                f" WHERE task.serial < ? AND result.serial IS NULL {order}",
                [min(before, low), limit - len(stored)],
            )
        return stored

    def _stored(self, query: str, values: Sequence[int]) -> list[Stored]:
        stored = []
        for serial, task_id, plan, body, crc, state, *rest in self._rows(query, values):
            _check_body(serial, body, crc)
            result = None
            if state is not None:
                done, failed, updated_ms, marks = rest
                result = StoredResult(State(state), done, failed, updated_ms, marks or b"")
            stored.append(Stored(serial, task_id, plan, body, result))
        return stored

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise _translated(error) from error

    def close(self) -> None:
        """See `base.Reader`."""
        self._db.close()
