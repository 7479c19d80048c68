"""A million tasks for a proxy that is away: the memory they take, and how fast they go to it later."""

from __future__ import annotations

import asyncio
import time

import uvloop

from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet
from tools.bench.lines import post_lines
from tools.bench.load import Shape, drive
from tools.bench.programs import wait_for
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, folder

_POSTED_BY = Shape(8, 64)
_CHUNK = 100_000
# As an agent gives it, on each of its connections.
_CREDIT = 16_384
_LOOK_S = 0.05
# As many may stay in the memory of each worker: the default of engine.park_above.
_IN_MEMORY = 5_000
PARKED_DEADLINE_S = 120.0
DRAINED_DEADLINE_S = 300.0
_MIB = 1 << 20


def run(quick: bool) -> list[Row]:
    """One proxy, away; then back, with the credit of an agent."""
    number = 40_000 if quick else 1_000_000
    with folder() as where, Engine(where) as engine:
        before = engine.memory_bytes()
        for at in range(0, number, _CHUNK):
            drive([engine.address], post_lines(min(_CHUNK, number - at), engine.workers), _POSTED_BY)
        wait_for("tasks are parked", lambda: _is_parked(engine), PARKED_DEADLINE_S)
        stats = engine.stats()
        if stats["tasks_in_cache"] + stats["tasks_parked"] != number:
            raise BenchError(
                f"{stats['tasks_in_cache']:.0f} tasks in memory and {stats['tasks_parked']:.0f} parked, "
                f"wanted {number} together"
            )
        grown = (engine.memory_bytes() - before) / _MIB
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seconds, cpu_s = runner.run(_drained(engine, number))
        back = (engine.memory_bytes() - before) / _MIB
    name = f"offline: {number:,} tasks for a proxy that is away"
    return [
        Row(f"{name}: memory", round(grown, 1), "MiB", aims=(Aim("value", most=64),)),
        Row(
            f"{name}: drained when it is back",
            round(number / seconds),
            "targets/s",
            {"engine": round(cpu_s / number * 1e6, 1)},
            {"memory_mib": round(back, 1)},
            (Aim("value", least=20_000),),
        ),
    ]


def _is_parked(engine: Engine) -> bool:
    return engine.stats()["tasks_in_cache"] <= 2 * _IN_MEMORY


async def _drained(engine: Engine, number: int) -> tuple[float, float]:
    """Seconds, and CPU seconds of the engine, until all is done."""
    cpu_s = sum(engine.program.cpu_s().values())
    began = time.perf_counter()
    async with Fleet(engine, 1, credit=_CREDIT) as fleet, asyncio.timeout(DRAINED_DEADLINE_S):
        await fleet.pushed_to_all(number)
        while (await asyncio.to_thread(engine.stats))["tasks_complete"] < number:
            await asyncio.sleep(_LOOK_S)
    return time.perf_counter() - began, sum(engine.program.cpu_s().values()) - cpu_s
