"""A worker's parts, put together; each knows the others through this.

connection ──► requests ──► engine ──► saver ──► store
                  │           │ ▲
                  ▼           ▼ │
                mesh       pusher ◄──► proxies
"""

from __future__ import annotations

import asyncio
import heapq
import os
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import structlog

from refreshd.config import Config
from refreshd.errors import StoreDamaged, StoreError
from refreshd.fanout import Log
from refreshd.fleet import Fleet, Plan, Proxy
from refreshd.rates import Rate
from refreshd.scoreboard import Row, Scoreboard
from refreshd.shard import ShardMap, created_ms
from refreshd.store.base import ProxyRow, Reader
from refreshd.store.layout import lane_is_made, lane_path
from refreshd.store.sqlite import SqliteLane, SqliteReader
from refreshd.task import Task, read_terms
from refreshd.worker.callers import Caller
from refreshd.worker.connection import Connection
from refreshd.worker.engine import Engine
from refreshd.worker.greeter import Greeter
from refreshd.worker.handing import Handing
from refreshd.worker.mesh import Mesh, Sibling
from refreshd.worker.proxies import Proxies
from refreshd.worker.pusher import Pusher
from refreshd.worker.queries import Queries
from refreshd.worker.requests import Requests
from refreshd.worker.saver import Saver
from refreshd.worker.siblings import Siblings
from refreshd.worker.turns import Turn
from refreshd.worker.watches import Watches
from wire.errors import Refused, WireError
from wire.heads import HeadTable
from wire.lines import format_refused, is_plain, parse
from wire.signatures import NonceBook

log = structlog.get_logger()

# How long a stopping worker waits for peers to read their last replies.
_CLOSE_S = 1.0


class Hub:
    """One worker."""

    def __init__(
        self, config: Config, shards: ShardMap, scoreboard: Scoreboard, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.config = config
        self.shards = shards
        self.scoreboard = scoreboard
        self.loop = loop
        self.stopping = False
        self.connections: dict[int, Connection] = {}
        self.nonces = NonceBook()
        now_s = time.monotonic()
        self.rate_boss = Rate(now_s)
        self.rate_proxy = Rate(now_s)
        self.fleet = Fleet(Proxy(p.name, p.group, p.layer, listed=True) for p in config.proxies)
        self.pusher = Pusher(loop)
        self.engine = Engine(config, shards, self.fleet, self)
        self.pusher.engine = self.engine
        self.watches = Watches(self.deliver)
        self.mesh = Mesh(shards.slot, shards.workers, self, loop)
        self.proxies = Proxies(self)
        self.requests = Requests(self)
        self.siblings = Siblings(self)
        self.greeter = Greeter(self)
        self.handing = Handing(self)
        self._readers: dict[int, Reader] = {}
        self.queries = Queries(shards, self._readers, self.engine.savers)
        self._numbers = 0
        self._all_closed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    # ── starting ──────────────────────────────────────────────────────────────────────────

    def open_store(self) -> None:
        """Opens the lanes and loads what is unfinished. Blocks. Raises: StoreError."""
        data = Path(self.config.engine.data)
        loads: list[Iterator[tuple[int, int, bytes, dict[int, Plan]]]] = []
        for number in self.shards.own_lanes():
            path = lane_path(data, number)
            lane = SqliteLane(
                path,
                self.config.store.retention_s,
                slot=self.shards.slot,
                sharers=self.shards.sharers(number),
            )
            lane_is_made(path)
            lane.index_finished()
            reader = self._readers[number] = SqliteReader(path)
            for row in reader.proxies():
                self.proxies.join(Proxy(row.name, row.group, row.layer, listed=False))
            self.engine.serials.after(reader.last_serial())
            plans = _read_plans(reader)
            loads.append(self._unfinished(reader, plans))
            self.engine.savers[number] = Saver(lane, self.engine, self.loop, f"{number}")
        # In order of acceptance over all lanes: the oldest unfinished task is then the first in memory.
        try:
            self._load(heapq.merge(*loads, key=lambda row: row[0]))
        except (WireError, ValueError, KeyError, TypeError) as error:
            message = f"the store holds a task that cannot be read: {error!r}; restore the data folder"
            raise StoreDamaged(message) from error

    @staticmethod
    def _unfinished(
        reader: Reader, plans: dict[int, Plan]
    ) -> Iterator[tuple[int, int, bytes, dict[int, Plan]]]:
        for serial, plan, body in reader.unfinished():
            yield serial, plan, body, plans

    def _load(self, rows: Iterator[tuple[int, int, bytes, dict[int, Plan]]]) -> None:
        heads = HeadTable("post_task", read_terms)
        owner_of, slot = self.shards.owner, self.shards.slot
        shared: dict[str, Plan] = {}
        load = self.engine.load
        for serial, number, body, plans in rows:
            cut = heads.cut(body) if is_plain(body) else None
            if cut is None:
                line = parse(body)
                task_id, terms = line.fields["task_id"].encode(), read_terms(line)
                count = len(line.items or ())
            else:
                task_id, terms, targets = cut
                count = targets.count(b" ") + 1
            if owner_of(task_id) != slot:
                continue
            plan = plans[number]
            # Lanes have plans of their own; tasks of one scope share one all the same.
            plan = shared.setdefault(plan.text, plan)
            load(Task(task_id, body, terms, count, plan.layers[0], serial, created_ms(serial)))

    def start(self) -> None:
        """Starts what was loaded, and the clockwork."""
        self.engine.clock.turn()
        self.engine.start_loaded()
        self.queries.start()
        self._tick()
        self._every_half_second()
        self._every_five_seconds()

    def _tick(self) -> None:
        self.engine.tick()
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
            int(not self.stopping),
        )
        self.scoreboard.write(self.shards.slot, row)

    # ── connections ───────────────────────────────────────────────────────────────────────

    def new_connection(self, *, admin: bool, unread: bytes) -> Connection:
        """A connection that is not served yet; `unread` was read from it elsewhere."""
        self._numbers += 1
        return Connection(self, self._numbers, admin=admin, unread=unread)

    def connected(self, connection: Connection) -> None:
        """A connection is served from now on."""
        self.connections[connection.number] = connection
        self.scoreboard.set_connections(self.shards.slot, len(self.connections))

    def disconnected(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.pop(connection.number, None)
        self.scoreboard.set_connections(self.shards.slot, len(self.connections))
        self.watches.forget(self.shards.slot, connection.number)
        if connection.caller.watching:
            self.mesh.tell(b"closed connection=%d" % connection.number)
        if self.stopping and not self.connections:
            self._all_closed.set()

    def deliver(self, slot: int, number: int, data: bytes) -> None:
        """Pushes lines to a connection, here or at a sibling."""
        if slot != self.shards.slot:
            self.mesh.push(slot, number, data)
        elif number in self.connections:
            self.connections[number].push(data)

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
        """See `engine.Listener`."""
        self.pusher.log_made(log)

    def log_gone(self, log: Log) -> None:
        """See `engine.Listener`."""
        self.pusher.log_gone(log)

    def log_grew(self, log: Log) -> None:
        """See `engine.Listener`."""
        self.pusher.log_grew(log)

    def task_changed(self, task: Task) -> None:
        """See `engine.Listener`."""
        self.watches.changed(task)

    def task_withdrawn(self, task: Task) -> None:
        """See `engine.Listener`."""
        self.pusher.withdrawn(task)

    def id_is_finished(self, task: Task, serial: int, turn: Turn, place: int) -> None:
        """See `engine.Listener`."""
        self.requests.compare_with_finished(task, serial, turn, place)

    # ── the mesh's owner ──────────────────────────────────────────────────────────────────

    def sibling(self, slot: int, stream: socket.socket, packets: socket.socket) -> None:
        """A sibling (or its successor) can be reached over these."""
        self.handing.sibling(slot, packets)
        self.background(self._join_mesh(slot, stream))

    async def _join_mesh(self, slot: int, stream: socket.socket) -> None:
        stream.setblocking(False)
        await self.loop.connect_accepted_socket(lambda: Sibling(self.mesh, slot), stream)

    def mesh_request(self, turn: Turn, context: bytes, lines: list[bytes], plain: bool, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        self.engine.clock.turn()
        if context:
            self.requests.run(Caller.from_context(slot, context), turn, lines, plain)
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
        for connection in self.connections.values():
            self._watch_again(connection, slot)

    def _watch_again(self, connection: Connection, slot: int) -> None:
        """A sibling's successor is to know who watches its tasks; the present state is pushed."""
        ids = [task_id for task_id in connection.caller.watching if self.shards.owner(task_id) == slot]
        if not ids:
            return
        again = WatchAgain(connection)
        turn = Turn(again)
        turn.parts = [b""] * len(ids)
        lines = [b"watch_task task_id=%b" % task_id for task_id in ids]
        context = connection.caller.context()
        self.mesh.forward(slot, turn, list(range(len(ids))), lines, context, plain=True)
        turn.release()

    def mesh_left(self, slot: int) -> None:
        """See `mesh.MeshOwner`."""
        self.watches.forget_worker(slot)
        self.proxies.sibling_left(slot)

    # ── the store ─────────────────────────────────────────────────────────────────────────

    async def save_proxy(self, row: ProxyRow) -> None:
        """Keeps a proxy that registered, in every lane of this worker. Raises: Refused, `unavailable`."""
        for saver in self.engine.savers.values():
            saver.batch.proxies.append(row)
            await self._saved(saver)

    async def forget_proxy(self, name: str) -> None:
        """Takes a proxy out of this worker's lanes. Raises: Refused, `unavailable`."""
        for saver in self.engine.savers.values():
            saver.batch.forgotten.append(name)
            await self._saved(saver)

    async def catch_up(self) -> None:
        """Waits until what the savers have is on stable storage, or refused."""
        for saver in self.engine.savers.values():
            if saver.in_flight or saver.waiting:
                try:
                    await self._saved(saver)
                except Refused:
                    pass

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
        for saver in self.engine.savers.values():
            saved = await saver.close(max(end - self.loop.time(), 0.1)) and saved
        for connection in list(self.connections.values()):
            connection.close()
        if self.connections:
            try:
                async with asyncio.timeout(min(max(end - self.loop.time(), 0.1), _CLOSE_S)):
                    await self._all_closed.wait()
            except TimeoutError:
                log.info("closing connections that do not read", connections=len(self.connections))
        for connection in list(self.connections.values()):
            connection.abort()
        self.handing.close()
        self.mesh.close()
        self.queries.close()
        return saved


def _read_plans(reader: Reader) -> dict[int, Plan]:
    """Raises: StoreError."""
    try:
        return {key: Plan.from_text(text) for key, text in reader.plans().items()}
    except ValueError as error:
        raise StoreDamaged(
            f"the store holds a plan that cannot be read: {error}; restore the data folder"
        ) from error


class WatchAgain:
    """Turns the replies to repeated `watch_task` requests into pushes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`."""
        for part in turn.parts:
            if part.startswith(b"ok "):
                fields = parse(part.rstrip(b"\n")).fields
                push = "!state task_id={task_id} state={state} done={done} failed={failed} total={total}\n"
                self._connection.push(push.format(**fields).encode())
