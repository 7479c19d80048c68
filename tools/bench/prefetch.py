"""Prefetch of 10 KB objects by miss, through a real Varnish: the agent beside what `wrk` gets from the same.

    nginx (a file for any URL) ◄── Varnish, empty ◄── proxyd, told by this process what to fetch
                                                  ◄── wrk, with as many connections, in turn with it

Each run has a Varnish of its own, so that all misses are alike; the runs alternate, so that what else the
machine does hits both.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import NamedTuple

from tools.bench import wrk
from tools.bench.pretended import pretended_engine
from tools.bench.report import Aim, Row
from tools.bench.rig import folder
from tools.bench.static_origin import StaticOrigin
from tools.servers import Varnish

CONNECTIONS = 16
OBJECT_BYTES = 10_000
# No run fills it.
STORAGE_MB = 1024
HOST = "bench.example"
TARGETS_A_TASK = 100
# Those of a prefetch (proxyd/caches/base.py).
HEADERS = {"Host": HOST, "User-Agent": "refreshd-prefetch", "Accept": "*/*", "Accept-Encoding": "gzip"}


class Run(NamedTuple):
    """One side of the comparison."""

    rate: float
    cpu_us: float


def run(quick: bool) -> list[Row]:
    """The rates in turn, and their ratio."""
    name = f"prefetch of {OBJECT_BYTES // 1000} KB by miss, Varnish, {CONNECTIONS} connections"
    if not wrk.is_there():
        return [Row(f"{name}: wrk is not installed (apt install wrk), nothing to compare with", 0, "")]
    times, seconds = (1, 1) if quick else (5, 3)
    generated: list[Run] = []
    ours: list[Run] = []
    with folder() as where, StaticOrigin(OBJECT_BYTES) as origin:
        for _ in range(times):
            with Varnish(origin.address, storage_mb=STORAGE_MB) as cache:
                generated.append(_generate(where, cache, seconds))
            with Varnish(origin.address, storage_mb=STORAGE_MB) as cache:
                ours.append(_prefetch(cache, round(generated[-1].rate * seconds)))
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours, generated, strict=True)]
    return [
        _row(f"{name}: wrk", "wrk", generated),
        _row(f"{name}: proxyd", "agent", ours),
        Row(
            "prefetch by miss: proxyd : wrk",
            round(median(ratios) * 100),
            "%",
            extra={"lowest": round(min(ratios) * 100), "highest": round(max(ratios) * 100)},
            aims=(Aim("value", least=80),),
        ),
    ]


def _row(name: str, who: str, runs: list[Run]) -> Row:
    rates = [run.rate for run in runs]
    cpu = {who: round(median(run.cpu_us for run in runs), 1)}
    spread: dict[str, float] = {"lowest": round(min(rates)), "highest": round(max(rates))}
    return Row(name, round(median(rates)), "objects/s", cpu, spread)


def _generate(where: Path, cache: Varnish, seconds: int) -> Run:
    load = wrk.walk(where, cache.address, seconds, CONNECTIONS, method="GET", headers=HEADERS)
    return Run(load.rate, load.cpu_us)


def _prefetch(cache: Varnish, number: int) -> Run:
    more = f"[slow]\nconnections = {CONNECTIONS}\nper_host = {CONNECTIONS}"
    with pretended_engine([("v1", "varnish", cache.address)], more) as engine:
        batches = (
            [
                b"http://%b/object/%d.bin" % (HOST.encode(), n)
                for n in range(at, min(at + TARGETS_A_TASK, number))
            ]
            for at in range(0, number, TARGETS_A_TASK)
        )
        spent = engine.push((b"type=prefetch", batch) for batch in batches)
    return Run(number / spent.wall_s, spent.cpu_us)
