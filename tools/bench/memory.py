"""A million unfinished tasks with 100 proxies in scope: their memory, and a start with them."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import uvloop

from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet
from tools.bench.lines import post_lines
from tools.bench.load import DEADLINE_S, Shape, drive
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, Restart, folder

PROXIES = 100
_POSTED_BY = Shape(8, 64)
# What is rendered and posted at a time: lines take memory too.
_CHUNK = 200_000
_FITS = (Aim("value", most=1024),)
_SOON = (Aim("value", most=15),)


class Away(NamedTuple):
    """Bytes a task with all proxies away, before and after a restart, and that restart."""

    bytes: float
    restarted_bytes: float
    restart: Restart


def run(quick: bool) -> list[Row]:
    """Proxies that are away; kill -9 and a start; proxies that are there and silent."""
    number, pushed = (50_000, 10_000) if quick else (1_000_000, 50_000)
    # What the engine and SQLite keep whatever the number (page caches, buffers) tells only among many.
    fits = () if quick else _FITS
    away = measure_away(number)
    name = f"memory: {number:,} unfinished tasks"
    ready_s, ping = round(away.restart.ready_s, 2), {"first_ping_s": round(away.restart.ping_s, 2)}
    return [
        Row(f"{name}, {PROXIES} proxies away", away.bytes, "bytes a task", aims=fits),
        Row(f"{name}, after a restart", away.restarted_bytes, "bytes a task", aims=fits),
        _silent(f"{name}, pushed to {PROXIES} silent proxies", away.bytes, number, pushed)._replace(
            aims=fits
        ),
        Row(f"restart: kill -9 with {number:,} unfinished tasks", ready_s, "s until ready", {}, ping, _SOON),
    ]


def _silent(name: str, away_bytes: float, number: int, pushed: int) -> Row:
    """Pushing needs so much once, and so much a task: from two sizes, as a million would be 35 GB a run."""
    few, many = measure_silent(pushed), measure_silent(3 * pushed)
    a_task = max((many - few) / (2 * pushed), 0.0)
    once = max(few - a_task * pushed, 0.0)
    extra: dict[str, float] = {"pushing_mb_once": round(once / 1e6), "pushing_bytes_a_task": round(a_task)}
    return Row(name, round(away_bytes + a_task + once / number), "bytes a task", extra=extra)


def measure_away(number: int) -> Away:
    """On one engine: fill it, look, kill it, start it, look again."""
    with folder() as where, Engine(where, proxies=PROXIES) as engine:
        before = engine.memory_bytes()
        _fill(engine, number)
        grown = _a_task(engine, before, number)
        restart = engine.restart_after_kill()
        there = engine.stats()["tasks_in_cache"]
        if there != number:
            raise BenchError(f"{there:.0f} tasks after the restart, wanted {number}")
        return Away(grown, _a_task(engine, before, number), restart)


def measure_silent(number: int) -> int:
    """How many bytes more, once so many tasks were pushed to all proxies and none has reported."""
    with (
        folder() as where,
        Engine(where, proxies=PROXIES) as engine,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        _fill(engine, number)
        before = engine.memory_bytes()
        return runner.run(_push_all(engine, number)) - before


async def _push_all(engine: Engine, number: int) -> int:
    async with Fleet(engine, PROXIES, credit=number, reports=False) as fleet:
        end = time.monotonic() + DEADLINE_S
        while fleet.pushed < number * PROXIES:
            if time.monotonic() > end:
                raise BenchError(f"{fleet.pushed} pairs were pushed, wanted {number * PROXIES}")
            await asyncio.sleep(0.05)
        return await asyncio.to_thread(engine.memory_bytes)


def _fill(engine: Engine, number: int) -> None:
    for at in range(0, number, _CHUNK):
        drive([engine.address], post_lines(min(_CHUNK, number - at), engine.workers), _POSTED_BY)


def _a_task(engine: Engine, before: int, number: int) -> float:
    return round((engine.memory_bytes() - before) / number)
