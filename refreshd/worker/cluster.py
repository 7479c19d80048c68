"""This worker's part in a cluster: several engines that share one store (docs/cluster.md).

    SQL, once a second      was this engine fenced? ─► the process ends
    (a thread of its own)   was anything handed out to it? ─► those tasks are taken in
                            who registered at other engines? ─► they come into the fleet
    Redis                   leases, who leads, who is where, quotas (leases.py)

Without a store that engines can share only quotas are shared; without Redis no lease is
kept and nobody takes anything over, but a fenced engine still finds out.

While shards move between processes a hand-out may come between two: each takes
in what it owns then, and looks at all of them once more when the move has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import structlog

from refreshd.cluster.snapshot import Snapshot
from refreshd.errors import StoreDamaged, StoreError, StoreFenced
from refreshd.fleet import Proxy
from refreshd.shard import SerialClock
from refreshd.store.base import ProxyRow, Reader
from refreshd.store.sharing import Handout, Shared
from refreshd.worker.elsewhere import Elsewhere
from refreshd.worker.loading import SLICE_ROWS, Loader, Row
from wire.lines import Value

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub
    from refreshd.worker.leases import Leases

log = structlog.get_logger()

LOOK_S = 1.0
# The fleet is read this often: what registers elsewhere is known here so soon.
FLEET_S = 5.0
# A process that takes over looks at the hand-outs of so long ago again: its predecessor may have
# passed over those of shards that it no longer had.
OVERLAP_MS = 300_000
# An id must stay taken for so long after its task's end (PROTOCOL.md, "Ids and stores").
ID_KEPT_S = 900
_STORE_NAME_CHARS = 16


class Found(NamedTuple):
    """What SQL said."""

    handouts: list[Handout]
    proxies: list[ProxyRow] | None


class Cluster:
    """What engines share, as one worker sees it."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.number = 0
        """This engine's number, as it stands in its tasks' rows; 0 where no others share the store."""
        self.address = ""
        """Where this engine is reached, HOST:PORT, unless the configuration says otherwise."""
        self.engines_push = b""
        """What proxies are told of the engines; empty where there is but one."""
        self.elsewhere = Elsewhere(self)
        self._leases: Leases | None = None
        if hub.config.redis.url:
            # Only here: redis-py costs 0.1 s of CPU at each start, for those who have no Redis, too.
            module = importlib.import_module("refreshd.worker.leases")
            self._leases = module.Leases(self)
        self._shared: Shared | None = None
        self._done_to = 0
        """All hand-outs up to this one were taken in."""
        self._look_now = asyncio.Event()
        self._fleet_due_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cluster")
        self._looking: asyncio.Task[None] | None = None
        self._error = ""

    # ── from the worker's start to its end ────────────────────────────────────────────────

    def join(self, *, standby: bool) -> None:
        """Registers this engine, before a lane is opened. Blocks. Raises: StoreError, BootError."""
        hub = self.hub
        self._shared = hub.store.join()
        if self._shared is None:
            return
        self.number = self._shared.number
        hub.engine.serials = SerialClock(hub.shards.slot, side=hub.side, engine=self.number)
        # Before the tasks are loaded: what is handed out later is seen later.
        before_ms = hub.engine.clock.wall_ms - OVERLAP_MS if standby else None
        self._done_to = self._shared.last_handout(before_ms)

    def start(self) -> None:
        """Begins to look. Who leads is decided once this worker serves (`serve`)."""
        if self._shared is not None:
            self._looking = asyncio.get_running_loop().create_task(self._look_again_and_again())
            if self._leases is not None:
                self._leases.start()

    def serve(self) -> None:
        """This process is the slot's from now on."""
        if self._leases is not None:
            self._leases.serve(self._shared)

    async def hand_over(self) -> bytes:
        """What the successor goes on with. Until `serve` is called again this process renews nothing."""
        return await self._leases.hand_over() if self._leases is not None else b""

    def inherit(self, handed: bytes) -> None:
        """What `hand_over` returned at the predecessor; to be called before `serve`."""
        if self._leases is not None:
            self._leases.inherit(handed)

    async def leave(self) -> None:
        """The successor has everything."""
        if self._leases is not None:
            await self._leases.leave()

    async def close(self) -> None:
        """The worker stops; if the engine does, it gives up its lease."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if self._leases is not None:
            await self._leases.close()
        await self.elsewhere.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def snapshot(self) -> Snapshot:
        """Who is where, by Redis; replaced whole."""
        return self._leases.snapshot if self._leases is not None else Snapshot()

    @property
    def store_name(self) -> str | None:
        """By this proxies know that engines share a store, so that an id is one task at all of them.

        Not said where an id may soon be another task's: proxies remember what they did.
        """
        secret = self.peers_secret
        if not secret or self.hub.config.store.retention_s < ID_KEPT_S:
            return None
        return hashlib.sha256(b"store\n" + secret).hexdigest()[:_STORE_NAME_CHARS]

    @property
    def peers_secret(self) -> bytes:
        """What engines of this cluster sign their greetings with, among themselves."""
        return self._shared.peers_secret if self._shared is not None else b""

    async def rows(self) -> list[dict[str, Value]]:
        """All engines, for `list_engines`; to be asked of the keeper. Raises: StoreError."""
        shared = self._shared
        if shared is None:
            return []
        if self._leases is not None and (leased := self._leases.rows()) is not None:
            return leased
        known = await asyncio.get_running_loop().run_in_executor(self._thread, shared.engines)
        return [
            {"engine": row.name, "number": row.number, "epoch": row.epoch,
             "self": int(row.number == self.number), "alive": int(row.alive)}
            for row in known
        ]  # fmt: skip

    # ── looking ───────────────────────────────────────────────────────────────────────────

    def read(self, snapshot: Snapshot) -> None:
        """The registry was read."""
        self.elsewhere.changed(snapshot)
        self._tell_proxies(snapshot)

    def _tell_proxies(self, snapshot: Snapshot) -> None:
        """Each proxy is to have links to all engines; it is told when these are others than before."""
        addresses = sorted(entry.advert.address for entry in snapshot.engines)
        if not addresses:
            # Redis has forgotten them; they come back.
            return
        line = b"!engines -- %b\n" % " ".join(addresses).encode()
        push = line if len(addresses) > 1 else b""
        if push != self.engines_push:
            self.engines_push = push
            for session in self.hub.proxies.sessions.values():
                session.tell_engines(line)

    def handed_out(self, number: int) -> None:
        """Tasks were given to the engine of this number: to be looked at now."""
        if number == self.number:
            self._look_now.set()

    def fenced(self, why: str) -> None:
        """Nothing that this process writes counts any more."""
        self.hub.engine.fatal(f"this engine was fenced: {why}; others have its tasks")

    async def _look_again_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._look_now.clear()
            try:
                found = await loop.run_in_executor(self._thread, self._look, loop.time())
                await self._take_all(found)
            except StoreFenced as error:
                self.fenced(str(error))
            except StoreDamaged as error:
                # Nothing behind it is taken in either: whoever restores the database restores all of it.
                if not self._error:
                    log.error("tasks that were given to this engine cannot be read", error=str(error))
                self._error = str(error)
            except StoreError as error:
                if not self._error:
                    log.warning("the store does not say what was handed out", error=str(error))
                self._error = str(error)
            except Exception:
                log.exception("a fault while looking for hand-outs")
            else:
                self._error = ""
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._look_now.wait()
            except TimeoutError:
                pass

    def _look(self, now_s: float) -> Found:
        """Asks SQL; runs in the thread. Raises: StoreError."""
        assert self._shared is not None  # noqa: S101 (for the type checker)
        handouts = self._shared.look(self._done_to)
        if now_s < self._fleet_due_s:
            return Found(handouts, None)
        proxies = self._shared.proxies()
        self._fleet_due_s = now_s + FLEET_S
        return Found(handouts, proxies)

    async def _take_all(self, found: Found) -> None:
        for handout in found.handouts:
            await self._take(handout)
            if not self.hub.engine.moving:
                self._done_to = handout.id
        if found.proxies is not None:
            self._know(found.proxies)

    async def _take(self, handout: Handout) -> None:
        """Takes in tasks that another engine had. Raises: StoreError."""
        hub = self.hub

        def read(reader: Reader) -> Iterator[list[Row]]:
            return reader.handed_out(handout.first, handout.last, SLICE_ROWS)

        taken = 0
        lanes = sorted({hub.shards.lane_by_shard[s] for s in hub.shards.with_owner(hub.shards.slot)})
        async for some in Loader(self._is_missing).slices(hub.openings(lanes), read):
            hub.engine.clock.turn()
            missing = [task for task in some if self._is_missing(task.id)]
            for task in missing:
                hub.engine.load(task)
            hub.engine.start_all(missing)
            taken += len(missing)
            await asyncio.sleep(0)
        if taken:
            hub.engine.adopted()
        # What was parked at the other engine is not taken into memory, only counted.
        hub.parking.recount()
        if taken:
            log.info("tasks handed out to this engine are taken in", tasks=taken, handout=handout.id)

    def _is_missing(self, task_id: bytes) -> bool:
        return task_id not in self.hub.engine.tasks and self.hub.shards.owns(task_id)

    def _know(self, rows: list[ProxyRow]) -> None:
        """The fleet is what all engines know: who has registered, and who was forgotten."""
        proxies = self.hub.proxies
        names = {row.name for row in rows}
        for row in rows:
            known = self.hub.fleet.get(row.name)
            if known is None or (not known.listed and known[1:3] != (row.group, row.layer)):
                proxies.join(Proxy(row.name, row.group, row.layer, listed=False))
        proxies.forgotten_elsewhere(names)
