"""Accepting tasks: durable, one target, about 330 bytes."""

from __future__ import annotations

from tools.bench.load import Measured, drive, post_lines
from tools.bench.report import Row
from tools.bench.rig import Engine, Folder


def run(quick: bool) -> list[Row]:
    """The issue's three shapes of load, ascending ids, and half of the lines at the wrong worker."""
    many, few = (60_000, 20_000) if quick else (300_000, 100_000)
    return [
        _row("accept 8×64", _measure(many, 8, 64), target="≥ 100,000/s, ≤ 10 µs"),
        _row("accept 50×64", _measure(many, 50, 64), target="≥ 100,000/s, ≤ 10 µs"),
        _row("accept 50×1", _measure(few, 50, 1), target="≥ 20,000/s, p99 < 15 ms"),
        _row("accept 8×64, ascending ids", _measure(many, 8, 64, ids="ascending")),
        _row("accept 8×64, 50 % cross-worker", _measure(many, 8, 64, cross=0.5)),
    ]


def _measure(
    number: int, connections: int, depth: int, *, ids: str = "random", cross: float = 0.0
) -> Measured:
    """A fresh engine each: the table's size is part of the cost."""
    with Folder() as folder, Engine(folder) as engine:
        dealt = post_lines(number, engine.workers, ids=ids, cross=cross)
        return drive(engine.address, dealt, connections, depth, [engine.program])


def _row(name: str, measured: Measured, target: str = "") -> Row:
    return Row(
        name,
        "tasks/s",
        measured.rate,
        cpu_us=measured.cpu_us,
        extra={"p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms},
        target=target,
    )
