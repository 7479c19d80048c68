"""The old worker's part of a hand-over: giving everything to its successor.

    COPYING ──► GIVING ──► SWITCHING ──► MOVING ──► ENDED
       └──────────┴────────────┴───────────┴──► DECLINED, and whatever the master says then

`run` goes through it once. What fails is told to the master (`Declined`), which ends
the successor and lets this worker take back what it gave (taking_back.py); so does
it when the successor dies. Until then requests for what was given wait.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from refreshd import __version__, control
from refreshd.shard import FROZEN, SUCCESSOR
from refreshd.task import State, Task
from refreshd.worker.handover import frames
from refreshd.worker.handover.connections import QUIET_S, Leaver
from refreshd.worker.handover.shards import Copier, pack
from refreshd.worker.handover.steps import reached
from refreshd.worker.links import Link
from refreshd.worker.mesh import HAND, Sibling, make_frame
from wire.errors import Refused

if TYPE_CHECKING:
    from refreshd.store.base import IdEntry
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

# Tasks that are copied by one turn of the loop: about 0.5 ms.
COPY_TASKS = 512
# How far the copying may be ahead of the successor.
COPY_AHEAD_BYTES = 2 << 20
# As many shards are frozen at a time as hold about this many tasks: some 10 ms here and as much there.
STEP_TASKS = 4_096
# Tasks whose state is sent by one turn of the loop: 2 ms here, and 3 ms there.
SEND_TASKS = 1_000
# A freeze waits for a commit. One that takes longer means that the store does not write.
FREEZE_S = 3.0
GO_S = 10.0
_POLL_S = 0.002


class Phase(enum.Enum):
    """How far the hand-over has come."""

    COPYING = "copying"
    GIVING = "giving"
    SWITCHING = "switching"
    MOVING = "moving"
    ENDED = "ended"
    DECLINED = "declined"


class CannotGive(Exception):
    """The hand-over cannot go on; the text says why."""


class Giver:
    """One hand-over, as the old worker sees it."""

    def __init__(self, hub: Hub) -> None:
        self.phase = Phase.COPYING
        self.hub = hub
        self.nonces_gone = False
        """Whether the successor keeps the nonces."""
        self._successor: Sibling | None = None
        self._copier = Copier(hub.engine)
        self._leaver = Leaver(hub)
        self._switched: set[int] = set()
        self._wakened = asyncio.Event()
        self._answers: list[type[frames.Frame]] = []
        self._started_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._is_partly_sent = False
        """Whether some tasks of the frozen shards are here, and some no longer."""
        self._longest_freeze_s = 0.0
        self._given = 0

    def __repr__(self) -> str:
        return f"<Giver {self.phase.value}, {self._given} tasks given>"

    @property
    def has_ended(self) -> bool:
        """Whether the successor has everything."""
        return self.phase is Phase.ENDED

    # ── the way through ───────────────────────────────────────────────────────────────────

    def start(self, successor: Sibling) -> None:
        """Begins; the master is told how it goes."""
        self._successor = successor
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            self._begin()
            await self._copy_all()
            self.phase = Phase.GIVING
            for step in self._steps():
                await self._give(step)
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
        # From here on neither of the two may note in the store from where on tasks are unfinished.
        hub.engine.moving = True
        hub.engine.on_saved = self._copier.note
        hub.pusher.on_link = self._link_changed
        for saver in hub.engine.savers.values():
            saver.upkeep = False
        links = [(link.name, link.via) for link in hub.pusher.links.values()]
        self._send(frames.Begin(frames.VERSION, __version__, hub.engine.serials.last, links))
        reached("begin")

    async def _copy_all(self) -> None:
        # Those that are being saved just now are noted once they are.
        tasks = [task for task in self.hub.engine.tasks.values() if task.state is not State.NEW]
        for saver in self.hub.engine.savers.values():
            # What upkeep was under way is done with.
            await saver.call(_nothing)
        await self._copy(tasks)
        reached("copied")

    async def _copy(self, tasks: list[Task]) -> None:
        """Copies tasks while they are served, a few a turn of the loop."""
        for at in range(0, len(tasks), COPY_TASKS):
            self._send(self._copier.copy(tasks[at : at + COPY_TASKS]))
            await self._room()

    async def _room(self) -> None:
        """Waits until the successor has read most of what it was sent."""
        delay_s = 0.0
        while True:
            await asyncio.sleep(delay_s)
            if self._stream().unsent_bytes <= COPY_AHEAD_BYTES:
                return
            delay_s = _POLL_S

    def _steps(self) -> Iterable[list[int]]:
        """The shards in steps of about STEP_TASKS tasks, each of one shard at least."""
        step: list[int] = []
        size = 0
        for shard in self.hub.shards.with_owner(self.hub.shards.slot):
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
        # What was accepted since the copying is copied while it is served, so that the freeze is short.
        await self._copy(self._copier.take_new(step))
        # What comes for the step's shards waits until the successor has read the step: it must not be behind.
        await self._synced()
        hub = self.hub
        frozen_at = time.monotonic()
        hub.mesh.freeze()
        hub.shards.give(step, FROZEN)
        reached("frozen")
        try:
            async with asyncio.timeout(FREEZE_S):
                await self._settled(step)
                ids = await self._take_ids(step)
        except TimeoutError:
            raise CannotGive(f"the store did not commit within {FREEZE_S:g} s") from None
        watches = await self._send_state(step)
        self._send(frames.Owned(step, ids, watches))
        hub.shards.give(step, SUCCESSOR)
        hub.mesh.thaw(SUCCESSOR)
        reached("owned")
        await self._synced()
        self._longest_freeze_s = max(self._longest_freeze_s, time.monotonic() - frozen_at)

    async def _settled(self, step: list[int]) -> None:
        """Waits until no task of these shards is on its way into the store, or out of it."""
        lanes = {self.hub.shards.lane_by_shard[shard] for shard in step}
        for lane in lanes:
            await self.hub.committed(lane)
        while not self._copier.is_settled(step):
            for lane in lanes:
                await self.hub.committed(lane)

    async def _take_ids(self, step: list[int]) -> list[IdEntry]:
        ids: list[IdEntry] = []
        for lane in {self.hub.shards.lane_by_shard[shard] for shard in step}:
            saver = self.hub.engine.savers[lane]
            ids += await saver.call(partial(saver.lane.take_ids, frozenset(step)))
        return ids

    async def _send_state(self, step: list[int]) -> list[tuple[bytes, list[tuple[int, int]]]]:
        """Sends the tasks of frozen shards, a few a turn of the loop; they are no longer here then.

        Returns their watchers.
        """
        hub = self.hub
        copier = self._copier
        self._send(copier.copy(copier.take_new(step)))
        tasks = copier.tasks(step)
        watches: list[tuple[bytes, list[tuple[int, int]]]] = []
        self._is_partly_sent = True
        for at in range(0, len(tasks), SEND_TASKS):
            some = tasks[at : at + SEND_TASKS]
            # Packed and released in one go: what is here can still be pushed, what was sent cannot.
            self._send(pack(some, hub.pusher.links.values()))
            watches += [(task.id, hub.watches.take(task.id)) for task in some if task.id in hub.watches]
            for task in some:
                hub.engine.release(task)
            await asyncio.sleep(0)
        self._is_partly_sent = False
        copier.forget(step)
        self._given += len(tasks)
        return watches

    def _tell_given(self) -> None:
        ms = round((time.monotonic() - self._started_at) * 1000)
        freeze_ms = round(self._longest_freeze_s * 1000)
        log.info("shards given", tasks=self._given, ms=ms, longest_freeze_ms=freeze_ms)
        self.hub.say(control.Given(self._given, ms, freeze_ms))
        reached("given")

    # ── siblings ──────────────────────────────────────────────────────────────────────────

    async def _all_switched(self) -> None:
        """Every sibling sends to the successor from now on; one that dies counts as switched."""
        while not self._switched >= {slot for slot in self.hub.mesh.siblings if slot >= 0}:
            await self._wait()
        reached("switched")

    def switched(self, slot: int) -> None:
        """A sibling sends no more here; all that it sent was passed on."""
        self.hub.mesh.siblings[slot].end()
        self._switched.add(slot)
        self._wakened.set()

    def sibling_left(self, slot: int) -> None:
        """A sibling has died."""
        self._switched.discard(slot)
        self._tell(frames.SiblingGone(slot))
        self._wakened.set()

    def _link_changed(self, link: Link, up: bool) -> None:
        """The successor keeps a link in place of each that this worker has."""
        if not link.held:
            self._tell(frames.Link(link.name, link.via, up))

    # ── connections ───────────────────────────────────────────────────────────────────────

    async def _move_connections(self) -> None:
        hub = self.hub
        hub.pusher.on_link = None
        self._send(self._state())
        self.nonces_gone = True
        reached("state")
        self._send(frames.Moving())
        await self._answered(frames.Go)
        hub.handing.stop_listening()
        reached("moving")
        await self._leaver.move_all()
        await self._answered_siblings()

    async def _answered_siblings(self) -> None:
        """What they asked before they switched is answered here; the rest they would ask again."""
        end = self.hub.loop.time() + QUIET_S
        while self.hub.loop.time() < end:
            if self.hub.mesh.is_quiet:
                return
            await asyncio.sleep(_POLL_S)

    def _state(self) -> frames.State:
        hub = self.hub
        relays = {link.name: link.outstanding for link in hub.pusher.links.values() if link.via is not None}
        ways, heard, joined = hub.proxies.known_elsewhere()
        return frames.State(hub.nonces.entries(), ways, heard, relays, joined)

    async def _end(self) -> None:
        hub = self.hub
        counters = hub.engine.counters
        finished = {int(state): number for state, number in counters.finished.items()}
        rates = [hub.rate_boss.to_plain(), hub.rate_proxy.to_plain()]
        moved = self._leaver.moved
        self._send(frames.End(moved, counters.accepted, counters.pairs, finished, rates))
        await self._answered(frames.Ended)
        self.phase = Phase.ENDED
        ms = round((time.monotonic() - self._started_at) * 1000)
        log.info("all handed over", connections=moved, closed=self._leaver.closed, ms=ms)
        reached("ended")
        hub.say(control.Moved(moved, self._leaver.closed, ms))

    def pass_on(self, fd: int, *, admin: bool, rest: bytes) -> bool:
        """Gives the successor a connection that came too late. False: this worker still serves."""
        return self.phase in (Phase.MOVING, Phase.ENDED) and self._leaver.pass_on(fd, admin=admin, rest=rest)

    # ── talking ───────────────────────────────────────────────────────────────────────────

    def heard(self, payload: bytes) -> None:
        """The successor answers."""
        self._answers.append(type(frames.decode(payload)))
        self._wakened.set()

    def _tell(self, frame: frames.Frame) -> None:
        """As `_send`, where a successor that is gone need not know."""
        if self._successor is not None:
            self._successor.write(_frame(frame))

    def _send(self, frame: frames.Frame) -> None:
        self._stream().write(_frame(frame))

    def _stream(self) -> Sibling:
        """Raises: CannotGive when the successor is gone."""
        if self._successor is None or self._successor.transport is None:
            raise CannotGive("the successor is gone")
        return self._successor

    async def _synced(self) -> None:
        """Waits until the successor has worked off all that it was sent."""
        self._send(frames.Sync())
        await self._answered(frames.Synced)

    async def _answered(self, answer: type[frames.Frame]) -> None:
        try:
            async with asyncio.timeout(GO_S):
                while answer not in self._answers:
                    await self._wait()
                self._answers.remove(answer)
        except TimeoutError:
            raise CannotGive(f"the successor did not answer within {GO_S:g} s") from None

    async def _wait(self) -> None:
        self._stream()
        self._wakened.clear()
        await self._wakened.wait()

    def successor_lost(self) -> None:
        """The stream has ended: who waits for something on it finds out."""
        self._wakened.set()

    async def give_up(self) -> None:
        """Ends it wherever it is: this worker goes on."""
        hub = self.hub
        hub.engine.on_saved = None
        hub.pusher.on_link = None
        self.nonces_gone = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thaw_here()
        self._leaver.stay()

    def _thaw_here(self) -> None:
        """What was frozen is this worker's again; what was sent in part is to be read anew."""
        hub = self.hub
        step = hub.shards.with_owner(FROZEN)
        hub.mesh.hold(FROZEN)
        if not self._is_partly_sent:
            hub.shards.give(step, hub.shards.slot)
            return
        for task in self._copier.tasks(step):
            hub.engine.release(task)
        hub.shards.give(step, SUCCESSOR)


def _nothing() -> None:
    pass


def _frame(frame: frames.Frame) -> bytes:
    return make_frame(HAND, 0, frames.encode(frame))
