"""Coordinators in one loop, with short leases, over a real Redis and an SQL of one file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from refreshd.cluster.client import ClusterClient
from refreshd.cluster.coordinator import Calls, Coordinator, Handed
from refreshd.cluster.lease import Timing
from refreshd.cluster.snapshot import Advert, Snapshot
from tests.refreshd.cluster.sql import Sql, SqlTruth
from tests.refreshd.cluster.timing import NAMES, TIMING, until
from tools.servers import RedisServer


class Engine:
    """Worker 0 of one engine, as far as the cluster sees it."""

    def __init__(
        self,
        sql: Sql,
        url: str,
        number: int,
        *,
        handed: Handed | None = None,
        boot: str = "boot",
        timing: Timing = TIMING,
    ) -> None:
        self.number = number
        self.id = f"e{number}"
        self.epoch = sql.boot(number)
        self.truth = SqlTruth(sql, number, self.epoch)
        self.client = ClusterClient(url, name=self.id, call_s=TIMING.call_ms / 1000)
        self.snapshots: list[Snapshot] = []
        self.handouts: list[int] = []
        self.fenced: list[str] = []
        self.coordinator = Coordinator(
            Advert(self.id, f"127.0.0.1:{7000 + number}", number, self.epoch, boot),
            self.client,
            NAMES,
            self.truth,
            Calls(self.snapshots.append, self.handouts.append, self.fenced.append),
            timing=timing,
            handed=handed,
        )
        self.coordinator.start()

    @property
    def leads(self) -> bool:
        """Whether it may act as the leader just now."""
        election = self.coordinator._election
        return self.coordinator._may_act(election.leader_epoch) if election.leader_epoch else False

    @property
    def leader_epoch(self) -> int:
        return self.coordinator._election.leader_epoch

    @property
    def watches(self) -> bool:
        """Whether it has watched the registry long enough to fence."""
        return self.coordinator.status().watched_ms >= TIMING.lease_ms

    async def die(self) -> None:
        """As by a kill -9: nothing is given up."""
        await self.coordinator._halt()
        await self.client.close()

    async def stop_renewing(self) -> None:
        """It neither hears Redis nor says anything to it any more, and all else goes on."""
        beat = self.coordinator._loops[0]
        beat.cancel()
        await asyncio.wait([beat])

    async def stop(self) -> None:
        """As planned."""
        await self.coordinator.close()
        await self.client.close()


class Rig:
    """The engines of a test."""

    def __init__(self, server: RedisServer, sql: Sql) -> None:
        self.server = server
        self.sql = sql
        self.engines: list[Engine] = []

    def add(self, number: int, **more: Any) -> Engine:
        engine = Engine(self.sql, self.server.url, number, **more)
        self.engines.append(engine)
        return engine

    async def add_three(self, *, watching: bool = True) -> list[Engine]:
        """Three that see each other, the leader first; `watching`: long enough to fence."""
        for number in (1, 2, 3):
            self.add(number)
        leader = await self.leader()
        await until(lambda: all(len(engine.coordinator.snapshot.engines) == 3 for engine in self.engines))
        if watching:
            await until(lambda: all(engine.watches for engine in self.engines), "all watch")
        return [leader, *(engine for engine in self.engines if engine is not leader)]

    async def leader(self, *, but: Engine | None = None) -> Engine:
        """The one that leads by the latest epoch, once there is one."""

        def leading() -> Engine | None:
            latest = self.sql.leader_epoch
            return next(
                (
                    engine
                    for engine in self.engines
                    if engine is not but and engine.leads and engine.leader_epoch == latest
                ),
                None,
            )

        found: Engine = await until(leading, "somebody leads")
        return found

    def check_acts(self) -> None:
        """Every act was done by the leader of its time, and each epoch is one engine's."""
        acts = self.sql.acts()
        epochs = [act.leader_epoch for act in acts]
        assert epochs == sorted(epochs)
        assert len({(act.leader_epoch, act.engine) for act in acts}) == len(set(epochs))


@asynccontextmanager
async def rigged(server: RedisServer, folder: Path) -> AsyncIterator[Rig]:
    rig = Rig(server, Sql(folder / "sql"))
    try:
        yield rig
        rig.check_acts()
    finally:
        for engine in rig.engines:
            engine.truth.goes_on.set()
        await asyncio.gather(*(engine.die() for engine in rig.engines))
