"""Giving shards to another worker, while both serve: the part that all hand-overs share.

    copied: while this worker serves them
    frozen: for one commit, some shards at a time, until the other worker owns them

docs/handover.md says what is sent, and what becomes of requests meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from refreshd.errors import StoreError, StoreUnavailable
from refreshd.shard import FROZEN
from refreshd.task import State, Task
from refreshd.worker.handover import frames
from refreshd.worker.handover.shards import Copier, free_pushed, pack
from refreshd.worker.handover.steps import reached
from refreshd.worker.handover.talk import CannotGive, Talk

if TYPE_CHECKING:
    from refreshd.store.base import IdEntry
    from refreshd.worker.hub import Hub

# Tasks that are copied by one turn of the loop: about 0.5 ms.
COPY_TASKS = 512
# How far the copying may be ahead of the other worker.
COPY_AHEAD_BYTES = 1 << 20
# The hand-over takes its time: who is served meanwhile must not wait for the CPU. For each moment of copying
# so many are left to others, and a pause follows each freeze.
REST = 2
# As many shards are frozen at a time as hold about this many tasks: some 15 ms here and 10 there.
STEP_TASKS = 4_096
# Tasks whose state is sent by one turn of the loop: 9 ms here, and 6 ms there. With fewer the freeze
# takes longer, as others are served in between.
SEND_TASKS = 3_000
# A freeze waits for a commit. When that takes longer, the shards are served again for a moment, and so
# often; then the store is taken not to write.
FREEZE_S = 1.0
REST_S = 0.3
FREEZES = 15
_POLL_S = 0.002

Watchers = list[tuple[bytes, list[tuple[int, int]]]]


class ShardGiver:
    """Gives some shards to `talk.slot`; `in_place` where that is this worker's successor.

    The successor gets this worker's connections, too: what was pushed on them is not
    pushed again. Another worker has connections of its own to the proxies.
    """

    def __init__(self, hub: Hub, talk: Talk, shards: Iterable[int], *, in_place: bool) -> None:
        self.hub = hub
        self.talk = talk
        self.given = 0
        """Tasks so far."""
        self.longest_freeze_s = 0.0
        self._in_place = in_place
        self._shards = list(shards)
        self._copier = Copier(hub.engine, frozenset(self._shards))
        self.is_partly_sent = False
        """Whether tasks of the frozen shards are no longer here, and the shards not yet the other's."""

    async def give_all(self) -> None:
        """Copies, then gives step by step. Raises: CannotGive, Refused."""
        # From here on no worker may note in the store from where on tasks are unfinished.
        self.hub.engine.on_saved = self._copier.note
        await self._copy_all()
        for step in self._steps():
            await self._give(step)
        self.hub.engine.on_saved = None

    async def _copy_all(self) -> None:
        # Those that are being saved just now are noted once they are.
        tasks = [task for task in self.hub.engine.tasks.values() if task.state is not State.NEW]
        # More may come meanwhile, with shards that another gives.
        for saver in list(self.hub.engine.savers.values()):
            # What upkeep was under way is done with.
            await saver.call(_nothing)
        await self._copy(tasks)
        reached("copied")

    async def _copy(self, tasks: list[Task]) -> None:
        """Copies tasks while they are served, a few a turn of the loop."""
        for at in range(0, len(tasks), COPY_TASKS):
            began = time.monotonic()
            self.talk.send(self._copier.copy(tasks[at : at + COPY_TASKS]))
            await asyncio.sleep(REST * (time.monotonic() - began))
            await self._room()

    async def _room(self) -> None:
        """Waits until the successor has read most of what it was sent."""
        delay_s = 0.0
        while True:
            await asyncio.sleep(delay_s)
            if self.talk.unsent_bytes <= COPY_AHEAD_BYTES:
                return
            delay_s = _POLL_S

    def _steps(self) -> Iterable[list[int]]:
        """The shards in steps of about STEP_TASKS tasks, each of one shard at least."""
        step: list[int] = []
        size = 0
        for shard in self._shards:
            if step and size + self._copier.size(shard) > STEP_TASKS:
                yield step
                step, size = [], 0
            step.append(shard)
            size += self._copier.size(shard)
        if step:
            yield step

    # ── giving shards ─────────────────────────────────────────────────────────────────────

    async def _give(self, step: list[int]) -> None:
        """Freezes some shards, sends their tasks' state, and passes on what comes for them from then on."""
        hub = self.hub
        frozen_at = await self._freeze(step)
        reached("frozen")
        # The saver answers behind the commit that runs just now: the state is sent meanwhile.
        ids = asyncio.ensure_future(self._take_ids(step))
        try:
            watches = await self._send_state(step)
            self.talk.send(frames.Owned(step, await ids, watches))
        finally:
            ids.cancel()
        self.is_partly_sent = False
        hub.shards.give(step, self.talk.slot)
        hub.mesh.thaw(self.talk.slot)
        reached("owned")
        await self.talk.synced()
        took_s = time.monotonic() - frozen_at
        self.longest_freeze_s = max(self.longest_freeze_s, took_s)
        await asyncio.sleep(took_s / REST)

    async def _freeze(self, step: list[int]) -> float:
        """Freezes shards, with nothing of them on its way into the store or out of it. Returns when.

        A store that is slow just now is given time, the shards being served meanwhile.
        """
        hub = self.hub
        for _ in range(FREEZES):
            # What was accepted since the copying is copied while it is served: the freeze is short.
            await self._copy(self._copier.take_new(step))
            # What comes for the shards waits until the other worker has read them: it must not be behind.
            await self.talk.synced()
            # The commit that a freeze waits for is short right behind another.
            await self._committed(step)
            frozen_at = time.monotonic()
            hub.mesh.freeze()
            hub.shards.give(step, FROZEN)
            try:
                async with asyncio.timeout(FREEZE_S):
                    await self._settled(step)
            except TimeoutError:
                hub.shards.give(step, hub.shards.slot)
                hub.mesh.thaw_here()
                await asyncio.sleep(REST_S)
            else:
                return frozen_at
        raise CannotGive(f"the store did not commit within {FREEZE_S:g} s, {FREEZES} times")

    async def _committed(self, step: list[int]) -> None:
        for lane in {self.hub.shards.lane_by_shard[shard] for shard in step}:
            await self.hub.committed(lane)

    async def _settled(self, step: list[int]) -> None:
        """Waits until no task of these shards is on its way into the store, or out of it."""
        await self._committed(step)
        while not self._copier.is_settled(step):
            await self._committed(step)

    async def _take_ids(self, step: list[int]) -> list[IdEntry]:
        ids: list[IdEntry] = []
        for lane in {self.hub.shards.lane_by_shard[shard] for shard in step}:
            saver = self.hub.engine.savers[lane]
            try:
                ids += await saver.call(partial(saver.lane.take_ids, frozenset(step)))
            except StoreUnavailable as error:
                raise CannotGive(str(error)) from error
            except StoreError as error:
                self.hub.engine.store_failed(error)
                raise
        return ids

    async def _send_state(self, step: list[int]) -> Watchers:
        """Sends the tasks of frozen shards, a few a turn of the loop; they are no longer here then.

        Returns their watchers.
        """
        hub = self.hub
        copier = self._copier
        self.talk.send(copier.copy(copier.take_new(step)))
        tasks = copier.tasks(step)
        watches: Watchers = []
        self.is_partly_sent = True
        for at in range(0, len(tasks), SEND_TASKS):
            some = tasks[at : at + SEND_TASKS]
            # Packed and released in one go: what is here can still be pushed, what was sent cannot.
            self.talk.send(self._pack(some))
            watches += [(task.id, hub.watches.take(task.id)) for task in some if task.id in hub.watches]
            for task in some:
                hub.engine.release(task)
            await asyncio.sleep(0)
        watches += hub.watches.take_of(step)
        copier.forget(step)
        self.given += len(tasks)
        return watches

    def _pack(self, tasks: list[Task]) -> frames.Shards:
        links = self.hub.pusher.links.values()
        if not self._in_place:
            free_pushed(tasks, links)
        return pack(tasks, links, with_given=self._in_place)

    def thaw(self) -> None:
        """The hand-over has failed: what was frozen is this worker's again; what was sent in part is not."""
        hub = self.hub
        hub.engine.on_saved = None
        step = hub.shards.with_owner(FROZEN)
        if not self.is_partly_sent:
            hub.shards.give(step, hub.shards.slot)
            hub.mesh.thaw_here()
            return
        hub.mesh.hold(FROZEN)
        for task in self._copier.tasks(step):
            hub.engine.release(task)
        hub.shards.give(step, self.talk.slot)


def _nothing() -> None:
    pass
