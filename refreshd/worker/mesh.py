"""The mesh: a Unix stream to each sibling worker.

    frame = length (4 bytes, of what follows) kind (1) number (8) payload

    REQUEST  number, context line, raw request lines      → one REPLY with this number
    REPLY    number, the replies parted by NUL bytes
    PUSHES   number of a connection, lines to be written there
    RELAY    proxy name, lines for it: `!task …` and `!cancel …`
    TELL     one line between workers; the table of these is in `messages.py`

A request for a shard of a sibling crosses as the raw line, together with all
others of its turn, and its reply takes its place in the order. When a sibling
dies, what it has not answered is kept and sent to its successor, which is
harmless as tasks are known by id; so a killed worker costs its neighbours'
clients a second and no request.

Bounded: lines that wait for one sibling (REQUESTS_MAX, then `busy`), and how
long they wait (PATIENCE_S, then the client's connection is closed: what became
of the request is not known, and an `err` would say that it is).
"""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol, cast

import structlog

from refreshd.worker.turns import Turn
from wire.errors import Refused

log = structlog.get_logger()

_HEADER = struct.Struct("<IBQ")
REQUEST, REPLY, PUSHES, RELAY, TELL = range(5)
_PLAIN = 0x10
FRAME_MAX_BYTES = 64 << 20
# 50,000 lines of 350 bytes are 17 MB kept for a sibling that is being replaced.
REQUESTS_MAX = 50_000
PATIENCE_S = 30.0
_WRITE_HIGH_BYTES = 4 << 20


class MeshOwner(Protocol):
    """What the mesh calls back into."""

    def mesh_request(self, turn: Turn, context: bytes, lines: list[bytes], plain: bool, slot: int) -> None:
        """A sibling's clients ask; fill the turn and release it once."""

    def mesh_pushes(self, connection: int, data: bytes) -> None:
        """Lines for a connection of this worker."""

    def mesh_relay(self, slot: int, name: str, data: bytes) -> None:
        """Push lines for a proxy that is connected here."""

    def mesh_tell(self, slot: int, line: bytes) -> None:
        """A sibling says something."""

    def mesh_joined(self, slot: int) -> None:
        """A sibling (or its successor) can be reached; it knows nothing yet."""

    def mesh_left(self, slot: int) -> None:
        """A sibling is gone."""


class Pending:
    """Requests that a sibling has not answered."""

    __slots__ = ("frame", "places", "since", "turn")

    def __init__(self, turn: Turn, places: list[int], frame: bytes, since: float) -> None:
        self.turn = turn
        self.places = places
        self.frame = frame
        self.since = since


class Sibling(asyncio.Protocol):
    """The stream to one sibling. Owner of the turns it asks for."""

    def __init__(self, mesh: Mesh, slot: int) -> None:
        self.mesh = mesh
        self.slot = slot
        self.transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, with the same methods.
        self.transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self.mesh.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.mesh.left(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        if buffer:
            buffer += data
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
            self._take(data[at : at + 4 + size])
            at += 4 + size
        if at < end:
            buffer += data[at:]

    def _take(self, frame: bytes) -> None:
        _, kind, number = _HEADER.unpack_from(frame)
        payload = frame[_HEADER.size :]
        owner = self.mesh.owner
        if kind & ~_PLAIN == REQUEST:
            context, *lines = payload.split(b"\n")
            owner.mesh_request(Turn(self, number), context, lines, bool(kind & _PLAIN), self.slot)
        elif kind == REPLY:
            self.mesh.replied(self.slot, number, payload)
        elif kind == PUSHES:
            owner.mesh_pushes(number, payload)
        elif kind == RELAY:
            name, _, lines_ = payload.partition(b"\n")
            owner.mesh_relay(self.slot, name.decode(), lines_)
        elif kind == TELL:
            owner.mesh_tell(self.slot, payload)

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`: sends the replies back."""
        self.send(REPLY, turn.number, b"\0".join(turn.parts))

    def send(self, kind: int, number: int, payload: bytes) -> None:
        """Sends a frame; a sibling that is gone is told nothing."""
        self.write(make_frame(kind, number, payload))

    def write(self, frame: bytes) -> None:
        """As `send`, for a frame that is made already."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame)

    def close(self) -> None:
        """Ends the stream; the successor brings a new one."""
        if self.transport is not None:
            self.transport.abort()


def make_frame(kind: int, number: int, payload: bytes) -> bytes:
    """One frame."""
    return _HEADER.pack(9 + len(payload), kind, number) + payload


class Mesh:
    """All siblings of this worker."""

    def __init__(self, slot: int, workers: int, owner: MeshOwner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner = owner
        self.others = [other for other in range(workers) if other != slot]
        self.siblings: dict[int, Sibling] = {}
        self._loop = loop
        self._pending: dict[int, dict[int, Pending]] = {other: {} for other in self.others}
        self._waiting = dict.fromkeys(self.others, 0)
        self._number = 0

    @property
    def waiting(self) -> int:
        """Request lines that siblings have not answered."""
        return sum(self._waiting.values())

    # ── requests ──────────────────────────────────────────────────────────────────────────

    def forward(
        self, slot: int, turn: Turn, places: list[int], lines: list[bytes], context: bytes, plain: bool
    ) -> None:
        """Sends request lines of a turn to the worker that owns their shards."""
        self._number += 1
        frame = make_frame(REQUEST | (_PLAIN if plain else 0), self._number, b"\n".join([context, *lines]))
        self._pending[slot][self._number] = Pending(turn, places, frame, self._loop.time())
        self._waiting[slot] += len(places)
        turn.waiting += 1
        sibling = self.siblings.get(slot)
        if sibling is not None:
            sibling.write(frame)

    def check_room(self, slot: int) -> None:
        """Raises: Refused, `busy`, where too much waits for a sibling."""
        if self._waiting[slot] >= REQUESTS_MAX:
            raise Refused("busy", f"worker {slot} is behind or being replaced", retry_ms=500)

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

    async def ask(self, slot: int, line: bytes, deadline_s: float) -> bytes:
        """Asks one sibling something on this worker's own behalf. Raises: TimeoutError."""
        asked = _Asked(self._loop)
        turn = Turn(asked)
        turn.parts.append(b"")
        self.forward(slot, turn, [0], [line], b"", plain=False)
        turn.release()
        async with asyncio.timeout(deadline_s):
            return await asked.answer

    async def ask_all(self, line: bytes, deadline_s: float) -> list[bytes]:
        """Asks every sibling. Raises: TimeoutError when one does not answer."""
        return list(await asyncio.gather(*(self.ask(slot, line, deadline_s) for slot in self.others)))

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

    # ── everything else ───────────────────────────────────────────────────────────────────

    def tell(self, line: bytes, slot: int | None = None) -> None:
        """Says something to one sibling, or to all."""
        for other in self.others if slot is None else [slot]:
            sibling = self.siblings.get(other)
            if sibling is not None:
                sibling.send(TELL, 0, line)

    def push(self, slot: int, connection: int, data: bytes) -> None:
        """Lines for a connection of a sibling."""
        sibling = self.siblings.get(slot)
        if sibling is not None:
            sibling.send(PUSHES, connection, data)

    def relay(self, slot: int, name: str, data: bytes) -> None:
        """Push lines for a proxy that is connected to a sibling."""
        sibling = self.siblings.get(slot)
        if sibling is not None:
            sibling.send(RELAY, 0, name.encode() + b"\n" + data)

    # ── coming and going ──────────────────────────────────────────────────────────────────

    def joined(self, sibling: Sibling) -> None:
        """A stream to a sibling is there; what its predecessor did not answer is asked again."""
        before = self.siblings.get(sibling.slot)
        self.siblings[sibling.slot] = sibling
        if before is not None:
            before.close()
            self.owner.mesh_left(sibling.slot)
        self.owner.mesh_joined(sibling.slot)
        for entry in self._pending[sibling.slot].values():
            sibling.write(entry.frame)

    def left(self, sibling: Sibling) -> None:
        """A stream has ended."""
        if self.siblings.get(sibling.slot) is sibling:
            del self.siblings[sibling.slot]
            self.owner.mesh_left(sibling.slot)

    def close(self) -> None:
        """Ends all streams."""
        for sibling in list(self.siblings.values()):
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
