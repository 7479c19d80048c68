"""Many rows in few statements: each is one call, in which the interpreter's lock is released."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

# Rows are written in statements of these sizes, largest first; each is compiled
# once. Beyond 256 nothing is gained (2.2 µs a row at 512, 2.3 at 256).
CHUNKS = (256, 64, 16, 4, 1)


def insert(db: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]], then: str = "") -> None:
    """Inserts rows; `then` is what follows their values in the statement. Raises: sqlite3.Error."""
    at, left = 0, len(rows)
    for size in CHUNKS:
        while left >= size:
            values: list[Any] = []
            for row in rows[at : at + size]:
                values += row
            one = f"({','.join('?' * len(rows[at]))})"
            db.execute(f"{statement} {','.join([one] * size)} {then}", values)
            at += size
            left -= size


def delete(db: sqlite3.Connection, table: str, serials: Sequence[int]) -> None:
    """Deletes rows by serial. Raises: sqlite3.Error."""
    for some in filled(serials):
        marks = ",".join("?" * len(some))
        db.execute(f"DELETE FROM {table} WHERE serial IN ({marks})", some)  # noqa: S608 (constant, marks)


def filled(serials: Sequence[int]) -> Iterator[list[int]]:
    """In pieces of the chunk sizes, the last one filled up with what is in it: for `IN`."""
    for at in range(0, len(serials), CHUNKS[0]):
        some = list(serials[at : at + CHUNKS[0]])
        size = min(size for size in CHUNKS if size >= len(some))
        yield some + some[-1:] * (size - len(some))
