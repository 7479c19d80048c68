"""The chain: readers ─► Varnish (edge) ─► Traffic Server (parent) ─► origin; an agent beside each cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import NamedTuple

from tools.bench.ask import ask
from tools.bench.rig import Engine, folder
from tools.servers import Agent, TrafficServer, Varnish
from tools.tiers.world import HOST, World
from wire.client import Client
from wire.fields import DEFAULT_PRIORITY
from wire.tasks import NewTask, TaskHead

# Targets of a task, and tasks that are not complete at a time.
BATCH = 500
AT_ONCE = 4
READY_S = 30.0
TASK_S = 600.0


class Site(NamedTuple):
    """What is up."""

    world: World
    client: Client
    edge: Varnish
    parent: TrafficServer
    agents: tuple[Agent, ...]


class Outcome(NamedTuple):
    """One run. Times are in seconds."""

    objects: int
    stale: int
    reads: int
    fetches: int
    tasks: int
    took_s: float
    failed: tuple[str, ...]
    """What ended otherwise than complete."""


@asynccontextmanager
async def chain(objects: int, *, ordered: bool = True) -> AsyncIterator[Site]:
    """Starts everything. Not `ordered`: both agents are of one layer, so nobody waits for the parent."""
    world = World(objects)
    origin = await world.open()
    with ExitStack() as stack:
        where = stack.enter_context(folder())

        def start() -> tuple[TrafficServer, Varnish, Engine, tuple[Agent, ...]]:
            parent = stack.enter_context(TrafficServer(origin, storage_mb=512))
            edge = stack.enter_context(Varnish(parent.address, storage_mb=512))
            engine = stack.enter_context(Engine(where, proxies=0))
            address = "{}:{}".format(*engine.address)
            caches = (("parent", "ats", parent.address), ("edge", "varnish", edge.address))
            agents = tuple(
                stack.enter_context(Agent([address], [cache], name=cache[0], layer=layer if ordered else 0))
                for layer, cache in enumerate(caches)
            )
            return parent, edge, engine, agents

        parent, edge, engine, agents = await asyncio.to_thread(start)
        await _wait_for_agents(engine, len(agents))
        async with Client(["{}:{}".format(*engine.address)]) as client:
            try:
                yield Site(world, client, edge, parent, agents)
            finally:
                await world.close()


async def _wait_for_agents(engine: Engine, number: int) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            rows = (await ask(engine.where / "data" / "admin.sock", b"list_proxies"))[1:]
            if sum(b" online=1" in row for row in rows) == number:
                return
            await asyncio.sleep(0.05)


async def run(objects: int, *, ordered: bool = True, verify: bool = True) -> Outcome:
    """Has every object change once, refreshes it, and counts who was shown an old one after `complete`."""
    async with chain(objects, ordered=ordered) as site:
        world = site.world
        await world.read_all(site.edge.address)
        world.read(site.edge.address)
        began = time.monotonic()
        failed: list[str] = []
        batches = iter([range(at, min(at + BATCH, objects)) for at in range(0, objects, BATCH)])
        await asyncio.gather(*(_refresh_some(site, batches, verify, failed) for _ in range(AT_ONCE)))
        took_s = time.monotonic() - began
        await world.stop_reading()
        await world.read_all(site.edge.address)
        tasks = -(-objects // BATCH)
        return Outcome(objects, len(world.stale), world.reads, world.fetches, tasks, took_s, tuple(failed))


async def _refresh_some(site: Site, batches: Iterator[range], verify: bool, failed: list[str]) -> None:
    """Refreshes batch after batch of an iterator that several of these share."""
    world = site.world
    for numbers in batches:
        world.window = [*world.window[-AT_ONCE * BATCH :], *numbers]
        world.change(numbers)
        task_id = f"tiers-{numbers.start}"
        head = TaskHead("url", priority=DEFAULT_PRIORITY, verify=verify)
        targets = tuple(f"http://{HOST}/o/{number}" for number in numbers)
        await site.client.post(NewTask(task_id, head, targets))
        end = await site.client.wait(task_id, timeout_s=TASK_S)
        if end.state != "complete":
            rows = await site.client.detail(task_id)
            failed.append(f"{task_id} {end.state}: {[row.error for row in rows]}")
            continue
        world.promise(numbers)
