"""What a run found: a table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One figure. `cpu_us`: microseconds of CPU an operation, by process; `target`: what was aimed at."""

    name: str
    unit: str
    value: float
    cpu_us: dict[str, float] = {}  # noqa: RUF012 (a NamedTuple's default is never changed here)
    extra: dict[str, float] = {}  # noqa: RUF012
    target: str = ""


def table(rows: list[Row]) -> str:
    """Aligned columns; CPU of every process beside the rate."""
    lines = [("figure", "value", "CPU µs an operation", "more", "aimed at")]
    for row in rows:
        cpu = "  ".join(f"{name} {value:g}" for name, value in row.cpu_us.items())
        more = "  ".join(f"{name} {value:g}" for name, value in row.extra.items())
        lines.append((row.name, f"{_number(row.value)} {row.unit}", cpu, more, row.target))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def write(path: Path, rows: list[Row]) -> None:
    """The same as JSON, with what is needed to compare runs."""
    document: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "figures": [row._asdict() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
