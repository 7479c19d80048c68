"""The new worker's part of a hand-over: taking everything from its predecessor.

    STANDBY ──► TAKING ──► SERVING ──► ENDED
                   └─────────┴──► (Inherit) the rest is read from the store

STANDBY: the store is open, nothing is served. TAKING: shards come, and requests for
them through the predecessor. SERVING, from `Moving` on: siblings and fresh connections
come here, connections arrive one by one.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from typing import TYPE_CHECKING

import structlog

from refreshd.shard import PREDECESSOR
from refreshd.task import State
from refreshd.worker.callers import WATCHES_MAX
from refreshd.worker.connection import Connection
from refreshd.worker.handover import connections, frames
from refreshd.worker.handover.steps import reached
from refreshd.worker.handover.taking import ShardTaker
from refreshd.worker.handover.talk import Talk
from refreshd.worker.links import RELAY_CREDIT, Link
from refreshd.worker.proxies import RelayWire
from refreshd.worker.proxy_session import ProxySession

if TYPE_CHECKING:
    import socket

    from refreshd.worker.hub import Hub

log = structlog.get_logger()


# Lines that are kept for one connection: as many tasks as it may watch, and each in two states.
PUSHES_MAX = 2 * WATCHES_MAX


class Phase(enum.Enum):
    """How far the hand-over has come."""

    STANDBY = "standby"
    TAKING = "taking"
    SERVING = "serving"
    ENDED = "ended"


class Taker:
    """One hand-over, as the new worker sees it."""

    def __init__(self, hub: Hub, listener: socket.socket) -> None:
        self.phase = Phase.STANDBY
        self.hub = hub
        self.reads_siblings = False
        """Whether the predecessor has passed on all that siblings sent it."""
        self._listener = listener
        self._talk = Talk(hub, PREDECESSOR)
        self._shards = ShardTaker(hub, self._talk)
        self._pushes: defaultdict[int, list[bytes]] = defaultdict(list)
        """Lines for connections that are on their way here."""
        self._relayed: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        """Siblings' pushes for proxies whose connections are; each has RELAY_CREDIT targets at the most."""
        self._proxies: dict[int, connections.MovedProxy] = {}
        """By the number of the connection that is on its way here."""
        self._arrived = 0
        self._end: frames.End | None = None
        hub.moves.begin()
        hub.shards.give(hub.shards.owned, PREDECESSOR)

    def __repr__(self) -> str:
        return f"<Taker {self.phase.value}, {len(self._shards)} tasks waiting>"

    # ── what the predecessor says ─────────────────────────────────────────────────────────

    def heard(self, frame: frames.Frame) -> None:
        """A frame came. Raises: ValueError, KeyError, WireError for what makes no sense."""
        match frame:
            case frames.Begin():
                self._begin(frame)
            case frames.Link(name, via, up):
                self._link(name, via, up)
            case frames.SiblingGone(slot):
                self._sibling_gone(slot)
            case frames.State():
                self._know(frame)
            case frames.Moving():
                self._serve()
            case frames.End():
                self._end = frame
                self._maybe_end()
            case _:
                self._shards.take(frame)

    def _begin(self, frame: frames.Begin) -> None:
        self._shards.take(frame)
        self.phase = Phase.TAKING
        for name, via in frame.links:
            self._link(name, via, up=True)
        reached("begun")

    def _link(self, name: str, via: int | None, up: bool) -> None:
        pusher = self.hub.pusher
        pusher.detach(pusher.links.get(name))
        if up:
            pusher.attach(Link.await_(name, via), moved=True)

    def _sibling_gone(self, slot: int) -> None:
        """The predecessor has seen a sibling die."""
        if slot not in self.hub.mesh.siblings:
            # Of whom this worker has met it knows itself; by now its successor's connections may watch here.
            self.hub.watches.forget_worker(slot)

    def _know(self, frame: frames.State) -> None:
        hub = self.hub
        hub.nonces.add(frame.nonces)
        hub.proxies.know(frame.ways, frame.heard, frame.joined)
        for name, outstanding in frame.relays.items():
            link = hub.pusher.links.get(name)
            if link is not None and link.awaited and link.via is not None:
                self._reach_through(link, link.via, outstanding)
        reached("knowing")
        self._read_siblings()

    def _reach_through(self, link: Link, slot: int, outstanding: int) -> None:
        """A proxy that a sibling is connected to is reached as the predecessor did."""
        link.arrive(RelayWire(self.hub, slot, link.name), RELAY_CREDIT, outstanding)
        self.hub.pusher.due(link)

    def _read_siblings(self) -> None:
        self.reads_siblings = True
        for slot, sibling in self.hub.mesh.siblings.items():
            if slot >= 0:
                sibling.listen()
        reached("reading")

    def _serve(self) -> None:
        self.phase = Phase.SERVING
        self._talk.tell(frames.Go())
        self.hub.handing.listen(self._listener)
        reached("listening")

    # ── connections ───────────────────────────────────────────────────────────────────────

    def arrive(self, fd: int, payload: bytes) -> None:
        """A connection in the middle of its life."""
        self.hub.background(self._arrive(fd, connections.decode(payload)))

    async def _arrive(self, fd: int, moved: connections.Moved) -> None:
        hub = self.hub
        connection = Connection(hub, moved.number, admin=moved.role == "admin")
        connection.arrive(moved)
        if moved.proxy is not None:
            self._proxies[moved.number] = moved.proxy
        await hub.handing.connect(fd, connection)
        hub.watching.moved_in(connection, moved.met)
        if self.phase is Phase.ENDED:
            # What was kept for it was lost when the predecessor died.
            connection.abort()
            return
        self._arrived += 1
        reached("adopting")
        self._maybe_end()

    def connected(self, connection: Connection) -> None:
        """A connection is served here: what was kept for it is sent."""
        for data in self._pushes.pop(connection.number, ()):
            connection.push(data)
        proxy = self._proxies.pop(connection.number, None)
        if proxy is not None:
            self._connect_proxy(connection, proxy)

    def _connect_proxy(self, connection: Connection, proxy: connections.MovedProxy) -> None:
        hub = self.hub
        link = hub.pusher.links.get(proxy.name)
        waits = link is not None and link.awaited and link.via is None
        session = ProxySession(hub.proxies, proxy.name, connection, connection.close, link if waits else None)
        connection.serve_proxy(session)
        if proxy.name in hub.proxies.sessions:
            # It has connected anew meanwhile: the newer connection counts (PROTOCOL.md, "Proxy verbs").
            connection.close()
            return
        session.unpack(proxy)
        hub.proxies.moved_in(session)
        for slot, data in self._relayed.pop(proxy.name, ()):
            hub.proxies.relay(slot, proxy.name, data)

    def push(self, number: int, data: bytes) -> None:
        """Lines for a connection that is not here: it is at the predecessor, or on its way."""
        if self.phase is Phase.TAKING:
            self.hub.mesh.push(PREDECESSOR, number, data)
        elif self.phase is Phase.SERVING and len(self._pushes[number]) < PUSHES_MAX:
            self._pushes[number].append(data)

    def keep_relayed(self, slot: int, name: str, data: bytes) -> None:
        """A sibling's pushes for a proxy that is not connected here."""
        if self.phase is not Phase.ENDED:
            self._relayed[name].append((slot, data))

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def _maybe_end(self) -> None:
        if self._end is None or self._arrived < self._end.connections:
            return
        reached("ending")
        end, self._end = self._end, None
        counters = self.hub.engine.counters
        counters.accepted += end.accepted
        counters.pairs += end.pairs
        for state, number in end.finished.items():
            counters.finished[State(state)] += number
        for rate, plain in zip((self.hub.rate_boss, self.hub.rate_proxy), end.rates, strict=True):
            rate.take_over(plain)
        self.hub.cluster.inherit(end.lead)
        self._talk.tell(frames.Ended())
        self.finish()

    def finish(self) -> None:
        """Nothing more comes from the predecessor: this worker is as any other."""
        hub = self.hub
        self.phase = Phase.ENDED
        hub.moves.end()
        self._shards.clear()
        self._pushes.clear()
        self._relayed.clear()
        for link in [link for link in hub.pusher.links.values() if link.awaited]:
            hub.pusher.detach(link)
        hub.proxies.choose_ways()
        hub.proxies.tell_links()
        hub.moves.taken()

    def predecessor_is_gone(self) -> list[int]:
        """Whatever it had still to say is lost. Returns the shards that did not come."""
        self._read_siblings()
        if self.phase is not Phase.SERVING:
            self.hub.handing.listen(self._listener)
        missing = self.hub.shards.with_owner(PREDECESSOR)
        self.finish()
        return missing
