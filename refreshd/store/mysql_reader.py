"""Reading the tasks of a lane's shards in MySQL or MariaDB, of all engines, beside whoever writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refreshd.errors import StoreDamaged
from refreshd.mysql_url import MysqlUrl
from refreshd.shard import SERIAL_MAX
from refreshd.store.base import ProxyRow, Stored, StoredResult
from refreshd.store.checks import check_body
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_rows import hexed, numbers
from refreshd.task import State

# Rows that are read at a time of what is unfinished: 10 ms, of which the interpreter is held for most.
_SLICE_ROWS = 1_000
_REMEDY = "restore the database"
_STORED = (
    b"SELECT task.serial, task.id, plan.text, body, body_crc, state, done, failed, updated_ms, marks, owner"
    b" FROM task %b LEFT JOIN plan ON plan.number = task.plan"
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
        at = first
        while True:
            found = self._rows(
                b"SELECT serial, plan, body, body_crc FROM task FORCE INDEX (by_state)"
                b" WHERE state=0 AND owner=%d AND serial BETWEEN %d AND %d%b ORDER BY serial LIMIT %d"
                % (self._owner, at, last, self._of_lane, rows)
            )
            for serial, _, body, crc in found:
                check_body(serial, body, crc, _REMEDY)
            if found:
                yield [row[:3] for row in found]
            if len(found) < rows:
                return
            at = found[-1][0] + 1

    def find(self, task_id: bytes, crc: int) -> Stored | None:
        """See `base.Reader`: also one that is unfinished, and of any engine and lane."""
        stored = self._stored(b"", b"id=%b" % hexed(task_id))
        return stored[0] if stored else None

    def serials(self, serials: list[int]) -> list[Stored]:
        """See `base.Reader`: of any engine and lane."""
        if not serials:
            return []
        return self._stored(b"", b"serial IN (%b) ORDER BY serial DESC" % numbers(serials))

    def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """See `base.Reader`: tasks of all engines."""
        older = b"serial < %d%b ORDER BY serial DESC LIMIT %d" % (before, self._of_lane, limit)
        if unfinished:
            return self._unfinished_page(older, limit)
        if state is None:
            return self._stored(b"FORCE INDEX (PRIMARY)", older)
        return self._stored(b"FORCE INDEX (by_state)", b"state=%d AND owner=0 AND %b" % (state, older))

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
            done, failed, updated_ms, marks, owner = rest
            result = StoredResult(State(state), done, failed, updated_ms, marks or b"") if state else None
            stored.append(Stored(serial, task_id, plan, body, result, owner))
        return stored

    def _rows(self, query: bytes) -> list[Any]:
        return list(self._session.read(query))

    def close(self) -> None:
        """See `base.Reader`."""
        self._session.drop()
