"""Text for people: aligned tables, times, sizes. Plain, so that grep and awk like it too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

Cell = str | int | float | None


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows under a header line; numbers stand to the right, columns two spaces apart."""
    cells = [[printable(row.get(column)) for column in columns] for row in rows]
    right = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    widths = [
        max([len(column), *(len(line[place]) for line in cells)]) for place, column in enumerate(columns)
    ]
    lines = [[column.upper().replace("_", " ") for column in columns], *cells]
    return "".join(
        "  ".join(
            cell.rjust(width) if at_right else cell.ljust(width)
            for cell, width, at_right in zip(line, widths, right, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def pairs(values: Mapping[str, Cell]) -> str:
    """Name and value, one pair a line."""
    width = max((len(name) for name in values), default=0)
    return "".join(
        f"{name.ljust(width)}  {printable(value)}".rstrip() + "\n" for name, value in values.items()
    )


def printable(value: Cell) -> str:
    """A cell's text. What an engine or a proxy said cannot steer the terminal."""
    if value is None or value == "":
        return "-"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def when(unix_ms: int) -> str:
    """A time of day, with the date, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_ms / 1000)) if unix_ms else "-"


def span(ms: float) -> str:
    """A length of time, in the largest unit that fits."""
    seconds = max(0, int(ms / 1000))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def mebibytes(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.1f} MiB"


def count(number: int, noun: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
