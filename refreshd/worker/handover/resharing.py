"""Another number of workers: shards go to their new owners, live (docs/handover.md, last section).

    REMAP: each worker gives what will be another's, and passes on what comes for it
    ROUTE: requests that are on their way through an old owner arrive, then all ask the new one
    RETIRE: a worker that is one too many gives its connections to the others

Until the last worker has routed, none says in the store from where on tasks are unfinished.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from refreshd import __version__, control
from refreshd.worker.handover import frames
from refreshd.worker.handover.giving import ShardGiver
from refreshd.worker.handover.taking import ShardTaker
from refreshd.worker.handover.talk import CannotGive, Talk
from wire.errors import Refused

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

FENCE_S = 5.0
# A store that does not write for a moment holds a hand-over up; for longer, it is given up.
TRIES = 10
RETRY_S = 0.5


class Resharing:
    """One change of the number of workers, as one worker sees it."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._talks: dict[int, Talk] = {}
        self._takers: dict[int, ShardTaker] = {}
        hub.moves.begin()

    def _talk(self, slot: int) -> Talk:
        return self._talks.setdefault(slot, Talk(self.hub, slot))

    # ── giving ────────────────────────────────────────────────────────────────────────────

    async def give_all(self, workers: int) -> None:
        """Gives every shard that will be another's. Tells the master how that went."""
        await self._or_decline(self._give_all(workers))

    async def _or_decline(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            if not isinstance(error, CannotGive | Refused):
                log.exception("a fault while the number of workers changes")
            self.hub.say(control.Declined(str(error) or repr(error)))

    async def _give_all(self, workers: int) -> None:
        began = time.monotonic()
        slot = self.hub.shards.slot
        given = 0
        for to in range(workers):
            if to != slot:
                given += await self._give(to, workers)
        self._send_nonces()
        ms = round((time.monotonic() - began) * 1000)
        log.info("shards given to other workers", tasks=given, ms=ms)
        self.hub.say(control.Remapped(given, ms))

    async def _give(self, to: int, workers: int) -> int:
        """Gives one worker all that is to be its own; tries again while the store does not write."""
        for attempt in range(TRIES):
            shards = [
                shard for shard in self.hub.shards.with_owner(self.hub.shards.slot) if shard % workers == to
            ]
            if not shards:
                return 0
            talk = self._talk(to)
            talk.send(frames.Begin(frames.VERSION, __version__, self.hub.engine.serials.last, []))
            giver = ShardGiver(self.hub, talk, shards, in_place=False)
            try:
                await giver.give_all()
            except (CannotGive, Refused) as error:
                if giver.is_partly_sent:
                    # Some of a step is there, some nowhere: all workers begin anew from the store.
                    self.hub.engine.fatal(f"shards are between two workers: {error}")
                if attempt == TRIES - 1:
                    raise
                log.warning("shards not given, trying again", to=to, why=str(error))
                giver.thaw()
                self.hub.mesh.ask_held()
                await asyncio.sleep(RETRY_S)
            else:
                return giver.given
        return 0

    def _send_nonces(self) -> None:
        entries = self.hub.nonces.entries()
        for slot in self.hub.mesh.others:
            self._talk(slot).tell(frames.Nonces(entries))

    def heard(self, slot: int, frame: frames.Frame) -> None:
        """A sibling gives, or answers. Raises: ValueError, KeyError, WireError."""
        match frame:
            case frames.Synced():
                self._talk(slot).heard(frame)
            case frames.Begin():
                self._takers[slot] = ShardTaker(self.hub, self._talk(slot))
                self._takers[slot].take(frame)
            case _:
                self._takers[slot].take(frame)

    # ── routing ───────────────────────────────────────────────────────────────────────────

    async def route(self, workers: int) -> None:
        """Asks the new owners, without overtaking what is on its way to them. Tells the master."""
        await self._or_decline(self._route(workers))

    async def _route(self, workers: int) -> None:
        hub = self.hub
        old = {
            owner
            for shard, owner in enumerate(hub.shards.owner_by_shard)
            if owner not in (shard % workers, hub.shards.slot)
        }
        for slot in old:
            hub.mesh.pause(slot)
        try:
            await asyncio.gather(*(hub.mesh.ask(slot, b"mesh_fence", FENCE_S) for slot in old))
        except TimeoutError:
            log.warning("a worker does not answer: requests that are on their way may be overtaken")
        hub.shards.remap(workers)
        for slot in old:
            hub.mesh.end_pause(slot)
        self._send_nonces()
        for lane, saver in hub.engine.savers.items():
            saver.lane.share(hub.shards.sharers(lane))
        hub.moves.end()
        log.info("shards are routed anew", workers=workers)
        hub.say(control.Routed())
