"""The old worker's part of a hand-over: giving everything to its successor.

    GIVING ──► SWITCHING ──► MOVING ──► ENDED
       └───────────┴───────────┴──► DECLINED, and whatever the master says then

`run` goes through it once. What fails is told to the master (`Declined`), which ends
the successor and lets this worker take back what it gave (taking_back.py); so does
it when the successor dies. Until then requests for what was given wait.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING

import structlog

from refreshd import __version__, control
from refreshd.shard import SUCCESSOR
from refreshd.worker.handover import frames
from refreshd.worker.handover.connections import QUIET_S, Leaver
from refreshd.worker.handover.giving import ShardGiver
from refreshd.worker.handover.steps import reached
from refreshd.worker.handover.talk import CannotGive, Talk
from refreshd.worker.links import Link
from wire.errors import Refused

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

_POLL_S = 0.002


class Phase(enum.Enum):
    """How far the hand-over has come."""

    GIVING = "giving"
    SWITCHING = "switching"
    MOVING = "moving"
    ENDED = "ended"
    DECLINED = "declined"


class Giver:
    """One hand-over, as the old worker sees it."""

    def __init__(self, hub: Hub) -> None:
        self.phase = Phase.GIVING
        self.hub = hub
        self.nonces_gone = False
        """Whether the successor keeps the nonces."""
        self._talk = Talk(hub, SUCCESSOR)
        self._shards = ShardGiver(hub, self._talk, hub.shards.with_owner(hub.shards.slot), in_place=True)
        self._leaver = Leaver(hub)
        self._switched: set[int] = set()
        self._started_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Giver {self.phase.value}, {self._shards.given} tasks given>"

    @property
    def has_ended(self) -> bool:
        """Whether the successor has everything."""
        return self.phase is Phase.ENDED

    # ── the way through ───────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begins, once the successor can be talked to; the master is told how it goes."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._begin()
            await self._shards.give_all()
            self._tell_given()
            self.phase = Phase.SWITCHING
            await self._all_switched()
            self.phase = Phase.MOVING
            await self._move_connections()
            await self._end()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, CannotGive | Refused):
                log.exception("a fault in the hand-over")
            self.phase = Phase.DECLINED
            self.hub.say(control.Declined(str(error) or repr(error)))

    def _begin(self) -> None:
        hub = self.hub
        hub.moves.begin()
        hub.pusher.on_link = self._link_changed
        links = [(link.name, link.via) for link in hub.pusher.links.values()]
        self._talk.send(frames.Begin(frames.VERSION, __version__, hub.engine.serials.last, links))
        reached("begin")

    def _tell_given(self) -> None:
        ms = round((time.monotonic() - self._started_at) * 1000)
        freeze_ms = round(self._shards.longest_freeze_s * 1000)
        log.info("shards given", tasks=self._shards.given, ms=ms, longest_freeze_ms=freeze_ms)
        self.hub.say(control.Given(self._shards.given, ms, freeze_ms))
        reached("given")

    # ── siblings ──────────────────────────────────────────────────────────────────────────

    async def _all_switched(self) -> None:
        """Every sibling sends to the successor from now on; one that dies counts as switched."""
        for slot in set(self.hub.mesh.others) - self.hub.mesh.siblings.keys():
            self.hub.mesh.go_through(slot, SUCCESSOR)
        while not self._switched >= {slot for slot in self.hub.mesh.siblings if slot >= 0}:
            await self._talk.wait()
        reached("switched")

    def switched(self, slot: int) -> None:
        """A sibling sends no more here; all that it sent was passed on."""
        self.hub.mesh.siblings[slot].end()
        self._switched.add(slot)
        self._talk.wake()

    def sibling_left(self, slot: int) -> None:
        """A sibling has died."""
        self._switched.discard(slot)
        self._talk.tell(frames.SiblingGone(slot))
        if self.phase in (Phase.SWITCHING, Phase.MOVING):
            # Whoever comes in its place is introduced to this worker's successor only.
            self.hub.mesh.go_through(slot, SUCCESSOR)
        self._talk.wake()

    def _link_changed(self, link: Link, up: bool) -> None:
        """The successor keeps a link in place of each that this worker has."""
        self._talk.tell(frames.Link(link.name, link.via, up))

    # ── connections ───────────────────────────────────────────────────────────────────────

    async def _move_connections(self) -> None:
        hub = self.hub
        hub.pusher.on_link = None
        self._talk.send(self._state())
        self.nonces_gone = True
        reached("state")
        self._talk.send(frames.Moving())
        await self._talk.answered(frames.Go)
        hub.handing.stop_listening()
        reached("moving")
        await self._leaver.move_all()
        await self._answered_siblings()

    def _state(self) -> frames.State:
        hub = self.hub
        relays = {link.name: link.outstanding for link in hub.pusher.links.values() if link.via is not None}
        ways, heard, joined = hub.proxies.known_elsewhere()
        return frames.State(hub.nonces.entries(), ways, heard, relays, joined)

    async def _answered_siblings(self) -> None:
        """What they asked before they switched is answered here; the rest they would ask again."""
        end = self.hub.loop.time() + QUIET_S
        while self.hub.loop.time() < end:
            if self.hub.mesh.is_quiet:
                return
            await asyncio.sleep(_POLL_S)

    async def _end(self) -> None:
        hub = self.hub
        counters = hub.engine.counters
        finished = {int(state): number for state, number in counters.finished.items()}
        rates = [hub.rate_boss.to_plain(), hub.rate_proxy.to_plain()]
        moved = self._leaver.moved
        lead = await hub.cluster.hand_over()
        self._talk.send(frames.End(moved, counters.accepted, counters.pairs, finished, rates, lead))
        await self._talk.answered(frames.Ended)
        self.phase = Phase.ENDED
        await hub.cluster.leave()
        ms = round((time.monotonic() - self._started_at) * 1000)
        log.info("all handed over", connections=moved, closed=self._leaver.closed, ms=ms)
        reached("ended")
        hub.say(control.Moved(moved, self._leaver.closed, ms))

    def pass_on(self, fd: int, *, admin: bool, rest: bytes) -> bool:
        """Gives the successor a connection that came too late. False: this worker still serves."""
        return self.phase in (Phase.MOVING, Phase.ENDED) and self._leaver.pass_on(fd, admin=admin, rest=rest)

    # ── what happens meanwhile ────────────────────────────────────────────────────────────

    def heard(self, frame: frames.Frame) -> None:
        """The successor answers."""
        self._talk.heard(frame)

    def successor_lost(self) -> None:
        """The stream has ended: who waits for something on it finds out."""
        self._talk.wake()

    async def give_up(self) -> None:
        """Ends it wherever it is: this worker goes on."""
        self.hub.pusher.on_link = None
        self.nonces_gone = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._shards.thaw()
        self._leaver.stay()
