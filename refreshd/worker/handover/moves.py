"""What is being moved just now, if anything: shards and connections, to or from other processes.

At most one of `giver`, `taker` and `resharing` is set. docs/handover.md is the theory.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import structlog

from refreshd import control
from refreshd.errors import StoreError
from refreshd.shard import PREDECESSOR, SUCCESSOR
from refreshd.worker.handover import frames
from refreshd.worker.handover.giver import Giver
from refreshd.worker.handover.resharing import Resharing
from refreshd.worker.handover.retiring import retire
from refreshd.worker.handover.taker import Taker
from refreshd.worker.handover.taking_back import take_back
from refreshd.worker.mesh import Sibling
from wire.errors import WireError

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()


class Moves:
    """All hand-overs of one worker, in the words of the master's messages."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.giver: Giver | None = None
        """Set while this worker hands over to its successor."""
        self.taker: Taker | None = None
        """Set while it takes over from its predecessor."""
        self.resharing: Resharing | None = None
        """Set while the number of workers changes."""
        self._retires = False
        self.on_taken: Callable[[], None] = lambda: None
        """Called once this worker has taken over."""

    # ── shards are on the move, or where they belong ──────────────────────────────────────

    def begin(self) -> None:
        """Shards come or go: no worker may tell the store from where on tasks are unfinished."""
        self._hub.engine.moving = True
        for saver in self._hub.engine.savers.values():
            saver.upkeep = False

    def end(self) -> None:
        """All shards are where they belong."""
        self._hub.engine.moving = False
        self._hub.engine.on_saved = None
        for saver in self._hub.engine.savers.values():
            saver.upkeep = True
        self._hub.parking.recount()

    # ── from a worker to its successor ────────────────────────────────────────────────────

    def hand_over(self, stream: socket.socket, packets: socket.socket) -> None:
        """Gives everything to the process at the other end of these."""
        self.giver = giver = Giver(self._hub)
        self._hub.handing.sibling(SUCCESSOR, packets)
        self._hub.background(self._start_giving(giver, stream))

    async def _start_giving(self, giver: Giver, stream: socket.socket) -> None:
        await self._hub.join_mesh(Sibling(self._hub.mesh, SUCCESSOR), stream)
        giver.start()

    def stand_by(self, listener: socket.socket) -> None:
        """Waits for a predecessor; accepts from `listener` when it is time."""
        self.taker = Taker(self._hub, listener)

    def take_over(self, stream: socket.socket, packets: socket.socket) -> None:
        """Takes everything from the process at the other end of these."""
        self._hub.handing.sibling(PREDECESSOR, packets)
        self._hub.background(self._hub.join_mesh(Sibling(self._hub.mesh, PREDECESSOR), stream))

    def taken(self) -> None:
        """The predecessor has nothing left."""
        self.taker = None
        self._hub.quotas.alone()
        self.on_taken()
        self._hub.cluster.serve()
        self._hub.show()

    async def resume(self) -> None:
        """The successor is gone: takes back what it was given. Raises: StoreError."""
        giver, self.giver = self.giver, None
        if giver is None:
            # It had not begun.
            self._hub.say(control.Resumed(0, 0))
            return
        await giver.give_up()
        self._hub.handing.forget(SUCCESSOR)
        self._hub.handing.listen()
        # It may have left its engine's lease to the successor.
        self._hub.cluster.serve()
        await take_back(self._hub, self._hub.shards.with_owner(SUCCESSOR), SUCCESSOR)

    async def inherit(self) -> None:
        """The predecessor is gone: takes what it had still to give. Raises: StoreError."""
        taker = self.taker
        if taker is None:
            # It had all there was.
            self._hub.say(control.Resumed(0, 0))
            return
        self._hub.handing.forget(PREDECESSOR)
        missing = taker.predecessor_is_gone()
        self.begin()
        await take_back(self._hub, missing, PREDECESSOR)

    @property
    def has_given_all(self) -> bool:
        """Whether others have everything, the lanes of the store among it."""
        return self._retires or (self.giver is not None and self.giver.has_ended)

    @property
    def hears_siblings_elsewhere(self) -> bool:
        """Whether the predecessor still passes on what siblings send."""
        return self.taker is not None and not self.taker.reads_siblings

    # ── another number of workers ─────────────────────────────────────────────────────────

    def remap(self, workers: int) -> None:
        """Gives each shard to whom it belongs with so many workers."""
        self._hub.background(self._reshare().give_all(workers))

    def _reshare(self) -> Resharing:
        if self.resharing is None:
            self.resharing = Resharing(self._hub)
        return self.resharing

    def route(self, workers: int) -> None:
        """Every shard is at its new owner."""
        self._hub.background(self._route(workers))

    async def _route(self, workers: int) -> None:
        await self._reshare().route(workers)
        self.resharing = None

    def retire(self, workers: int) -> None:
        """Gives the connections to the workers that stay."""
        self._retires = True
        self._hub.stopping = True
        self._hub.show()
        self._hub.background(retire(self._hub, workers))

    # ── what the mesh tells ───────────────────────────────────────────────────────────────

    def heard(self, slot: int, payload: bytes) -> None:
        """A frame of a hand-over. What cannot be understood ends it: the master is told."""
        try:
            self._take(slot, frames.decode(payload))
        except StoreError as error:
            why = f"the store cannot be opened for what is handed over: {error}"
            self._hub.say(control.Failed(why) if slot == PREDECESSOR else control.Declined(why))
        except (WireError, KeyError, ValueError, msgspec.DecodeError) as error:
            log.exception("the hand-over cannot be understood")
            why = f"the hand-over cannot be understood: {error}"
            self._hub.say(control.Failed(why) if slot == PREDECESSOR else control.Declined(why))

    def _take(self, slot: int, frame: frames.Frame) -> None:
        if isinstance(frame, frames.Nonces):
            # These may come late: a sibling sends what it has once more when it routes.
            self._hub.nonces.add(frame.entries)
        elif slot == PREDECESSOR and self.taker is not None:
            self.taker.heard(frame)
        elif slot == SUCCESSOR and self.giver is not None:
            self.giver.heard(frame)
        elif slot >= 0:
            # It may have been told of the change before this worker was.
            self._reshare().heard(slot, frame)

    def last(self, slot: int) -> None:
        """A sibling sends no more on its stream, but to the successor."""
        if self.giver is not None:
            self.giver.switched(slot)

    def left(self, slot: int) -> None:
        """A stream has ended. Where it was not a sibling's, the master says what that means."""
        if self.giver is None:
            return
        if slot >= 0:
            self.giver.sibling_left(slot)
        else:
            self.giver.successor_lost()
