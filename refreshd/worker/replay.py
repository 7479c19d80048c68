"""Replay: a proxy is back, and what was parked for it goes to it, the oldest first.

    ┌► hungry ──the link has little left to read──► reading ──a slice is in memory─┐
    └──────────────────────────────────────────────────────────────────────────────┘
        └─ no more of this priority: the next one; none left: the replay has ended

One for each proxy that is back, so that one that is slow holds up no other. The
slices go into the layer's replay log, which every link reads; until the replay has
ended the link is given nothing of the same priority, or a lower one, that is younger. What
is in memory for it is bounded by the proxy's credit: a slice is read when the link has
fewer than SLICE_TASKS to read.

A proxy that was away for longer than its `drop_after` is told to drop its cache first. What
was to be refreshed there before is done then, and only prefetches are pushed.

When the proxy goes away again its replay ends there; its tasks are parked as all others are.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING

import structlog

from refreshd.errors import StoreError
from refreshd.fanout import SEGMENT_TASKS
from refreshd.shard import SERIAL_MAX
from refreshd.store.base import ParkedTask
from refreshd.task import Task
from refreshd.worker.parked import Group

if TYPE_CHECKING:
    from refreshd.worker.links import Link
    from refreshd.worker.parking import Parking

log = structlog.get_logger()

# 4 ms of the loop; the next one is read while half of them are still to be pushed.
SLICE_TASKS = 1_000
# What is read at least of each group at a time.
_SHARE_MIN = 50
_RETRY_S = 1.0


class Replay:
    """Brings back what is parked for one proxy."""

    def __init__(self, parking: Parking, link: Link, groups: list[Group]) -> None:
        self._parking = parking
        self._link = link
        self._groups = groups
        self.priority = max(group.priority for group in groups)
        """What is being read; all above it has been."""
        self.tasks = 0
        """Brought back so far."""
        self._after = 0
        self._reading = False
        self._began_ms = parking.hub.engine.clock.mono_ms
        self.drop_id = b""
        """What the proxy reports by when it has dropped its cache; empty where it need not, or has."""
        self._dropped_to = 0
        """Refreshes with serials up to this one were done by dropping the cache."""

    def __repr__(self) -> str:
        return f"<Replay to {self._link.name}: {self.tasks} tasks, at priority {self.priority}>"

    def feed(self) -> None:
        """Reads on, if the link has little left to read."""
        if self.drop_id:
            return
        if not self._reading and self._unread() < SLICE_TASKS:
            self._reading = True
            self._parking.hub.background(self._read())

    # ── dropping the whole cache ──────────────────────────────────────────────────────────

    def drop(self) -> None:
        """Tells the proxy to drop its cache; the replay goes on when it has."""
        hub = self._parking.hub
        self._dropped_to = hub.engine.serials.last
        self.drop_id = f"drop:{hub.config.engine.id}.{hub.shards.slot}.{self._dropped_to}".encode()
        log.info("proxy was away for long, is told to drop its cache", proxy=self._link.name)
        self._link.wire.send(b"!drop task_id=%b\n" % self.drop_id)

    def dropped(self) -> None:
        """The proxy has dropped its cache."""
        self.drop_id = b""
        self._parking.hub.pusher.due(self._link)

    def not_dropped(self, why: str) -> None:
        """It could not: it is given all that it missed."""
        log.warning("proxy could not drop its cache", proxy=self._link.name, error=why)
        self._dropped_to = 0
        self.dropped()

    def _do_by_drop(self, tasks: list[Task]) -> None:
        """Of tasks that are back, those that the drop has done are not pushed to the proxy."""
        done = [
            task.id for task in tasks if task.serial <= self._dropped_to and task.terms.type != "prefetch"
        ]
        if done:
            self._parking.hub.proxies.done(self._link.name, done, None)

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def _unread(self) -> int:
        """About how many tasks the link has still to read in replay logs of this priority."""
        unread = 0
        for log_, cursor in self._link.cursors.items():
            if log_.is_replay and log_.priority == self.priority:
                segments = log_.tail.number - cursor.segment.number
                unread += segments * SEGMENT_TASKS + len(log_.tail.tasks) - cursor.offset
        return unread

    def _is_over(self) -> bool:
        """Whether the proxy went away meanwhile, or its tasks are going to another process."""
        return self._link.replay is not self or self._parking.hub.engine.moving

    async def _read(self) -> None:
        parking = self._parking
        try:
            while not self._is_over():
                with parking.reading() as changed:
                    rows = await parking.in_thread(self._read_slice)
                    await parking.plans_of(rows)
                    if self._is_over():
                        return
                    parking.hub.engine.clock.turn()
                    taken = parking.take_in(rows, changed)
                    self.tasks += len(taken)
                    self._do_by_drop(taken)
                if rows:
                    self._after = rows[-1].parked.serial
                elif not self._next_priority():
                    self._end()
                    return
                if self._unread() >= SLICE_TASKS:
                    return
                await asyncio.sleep(0)
        except StoreError as error:
            parking.unread(error)
            parking.hub.loop.call_later(_RETRY_S, parking.hub.pusher.due, self._link)
        finally:
            self._reading = False

    def _read_slice(self) -> list[ParkedTask]:
        """The next tasks over all lanes and groups of this priority; in the thread."""
        groups = [group for group in self._groups if group.priority == self.priority]
        readers = self._parking.readers()
        share = max(SLICE_TASKS // (len(groups) * len(readers)), _SHARE_MIN)
        pieces = [
            reader.parked_of(group.number, self._after, share) for reader in readers for group in groups
        ]
        # Beyond the end of a piece that is full there may be more of its group: these come first.
        up_to = min((piece[-1].parked.serial for piece in pieces if len(piece) == share), default=SERIAL_MAX)
        merged = heapq.merge(*pieces, key=lambda row: row.parked.serial)
        return [row for row in merged if row.parked.serial <= up_to]

    def _next_priority(self) -> bool:
        """All of this priority are in memory. Returns whether there are others."""
        left = [group for group in self._groups if group.priority < self.priority]
        self._after = 0
        for group in self._groups:
            if group.priority == self.priority:
                self._parking.empty(group)
        if left:
            self.priority = max(group.priority for group in left)
        return bool(left)

    def _end(self) -> None:
        engine = self._parking.hub.engine
        self._link.replay = None
        self._parking.hub.pusher.due(self._link)
        ms = engine.clock.mono_ms - self._began_ms
        log.info("parked tasks are back", proxy=self._link.name, tasks=self.tasks, ms=ms)
