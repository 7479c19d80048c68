"""What a run found: a table for people, what was aimed at beside it, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench.load import Measured


class Aim(NamedTuple):
    """What a figure should be. `of`: "value", or the name of a program's CPU or of one of the extras."""

    of: str
    least: float | None = None
    most: float | None = None

    def verdict(self, got: float) -> str:
        """Whether it was met, or by how much not."""
        if self.least is not None and got < self.least:
            return f"missed by {(1 - got / self.least) * 100:.0f} %"
        if self.most is not None and got > self.most:
            return f"missed by {(got / self.most - 1) * 100:.0f} %"
        return "met"

    def __str__(self) -> str:
        return f"≥ {self.least:,g}" if self.least is not None else f"≤ {self.most:,g}"


class Row(NamedTuple):
    """One figure."""

    name: str
    value: float
    unit: str
    cpu_us: dict[str, float] = {}  # noqa: RUF012 (a NamedTuple's default is never changed here)
    """Microseconds of CPU an operation, by program."""
    extra: dict[str, float] = {}  # noqa: RUF012 (nor here)
    aims: tuple[Aim, ...] = ()
    processes_us: dict[str, float] = {}  # noqa: RUF012 (nor here)
    """The CPU by process."""

    def got(self, of: str) -> float:
        """The figure that an aim is about."""
        return self.value if of == "value" else {**self.cpu_us, **self.extra}[of]


def row_of(name: str, runs: list[Measured], aims: tuple[Aim, ...] = ()) -> Row:
    """The run with the median rate of several, and how far the rates lay apart."""
    ordered = sorted(runs, key=lambda run: run.rate)
    run = ordered[len(ordered) // 2]
    extra = {"p50_ms": run.p50_ms, "p99_ms": run.p99_ms, "others_pct": run.spent.others_pct}
    if len(runs) > 1:
        extra |= {"lowest": ordered[0].rate, "highest": ordered[-1].rate}
    return Row(name, run.rate, "tasks/s", run.spent.cpu_us, extra, aims, run.spent.processes_us)


def table(rows: list[Row]) -> str:
    """A line a figure, the CPU of every program beside it."""
    lines = [("figure", "value", "CPU µs an operation", "more")]
    lines += [
        (row.name, f"{_number(row.value)} {row.unit}".rstrip(), _pairs(row.cpu_us), _pairs(row.extra))
        for row in rows
    ]
    return _aligned(lines)


def verdicts(rows: list[Row]) -> str:
    """What was aimed at, what was measured."""
    lines = [("figure", "aimed at", "measured", "")]
    for row in rows:
        for aim in row.aims:
            got = row.got(aim.of)
            what = row.unit if aim.of == "value" else _LABELS.get(aim.of, f"CPU µs, {aim.of}")
            lines.append((row.name, f"{aim} {what}", _number(got), aim.verdict(got)))
    return _aligned(lines) if len(lines) > 1 else ""


_LABELS = {"p50_ms": "ms p50", "p99_ms": "ms p99"}


def _pairs(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in figures.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(path: Path, rows: list[Row]) -> None:
    """The same as JSON, with what is needed to compare runs."""
    document: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "figures": [row._asdict() | {"aims": [_aim(row, aim) for aim in row.aims]} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _aim(row: Row, aim: Aim) -> dict[str, Any]:
    return aim._asdict() | {"verdict": aim.verdict(row.got(aim.of))}
