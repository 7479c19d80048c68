"""From post to `complete`, through the engine, an agent and a real Varnish."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from tools.bench.errors import BenchError
from tools.bench.lines import post_lines
from tools.bench.load import DEADLINE_S, Shape, drive
from tools.bench.meter import Meter
from tools.bench.programs import Program, Tree, wait_for
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, agent, folder
from tools.servers import Origin, Varnish

_POSTED_BY = Shape(8, 64)
# How many: quick, in full.
IDLE = (100, 1_000)
SUSTAINED = (10_000, 150_000)


def run(quick: bool) -> list[Row]:
    """That a refresh takes effect; one idle task at a time; as many as go through."""
    idle, sustained = IDLE[not quick], SUSTAINED[not quick]
    with _site() as (engine, agent_, varnish):
        _check_effect(engine, varnish)
        return [_idle(engine, idle), _sustained(engine, agent_, varnish, sustained)]


@contextmanager
def _site() -> Iterator[tuple[Engine, Program, Varnish]]:
    with (
        folder() as where,
        Engine(where) as engine,
        Origin() as origin,
        Varnish(origin.address) as varnish,
        agent(where, engine, varnish.address) as agent_,
    ):
        yield engine, agent_, varnish


def _check_effect(engine: Engine, varnish: Varnish) -> None:
    """A page is served from the cache; after a refresh it is not. Raises: BenchError."""
    page = "http://bench.example/page"
    seen = [_fetch(varnish, page), _fetch(varnish, page)]
    line = b"post_task task_id=effect type=url -- " + page.encode() + b"\n"
    asyncio.run(complete_each(engine, [line]))
    seen.append(_fetch(varnish, page))
    if seen != ["miss", "hit", "miss"]:
        raise BenchError(f"a page and its refresh: got {', '.join(seen)}, wanted miss, hit, miss")


def _fetch(varnish: Varnish, url: str) -> str:
    _, _, host, path = url.split("/", 3)
    request = urllib.request.Request(f"http://{varnish.address}/{path}", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 (its own cache, on loopback)
        return str(reply.headers["X-Cache"])


def _idle(engine: Engine, number: int) -> Row:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        latencies = sorted(runner.run(complete_each(engine, post_lines(number, 1)[0])))
    p50, p99 = (round(latencies[int(number * share)] * 1000, 2) for share in (0.5, 0.99))
    aims = (Aim("value", most=5),)
    return Row("end to end: post to complete, idle", p50, "ms p50", extra={"p99_ms": p99}, aims=aims)


async def complete_each(engine: Engine, lines: list[bytes]) -> list[float]:
    """Seconds from each post until its watch says `complete`; one at a time."""
    reader, writer = await asyncio.open_connection(*engine.address)
    latencies: list[float] = []
    async with asyncio.timeout(DEADLINE_S):
        for line in lines:
            began = time.perf_counter()
            writer.write(line + b"watch_task " + line.split(b" ")[1] + b"\n")
            while b" state=complete " not in (reply := await reader.readline()):
                if not reply.startswith((b"ok ", b"!state ")):
                    raise BenchError(f"got {reply!r}, wanted a task that completes")
            latencies.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()
    return latencies


def _sustained(engine: Engine, agent_: Program, varnish: Varnish, number: int) -> Row:
    before = engine.stats()["tasks_complete"]
    dealt = post_lines(number, engine.workers)
    meter = Meter([engine.program, agent_, Tree("varnish", varnish.pid)])
    drive([engine.address], dealt, _POSTED_BY)
    done = before + number
    wait_for("every task is complete", lambda: engine.stats()["tasks_complete"] >= done, DEADLINE_S)
    spent = meter.spent(number)
    return Row(
        "end to end: one-URL refreshes, sustained",
        round(number / spent.elapsed_s),
        "tasks/s",
        spent.cpu_us,
        {"others_pct": spent.others_pct},
        (Aim("value", least=15_000),),
        spent.processes_us,
    )
