"""Reading a lane in SQLite beside whoever writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from refreshd.shard import SERIAL_MAX
from refreshd.store import sqlite_index as index
from refreshd.store.base import Parked, ParkedCount, ParkedTask, ProxyRow, ReceiptRow, Stored, StoredResult
from refreshd.store.checks import check_body
from refreshd.store.sqlite_file import READER_CACHE_KIB, connect, stored_low, translated
from refreshd.task import State

# Rows that are looked at in one read of what is unfinished: 4 ms. A longer one would hold
# up the event loop (27 ms at 4,000), and one read for all keeps the log from being used anew: 300,000
# rows that were taken in slowly, beside commits, left 140 MiB of it, in slices 31; the time is the same.
_SLICE_ROWS = 1_000

_PARKED = (
    "grp, layer, priority, mask, deadline_ms, parked.updated_ms, parked.state, parked.failed, parked.marks"
)
_STORED = (
    "SELECT task.serial, task.id, plan.text, body, body_crc,"  # noqa: S608 (constants)
    f" result.state, result.done, result.failed, result.updated_ms, result.marks, {_PARKED}"
    " FROM task LEFT JOIN result USING (serial) LEFT JOIN parked ON parked.serial = task.serial"
    " JOIN plan ON plan.number = task.plan"
)
# A row may outlive its task, where a worker of an older version ended that.
_PARKED_TASK = (
    f"SELECT task.plan, body, body_crc, parked.serial, {_PARKED}"  # noqa: S608 (constants)
    " FROM parked JOIN task USING (serial) LEFT JOIN result ON result.serial = parked.serial"
    " WHERE result.serial IS NULL AND "
)


class SqliteReader:
    """Reads one lane beside its saver. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises: StoreUnavailable, StoreDamaged, StoreFailed."""
        try:
            self._db = connect(path, READER_CACHE_KIB)
            self._db.execute("PRAGMA query_only=1")
        except sqlite3.Error as error:
            raise translated(error) from error

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
        for rows in self.unfinished_slices(_SLICE_ROWS):
            yield from rows

    def unfinished_slices(self, rows: int = _SLICE_ROWS) -> Iterator[list[tuple[int, int, bytes]]]:
        """See `base.Reader`."""
        try:
            low = stored_low(self._db)
            for table, start, end in (("straggler", 0, low), ("task", low, SERIAL_MAX)):
                at: int | None = start
                while at is not None and at < end:
                    some, at = self._unfinished_slice(table, at, end, rows)
                    if some:
                        yield some
        except sqlite3.Error as error:
            raise translated(error) from error

    def handed_out(
        self, first: int, last: int, rows: int = _SLICE_ROWS
    ) -> Iterator[list[tuple[int, int, bytes]]]:
        """See `base.Reader`: nobody else has the files, so nothing is given."""
        return iter(())

    def _unfinished_slice(
        self, table: str, start: int, end: int, rows: int
    ) -> tuple[list[tuple[int, int, bytes]], int | None]:
        """What is unfinished among some rows of a table, and from which serial on to go on, if at all."""
        (last,) = self._db.execute(
            f"SELECT max(serial) FROM (SELECT serial FROM {table}"  # noqa: S608 (constants)
            " WHERE serial >= ? AND serial < ? ORDER BY serial LIMIT ?)",
            (start, end, rows),
        ).fetchone()
        if last is None:
            return [], None
        joined = "task" if table == "task" else f"{table} JOIN task USING (serial)"
        found = self._db.execute(
            f"SELECT task.serial, plan, body, body_crc FROM {joined}"  # noqa: S608 (constants)
            " LEFT JOIN result ON result.serial = task.serial LEFT JOIN parked ON parked.serial = task.serial"
            f" WHERE {table}.serial >= ? AND {table}.serial <= ?"
            " AND result.serial IS NULL AND parked.serial IS NULL"
            f" ORDER BY {table}.serial",
            (start, last),
        ).fetchall()
        for serial, _, body, crc in found:
            check_body(serial, body, crc)
        return [row[:3] for row in found], last + 1

    def parked_counts(self) -> list[ParkedCount]:
        """See `base.Reader`."""
        return [
            ParkedCount(*row)
            for row in self._rows(
                "SELECT some.grp, tasks, some.serial, task.plan, layer, priority, mask"
                " FROM (SELECT grp, count(*) AS tasks, min(serial) AS serial FROM parked GROUP BY grp) some"
                " JOIN parked USING (serial) JOIN task USING (serial) ORDER BY some.grp"
            )
        ]

    def parked_of(self, group: int, after: int, rows: int) -> list[ParkedTask]:
        """See `base.Reader`."""
        return self._parked(
            "grp = ? AND parked.serial > ? ORDER BY parked.serial LIMIT ?", (group, after, rows)
        )

    def parked_due(self, now_ms: int, rows: int) -> list[ParkedTask]:
        """See `base.Reader`."""
        return self._parked("deadline_ms <= ? ORDER BY deadline_ms LIMIT ?", (now_ms, rows))

    def _parked(self, where: str, values: Sequence[int]) -> list[ParkedTask]:
        tasks = []
        for plan, body, crc, serial, *rest in self._rows(_PARKED_TASK + where, values):
            check_body(serial, body, crc)
            tasks.append(ParkedTask(plan, body, Parked(serial, *rest)))
        return tasks

    def find(self, task_id: bytes, crc: int) -> Stored | None:
        """See `base.Reader`."""
        try:
            found = index.find(self._db, task_id, crc)
        except sqlite3.Error as error:
            raise translated(error) from error
        stored = self.serials(found) if found else []
        return stored[0] if stored else None

    def serials(self, serials: list[int]) -> list[Stored]:
        """See `base.Reader`."""
        marks = ",".join("?" * len(serials))
        return self._stored(f"{_STORED} WHERE task.serial IN ({marks}) ORDER BY task.serial DESC", serials)

    def receipts(self, serial: int, after: str, rows: int) -> list[ReceiptRow]:
        """See `base.Reader`."""
        found = self._rows(
            "SELECT serial, proxy, body FROM receipt WHERE serial = ? AND proxy > ? ORDER BY proxy LIMIT ?",
            (serial, after, rows),
        )
        return [ReceiptRow(*row) for row in found]

    def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """See `base.Reader`."""
        if unfinished:
            return self._unfinished_page(before, limit)
        where = "task.serial < ?"
        values: list[int] = [before]
        if state is not None:
            # Written out where it is not the common one, so that the partial index serves.
            where += " AND result.state = ?"
            where += "" if state is State.COMPLETE else " AND result.state <> 2"
            values.append(int(state))
        order = "result.serial" if state not in (None, State.COMPLETE) else "task.serial"
        return self._stored(f"{_STORED} WHERE {where} ORDER BY {order} DESC LIMIT ?", [*values, limit])

    def _unfinished_page(self, before: int, limit: int) -> list[Stored]:
        """From the newest down to `low`, and below it only the stragglers and what is parked."""
        low = stored_low(self._db)
        order = "ORDER BY task.serial DESC LIMIT ?"
        stored = self._stored(
            f"{_STORED} WHERE task.serial < ? AND task.serial >= ? AND result.serial IS NULL {order}",
            [before, low, limit],
        )
        if len(stored) < limit:
            older: set[Stored] = set()
            for join, key in (
                ("JOIN straggler ON straggler.serial = task.serial", "straggler.serial"),
                ("", "parked.serial"),
            ):
                older.update(
                    self._stored(
                        f"{_STORED} {join} WHERE {key} < ? AND result.serial IS NULL"
                        f" ORDER BY {key} DESC LIMIT ?",
                        [min(before, low), limit - len(stored)],
                    )
                )
            stored += sorted(older, reverse=True)[: limit - len(stored)]
        return stored

    def _stored(self, query: str, values: Sequence[int]) -> list[Stored]:
        stored = []
        for serial, task_id, plan, body, crc, state, *rest in self._rows(query, values):
            check_body(serial, body, crc)
            result = parked = None
            if state is not None:
                done, failed, updated_ms, marks = rest[:4]
                result = StoredResult(State(state), done, failed, updated_ms, marks or b"")
            elif rest[4] is not None:
                parked = Parked(serial, *rest[4:])
            stored.append(Stored(serial, task_id, plan, body, result, parked=parked))
        return stored

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise translated(error) from error

    def close(self) -> None:
        """See `base.Reader`."""
        self._db.close()
