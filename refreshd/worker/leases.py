"""This worker's part in what engines share in Redis; only loaded where there is one.

slot 0       keeps the engine's lease, leads if it wins the election (cluster/coordinator.py),
             and shares the quotas of keys (cluster/quotas.py)
other slots  read along who is where (cluster/watcher.py)
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import msgspec
import psutil
import structlog

from refreshd import __version__
from refreshd.cluster.client import ClusterClient
from refreshd.cluster.coordinator import Calls, Coordinator, Handed
from refreshd.cluster.lease import TIMING, Timing
from refreshd.cluster.names import Names
from refreshd.cluster.quotas import SharedQuotas
from refreshd.cluster.snapshot import Advert, Snapshot
from refreshd.cluster.status import ClusterStatus, EngineStatus
from refreshd.cluster.watcher import Watcher
from refreshd.worker.siblings import KEEPER
from wire.lines import Value

if TYPE_CHECKING:
    from refreshd.store.sharing import Shared
    from refreshd.worker.cluster import Cluster

log = structlog.get_logger()


class Leases:
    """What one worker says to Redis, and hears."""

    def __init__(self, cluster: Cluster) -> None:
        redis = cluster.hub.config.redis
        self._cluster = cluster
        self._hub = cluster.hub
        self._keeps = cluster.hub.shards.slot == KEEPER
        self._client = ClusterClient(redis.url)
        self._names = Names(redis.cluster)
        self._timing = timing_of(redis.lease_s)
        self._watcher: Watcher | None = None
        self._coordinator: Coordinator | None = None
        self._handed: Handed | None = None
        """What the next coordinator of this process goes on with."""
        self._quotas: SharedQuotas | None = None

    def start(self) -> None:
        """Begins to read along, unless it will keep the lease."""
        if not self._keeps:
            self._watcher = Watcher(
                self._client,
                self._names,
                on_registry=self._cluster.read,
                on_handout=self._cluster.handed_out,
                timing=self._timing,
            )
            self._watcher.start()

    def serve(self, shared: Shared | None) -> None:
        """This process is the slot's from now on. `shared`: the store, if engines share it."""
        if not self._keeps:
            return
        if self._quotas is None:
            engine = self._hub.config.engine.id
            self._quotas = SharedQuotas(self._client.library, self._names.cluster, engine, self._hub.quotas)
            self._quotas.start()
        if self._coordinator is None and shared is not None:
            cluster = self._cluster
            calls = Calls(on_registry=self._read, on_handout=cluster.handed_out, on_fenced=cluster.fenced)
            handed, self._handed = self._handed, None
            self._coordinator = Coordinator(
                self._advert(shared),
                self._client,
                self._names,
                shared,
                calls,
                timing=self._timing,
                handed=handed,
            )
            self._coordinator.start()

    async def hand_over(self) -> bytes:
        """Stops renewing and leading, and gives nothing up. What it returns is for the successor's `inherit`.

        If that never serves, this process does so again, with the same.
        """
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is None:
            return b""
        self._handed = await coordinator.hand_over()
        return msgspec.msgpack.encode(self._handed)

    def inherit(self, handed: bytes) -> None:
        """The predecessor's lead, and what it has seen; without it the lead is claimed anew."""
        if not handed:
            return
        try:
            self._handed = msgspec.msgpack.decode(handed, type=Handed)
        except msgspec.DecodeError as error:
            # Of another release.
            log.warning("what the predecessor knew of the cluster cannot be read", error=str(error))

    async def leave(self) -> None:
        """The successor has everything: it goes on with the quotas as it does with the lease."""
        if self._quotas is not None:
            await self._quotas.close()
            self._quotas = None

    async def close(self) -> None:
        """Ends it all; a lease is given up."""
        for part in (self._quotas, self._coordinator, self._watcher):
            if part is not None:
                await part.close()
        await self._client.close()

    @property
    def snapshot(self) -> Snapshot:
        """Who is where; replaced whole."""
        source = self._coordinator or self._watcher
        return source.snapshot if source is not None else Snapshot()

    def rows(self) -> list[dict[str, Value]] | None:
        """All engines, for `list_engines`; None where this worker does not keep the lease."""
        if self._coordinator is None:
            return None
        status = self._coordinator.status()
        return [_row(engine, status) for engine in status.engines]

    def _read(self, snapshot: Snapshot) -> None:
        self._cluster.read(snapshot)
        hub = self._hub
        siblings = sum(hub.scoreboard.read(row).tasks for row in hub.rows.values())
        if self._coordinator is not None:
            self._coordinator.advertise(
                workers=hub.shards.workers,
                unfinished=len(hub.engine.tasks) + siblings,
                draining=hub.engine.draining,
            )

    def _advert(self, shared: Shared) -> Advert:
        engine = self._hub.config.engine
        master = psutil.Process(os.getppid())
        return Advert(
            id=engine.id,
            address=engine.advertise or reachable(self._cluster.address),
            number=shared.number,
            epoch=shared.epoch,
            boot=f"{master.pid}-{master.create_time():.2f}",
            workers=self._hub.shards.workers,
            release=__version__,
        )


def _row(engine: EngineStatus, status: ClusterStatus) -> dict[str, Value]:
    is_self = engine.id == status.id
    return {
        "engine": engine.id,
        "number": engine.number,
        "epoch": engine.epoch,
        "self": int(is_self),
        "alive": int(bool(engine.alive)),
        "leads": int(engine.leads),
        "draining": int(engine.draining),
        "workers": engine.workers,
        "unfinished": engine.unfinished,
        "lease": engine.lease_ms,
        "lag": engine.lag_ms,
        "address": engine.address or None,
        "release": engine.release or None,
        "leader_epoch": status.leader_epoch if engine.leads else None,
        "error": (status.redis_error or status.store_error or None) if is_self else None,
    }


def timing_of(lease_s: float) -> Timing:
    """How long things take in a cluster of this lease: all that belongs to a lease in proportion to it.

    But for how often is looked and how soon is tried again: a longer lease makes that no slower.
    """
    share = lease_s * 1000 / TIMING.lease_ms
    return TIMING._replace(
        lease_ms=int(TIMING.lease_ms * share),
        renew_ms=int(TIMING.renew_ms * share),
        margin_ms=int(TIMING.margin_ms * share),
        poll_ms=int(TIMING.poll_ms * min(share, 1)),
        retry_ms=int(TIMING.retry_ms * min(share, 1)),
    )


def reachable(address: str) -> str:
    """An address that others can use: one that means any of this machine's is said by the machine's name.

    Its own name, not the one that a resolver has for it: to ask that would hold up the loop for as
    long as the resolver is away. Where others cannot resolve it, `engine.advertise` is to be set.
    """
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]", ""):  # noqa: S104 (compared)
        return f"{socket.gethostname()}:{port}"
    return address
