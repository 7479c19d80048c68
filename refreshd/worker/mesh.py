"""The mesh: a Unix stream to each sibling worker.

    frame = length (4 bytes, of what follows) kind (1) number (8) payload

    REQUEST  number, context line, raw request lines      → one REPLY with this number
    REPLY    number, the replies parted by NUL bytes
    PUSHES   number of a connection, lines to be written there
    RELAY    proxy name, lines for it: `!task …` and `!cancel …`
    TELL     one line between workers; the table of these is in `siblings.py`
    VIA      slot of a sibling, connection, lines for it: from a successor that does not reach it yet
    LAST     nothing more is pushed or asked on this stream: the rest comes on another
    HAND     a step of the hand-over (handover/frames.py), between a worker and its successor

A request for a shard of a sibling crosses as the raw line, together with all
others of its turn, and its reply takes its place in the order. When a sibling
dies, what it has not answered is kept and sent to its successor, which is
harmless as tasks are known by id; so a killed worker costs its neighbours'
clients a second and no request.

Beside the siblings there may be a SUCCESSOR or a PREDECESSOR in the same slot, and
requests that are HELD while shards are read from the store (docs/handover.md).
Where a sibling has handed over to a process that lives beside it for a while,
each side ends the old stream with LAST and reads the new one only behind the
other's LAST: nothing overtakes.

Bounded: lines that wait for one sibling (REQUESTS_MAX, then `busy`), and how
long they wait (PATIENCE_S, then the client's connection is closed: what became
of the request is not known, and an `err` would say that it is).
"""

from __future__ import annotations

import asyncio
import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol, cast

import structlog

from refreshd.shard import FROZEN, HELD, PREDECESSOR, SUCCESSOR
from refreshd.worker.turns import Turn
from wire.errors import Refused

log = structlog.get_logger()

_HEADER = struct.Struct("<IBQ")
REQUEST, REPLY, PUSHES, RELAY, TELL, LAST, HAND, VIA = range(8)
_PLAIN = 0x10
FRAME_MAX_BYTES = 64 << 20
# 50,000 lines of 350 bytes are 17 MB kept for a sibling that is being replaced.
REQUESTS_MAX = 50_000
PATIENCE_S = 30.0
_WRITE_HIGH_BYTES = 4 << 20


class MeshOwner(Protocol):
    """What the mesh calls back into. `slot` may be SUCCESSOR or PREDECESSOR."""

    def mesh_request(self, turn: Turn, context: bytes, lines: list[bytes], plain: bool, slot: int) -> None:
        """A sibling's clients ask; fill the turn and release it once."""

    def mesh_pushes(self, connection: int, data: bytes) -> None:
        """Lines for a connection of this worker."""

    def mesh_relay(self, slot: int, name: str, data: bytes) -> None:
        """Push lines for a proxy that is connected here."""

    def mesh_tell(self, slot: int, line: bytes) -> None:
        """A sibling says something."""

    def mesh_hand(self, slot: int, payload: bytes) -> None:
        """A step of the hand-over."""

    def mesh_last(self, slot: int) -> None:
        """A sibling sends no more on the stream that this worker was introduced to it with."""

    def mesh_joined(self, slot: int) -> None:
        """A sibling (or its successor) can be reached; it knows nothing yet."""

    def mesh_left(self, slot: int) -> None:
        """A sibling is gone."""


class Pending:
    """Requests that a sibling has not answered. `stream` is what they were written to, if they were."""

    __slots__ = ("frame", "places", "since", "stream", "turn")

    def __init__(
        self, turn: Turn, places: list[int], frame: bytes, since: float, stream: Sibling | None
    ) -> None:
        self.turn = turn
        self.places = places
        self.frame = frame
        self.since = since
        self.stream = stream


class Sibling(asyncio.Protocol):
    """The stream to one sibling. Owner of the turns it asks for."""

    def __init__(self, mesh: Mesh, slot: int, *, succeeds: bool = False, silent: bool = False) -> None:
        self.mesh = mesh
        self.slot = slot
        self.succeeds = succeeds
        """Whether the process that had the slot before still lives and has a stream, too."""
        self.transport: asyncio.Transport | None = None
        self._silent = silent
        """Whether it is not to be read yet, see `listen`."""
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, with the same methods.
        self.transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        if self._silent:
            transport.pause_reading()
        self.mesh.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.mesh.left(self)

    def listen(self) -> None:
        """Reads the stream from now on: what the other side sent elsewhere before was read."""
        if self._silent and self.transport is not None:
            self._silent = False
            self.transport.resume_reading()

    def be_silent(self) -> None:
        """Reads no more until `listen`."""
        if not self._silent and self.transport is not None:
            self.transport.pause_reading()
        self._silent = True

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < 4 + int.from_bytes(buffer[:4], "little"):
                return
            data = bytes(buffer)
            buffer.clear()
        at, end = 0, len(data)
        while end - at >= 4:
            size = int.from_bytes(data[at : at + 4], "little")
            if size > FRAME_MAX_BYTES:
                log.error("a sibling sent a frame that is too large", slot=self.slot, bytes=size)
                self.close()
                return
            if end - at < 4 + size:
                break
            self.take(data[at : at + 4 + size])
            at += 4 + size
        if at < end:
            buffer += data[at:]

    def take(self, frame: bytes) -> None:
        """Does what a whole frame asks for."""
        _, kind, number = _HEADER.unpack_from(frame)
        payload = frame[_HEADER.size :]
        owner = self.mesh.owner
        match kind & ~_PLAIN:
            case k if k == REQUEST:
                context, *lines = payload.split(b"\n")
                self.mesh.unanswered += 1
                owner.mesh_request(Turn(self, number), context, lines, bool(kind & _PLAIN), self.slot)
            case k if k == REPLY:
                self.mesh.replied(self.slot, number, payload)
            case k if k == PUSHES:
                owner.mesh_pushes(number, payload)
            case k if k == RELAY:
                name, _, lines_ = payload.partition(b"\n")
                owner.mesh_relay(self.slot, name.decode(), lines_)
            case k if k == TELL:
                owner.mesh_tell(self.slot, payload)
            case k if k == LAST:
                self.mesh.ended(self)
            case k if k == VIA:
                to, _, lines_ = payload.partition(b"\n")
                self.mesh.push(int(to), number, lines_)
            case k if k == HAND:
                owner.mesh_hand(self.slot, payload)
            case _:
                log.warning("a sibling of another version sent a frame", slot=self.slot, kind=kind)

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`: sends the replies back."""
        self.mesh.unanswered -= 1
        self.send(REPLY, turn.number, b"\0".join(turn.parts))

    def send(self, kind: int, number: int, payload: bytes) -> None:
        """Sends a frame; a sibling that is gone is told nothing."""
        self.write(make_frame(kind, number, payload))

    def write(self, frame: bytes) -> None:
        """As `send`, for a frame that is made already."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame)

    @property
    def unsent_bytes(self) -> int:
        """What was written and not taken by the other side's socket."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def end(self) -> None:
        """Nothing but answers is sent on this stream any more."""
        self.send(LAST, 0, b"")

    def close(self) -> None:
        """Ends the stream; the successor brings a new one."""
        if self.transport is not None:
            self.transport.abort()


class _Here(Sibling):
    """Requests that were HELD are asked of this worker itself, as if a sibling had sent them."""

    def send(self, kind: int, number: int, payload: bytes) -> None:
        if kind == REPLY:
            self.mesh.replied(HELD, number, payload)


class _Kept(Sibling):
    """What is sent to the owner of shards that are FROZEN, in order, until it is known who that is."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__(mesh, FROZEN)
        self.frames: list[bytes] = []

    def write(self, frame: bytes) -> None:
        self.frames.append(frame)


def make_frame(kind: int, number: int, payload: bytes) -> bytes:
    """One frame."""
    return _HEADER.pack(9 + len(payload), kind, number) + payload


class Mesh:
    """All siblings of this worker."""

    def __init__(self, slot: int, workers: int, owner: MeshOwner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.others = [other for other in range(workers) if other != slot]
        self.siblings: dict[int, Sibling] = {}
        """The stream on which each is sent what is for it."""
        self.unanswered = 0
        """Frames of requests that siblings sent and that are not answered."""
        self._leaving: dict[int, Sibling] = {}
        """Streams to predecessors of siblings, while they live."""
        self._loop = loop
        self._pending: defaultdict[int, dict[int, Pending]] = defaultdict(dict)
        self._waiting: defaultdict[int, int] = defaultdict(int)
        self._number = 0
        self._paused: set[int] = set()
        self._here = _Here(self, HELD)
        self._ways: dict[int, int] = {}
        """Through whom a sibling is asked that is not introduced to this worker, see `go_through`."""

    @property
    def waiting(self) -> int:
        """Request lines that siblings have not answered."""
        return sum(self._waiting.values())

    # ── requests ──────────────────────────────────────────────────────────────────────────

    def forward(
        self, slot: int, turn: Turn, places: list[int], lines: list[bytes], context: bytes, plain: bool
    ) -> None:
        """Sends request lines of a turn to the worker that owns their shards."""
        if context:
            slot = self._ways.get(slot, slot)
        self._number += 1
        frame = make_frame(REQUEST | (_PLAIN if plain else 0), self._number, b"\n".join([context, *lines]))
        # What this worker asks itself is not held up: the end of the pause is found out by it.
        sibling = None if context and slot in self._paused else self.siblings.get(slot)
        self._pending[slot][self._number] = Pending(turn, places, frame, self._loop.time(), sibling)
        self._waiting[slot] += len(places)
        turn.waiting += 1
        if sibling is not None:
            sibling.write(frame)

    def check_room(self, slot: int) -> None:
        """Raises: Refused, `busy`, where too much waits for a sibling."""
        if self._waiting[self._ways.get(slot, slot)] >= REQUESTS_MAX:
            raise Refused("busy", "the worker of this task is behind or being replaced", retry_ms=500)

    def go_through(self, slot: int, other: int) -> None:
        """What clients ask of a sibling that is gone goes through another, who meets its successor."""
        self._ways[slot] = other
        sibling = self.siblings.get(other)
        pending = self._pending[slot]
        for number, entry in [item for item in pending.items() if not isinstance(item[1].turn.owner, _Asked)]:
            self._pending[other][number] = pending.pop(number)
            self._waiting[slot] -= len(entry.places)
            self._waiting[other] += len(entry.places)
            entry.stream = sibling
            if sibling is not None:
                sibling.write(entry.frame)

    def replied(self, slot: int, number: int, payload: bytes) -> None:
        """A sibling has answered."""
        pending = self._pending[slot].pop(number, None)
        if pending is None:
            return
        self._waiting[slot] -= len(pending.places)
        turn = pending.turn
        for place, part in zip(pending.places, payload.split(b"\0"), strict=True):
            turn.parts[place] = part
        turn.release()

    async def ask(self, slot: int, line: bytes, deadline_s: float, context: bytes = b"") -> bytes:
        """Asks one sibling something on this worker's own behalf, or a caller's. Raises: TimeoutError."""
        asked = _Asked(self._loop)
        turn = Turn(asked)
        turn.parts.append(b"")
        self.forward(slot, turn, [0], [line], context, plain=False)
        turn.release()
        async with asyncio.timeout(deadline_s):
            return await asked.answer

    async def ask_all(self, line: bytes, deadline_s: float) -> list[bytes]:
        """Asks every sibling, and a successor. Raises: TimeoutError when one does not answer.

        One that goes for good meanwhile has nothing to say.
        """
        answers = await asyncio.gather(*(self.ask(slot, line, deadline_s) for slot in self._all()))
        return [answer for answer in answers if answer]

    def _all(self) -> list[int]:
        """Who is asked and told what all are: a successor knows what it was given only."""
        return [*self.others, SUCCESSOR] if SUCCESSOR in self.siblings else self.others

    def give_up_on_late(self) -> None:
        """Closes the connections whose requests no sibling has answered for PATIENCE_S."""
        oldest = self._loop.time() - PATIENCE_S
        for slot, pending in self._pending.items():
            late = [number for number, entry in pending.items() if entry.since < oldest]
            for number in late:
                entry = pending.pop(number)
                self._waiting[slot] -= len(entry.places)
                close = getattr(entry.turn.owner, "abort", None)
                if close is not None:
                    close()

    @property
    def is_quiet(self) -> bool:
        """Whether siblings have, and have taken, the answers to all that they asked."""
        return not self.unanswered and not any(s.unsent_bytes for s in self.siblings.values())

    # ── requests that wait for shards to be sent, or to be read ───────────────────────────

    def freeze(self) -> None:
        """What is sent to FROZEN is kept from now on, until `thaw` or `hold`."""
        self.siblings[FROZEN] = _Kept(self)

    def thaw(self, slot: int) -> None:
        """What was FROZEN is this sibling's by now: it is sent what was kept."""
        kept, to = self.siblings.pop(FROZEN), self.siblings[slot]
        for number, entry in self._pending.pop(FROZEN, {}).items():
            entry.stream = to
            self._pending[slot][number] = entry
        self._waiting[slot] += self._waiting.pop(FROZEN, 0)
        if isinstance(kept, _Kept):
            for frame in kept.frames:
                to.write(frame)

    def thaw_here(self) -> None:
        """What was FROZEN is this worker's again: it does itself what was kept."""
        kept = self.siblings.get(FROZEN)
        self.hold(FROZEN)
        if isinstance(kept, _Kept):
            for entry in self._pending[HELD].values():
                if entry.stream is kept:
                    entry.stream = self._here
            for frame in kept.frames:
                self._here.take(frame)

    def hold(self, slot: int) -> None:
        """What is gone for good (or FROZEN) has not answered waits for `ask_held`."""
        if slot == FROZEN:
            self.siblings.pop(FROZEN, None)
        self._ways = {asked: through for asked, through in self._ways.items() if through != slot}
        for number, entry in self._pending.pop(slot, {}).items():
            self._pending[HELD][number] = entry
        self._waiting[HELD] += self._waiting.pop(slot, 0)

    def ask_held(self) -> None:
        """The shards are there: answers what was held, oldest first, and what is being answered only once."""
        for _, entry in sorted(self._pending[HELD].items()):
            if entry.stream is not self._here:
                entry.stream = self._here
                self._here.take(entry.frame)

    def pause(self, slot: int) -> None:
        """What clients ask of a sibling is kept from now on, until `end_pause`."""
        self._paused.add(slot)

    def end_pause(self, slot: int) -> None:
        """What was kept is asked of whoever owns it by now."""
        self._paused.discard(slot)
        kept = {number: entry for number, entry in self._pending[slot].items() if entry.stream is None}
        for number, entry in kept.items():
            del self._pending[slot][number]
            self._waiting[slot] -= len(entry.places)
            self._waiting[HELD] += len(entry.places)
            self._pending[HELD][number] = entry
        self.ask_held()

    # ── everything else ───────────────────────────────────────────────────────────────────

    def tell(self, line: bytes, slot: int | None = None) -> None:
        """Says something to one sibling, or to all."""
        for other in self._all() if slot is None else [slot]:
            sibling = self.siblings.get(other)
            if sibling is not None:
                sibling.send(TELL, 0, line)

    def push(self, slot: int, connection: int, data: bytes) -> None:
        """Lines for a connection of a sibling."""
        sibling = self.siblings.get(slot)
        if sibling is not None:
            sibling.send(PUSHES, connection, data)
        elif PREDECESSOR in self.siblings:
            self.siblings[PREDECESSOR].send(VIA, connection, b"%d\n%b" % (slot, data))

    def relay(self, slot: int, name: str, data: bytes) -> None:
        """Push lines for a proxy that is connected to a sibling."""
        sibling = self.siblings.get(slot)
        if sibling is not None:
            sibling.send(RELAY, 0, name.encode() + b"\n" + data)

    # ── coming and going ──────────────────────────────────────────────────────────────────

    def joined(self, sibling: Sibling) -> None:
        """A stream to a sibling is there; what its predecessor did not answer is asked again."""
        slot = sibling.slot
        before = self.siblings.get(slot)
        self.siblings[slot] = sibling
        self._ways.pop(slot, None)
        if slot >= 0 and slot not in self.others:
            self.others.append(slot)
        if sibling.succeeds and before is not None:
            # It answers what it was asked; whatever is new goes to its successor.
            self._leaving[slot] = before
            before.end()
            return
        if before is not None:
            before.close()
        self._close_leaving(slot)
        if sibling.succeeds:
            sibling.listen()
        if slot >= 0:
            if before is not None:
                self.owner.mesh_left(slot)
            self.owner.mesh_joined(slot)
        paused = slot in self._paused
        self._ask_again(sibling, lambda e: e.stream is not sibling and not (paused and e.stream is None))

    def _ask_again(self, sibling: Sibling, which: Callable[[Pending], bool]) -> None:
        for entry in self._pending[sibling.slot].values():
            if which(entry):
                entry.stream = sibling
                sibling.write(entry.frame)

    def ended(self, sibling: Sibling) -> None:
        """The other side sends no more on this stream but answers: its successor's is read from now on."""
        if self._leaving.get(sibling.slot) is sibling:
            self.siblings[sibling.slot].listen()
        else:
            self.owner.mesh_last(sibling.slot)

    def left(self, sibling: Sibling) -> None:
        """A stream has ended."""
        slot = sibling.slot
        if self._leaving.get(slot) is sibling:
            del self._leaving[slot]
            current = self.siblings.get(slot)
            if current is not None:
                current.listen()
                self._ask_again(current, lambda entry: entry.stream is sibling)
        elif self.siblings.get(slot) is sibling:
            del self.siblings[slot]
            self.owner.mesh_left(slot)

    def _close_leaving(self, slot: int) -> None:
        leaving = self._leaving.pop(slot, None)
        if leaving is not None:
            leaving.close()

    def forget(self, slot: int) -> None:
        """This one is no more, and nobody comes in its place. What it was asked is held, see `ask_held`."""
        if slot in self.others:
            self.others.remove(slot)
        sibling = self.siblings.pop(slot, None)
        if sibling is not None:
            sibling.close()
            self.owner.mesh_left(slot)
        for number, entry in list(self._pending[slot].items()):
            if isinstance(entry.turn.owner, _Asked):
                self.replied(slot, number, b"")
        self.hold(slot)

    def close(self) -> None:
        """Ends all streams."""
        for sibling in [*self.siblings.values(), *self._leaving.values()]:
            sibling.close()


class _Asked:
    """Owner of a turn that this worker asks for itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[bytes] = loop.create_future()

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`."""
        if not self.answer.done():
            self.answer.set_result(turn.parts[0])

    def abort(self) -> None:
        """Nobody answered."""
        if not self.answer.done():
            self.answer.cancel()
