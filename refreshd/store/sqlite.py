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
from zlib import crc32

from refreshd.errors import StoreFailed
from refreshd.shard import first_serial
from refreshd.store import sqlite_index as index
from refreshd.store import sqlite_journal as journal
from refreshd.store.base import ALL_SHARDS, Batch, IdEntry, TaskRow
from refreshd.store.ids import PendingIds
from refreshd.store.sqlite_file import (
    BUSY_TIMEOUT_S,
    begin,
    connect,
    from_key,
    is_journaled,
    migrate,
    stored_low,
    stored_old_low,
    translated,
)
from refreshd.store.sqlite_reader import SqliteReader
from refreshd.store.sqlite_rows import delete, filled, insert
from wire import SHARDS

__all__ = ["SqliteLane", "SqliteReader"]

# The log is copied into the file when it is this long. Longer: fewer copies of hot
# pages (10 µs a row at 8,000 pages, 14 at 1,000, with random ids) but a longer start.
CHECKPOINT_PAGES = 8_000
# Finished tasks that are dropped at a time once they are older than the retention.
DROP_ROWS = 1024
# The index of ids is swept in this many pieces, one each time something is dropped.
_SWEEPS = 256
# A task that is unfinished this long after it was accepted is noted as a straggler.
# A start looks through what came later: 0.3 µs a row, 0.2 s at 20,000 tasks/s; a straggler is 4 µs.
STRAGGLE_MS = 30_000
# Tasks that are looked through for stragglers at a time: 2 ms, and 4 where all are stragglers.
_STRAGGLE_ROWS = 1_024
# Ids that are looked for at a time: at a start, and in a worker that serves (20 ms on busy
# cores where they are written into the index; 270 for as many as at a start).
_INDEX_ROWS = 32_768
_INDEX_ROWS_LIVE = 1_024
# Ids that upkeep writes into the index at a time, of what a process left behind.
_LEFT_ROWS = 256
_SHARD_MASK = SHARDS - 1


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
        self._sharers = tuple(sharers)
        self._writer = journal.new_writer()
        self.set_retention(retention_s)
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self._plans_kept: set[int] = set()
        self._pending = PendingIds()
        self._low = 0
        self._drop_from = 0
        self._sweeps_left = 0
        self._sweep_at = 0
        self._finding: tuple[frozenset[int], Iterator[None]] | None = None
        self._recent = 0
        """About how many entries the upper level of the index has, once that was counted."""
        self._is_recent_counted = False
        self._merge_at: int | None = None
        self._trimmed = 0
        self._unheld: list[int] = []
        """Given by a process that may not have noted them in the journal."""
        self._swept_stragglers: int | None = 0
        self._is_journal_clear = False
        """Whether nothing can have been left behind in the journal since it was last looked through."""
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
            self._journaled = is_journaled(self._db)
        except sqlite3.Error as error:
            raise translated(error) from error

    def set_retention(self, retention_s: float) -> None:
        """See `base.Lane`."""
        # Read once in each piece of upkeep, so that one number replaces the other.
        self._retention_ms = int(retention_s * 1000)

    def commit(self, batch: Batch) -> dict[bytes, int]:
        """See `base.Lane`."""
        self._drain()
        try:
            self._begin()
            known = self._known(batch.tasks)
            tasks = [row for row in batch.tasks if row[1] not in known] if known else batch.tasks
            self._write(batch, tasks)
            self._index(self._pending.add(batch.finished))
            self._note_ended([entry[2] for entry in batch.finished])
            if batch.low:
                self._write_low(batch.low)
            self._end()
        except sqlite3.Error as error:
            self._pending.undo()
            self._roll_back()
            raise translated(error) from error
        self._pending.settle()
        self._plans_kept.update(batch.plans)
        return known

    def _drain(self) -> None:
        given = self._pending.drain()
        if not self._journaled:
            self._unheld += [entry[2] for entry in given]

    def _note_ended(self, serials: Sequence[int]) -> None:
        """Notes in the journal what a commit ends; takes out of it what is in the index by now."""
        pending = self._pending
        journal.append(self._db, self._slot, self._writer, pending.added, serials)
        # Of what was committed: when this transaction fails, it is still true.
        if pending.indexed - self._trimmed >= journal.TRIM_SERIALS:
            journal.trim(self._db, self._writer, pending.indexed)
            self._trimmed = pending.indexed
        if serials and self._journaled:
            (newest,) = self._db.execute("SELECT max(serial) FROM straggler").fetchone()
            if newest is not None:
                delete(self._db, "straggler", [serial for serial in serials if serial <= newest])

    def _write(self, batch: Batch, tasks: Sequence[TaskRow]) -> None:
        plans = [item for item in batch.plans.items() if item[0] not in self._plans_kept]
        insert(self._db, "INSERT OR IGNORE INTO plan VALUES", plans)
        insert(self._db, "INSERT INTO task VALUES", [(*row, crc32(row[3])) for row in tasks])
        insert(self._db, "INSERT OR REPLACE INTO result VALUES", batch.results)
        insert(self._db, "INSERT OR REPLACE INTO parked VALUES", batch.parked)
        if batch.results:
            self._unpark([row[0] for row in batch.results])
        insert(self._db, "INSERT OR REPLACE INTO proxy VALUES", batch.proxies)
        insert(self._db, "INSERT OR REPLACE INTO receipt VALUES", batch.receipts)
        for name in batch.forgotten:
            self._db.execute("DELETE FROM proxy WHERE name=?", (name,))

    def _unpark(self, serials: Sequence[int]) -> None:
        """Takes tasks out that have ended. Where nothing is parked that costs a look."""
        (newest,) = self._db.execute("SELECT max(serial) FROM parked").fetchone()
        if newest is not None:
            delete(self._db, "parked", [serial for serial in serials if serial <= newest])

    def _index(self, entries: Sequence[IdEntry]) -> None:
        """Writes entries into the index of ids."""
        index.add(self._db, entries)
        self._recent += len(entries)

    def _known(self, tasks: Sequence[TaskRow]) -> dict[bytes, int]:
        """Those of the tasks' ids that belong to finished tasks, with their serials."""
        if not tasks:
            return {}
        known = self._known_waiting(tasks)
        if not self._any_finished:
            # Asked each time: another process may have written the first one.
            self._any_finished = index.any_entry(self._db)
            if not self._any_finished:
                return known
        wanted = {row[1]: crc32(row[1]) for row in tasks}
        for task_id, serial in index.known(self._db, list(wanted.values())):
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
        for some in filled(serials):
            marks = ",".join("?" * len(some))
            kept.update(self._db.execute(f"SELECT serial FROM task WHERE serial IN ({marks})", some))  # noqa: S608 (marks)
        gone = {serial for serial in serials if (serial,) not in kept}
        if gone:
            self._pending.drop(gone)
        return {task_id: serial for task_id, serial in known.items() if serial not in gone}

    def _write_low(self, low: int) -> None:
        if low > self._low:
            key = from_key(self._slot, self._sharers)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, low))
            self._low = low

    def _begin(self) -> None:
        begin(self._db)
        journal.append(self._db, self._slot, journal.NOBODY, 0, self._unheld)

    def _end(self) -> None:
        self._db.execute("COMMIT")
        self._unheld = []

    def _roll_back(self) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreFailed(f"the store could not roll back: {error}") from error

    def index_finished(self, shards: frozenset[int] = ALL_SHARDS) -> None:
        """Finds the ids again that an earlier process had not written yet, at once: for a start.

        3,000,000 tasks that ended in the last ten minutes: 39,000 ids, 0.1 s of CPU.
        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        while self.index_some(shards, _INDEX_ROWS):
            pass
        self._drain()

    def index_some(self, shards: frozenset[int] = ALL_SHARDS, rows: int = _INDEX_ROWS_LIVE) -> bool:
        """A piece of finding the ids again that another process had not written yet. See `base.Lane`.

        Begins anew after an error.
        Raises: StoreUnavailable, StoreDamaged, StoreFailed.
        """
        self._drain()
        self._is_journal_clear = False
        if self._finding is None or self._finding[0] != shards:
            self._finding = shards, self._find_pieces(shards, rows)
        try:
            next(self._finding[1])
        except StopIteration:
            self._finding = None
            self._pending.forget_taken()
            return False
        except sqlite3.Error as error:
            self._finding = None
            self._roll_back()
            raise translated(error) from error
        return True

    def _find_pieces(self, shards: frozenset[int], rows: int) -> Iterator[None]:
        """Reads the journal of other processes; what is deleted from it meanwhile is in the index."""
        if not is_journaled(self._db):
            yield from self._index_pieces(rows)
        at, last = 0, journal.last(self._db)
        while some := journal.others(self._db, self._writer, at, last, rows):
            at = some[-1][0]
            found = self._entries([serial for _, serials in some for serial in serials])
            wanted = [entry for entry in found if entry[0] & _SHARD_MASK in shards]
            self._pending.give(entry for entry in wanted if not self._pending.waits(entry))
            yield

    def _entries(self, serials: Sequence[int]) -> list[IdEntry]:
        """What goes into the index of these tasks; nothing of one that was dropped."""
        entries: list[IdEntry] = []
        for some in filled(serials):
            marks = ",".join("?" * len(some))
            for serial, task_id in self._db.execute(
                f"SELECT serial, id FROM task WHERE serial IN ({marks})",  # noqa: S608 (marks)
                some,
            ):
                entries.append((crc32(task_id), task_id, serial))
        return entries

    def _index_pieces(self, rows: int) -> Iterator[None]:
        """Indexes all that has ended since `low`: a process without a journal may have ended it.

        Yields after each transaction. What is indexed is read in it: another worker may drop tasks.
        """
        self._begin()
        low = stored_old_low(self._db)
        last = self._db.execute("SELECT max(serial) FROM result").fetchone()[0] or 0
        self._end()
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
        self._begin()
        seen = self._db.execute(
            "SELECT some.serial, task.id"
            " FROM (SELECT serial FROM straggler WHERE serial >= ? ORDER BY serial LIMIT ?) AS some"
            " LEFT JOIN result USING (serial) LEFT JOIN task ON task.serial = result.serial"
            " ORDER BY some.serial",
            (at, rows),
        ).fetchall()
        ended = [(serial, task_id) for serial, task_id in seen if task_id is not None]
        self._index_ended(ended)
        # Those and no others: what another worker has ended since may be in its memory only.
        delete(self._db, "straggler", [serial for serial, _ in ended])
        self._end()
        return seen[-1][0] + 1 if seen else None

    def _index_results(self, at: int, last: int, rows: int) -> int | None:
        """Looks through some results up to the serial `last`, as above."""
        self._begin()
        seen = self._db.execute(
            "SELECT serial, task.id FROM result JOIN task USING (serial)"
            " WHERE serial >= ? AND serial <= ? ORDER BY serial LIMIT ?",
            (at, last, rows),
        ).fetchall()
        self._index_ended(seen)
        self._end()
        return seen[-1][0] + 1 if seen else None

    def _index_ended(self, ended: Sequence[tuple[int, bytes]]) -> None:
        self._index(sorted((crc32(task_id), task_id, serial) for serial, task_id in ended))

    def take_ids(self, shards: frozenset[int]) -> list[IdEntry]:
        """See `base.Lane`."""
        self._drain()
        serials = [entry[2] for entry in self._pending.of(shards)]
        try:
            if serials:
                self._begin()
                journal.append(self._db, self._slot, journal.NOBODY, 0, serials)
                self._end()
        except sqlite3.Error as error:
            self._roll_back()
            raise translated(error) from error
        self._is_journal_clear = False
        return self._pending.take(shards)

    def give_ids(self, entries: Iterable[IdEntry]) -> None:
        """See `base.Lane`."""
        self._pending.give(entries)

    def share(self, sharers: Sequence[int]) -> None:
        """See `base.Lane`."""
        self._sharers = tuple(sharers)
        self._is_journal_clear = False

    def finished_serial(self, task_id: bytes) -> int | None:
        """See `base.Lane`."""
        return self._pending.get(task_id)

    def idle(self) -> bool:
        """Drops a few tasks that are past their retention, notes stragglers. See `base.Lane`."""
        self._drain()
        try:
            more = [
                self._drop_some(),
                self._note_stragglers(),
                self._clear_journal(),
                self._write_full(),
                self._merge_some(),
            ]
            self._journaled = self._journaled or is_journaled(self._db)
            return any(more)
        except sqlite3.Error as error:
            self._pending.undo()
            self._roll_back()
            raise translated(error) from error

    def _drop_some(self) -> bool:
        before_ms = self._now_ms() - self._retention_ms
        self._begin()
        rows = self._db.execute(
            "SELECT serial FROM result WHERE serial >= ? AND serial < ? AND updated_ms < ?"
            " ORDER BY serial LIMIT ?",
            (self._drop_from, first_serial(before_ms), before_ms, DROP_ROWS),
        ).fetchall()
        serials = [row[0] for row in rows]
        for table in ("task", "result", "straggler", "parked", "receipt"):
            delete(self._db, table, serials)
        # Once round the index after the last task was dropped, then it rests.
        self._sweeps_left = _SWEEPS if serials else max(self._sweeps_left - 1, 0)
        if self._sweeps_left:
            self._sweep_ids(before_ms)
        self._end()
        self._pending.drop(set(serials))
        # Older results that are still wanted are not walked past again and again.
        self._drop_from = serials[-1] if serials else 0
        return bool(serials or self._sweeps_left)

    def _sweep_ids(self, before_ms: int) -> None:
        """Drops the ids of dropped tasks from a piece of the index, going round it piece by piece."""
        width = (1 << 32) // _SWEEPS
        start = self._sweep_at * width
        self._sweep_at = (self._sweep_at + 1) % _SWEEPS
        index.sweep(self._db, start, start + width, first_serial(before_ms))

    def _note_stragglers(self) -> bool:
        """Raises `low` past what was accepted long ago, piece by piece. Returns whether more is left."""
        limit = first_serial(self._now_ms() - STRAGGLE_MS)
        low = self._low
        if low >= limit:
            return False
        self._begin()
        following = self._db.execute(
            "SELECT serial FROM task WHERE serial >= ? AND serial < ? ORDER BY serial LIMIT 1 OFFSET ?",
            (low, limit, _STRAGGLE_ROWS),
        ).fetchone()
        up_to = limit if following is None else following[0]
        self._db.execute(
            "INSERT OR IGNORE INTO straggler SELECT task.serial FROM task LEFT JOIN result USING (serial)"
            " LEFT JOIN parked ON parked.serial = task.serial"
            " WHERE task.serial >= ? AND task.serial < ? AND result.serial IS NULL AND parked.serial IS NULL",
            (low, up_to),
        )
        self._write_low(up_to)
        self._end()
        return up_to < limit

    def _clear_journal(self) -> bool:
        """Writes some of what dead processes left behind into the index. Returns whether any was left."""
        if self._is_journal_clear:
            return self._sweep_stragglers()
        self._begin()
        rows = journal.left_behind(self._db, self._slot, self._writer, self._sharers, _LEFT_ROWS)
        if rows:
            found = self._entries([serial for _, serials in rows for serial in serials])
            self._index(sorted(found))
            journal.delete(self._db, rows)
        self._end()
        if not rows:
            self._is_journal_clear = True
            self._pending.forget_taken()
        return True

    def _sweep_stragglers(self) -> bool:
        """Once in a process: takes out those that ended when a process without a journal had the lane."""
        if not self._journaled or self._swept_stragglers is None:
            return False
        self._swept_stragglers = self._index_stragglers(self._swept_stragglers, _STRAGGLE_ROWS)
        return self._swept_stragglers is not None

    def _write_full(self) -> bool:
        """Writes ids that another process gave, if as many are due. Returns whether any were."""
        due = self._pending.add(())
        if due:
            self._begin()
            self._index(due)
            self._end()
        self._pending.settle()
        return bool(due)

    def _merge_some(self) -> bool:
        """Merges a piece of the index once its upper level is full. Returns whether more is left."""
        if self._merge_at is None:
            self._recent = self._recent if self._is_recent_counted else index.about(self._db)
            self._is_recent_counted = True
            if self._recent < index.RECENT_MAX:
                return False
            self._merge_at = 0
        self._begin()
        merged = index.merge(self._db, self._merge_at)
        self._end()
        self._recent -= merged
        self._merge_at += 1
        if self._merge_at == index.STRETCHES:
            self._merge_at = None
        return self._merge_at is not None

    def close(self, *, handed_over: bool = False) -> None:
        """See `base.Lane`."""
        self._drain()
        try:
            if len(self._pending) or self._pending.added:
                self._begin()
                self._index(self._pending.all())
                journal.trim(self._db, self._writer, self._pending.added)
                self._end()
            if not handed_over:
                self._db.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # Nothing is lost: the next start does this work (index_finished).
            self._roll_back()
        finally:
            self._db.close()
