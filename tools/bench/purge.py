"""PURGE of objects that are there, at a real Varnish: the agent beside what `wrk` gets from the same one.

Each run fills a Varnish by `wrk`, so that as many objects are there as are purged, then purges them: by `wrk`
and by the agent in turn, with as many connections, so that what else the machine does hits both.
"""

from __future__ import annotations

from collections.abc import Iterator
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
OBJECT_BYTES = 500
STORAGE_MB = 1024
HOST = "bench.example"
TARGETS_A_TASK = 100
# Of an agent, on the links to two workers.
CREDIT = 2 * 16_384


class Run(NamedTuple):
    """One side of the comparison."""

    rate: float
    cpu_us: float


def run(quick: bool) -> list[Row]:
    """The rates in turn, and their ratio; what it costs when each purge is verified."""
    name = f"PURGE of what is there, Varnish, {CONNECTIONS} connections"
    if not wrk.is_there():
        return [Row(f"{name}: wrk is not installed (apt install wrk), nothing to compare with", 0, "")]
    times, fill_s, purge_s = (1, 4, 1) if quick else (5, 8, 1)
    generated: list[Run] = []
    ours: list[Run] = []
    verified: list[Run] = []
    with folder() as where, StaticOrigin(OBJECT_BYTES) as origin:
        for _ in range(times):
            with Varnish(origin.address, storage_mb=STORAGE_MB) as cache:
                number = _fill(where, cache, fill_s)
                load = wrk.walk(
                    where, cache.address, purge_s, CONNECTIONS, method="PURGE", headers={"Host": HOST}
                )
                generated.append(Run(load.rate, load.cpu_us))
            for runs, fields in ((ours, b"type=url"), (verified, b"type=url verify=1")):
                with Varnish(origin.address, storage_mb=STORAGE_MB) as cache:
                    number = _fill(where, cache, fill_s // 2)
                    runs.append(_purge(cache, number, fields))
        backlog = _backlog(origin, 100_000 if quick else 1_000_000)
    ratios = [mine.rate / theirs.rate for mine, theirs in zip(ours, generated, strict=True)]
    return [
        _row(f"{name}: wrk", "wrk", generated),
        _row(f"{name}: proxyd", "agent", ours, Aim("agent", most=12)),
        _row(f"{name}: proxyd, verify=1", "agent", verified),
        Row(
            "PURGE: proxyd : wrk",
            round(median(ratios) * 100),
            "%",
            extra={"lowest": round(min(ratios) * 100), "highest": round(max(ratios) * 100)},
            aims=(Aim("value", least=60),),
        ),
        backlog,
    ]


def _row(name: str, who: str, runs: list[Run], *aims: Aim) -> Row:
    rates = [run.rate for run in runs]
    cpu = {who: round(median(run.cpu_us for run in runs), 1)}
    spread: dict[str, float] = {"lowest": round(min(rates)), "highest": round(max(rates))}
    return Row(name, round(median(rates)), "purges/s", cpu, spread, aims)


def _fill(where: Path, cache: Varnish, seconds: int) -> int:
    """How many objects, from 1 on, are there now."""
    headers = {"Host": HOST}
    return wrk.walk(where, cache.address, seconds, CONNECTIONS, method="GET", headers=headers).number


def _purge(cache: Varnish, number: int, fields: bytes) -> Run:
    more = f"[fast]\nconnections = {CONNECTIONS}"
    with pretended_engine([("v1", "varnish", cache.address)], more) as engine:
        spent = engine.push(_tasks(number, fields))
    return Run(number / spent.wall_s, spent.cpu_us)


def _tasks(number: int, fields: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    for at in range(1, number + 1, TARGETS_A_TASK):
        numbers = range(at, min(at + TARGETS_A_TASK, number + 1))
        yield fields, [b"http://%b/object/%d.bin" % (HOST.encode(), n) for n in numbers]


def _backlog(origin: StaticOrigin, number: int) -> Row:
    """With the credit that two workers have, all of it used."""
    with (
        Varnish(origin.address) as cache,
        pretended_engine([("v1", "varnish", cache.address)]) as engine,
    ):
        spent = engine.push(_tasks(number, b"type=url"), ahead=CREDIT)
        peak_mib = round(engine.peak_bytes() / (1 << 20), 1)
    extra: dict[str, float] = {"rate": round(number / spent.wall_s)}
    cpu = {"agent": round(spent.cpu_us, 1)}
    return Row(
        f"a backlog of {number:,} purges: the agent's memory at its peak", peak_mib, "MiB", cpu, extra,
        (Aim("value", most=256),),
    )  # fmt: skip
