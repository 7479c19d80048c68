"""A million unfinished tasks with 100 proxies in scope: their memory, and a start with them."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import uvloop

from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet, done_line
from tools.bench.lines import id_of, post_lines
from tools.bench.load import Shape, drive
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, Restart, folder

PROXIES = 100
_POSTED_BY = Shape(8, 64)
# What waits for proxies that are away would be parked (tools/bench/offline.py).
_IN_MEMORY = "park_above = 100_000_000"
# What is rendered and posted at a time: lines take memory too.
_CHUNK = 200_000
_FITS = (Aim("value", most=1024),)
_SOON = (Aim("value", most=15),)
# Ids in a report.
_REPORTED = 500
# 60 s where nothing else runs.
PUSH_DEADLINE_S = 300.0


class Memory(NamedTuple):
    """Bytes a task: with all proxies away; pushed to all of them; reported by all but one; after a restart.
    And that restart.
    """

    away: float
    silent: float
    one_left: float
    restarted: float
    restart: Restart


def run(quick: bool) -> list[Row]:
    """Proxies that are away; that are there and silent; all but one done; kill -9 and a start."""
    number = 20_000 if quick else 1_000_000
    # What the engine keeps whatever the number (page caches, buffers) tells only among many.
    fits = () if quick else _FITS
    memory = measure(number)
    name = f"memory: {number:,} unfinished tasks"
    ready_s, ping = round(memory.restart.ready_s, 2), {"first_ping_s": round(memory.restart.ping_s, 2)}
    return [
        Row(f"{name}, {PROXIES} proxies away", memory.away, "bytes a task", aims=fits),
        Row(f"{name}, pushed to {PROXIES} silent proxies", memory.silent, "bytes a task", aims=fits),
        Row(f"{name}, {PROXIES - 1} of {PROXIES} proxies done", memory.one_left, "bytes a task", aims=fits),
        Row(f"{name}, after a restart", memory.restarted, "bytes a task", aims=fits),
        Row(f"restart: kill -9 with {number:,} unfinished tasks", ready_s, "s until ready", {}, ping, _SOON),
    ]


def measure(number: int) -> Memory:
    """On one engine: fill it, push all of it, report most of it, kill it, start it; look each time."""
    with folder() as where, Engine(where, proxies=PROXIES, settings=_IN_MEMORY) as engine:
        before = engine.memory_bytes()
        ids = _fill(engine, number)
        away = _a_task(engine, before, number)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            silent, one_left = runner.run(_push_and_report(engine, before, ids))
        restart = engine.restart_after_kill()
        there = engine.stats()["tasks_in_cache"]
        if there != number:
            raise BenchError(f"{there:.0f} tasks after the restart, wanted {number}")
        return Memory(away, silent, one_left, _a_task(engine, before, number), restart)


async def _push_and_report(engine: Engine, before: int, ids: list[list[bytes]]) -> tuple[float, float]:
    """Bytes a task once every task was pushed to every proxy, and once all but one have reported.

    A million tasks are 35 GB of pushes over loopback, and 3 of reports.
    """
    number = sum(map(len, ids))
    async with (
        Fleet(engine, PROXIES, credit=number, reports=False) as fleet,
        asyncio.timeout(PUSH_DEADLINE_S),
    ):
        await fleet.pushed_to_all(number)
        silent = await asyncio.to_thread(_a_task, engine, before, number)
        lines = [
            [done_line(some[at : at + _REPORTED]) for at in range(0, len(some), _REPORTED)] for some in ids
        ]
        await fleet.report_all(lines, PROXIES - 1)
        pairs = (await asyncio.to_thread(engine.stats))["pairs_reported"]
        if pairs != number * (PROXIES - 1):
            raise BenchError(f"{pairs:.0f} pairs were reported, wanted {number * (PROXIES - 1)}")
        return silent, await asyncio.to_thread(_a_task, engine, before, number)


def _fill(engine: Engine, number: int) -> list[list[bytes]]:
    """Posts so many tasks. Returns their ids, by worker."""
    ids: list[list[bytes]] = [[] for _ in range(engine.workers)]
    for at in range(0, number, _CHUNK):
        dealt = post_lines(min(_CHUNK, number - at), engine.workers)
        drive([engine.address], dealt, _POSTED_BY)
        for some, lines in zip(ids, dealt, strict=True):
            some += map(id_of, lines)
    return ids


def _a_task(engine: Engine, before: int, number: int) -> float:
    return round((engine.memory_bytes() - before) / number)
