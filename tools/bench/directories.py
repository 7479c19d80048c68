"""600 directory refreshes at once over 20 caches, each verified, and what visitors of the caches notice."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, closing
from typing import NamedTuple

import uvloop

from tools.bench.pretended import PretendedEngine, Spent, pretended_engine
from tools.bench.report import Aim, Row
from tools.bench.rig import folder
from tools.bench.static_origin import StaticOrigin
from tools.servers import Varnish
from tools.tiers.world import Visitor

HOST = "bench.example"
OBJECT_BYTES = 1000
# Objects below each directory, and visits a second to all caches together.
PAGES = 2
PAUSE_S = 0.005
QUIET_S = 5.0


class Visits(NamedTuple):
    """Latencies of hits, s."""

    p99_s: float
    number: int


def run(quick: bool) -> list[Row]:
    """How long it takes, and the p99 of hits before and meanwhile."""
    caches, directories = (3, 60) if quick else (20, 600)
    with ExitStack() as stack:
        stack.enter_context(folder())
        origin = stack.enter_context(StaticOrigin(OBJECT_BYTES))
        servers = [stack.enter_context(Varnish(origin.address, storage_mb=16)) for _ in range(caches)]
        named = [(f"v{number}", "varnish", server.address) for number, server in enumerate(servers)]
        engine = stack.enter_context(pretended_engine(named))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            before, during, spent = runner.run(_measure(engine, servers, directories))
        bans = max(len(server.bans()) for server in servers)
    name = f"{directories} directories over {caches} Varnishes, verified"
    cpu = {"agent": round(spent.cpu_us / caches, 1)}
    extra: dict[str, float] = {"bans_at_a_cache": bans}
    ratio = Row(
        f"{name}: p99 of hits meanwhile : before",
        round(during.p99_s / before.p99_s, 2),
        "x",
        extra={
            "before_ms": round(before.p99_s * 1000, 2),
            "meanwhile_ms": round(during.p99_s * 1000, 2),
            "visits": during.number,
        },
        aims=(Aim("value", most=2),),
    )
    return [Row(name, round(spent.wall_s, 2), "s", cpu, extra, (Aim("value", most=60),)), ratio]


async def _measure(
    engine: PretendedEngine, servers: list[Varnish], directories: int
) -> tuple[Visits, Visits, Spent]:
    # Everything is there; and one object that nothing refreshes is visited.
    for server in servers:
        with closing(await Visitor.connect(server.address)) as visitor:
            for path in _paths(directories):
                await visitor.fetch(HOST, path)
    visitors = [await Visitor.connect(server.address) for server in servers]
    try:
        before = await _visit(visitors, asyncio.create_task(asyncio.sleep(QUIET_S)))
        tasks = [(b"type=dir verify=1", [b"http://%b/d%d/" % (HOST.encode(), n)]) for n in range(directories)]
        pushing = asyncio.create_task(asyncio.to_thread(engine.push, tasks))
        during = await _visit(visitors, pushing)
        return before, during, await pushing
    finally:
        for visitor in visitors:
            visitor.close()


def _paths(directories: int) -> list[str]:
    pages = [f"/d{number}/{page}" for number in range(directories) for page in range(PAGES)]
    return [*pages, "/visited"]


async def _visit(visitors: list[Visitor], until: asyncio.Task[object]) -> Visits:
    """Hits, one cache after the other, until something has ended."""
    took: list[float] = []
    while not until.done():
        for visitor in visitors:
            began = time.perf_counter()
            await visitor.fetch(HOST, "/visited")
            took.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)
    took.sort()
    return Visits(took[int(len(took) * 0.99)], len(took))
