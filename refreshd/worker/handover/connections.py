"""Connections on their way from a worker to its successor.

A connection leaves once it is *quiet*: it is not read any more, every request that was
read is answered, and the peer has taken the replies. Then its descriptor goes over the
packet socket, with what belongs to it (`Moved`), and this process lets go of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from refreshd import control
from refreshd.shard import SUCCESSOR
from refreshd.worker.handover.steps import reached

if TYPE_CHECKING:
    from refreshd.worker.connection import Connection
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

# Connections that are silent at a time: each waits for the slowest of them, usually for one commit.
BATCH = 100
# A peer that has not read its replies for so long is closed, as it would be a little later anyway.
QUIET_S = 20.0
# A connection that is not quiet after this lets the others go first.
PATIENCE_S = 0.05
_POLL_S = 0.002


class MovedProxy(msgspec.Struct, frozen=True, array_like=True):
    """What belongs to a proxy's connection. `relayed`: (id, targets, slot) that siblings pushed here;
    `waiting`: (id, targets, line, slot) of theirs that wait for credit."""

    name: str
    credit: int
    outstanding: int
    heard_ms: int
    figures: dict[str, Any]
    cancelled: list[bytes]
    relayed: list[tuple[bytes, int, int]]
    waiting: list[tuple[bytes, int, bytes, int]]
    learns: bool = False
    catch_up: bool = False
    drop_after_s: int | None = None
    answers: bool = False
    receipt_key: str = ""
    verifies: bool = False


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A connection in the middle of its life.

    `unread` is the beginning of a line, uncompressed; `chunk` the beginning of a
    compressed chunk, None where the connection is not compressed. `met`: the siblings that
    may know what it watches, by slot the generation.
    """

    number: int
    role: str | None
    key: str | None
    must_greet: bool
    greeting: str
    fresh: bool
    unread: bytes
    chunk: bytes | None
    zip_started: bool
    unzip_started: bool
    watching: list[bytes]
    proxy: MovedProxy | None
    met: dict[int, int] = {}


_decoder = msgspec.msgpack.Decoder(Moved)


def encode(moved: Moved) -> bytes:
    """As it stands in a packet."""
    return msgspec.msgpack.encode(moved)


def decode(payload: bytes) -> Moved:
    """Raises: msgspec.DecodeError."""
    return _decoder.decode(payload)


class Leaver:
    """Moves all connections of a worker to its successor, or to a sibling."""

    def __init__(self, hub: Hub, to: int = SUCCESSOR) -> None:
        self.hub = hub
        self._to = to
        self.moved = 0
        self.closed = 0
        """Connections that did not become quiet in time."""
        self._silenced: dict[Connection, float] = {}
        """Connections that are not read any more, and since when."""

    async def move_all(self) -> None:
        """Returns when no connection is left here."""
        # An operator's connection is not quiet before what it asked was answered.
        self.hub.asking.leave()
        end = self.hub.loop.time() + QUIET_S
        while self.hub.connections and self.hub.loop.time() < end:
            self._silence_some()
            before = self.moved
            for connection in list(self._silenced):
                if connection.transport is None or connection.is_ending:
                    del self._silenced[connection]
                elif connection.is_quiet:
                    del self._silenced[connection]
                    await self._move(connection)
            await asyncio.sleep(0 if self.moved > before else _POLL_S)
        self._close_rest()

    def _silence_some(self) -> None:
        """Stops reading some more, up to BATCH; those that take long make room for others."""
        now_s = self.hub.loop.time()
        recent = sum(now_s - since < PATIENCE_S for since in self._silenced.values())
        for connection in list(self.hub.connections.values()):
            if recent >= BATCH:
                return
            if connection not in self._silenced and not connection.is_ending:
                connection.leave()
                self._silenced[connection] = now_s
                recent += 1

    async def _move(self, connection: Connection) -> None:
        transport = connection.transport
        if transport is None:
            return
        fd = transport.get_extra_info("socket").fileno()
        payload = encode(connection.pack())
        while not self.hub.handing.send(self._to, control.Move(), fd, payload):
            await asyncio.sleep(_POLL_S)
            if connection.transport is None:
                return
        self.moved += 1
        connection.let_go()
        reached("connection")

    def _close_rest(self) -> None:
        for connection in list(self.hub.connections.values()):
            log.warning("closing a connection that does not read", caller=repr(connection.caller))
            self.closed += 1
            connection.abort()

    def stay(self) -> None:
        """The successor is gone: what is left is served on."""
        self.hub.asking.is_leaving = False
        for connection in self.hub.connections.values():
            connection.stay()

    def pass_on(self, fd: int, *, admin: bool, rest: bytes) -> bool:
        """A fresh connection that reached this worker too late goes to the successor."""
        role = "admin" if admin else "client"
        return self.hub.handing.send(self._to, control.Adopt(role), fd, rest)
