"""Accepting tasks: durable, one target, 350 bytes a line."""

from __future__ import annotations

from tools.bench.lines import post_lines
from tools.bench.load import Measured, Shape, drive
from tools.bench.report import Aim, Row, row_of
from tools.bench.rig import Engine, folder

PIPELINED = Shape(8, 64)
WIDE = Shape(50, 64)
ONE_EACH = Shape(50, 1)

_FAST = (Aim("value", least=100_000), Aim("engine", most=10))
_PATIENT = (Aim("value", least=20_000), Aim("p99_ms", most=15))


def run(quick: bool) -> list[Row]:
    """The issue's three shapes of load, ascending ids, and half of the lines at the wrong worker."""
    many, few, times = (40_000, 10_000, 1) if quick else (300_000, 100_000, 3)
    return [
        _row(f"accept {PIPELINED}", many, PIPELINED, times, aims=_FAST),
        _row(f"accept {WIDE}", many, WIDE, times, aims=_FAST),
        _row(f"accept {ONE_EACH}", few, ONE_EACH, times, aims=_PATIENT),
        _row(f"accept {PIPELINED}, ascending ids", many, PIPELINED, times, ids="ascending"),
        _row(f"accept {PIPELINED}, 50 % at the other worker", many, PIPELINED, times, cross=0.5),
        _row(f"accept {ONE_EACH}, 50 % at the other worker", few, ONE_EACH, times, cross=0.5),
    ]


def _row(
    name: str,
    number: int,
    shape: Shape,
    times: int,
    *,
    ids: str = "random",
    cross: float = 0.0,
    aims: tuple[Aim, ...] = (),
) -> Row:
    return row_of(name, [measure(number, shape, ids=ids, cross=cross) for _ in range(times)], aims)


def measure(number: int, shape: Shape, *, ids: str = "random", cross: float = 0.0) -> Measured:
    """One run, on an engine of its own: how much the store holds is part of the cost."""
    with folder() as where, Engine(where) as engine:
        dealt = post_lines(number, engine.workers, ids=ids, cross=cross)
        return drive([engine.address], dealt, shape, [engine.program])
