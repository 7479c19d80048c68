"""Fan-out with reports: every task goes to every proxy, every proxy reports every task.

Two figures of its two halves alone, without sockets, are what comments in the code cite.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import uvloop

from refreshd.fanout import EncodedSegments, Log
from refreshd.fleet import Layer, Plan
from refreshd.task import Task, push_line, read_terms
from refreshd.worker.proxies import Proxies
from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet
from tools.bench.lines import id_of, post_lines
from tools.bench.load import DEADLINE_S, Shape, drive_here, undisturbed
from tools.bench.meter import Meter, Spent
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, folder
from wire.lines import parse

POSTED_BY = Shape(2, 64)
# How often the engine is asked whether it is done: it does not tell. Part of the wall time, so not often.
POLL_S = 0.02
# A report of a proxy that keeps up, and a segment's worth of pushes.
PART_PROXIES = 100
PART_TASKS = 256


def run(quick: bool) -> list[Row]:
    """100 and 1,000 proxies, the same number of pairs; a pair's two halves."""
    pairs = 200_000 if quick else 3_000_000
    few, many = (measure(proxies, pairs // proxies) for proxies in (100, 1_000))
    growth = round(many.cpu_us["engine"] / few.cpu_us["engine"], 2)
    return [
        few._replace(aims=(Aim("value", least=300_000),)),
        many,
        # A tenth is noise.
        Row("fan-out: a pair at 1,000 : at 100 proxies", growth, "× CPU", aims=(Aim("value", most=1.1),)),
        *parts(1 if quick else 10),
    ]


def measure(proxies: int, tasks: int) -> Row:
    """Posted pipelined; from the first push until the engine counts every task as complete."""
    with (
        folder() as where,
        Engine(where, proxies=proxies) as engine,
        undisturbed(),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        wall_s, spent = runner.run(_fan_out(engine, proxies, tasks))
    rate = round(tasks * proxies / wall_s)
    extra = {"others_pct": spent.others_pct}
    return Row(
        f"fan-out to {proxies:,} proxies", rate, "pairs/s", spent.cpu_us, extra, (), spent.processes_us
    )


async def _fan_out(engine: Engine, proxies: int, tasks: int) -> tuple[float, Spent]:
    async with Fleet(engine, proxies) as fleet:
        dealt = post_lines(tasks, engine.workers)
        meter = Meter([engine.program])
        posting = asyncio.create_task(drive_here([engine.address], dealt, POSTED_BY))
        while not fleet.pushed and not posting.done():
            await asyncio.sleep(0.001)
        began = time.perf_counter()
        await posting
        async with asyncio.timeout(DEADLINE_S):
            while (await asyncio.to_thread(engine.stats))["tasks_complete"] < tasks:
                await asyncio.sleep(POLL_S)
        wall_s = time.perf_counter() - began
        spent = meter.spent(tasks * proxies)
        if fleet.pushed != tasks * proxies:
            raise BenchError(f"{fleet.pushed} pairs were pushed, wanted {tasks * proxies}")
    return wall_s, spent


# ── the two halves of a pair ──────────────────────────────────────────────────────────────


class _Cpu:
    """Fastest of several rounds, µs a pair."""

    def __init__(self) -> None:
        self.best_us = float("inf")

    def note(self, began: float, pairs: int) -> None:
        self.best_us = min(self.best_us, (time.process_time() - began) / pairs * 1e6)


def parts(rounds: int) -> list[Row]:
    """What joining the push lines, and taking in a report, cost a pair; everything else is sockets."""
    push, report = _Cpu(), _Cpu()
    for _ in range(max(rounds, 1)):
        _one_round(push, report)
    made = f"{PART_TASKS} tasks, {PART_PROXIES} proxies"
    return [
        Row(f"fan-out: Log.read, {made}", round(push.best_us, 3), "µs a pair"),
        Row(f"fan-out: Proxies.done, {made}", round(report.best_us, 3), "µs a pair"),
    ]


def _one_round(push: _Cpu, report: _Cpu) -> None:
    layer = Plan([(0, tuple(f"p{number}" for number in range(PART_PROXIES)))]).layers[0]
    log = Log(layer, 5, push_line, EncodedSegments())
    cursors = {name: log.attach(name, layer.places[name]) for name in layer.proxies}
    tasks = _tasks(layer)
    for task in tasks:
        log.append(task)
    pairs = PART_TASKS * PART_PROXIES
    began = time.process_time()
    for cursor in cursors.values():
        log.read(cursor, PART_TASKS, True, _nothing)
    push.note(began, pairs)
    proxies = _proxies(tasks, log, cursors)
    ids = [task.id for task in tasks]
    began = time.process_time()
    for name in layer.proxies:
        proxies.done(name, ids, 1)
    report.note(began, pairs)
    if any(task.left for task in tasks):
        raise BenchError("a task was not done at every proxy")


def _tasks(layer: Layer) -> list[Task]:
    lines = [line[:-1] for line in post_lines(PART_TASKS, 1)[0]]
    terms = read_terms(parse(lines[0]))
    return [Task(id_of(line), line, terms, 1, layer, serial, 0) for serial, line in enumerate(lines)]


def _proxies(tasks: list[Task], log: Log, cursors: dict[str, Any]) -> Proxies:
    """The engine's own code for reports, with as little around it as it takes."""
    links = {
        name: SimpleNamespace(has_read=lambda segment: len(segment.tasks), freed=_nothing) for name in cursors
    }
    engine = SimpleNamespace(
        tasks={task.id: task for task in tasks},
        moving=False,
        clock=SimpleNamespace(wall_ms=0),
        counters=SimpleNamespace(pairs=0),
        layer_done=log.remove,
    )
    pusher = SimpleNamespace(links=links, due=_nothing)
    hub = SimpleNamespace(engine=engine, watches=(), pusher=pusher)
    return Proxies(cast("Any", hub))


def _nothing(_: object) -> None:
    return None
