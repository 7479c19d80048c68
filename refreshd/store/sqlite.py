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
from pathlib import Path
from typing import Any
from zlib import crc32

from refreshd.errors import StoreFailed
from refreshd.shard import first_serial
from refreshd.store.base import Batch, IdEntry, TaskRow
from refreshd.store.ids import PendingIds
from refreshd.store.sqlite_file import (
    BUSY_TIMEOUT_S,
    begin,
    connect,
    low_key,
    migrate,
    stored_low,
    translated,
)
from refreshd.store.sqlite_reader import SqliteReader

__all__ = ["SqliteLane", "SqliteReader"]

# Rows are inserted in statements of these sizes, largest first; each is compiled
# once. Beyond 256 nothing is gained (2.2 µs a row at 512, 2.3 at 256).
_CHUNKS = (256, 64, 16, 4, 1)
# The log is copied into the file when it is this long. Longer: fewer copies of hot
# pages (10 µs a row at 8,000 pages, 14 at 1,000, with random ids) but a longer start.
CHECKPOINT_PAGES = 8_000
# Finished tasks that are dropped at a time once they are older than the retention.
DROP_ROWS = 1024
# The index of ids is swept in this many pieces, one each time something is dropped.
_SWEEPS = 256
# A task that is unfinished this long after it was accepted is noted as a straggler.
STRAGGLE_MS = 600_000
# Tasks that are looked through for stragglers at a time: about 5 ms.
_STRAGGLE_ROWS = 4_096
# Results whose ids are looked after at a time when the index is brought up to date: at
# start, and in a worker that serves (20 ms on busy cores; 270 for as many as at start).
_INDEX_ROWS = 32_768
_INDEX_ROWS_LIVE = 1_024


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
        self._slot = slot
        self._low_key = low_key(slot, sharers)
        self.set_retention(retention_s)
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._plans_kept: set[int] = set()
        self._pending = PendingIds()
        self._low = 0
        self._drop_from = 0
        self._sweeps_left = 0
        self._sweep_at = 0
        self._indexing: Iterator[None] | None = None
        try:
            self._db = connect(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            # From here on `begin` waits.
            self._db.execute("PRAGMA busy_timeout=0")
            migrate(self._db)
            self._any_finished = False
            self._low = stored_low(self._db)
        except sqlite3.Error as error:
            raise translated(error) from error

    def set_retention(self, retention_s: float) -> None:
        """See `base.Lane`."""
        # Read once in each piece of upkeep, so that one number replaces the other.
        self._retention_ms = int(retention_s * 1000)

    def commit(self, batch: Batch) -> dict[bytes, int]:
        """See `base.Lane`."""
        self._pending.drain()
        try:
            begin(self._db)
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
            raise translated(error) from error
        self._pending.settle()
        self._plans_kept.update(batch.plans)
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
        if not tasks:
            return {}
        known = self._known_waiting(tasks)
        if not self._any_finished:
            # Asked each time: another process may have written the first one.
            self._any_finished = self._db.execute("SELECT 1 FROM finished LIMIT 1").fetchone() is not None
            if not self._any_finished:
                return known
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

    def _known_waiting(self, tasks: Sequence[TaskRow]) -> dict[bytes, int]:
        """Those whose ids wait for the index. Another worker of the lane may have dropped their tasks."""
        known = {row[1]: serial for row in tasks if (serial := self._pending.get(row[1])) is not None}
        if not known:
            return known
        serials = list(known.values())
        kept: set[tuple[int]] = set()
        for at in range(0, len(serials), _CHUNKS[0]):
            some = serials[at : at + _CHUNKS[0]]
            marks = ",".join("?" * len(some))
            kept.update(self._db.execute(f"SELECT serial FROM task WHERE serial IN ({marks})", some))  # noqa: S608 (marks)
        gone = {serial for serial in serials if (serial,) not in kept}
        if gone:
            self._pending.drop(gone)
        return {task_id: serial for task_id, serial in known.items() if serial not in gone}

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
        """Brings `finished` up to date after a crash, at once: for a start.

        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        while self.index_some(_INDEX_ROWS):
            pass

    def index_some(self, rows: int = _INDEX_ROWS_LIVE) -> bool:
        """A piece of bringing `finished` up to date after another process has died. See `base.Lane`.

        Each call is a transaction of about 20 ms. When no more is left, all that
        had a result at the first call is in the index.
        Looked at are the results at or above `low`, and those of stragglers, which
        then are none. Begins anew after an error.
        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        self._pending.drain()
        if self._indexing is None:
            self._indexing = self._index_pieces(rows)
        try:
            next(self._indexing)
        except StopIteration:
            self._indexing = None
            self._pending.forget_taken()
            return False
        except sqlite3.Error as error:
            self._indexing = None
            self._roll_back()
            raise translated(error) from error
        return True

    def _index_pieces(self, rows: int) -> Iterator[None]:
        """Yields after each transaction. What is indexed is read in it: another worker may drop tasks."""
        begin(self._db)
        low = stored_low(self._db)
        last = self._db.execute("SELECT max(serial) FROM result").fetchone()[0] or 0
        self._db.execute("COMMIT")
        at = self._index_stragglers(0, rows)
        while at is not None:
            yield
            at = self._index_stragglers(at, rows)
        at = self._index_results(low, last, rows)
        while at is not None:
            yield
            at = self._index_results(at, last, rows)

    def _index_stragglers(self, at: int, rows: int) -> int | None:
        """Looks through some stragglers from a serial on. Returns from where on to go on, if at all."""
        begin(self._db)
        seen = self._db.execute(
            "SELECT some.serial, task.id"
            " FROM (SELECT serial FROM straggler WHERE serial >= ? ORDER BY serial LIMIT ?) AS some"
            " LEFT JOIN result USING (serial) LEFT JOIN task ON task.serial = result.serial"
            " ORDER BY some.serial",
            (at, rows),
        ).fetchall()
        ended = [(serial, task_id) for serial, task_id in seen if task_id is not None]
        self._index(ended)
        # Those and no others: what another worker has ended since may be in its memory only.
        self._delete("straggler", [serial for serial, _ in ended])
        self._db.execute("COMMIT")
        return seen[-1][0] + 1 if seen else None

    def _index_results(self, at: int, last: int, rows: int) -> int | None:
        """Looks through some results up to the serial `last`, as above."""
        begin(self._db)
        seen = self._db.execute(
            "SELECT serial, task.id FROM result JOIN task USING (serial)"
            " WHERE serial >= ? AND serial <= ? ORDER BY serial LIMIT ?",
            (at, last, rows),
        ).fetchall()
        self._index(seen)
        self._db.execute("COMMIT")
        return seen[-1][0] + 1 if seen else None

    def _index(self, ended: Sequence[tuple[int, bytes]]) -> None:
        entries = sorted((crc32(task_id), task_id, serial) for serial, task_id in ended)
        self._insert("INSERT OR REPLACE INTO finished VALUES", entries)

    def _delete(self, table: str, serials: Sequence[int]) -> None:
        for at in range(0, len(serials), _CHUNKS[0]):
            some = serials[at : at + _CHUNKS[0]]
            marks = ",".join("?" * len(some))
            self._db.execute(f"DELETE FROM {table} WHERE serial IN ({marks})", some)  # noqa: S608 (constant, marks)

    def take_ids(self, shards: frozenset[int]) -> list[IdEntry]:
        """See `base.Lane`."""
        self._pending.drain()
        return self._pending.take(shards)

    def give_ids(self, entries: Iterable[IdEntry]) -> None:
        """See `base.Lane`."""
        self._pending.give(entries)

    def share(self, sharers: Sequence[int]) -> None:
        """See `base.Lane`."""
        self._low_key = low_key(self._slot, sharers)

    def finished_serial(self, task_id: bytes) -> int | None:
        """See `base.Lane`."""
        return self._pending.get(task_id)

    def idle(self) -> bool:
        """Drops a few tasks that are past their retention, notes stragglers. See `base.Lane`."""
        self._pending.drain()
        try:
            dropped = self._drop_some()
            noted = self._note_stragglers()
            return self._write_full() or noted or dropped
        except sqlite3.Error as error:
            self._pending.undo()
            self._roll_back()
            raise translated(error) from error

    def _drop_some(self) -> bool:
        before_ms = self._now_ms() - self._retention_ms
        begin(self._db)
        rows = self._db.execute(
            "SELECT serial FROM result WHERE serial >= ? AND serial < ? AND updated_ms < ?"
            " ORDER BY serial LIMIT ?",
            (self._drop_from, first_serial(before_ms), before_ms, DROP_ROWS),
        ).fetchall()
        serials = [row[0] for row in rows]
        for table in ("task", "result", "straggler"):
            self._delete(table, serials)
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
        begin(self._db)
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
        return more or up_to < limit

    def _write_full(self) -> bool:
        """Writes ids that another process gave, if as many are due. Returns whether any were."""
        due = self._pending.add(())
        if due:
            begin(self._db)
            self._insert("INSERT OR REPLACE INTO finished VALUES", due)
            self._db.execute("COMMIT")
        self._pending.settle()
        return bool(due)

    def close(self, *, handed_over: bool = False) -> None:
        """See `base.Lane`."""
        self._pending.drain()
        try:
            if left := self._pending.all():
                begin(self._db)
                self._insert("INSERT OR REPLACE INTO finished VALUES", left)
                self._db.execute("COMMIT")
            if not handed_over:
                self._db.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # Nothing is lost: the next start does this work (index_finished).
            self._roll_back()
        finally:
            self._db.close()
