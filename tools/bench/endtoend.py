"""From post to `complete`, through the engine, an agent and a real Varnish."""

from __future__ import annotations

import asyncio
import time

import psutil
import uvloop

from tools.bench.fanout import stats
from tools.bench.load import DEADLINE_S, drive, post_lines
from tools.bench.report import Row
from tools.bench.rig import BenchError, Cpu, Engine, Folder, Program, agent, cpu_s, wait_for
from tools.servers import Origin, Varnish


class _Varnishes(Program):
    """The CPU of every varnishd process; started elsewhere."""

    def __init__(self) -> None:
        self.name = "varnish"

    def pids(self) -> list[int]:
        """Its processes, however they call themselves."""
        return [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] in ("varnishd", "cache-main")]

    def cpu_s(self) -> float:
        """CPU seconds of all of them so far."""
        return sum(cpu_s(pid) for pid in self.pids())


def run(quick: bool) -> list[Row]:
    """One idle task at a time, then as many as go through."""
    idle, sustained = (100, 20_000) if quick else (500, 100_000)
    with Folder() as folder, Engine(folder) as engine, Origin() as origin, Varnish(origin.address) as varnish:
        agent_ = agent(folder, engine, varnish.address)
        try:
            return [_idle(engine, idle), _sustained(engine, agent_, sustained)]
        finally:
            agent_.stop()


def _idle(engine: Engine, number: int) -> Row:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        latencies = sorted(runner.run(_one_by_one(engine, number)))
    p50, p99 = (round(latencies[int(number * share)] * 1000, 2) for share in (0.5, 0.99))
    return Row("post to complete, idle", "ms p50", p50, extra={"p99_ms": p99}, target="p50 < 5 ms")


async def _one_by_one(engine: Engine, number: int) -> list[float]:
    reader, writer = await asyncio.open_connection(*engine.address)
    latencies: list[float] = []
    async with asyncio.timeout(DEADLINE_S):
        for line in post_lines(number + 1, 1)[0]:
            began = time.perf_counter()
            writer.write(line + b"watch_task " + line.split(b" ")[1] + b"\n")
            while b" state=complete" not in (reply := await reader.readline()):
                if not reply or reply.startswith(b"err"):
                    raise BenchError(f"got {reply!r}, wanted a task that completes")
            latencies.append(time.perf_counter() - began)
    writer.close()
    # The first one waits for the agent to connect.
    return latencies[1:]


def _sustained(engine: Engine, agent_: Program, number: int) -> Row:
    programs = [engine.program, agent_, _Varnishes()]
    before = _tasks_complete(engine)
    cpu = Cpu(programs)
    drive(engine.address, post_lines(number, engine.workers), 8, 64, [])
    wait_for("every task is complete", lambda: _tasks_complete(engine) >= before + number, DEADLINE_S)
    rate = round(number / cpu.elapsed_s)
    target = "≥ 15,000/s"
    return Row("one-URL refreshes, sustained", "tasks/s", rate, cpu_us=cpu.us_per(number), target=target)


def _tasks_complete(engine: Engine) -> float:
    async def ask() -> float:
        reader, writer = await asyncio.open_connection(*engine.address)
        figures = await stats(reader, writer)
        writer.close()
        return figures["tasks_complete"]

    return asyncio.run(ask())
