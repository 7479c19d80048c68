"""A worker's parts, put together; each knows the others through this.

connection ──► requests ──► engine ──► saver ──► store
                  │           │ ▲
                  ▼           ▼ │
                mesh       pusher ◄──► proxies
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

import structlog

from refreshd import control
from refreshd.config import Config
from refreshd.errors import StoreError
from refreshd.fanout import Log
from refreshd.fleet import Fleet, Proxy
from refreshd.rates import Rate
from refreshd.scoreboard import Row, Scoreboard, row_of
from refreshd.shard import ShardMap
from refreshd.store.base import Parked, ProxyRow, Reader
from refreshd.store.opening import open_store
from refreshd.task import Task
from refreshd.worker.asking import Asking
from refreshd.worker.callers import Caller
from refreshd.worker.cluster import Cluster
from refreshd.worker.connection import Connection
from refreshd.worker.engine import Engine
from refreshd.worker.greeter import Greeter
from refreshd.worker.handing import Handing
from refreshd.worker.handover.moves import Moves
from refreshd.worker.loading import Loader, Opening
from refreshd.worker.mesh import Mesh, Sibling
from refreshd.worker.parking import Parking
from refreshd.worker.proxies import Proxies
from refreshd.worker.pusher import Pusher
from refreshd.worker.queries import Queries
from refreshd.worker.quotas import Quotas
from refreshd.worker.requests import Requests
from refreshd.worker.saver import Saver
from refreshd.worker.siblings import Siblings
from refreshd.worker.turns import Turn
from refreshd.worker.watches import Watches
from refreshd.worker.watching import Watching
from wire.errors import Refused, WireError
from wire.lines import format_refused
from wire.signatures import NonceBook

log = structlog.get_logger()

# How long a stopping worker waits for peers to read their last replies.
_CLOSE_S = 1.0


class Hub:
    """One worker."""

    def __init__(
        self,
        config: Config,
        shards: ShardMap,
        scoreboard: Scoreboard,
        loop: asyncio.AbstractEventLoop,
        *,
        generation: int = 1,
        side: int = 0,
        say: Callable[[control.Message], None] = lambda _: None,
    ) -> None:
        """`generation` and `side`: see control.Start; `say` tells the master something."""
        self.config = config
        self.shards = shards
        self.scoreboard = scoreboard
        self.loop = loop
        self.generation = generation
        self.side = side
        self.say = say
        self.row = row_of(shards.slot, side)
        self.rows: dict[int, int] = {}
        """Slot → the row of the scoreboard in which that sibling is."""
        self.met: dict[int, int] = {}
        """Slot → the generation of that sibling."""
        self.moves = Moves(self)
        self.stopping = False
        self.connections: dict[int, Connection] = {}
        self.nonces = NonceBook()
        now_s = time.monotonic()
        self.rate_boss = Rate(now_s)
        self.rate_proxy = Rate(now_s)
        self.fleet = Fleet(Proxy(p.name, p.group, p.layer, listed=True) for p in config.proxies)
        self.pusher = Pusher(loop)
        self.quotas = Quotas(self, side)
        self.engine = Engine(config, shards, self.fleet, self, side=side, book=self.quotas.book)
        self.pusher.engine = self.engine
        self.watches = Watches(self.deliver)
        self.watching = Watching(self)
        self.mesh = Mesh(shards.slot, shards.workers, self, loop)
        self.proxies = Proxies(self)
        self.asking = Asking(self)
        self.requests = Requests(self)
        self.siblings = Siblings(self)
        self.greeter = Greeter(self)
        self.handing = Handing(self)
        self.parking = Parking(self)
        self.pusher.on_return = self.parking.returned
        self.pusher.on_loss = self.parking.lost
        self.store = open_store(config)
        self.cluster = Cluster(self)
        self._readers: dict[int, Reader] = {}
        self.queries = Queries(shards, self._readers, self.engine.savers)
        # A connection keeps its number when it moves to the successor, whose own ones begin later.
        self._numbers = generation << 32
        self._all_closed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    # ── starting ──────────────────────────────────────────────────────────────────────────

    def open_store(self, *, standby: bool = False) -> None:
        """Opens the lanes and, unless a predecessor will hand them over, loads the tasks.

        Blocks. Raises: StoreError, BootError.
        """
        self.cluster.join(standby=standby)
        for number in self.shards.own_lanes():
            self._open_lane(number, standby=standby)
        self.quotas.boot(standby=standby)
        if not standby:
            # In order of acceptance over all lanes: the oldest unfinished task is then the first in memory.
            for task in Loader(self.shards.owns).all(self._readers.values()):
                self.engine.load(task)
            self.parking.count(self._readers.values())

    def _open_lane(self, number: int, *, standby: bool) -> Saver:
        shards = self.shards
        owned = None if standby else shards.owned
        lane = self.store.lane(number, shards.slot, shards.sharers(number), owned)
        reader = self._readers[number] = self.store.reader(number, shards.lanes)
        for row in reader.proxies():
            self.proxies.join(Proxy(row.name, row.group, row.layer, listed=False))
        self.engine.serials.after(reader.last_serial())
        saver = Saver(lane, self.engine, self.loop, f"{number}", upkeep=not standby)
        self.engine.savers[number] = saver
        return saver

    def openings(self, lanes: Iterable[int]) -> list[Opening]:
        """How readers of some lanes are opened, for use in another thread."""
        return [partial(self.store.reader, lane, self.shards.lanes) for lane in lanes]

    def saver(self, lane: int) -> Saver:
        """The saver of a lane, opened if it is not: its shards are coming. Raises: StoreError."""
        return self.engine.savers.get(lane) or self._open_lane(lane, standby=True)

    def start(self) -> None:
        """Starts what was loaded, and the clockwork."""
        self.engine.clock.turn()
        self.engine.start_all(list(self.engine.tasks.values()))
        self.queries.start()
        self.cluster.start()
        self._tick()
        self._every_half_second()
        self._every_five_seconds()

    def _tick(self) -> None:
        self.engine.tick()
        self.parking.tick()
        self.loop.call_later(0.1, self._tick)

    def _every_half_second(self) -> None:
        self.proxies.sweep()
        self.show()
        self.loop.call_later(0.5, self._every_half_second)

    def _every_five_seconds(self) -> None:
        now_s = time.monotonic()
        self.rate_boss.turn(now_s)
        self.rate_proxy.turn(now_s)
        self.engine.housekeeping()
        if self.shards.slot == 0:
            self.quotas.note()
        self.mesh.give_up_on_late()
        for connection in list(self.connections.values()):
            connection.sweep(self.loop.time())
        self.loop.call_later(5.0, self._every_five_seconds)

    def show(self) -> None:
        """Writes this worker's row of the scoreboard: the loop turns."""
        row = Row(
            time.monotonic_ns(),
            os.getpid(),
            len(self.connections),
            len(self.engine.tasks),
            int(not self.stopping and not self.handing.is_short),
        )
        self.scoreboard.write(self.row, row)

    # ── connections ───────────────────────────────────────────────────────────────────────

    def new_connection(self, *, admin: bool, unread: bytes) -> Connection:
        """A connection that is not served yet; `unread` was read from it elsewhere."""
        self._numbers += 1
        return Connection(self, self._numbers, admin=admin, unread=unread)

    def connected(self, connection: Connection) -> None:
        """A connection is served from now on."""
        self.connections[connection.number] = connection
        self.scoreboard.set_connections(self.row, len(self.connections))
        if self.moves.taker is not None:
            self.moves.taker.connected(connection)

    def moved_out(self, connection: Connection) -> None:
        """A connection is the successor's."""
        self.connections.pop(connection.number, None)
        self.scoreboard.set_connections(self.row, len(self.connections))
        if connection.session is not None:
            self.proxies.moved_out(connection.session)

    def disconnected(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.pop(connection.number, None)
        self.scoreboard.set_connections(self.row, len(self.connections))
        self.watches.forget(self.shards.slot, connection.number)
        if connection.caller.watching:
            self.mesh.tell(b"closed slot=%d connection=%d" % (self.shards.slot, connection.number))
        if self.stopping and not self.connections:
            self._all_closed.set()

    def deliver(self, slot: int, number: int, data: bytes) -> None:
        """Pushes lines to a connection, here or at a sibling."""
        if slot != self.shards.slot:
            self.mesh.push(slot, number, data)
        elif number in self.connections:
            self.connections[number].push(data)
        elif self.moves.taker is not None:
            self.moves.taker.push(number, data)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs something short that a connection waits for; at most one a connection."""
        task = self.loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_done)

    def _background_done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed", error=repr(task.exception()))

    # ── the engine's listener ─────────────────────────────────────────────────────────────

    def log_made(self, log: Log) -> None:
        """See `listener.Listener`."""
        self.pusher.log_made(log)

    def log_gone(self, log: Log) -> None:
        """See `listener.Listener`."""
        self.pusher.log_gone(log)

    def log_grew(self, log: Log) -> None:
        """See `listener.Listener`."""
        self.pusher.log_grew(log)

    def task_changed(self, task: Task) -> None:
        """See `listener.Listener`."""
        self.watches.changed(task)

    def tasks_parked(self, parking: list[tuple[Task, Parked]], kept: bool) -> None:
        """See `listener.Listener`."""
        self.parking.parked(parking, kept)

    def task_withdrawn(self, task: Task) -> None:
        """See `listener.Listener`."""
        self.pusher.withdrawn(task)

    def id_is_finished(self, task: Task, serial: int, turn: Turn, place: int) -> None:
        """See `listener.Listener`."""
        self.requests.compare_with_finished(task, serial, turn, place)

    # ── the mesh's owner ──────────────────────────────────────────────────────────────────

    def sibling(self, peer: control.Peer, stream: socket.socket, packets: socket.socket) -> None:
        """A sibling (or its successor) can be reached over these."""
        self.rows[peer.slot] = row_of(peer.slot, peer.side)
        self.met[peer.slot] = peer.generation
        self.handing.sibling(peer.slot, packets, succeeds=peer.succeeds)
        # On both ends the new stream is read only once all that came on the old one was.
        succeeds = peer.succeeds and self.moves.taker is None
        sibling = Sibling(self.mesh, peer.slot, succeeds=succeeds, silent=peer.succeeds)
        self.background(self.join_mesh(sibling, stream))

    async def join_mesh(self, sibling: Sibling, stream: socket.socket) -> None:
        """Connects a stream with who is at its other end."""
        stream.setblocking(False)
        await self.loop.connect_accepted_socket(lambda: sibling, stream)
        if sibling.slot >= 0 and sibling.slot not in self.rows:
            # It has left for good meanwhile.
            self.sibling_retired(sibling.slot)
        elif not sibling.succeeds and not self.moves.hears_siblings_elsewhere:
            sibling.listen()

    def sibling_retired(self, slot: int) -> None:
        """A sibling is no more: nobody is asked in its place."""
        self.rows.pop(slot, None)
        self.met.pop(slot, None)
        self.handing.forget(slot)
        self.quotas.retired(slot)
        self.mesh.forget(slot)
        # What it was asked others own by now.
        self.mesh.ask_held()

    def mesh_hand(self, slot: int, payload: bytes) -> None:
        """See `mesh.MeshOwner`."""
        self.moves.heard(slot, payload)

    def mesh_last(self, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        self.moves.last(slot)

    def mesh_request(self, turn: Turn, context: bytes, lines: list[bytes], plain: bool, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        self.engine.clock.turn()
        if context:
            self.requests.run(Caller.from_context(context), turn, lines, plain)
        else:
            for raw in lines:
                try:
                    self.siblings.asked(turn, raw)
                except Refused as refused:
                    turn.parts.append(format_refused(refused))
        turn.release()

    def mesh_pushes(self, connection: int, data: bytes) -> None:
        """See `mesh.MeshOwner`."""
        self.deliver(self.shards.slot, connection, data)

    def mesh_relay(self, slot: int, name: str, data: bytes) -> None:
        """See `mesh.MeshOwner`."""
        self.proxies.relay(slot, name, data)

    def mesh_tell(self, slot: int, line: bytes) -> None:
        """See `mesh.MeshOwner`."""
        self.engine.clock.turn()
        try:
            self.siblings.told(slot, line)
        except (WireError, KeyError, ValueError) as error:
            log.error("a sibling said something strange", slot=slot, line=repr(line[:200]), error=repr(error))

    def mesh_joined(self, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        self.proxies.sibling_joined(slot)
        self.watching.sibling_forgot(slot)

    def mesh_left(self, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        if slot >= 0:
            self.watches.forget_worker(slot)
            self.proxies.sibling_left(slot)
        self.moves.left(slot)

    # ── the store ─────────────────────────────────────────────────────────────────────────

    async def save_proxy(self, row: ProxyRow) -> None:
        """Keeps a proxy that registered, in every lane of this worker. Raises: Refused, `unavailable`."""
        for saver in list(self.engine.savers.values()):
            saver.batch.proxies.append(row)
            await self._saved(saver)

    async def forget_proxy(self, name: str) -> None:
        """Takes a proxy out of this worker's lanes. Raises: Refused, `unavailable`."""
        for saver in list(self.engine.savers.values()):
            saver.batch.forgotten.append(name)
            await self._saved(saver)

    async def catch_up(self) -> None:
        """Waits until what the savers have is on stable storage, or refused."""
        for saver in list(self.engine.savers.values()):
            if saver.in_flight or saver.waiting:
                try:
                    await self._saved(saver)
                except Refused:
                    pass

    async def committed(self, lane: int) -> None:
        """Waits until what a lane's saver has now is on stable storage. Raises: Refused, `unavailable`."""
        await self._saved(self.engine.savers[lane])

    async def _saved(self, saver: Saver) -> None:
        done: asyncio.Future[StoreError | None] = self.loop.create_future()
        saver.batch.waiters.append(done.set_result)
        saver.wake()
        # Shielded: the saver sets the result whether or not anyone still waits for it.
        error = await asyncio.shield(done)
        if error is not None:
            raise Refused("unavailable", str(error), retry_ms=1000)

    # ── stopping ──────────────────────────────────────────────────────────────────────────

    async def stop(self, deadline_s: float) -> bool:
        """From the front backwards: no new tasks, replies out, results saved. Returns whether in time."""
        end = self.loop.time() + deadline_s
        self.stopping = self.engine.draining = True
        self.handing.stop_listening()
        self.show()
        for connection in list(self.connections.values()):
            connection.push(b"!drain\n")
        saved = True
        for saver in list(self.engine.savers.values()):
            seconds = max(end - self.loop.time(), 0.1)
            saved = await saver.close(seconds, handed_over=self.moves.has_given_all) and saved
        for connection in list(self.connections.values()):
            # What was asked of a sibling is still to be answered.
            connection.finish()
        if self.connections:
            try:
                async with asyncio.timeout(min(max(end - self.loop.time(), 0.1), _CLOSE_S)):
                    await self._all_closed.wait()
            except TimeoutError:
                log.info("closing connections that do not read", connections=len(self.connections))
        for connection in list(self.connections.values()):
            connection.abort()
        self.quotas.note()
        await self.cluster.close()
        self.handing.close()
        self.mesh.close()
        self.queries.close()
        self.parking.close()
        return saved
