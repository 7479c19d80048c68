"""Reading the tasks of a lane's shards in MySQL or MariaDB, of all engines, beside whoever writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refreshd.errors import StoreDamaged
from refreshd.mysql_url import MysqlUrl
from refreshd.shard import SERIAL_MAX
from refreshd.store.base import Parked, ParkedCount, ParkedTask, ProxyRow, ReceiptRow, Stored, StoredResult
from refreshd.store.checks import check_body
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_rows import hexed, numbers
from refreshd.task import State

# Rows that are read at a time of what is unfinished: 10 ms, of which the interpreter is held for most.
_SLICE_ROWS = 1_000
_REMEDY = "restore the database"
# Unfinished tasks that are looked at in one query for those that are not parked: 30 ms.
_SCAN_ROWS = 10_000
_PARKED = (
    b"grp, layer, priority, mask, deadline_ms, parked.updated_ms, parked.state, parked.failed, parked.marks"
)
_STORED = (
    b"SELECT task.serial, task.id, plan.text, body, body_crc, task.state, task.done, task.failed,"
    b" task.updated_ms, task.marks, owner, " + _PARKED + b" FROM task %b"
    b" LEFT JOIN plan ON plan.number = task.plan LEFT JOIN parked ON parked.serial = task.serial"
)
_PARKED_TASK = (
    b"SELECT task.plan, body, body_crc, parked.serial, " + _PARKED + b" FROM parked FORCE INDEX (%b)"
    b" STRAIGHT_JOIN task ON task.serial = parked.serial WHERE task.state=0 AND owner=%d%b AND "
)


class MysqlReader:
    """Reads the shards of one lane beside its savers. Used by one thread at a time."""

    def __init__(self, url: MysqlUrl, owner: int, lane: int = 0, lanes: int = 1) -> None:
        """Of the shards with `shard % lanes == lane`; `unfinished` reads what is the engine `owner`'s."""
        self._session = Session(url)
        self._owner = owner
        self._of_lane = b" AND shard %% %d = %d" % (lanes, lane) if lanes > 1 else b""

    def proxies(self) -> list[ProxyRow]:
        """See `base.Reader`."""
        return [ProxyRow(*row) for row in self._rows(b"SELECT name, grp, layer FROM proxy ORDER BY name")]

    def plans(self) -> dict[int, str]:
        """See `base.Reader`."""
        return dict(self._rows(b"SELECT number, text FROM plan"))

    def last_serial(self) -> int:
        """See `base.Reader`: of all engines."""
        ((last,),) = self._rows(b"SELECT coalesce(max(serial), 0) FROM task")
        return int(last)

    def unfinished(self) -> Iterator[tuple[int, int, bytes]]:
        """See `base.Reader`."""
        for rows in self.unfinished_slices(_SLICE_ROWS):
            yield from rows

    def unfinished_slices(self, rows: int = _SLICE_ROWS) -> Iterator[list[tuple[int, int, bytes]]]:
        """See `base.Reader`: the tasks of this engine."""
        return self.handed_out(0, SERIAL_MAX, rows)

    def handed_out(
        self, first: int, last: int, rows: int = _SLICE_ROWS
    ) -> Iterator[list[tuple[int, int, bytes]]]:
        """As `unfinished_slices`, but for serials from `first` to `last` only: those of a hand-out."""
        at, seen_to = first, first - 1
        while True:
            if at > seen_to:
                # In pieces: a million that are parked must not be one long query.
                ((end,),) = self._rows(
                    b"SELECT max(serial) FROM (SELECT serial FROM task FORCE INDEX (by_state)"
                    b" WHERE state=0 AND owner=%d AND serial BETWEEN %d AND %d"
                    b" ORDER BY serial LIMIT %d) AS some" % (self._owner, at, last, _SCAN_ROWS)
                )
                if end is None:
                    return
                seen_to = end
            found = self._rows(
                b"SELECT task.serial, plan, body, body_crc FROM task FORCE INDEX (by_state)"
                b" LEFT JOIN parked ON parked.serial = task.serial"
                b" WHERE task.state=0 AND owner=%d AND task.serial BETWEEN %d AND %d%b"
                b" AND parked.serial IS NULL ORDER BY task.serial LIMIT %d"
                % (self._owner, at, seen_to, self._of_lane, rows)
            )
            for serial, _, body, crc in found:
                check_body(serial, body, crc, _REMEDY)
            if found:
                yield [row[:3] for row in found]
            at = found[-1][0] + 1 if len(found) == rows else seen_to + 1

    def parked_counts(self) -> list[ParkedCount]:
        """See `base.Reader`: of all engines and lanes."""
        return [
            ParkedCount(*row)
            for row in self._rows(
                b"SELECT some.grp, tasks, some.serial, task.plan, layer, priority, mask FROM"
                b" (SELECT grp, count(*) AS tasks, min(serial) AS serial FROM parked GROUP BY grp) AS some"
                b" JOIN parked ON parked.serial = some.serial JOIN task ON task.serial = some.serial"
                b" ORDER BY some.grp"
            )
        ]

    def parked_of(self, group: int, after: int, rows: int) -> list[ParkedTask]:
        """See `base.Reader`."""
        return self._parked(
            b"of_group",
            b"grp=%d AND parked.serial > %d ORDER BY parked.serial LIMIT %d" % (group, after, rows),
        )

    def parked_due(self, now_ms: int, rows: int) -> list[ParkedTask]:
        """See `base.Reader`."""
        return self._parked(
            b"by_deadline", b"deadline_ms <= %d ORDER BY deadline_ms LIMIT %d" % (now_ms, rows)
        )

    def _parked(self, index: bytes, where: bytes) -> list[ParkedTask]:
        tasks = []
        query = _PARKED_TASK % (index, self._owner, self._of_lane) + where
        for plan, body, crc, serial, *rest in self._rows(query):
            check_body(serial, body, crc, _REMEDY)
            tasks.append(ParkedTask(plan, body, Parked(serial, *rest)))
        return tasks

    def find(self, task_id: bytes, crc: int) -> Stored | None:
        """See `base.Reader`: also one that is unfinished, and of any engine and lane."""
        stored = self._stored(b"", b"id=%b" % hexed(task_id))
        return stored[0] if stored else None

    def serials(self, serials: list[int]) -> list[Stored]:
        """See `base.Reader`: of any engine and lane."""
        if not serials:
            return []
        return self._stored(b"", b"task.serial IN (%b) ORDER BY task.serial DESC" % numbers(serials))

    def receipts(self, serial: int, after: str, rows: int) -> list[ReceiptRow]:
        """See `base.Reader`: of any engine's tasks."""
        found = self._rows(
            b"SELECT serial, proxy, body FROM receipt WHERE serial=%d AND proxy > %b ORDER BY proxy LIMIT %d"
            % (serial, hexed(after.encode()), rows)
        )
        return [ReceiptRow(*row) for row in found]

    def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """See `base.Reader`: tasks of all engines."""
        older = b"task.serial < %d%b ORDER BY task.serial DESC LIMIT %d" % (before, self._of_lane, limit)
        if unfinished:
            return self._unfinished_page(older, limit)
        if state is None:
            return self._stored(b"FORCE INDEX (PRIMARY)", older)
        return self._stored(b"FORCE INDEX (by_state)", b"task.state=%d AND owner=0 AND %b" % (state, older))

    def _unfinished_page(self, older: bytes, limit: int) -> list[Stored]:
        """The newest of each engine first: the index has them by engine, and there may be millions."""
        owners = self._rows(b"SELECT number FROM engine")
        if not owners:
            return []
        some = [
            b"(SELECT serial FROM task FORCE INDEX (by_state) WHERE state=0 AND owner=%d AND %b)"
            % (*owner, older)
            for owner in owners
        ]
        found = self._rows(b" UNION ALL ".join(some) + b" ORDER BY serial DESC LIMIT %d" % limit)
        # One may have ended in between.
        return [stored for stored in self.serials([row[0] for row in found]) if stored.result is None]

    def _stored(self, index: bytes, where: bytes) -> list[Stored]:
        stored = []
        for serial, task_id, plan, body, crc, state, *rest in self._rows(
            _STORED % index + b" WHERE " + where
        ):
            check_body(serial, body, crc, _REMEDY)
            if plan is None:
                raise StoreDamaged(
                    f"the store is damaged: task {serial} has no plan; stop the engine and {_REMEDY}"
                )
            done, failed, updated_ms, marks, owner, *of_parked = rest
            result = StoredResult(State(state), done, failed, updated_ms, marks or b"") if state else None
            parked = Parked(serial, *of_parked) if not state and of_parked[0] is not None else None
            stored.append(Stored(serial, task_id, plan, body, result, owner, parked))
        return stored

    def _rows(self, query: bytes) -> list[Any]:
        return list(self._session.read(query))

    def close(self) -> None:
        """See `base.Reader`."""
        self._session.drop()
