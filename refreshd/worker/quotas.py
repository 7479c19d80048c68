"""A worker's part in the quotas of keys: what there is to do when processes come and go, and what is shown.

How quotas are counted stands in `refreshd/limits.py`. The page on which all workers count is
memory: of what it holds, tasks in flight are found again in the store, and buckets are full after
a start. The day's counts are noted in a file every 5 s and at the end of each worker, so that a
restart is no way to a second day's quota; when everything is killed at one moment, what the
last 5 s brought may be missing in them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from refreshd.limits import KINDS, Book, Limits, Share, Spent, Usage
from refreshd.scoreboard import quota_row_of
from wire.fields import TASK_TYPES
from wire.lines import Value

if TYPE_CHECKING:
    from refreshd.worker.engine import Clock
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

NOTE_FILE = "quotas.json"


class Note(msgspec.Struct, frozen=True):
    """The file. `today` has the targets of each key on that day, by type."""

    day: int
    today: dict[str, tuple[int, ...]]


class Quotas:
    """The quotas, as one worker sees them. `book` is what its engine counts in.

    It is the owner of the rounds over several engines, see `cluster.quotas.QuotaOwner`.
    """

    def __init__(self, hub: Hub, side: int) -> None:
        self._hub = hub
        self._page = hub.scoreboard.quotas
        self._row = quota_row_of(hub.shards.slot, side)
        self._others_row = quota_row_of(hub.shards.slot, 1 - side)
        self._path = Path(hub.config.engine.data) / NOTE_FILE
        self._noted: Note | None = None
        self.book = Book(self._page, self._row)

    @property
    def _clock(self) -> Clock:
        clock = self._hub.engine.clock
        clock.turn()
        return clock

    def boot(self, *, standby: bool) -> None:
        """Before this process has any task: what is shown for its row was another's."""
        self._page.nothing_in_flight(self._row)
        if not standby:
            self.alone()
        if self._page.first_to_restore():
            self._restore()

    def alone(self) -> None:
        """There is no other process in this slot any more; its tasks are here."""
        self._page.nothing_in_flight(self._others_row)

    def retired(self, slot: int) -> None:
        """A sibling is no more; its tasks are others'."""
        for side in (0, 1):
            self._page.nothing_in_flight(quota_row_of(slot, side))

    # ── the note ──────────────────────────────────────────────────────────────────────────

    def _restore(self) -> None:
        try:
            note = msgspec.json.decode(self._path.read_bytes(), type=Note)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the day's quotas begin anew", file=str(self._path), error=str(error))
            return
        for name, counts in note.today.items():
            if len(counts) == KINDS:
                self.counted_before(name, note.day, counts)

    def note(self) -> None:
        """Writes the day's counts down, if there are others than at the last time."""
        spent = self.spent()
        today = {name: of.today for name, of in spent.items() if any(of.today)}
        day = max((of.day for of in spent.values()), default=0)
        note = Note(day, today)
        if note == self._noted or (not today and self._noted is None):
            return
        # Two processes may write at a time, each its own.
        draft = self._path.with_name(f"{NOTE_FILE}.{os.getpid()}")
        try:
            draft.write_bytes(msgspec.json.encode(note))
            draft.replace(self._path)
        except OSError as error:
            log.warning("the day's quotas cannot be noted", file=str(self._path), error=str(error))
            draft.unlink(missing_ok=True)
        else:
            self._noted = note

    # ── showing ───────────────────────────────────────────────────────────────────────────

    def rows(self) -> list[dict[str, Value]]:
        """A row a key, as `list_quotas` lists them. All workers have counted on one page: any can tell."""
        clock = self._clock
        return [_row(usage, clock) for usage in self.book]

    # ── over several engines ──────────────────────────────────────────────────────────────

    def spent(self) -> Mapping[str, Spent]:
        """See `cluster.quotas.QuotaOwner`."""
        wall_ms = self._clock.wall_ms
        return {usage.name: usage.spent(wall_ms) for usage in self.book}

    def limits(self) -> Mapping[str, Limits]:
        """See `cluster.quotas.QuotaOwner`."""
        return {usage.name: usage.limits for usage in self.book}

    def dealt(self, shares: Mapping[str, Share]) -> None:
        """See `cluster.quotas.QuotaOwner`. One worker at a time is told; the others see it within 100 ms."""
        for usage in self.book:
            if usage.name in shares:
                usage.deal(shares[usage.name])

    def counted_before(self, key: str, day: int, today: tuple[int, ...]) -> None:
        """See `cluster.quotas.QuotaOwner`."""
        self.book.usage(key).add_today(day, today, self._clock.wall_ms)


def _row(usage: Usage, clock: Clock) -> dict[str, Value]:
    limits, spent = usage.limits, usage.spent(clock.wall_ms)
    row: dict[str, Value] = {
        "key": usage.name,
        "rate": limits.rate_milli // 1000,
        "burst": limits.burst,
        "spare": usage.spare(clock.mono_ms),
        "rate_here": usage.rate_here,
        "taken": spent.taken,
        "refused": spent.refused,
        "in_flight": spent.in_flight,
        "in_flight_max": limits.in_flight,
    }
    for kind, name in enumerate(TASK_TYPES):
        row[name] = spent.today[kind]
        row[f"{name}_max"] = limits.per_day[kind]
    return row
