"""Which tasks have ended and may not be in the index of ids yet: the journal of a lane.

The ids of a commit's finished tasks wait in memory for the index (store/ids.py), and
are lost with a process that is killed. So each commit also writes their serials here, in one
small row, in the same transaction. What a start has to look through is then bounded by
what may wait, whatever the history of the store.

    1. Of each finished task the id is in the index, or the serial is in a row.
    2. A row is deleted only when each of its ids is in the index, or its task is gone.
    3. Each process finds every finished id of its shards in the index or in its memory: it
       ended the task itself, was given the id, or has read the rows when it took the shard.

A writer is one process that has the lane open; it draws a number. It deletes its own
rows once the index has what is in them. Ids that leave a process for another (with
their shards) are in rows of nobody's from before they leave: whoever has them then may die.
Rows of nobody's, and of the dead, are read by whoever takes shards, and are
deleted in upkeep, after all that is in them was written into the index (rule 2 again, so
that it does not matter whether somebody has that in memory).
"""

from __future__ import annotations

import secrets
import sqlite3
import struct
from collections.abc import Collection, Sequence

# Serials in a row: it then has room in a page of 4 KiB.
ROW_SERIALS = 480
# A writer's rows are deleted when the index has at least so many more of its serials: 64 KiB.
TRIM_SERIALS = 8_192
NOBODY = 0
"""The writer of rows whose ids have left it."""

Row = tuple[int, list[int]]
"""(n, serials)"""


def new_writer() -> int:
    """A number that no other process draws."""
    return secrets.randbits(62) + 1


def append(db: sqlite3.Connection, slot: int, writer: int, at: int, serials: Sequence[int]) -> None:
    """Notes what has ended; `at`: how many serials the writer had noted before."""
    for first in range(0, len(serials), ROW_SERIALS):
        some = serials[first : first + ROW_SERIALS]
        db.execute(
            "INSERT INTO ended (slot, writer, at, serials) VALUES (?, ?, ?, ?)",
            (slot, writer, at + first + len(some), struct.pack(f"<{len(some)}q", *some)),
        )


def trim(db: sqlite3.Connection, writer: int, at: int) -> None:
    """Deletes a writer's rows up to `at`: the index has what is in them."""
    db.execute("DELETE FROM ended WHERE writer = ? AND at <= ?", (writer, at))


def last(db: sqlite3.Connection) -> int:
    """The number of the newest row."""
    return int(db.execute("SELECT max(n) FROM ended").fetchone()[0] or 0)


def others(db: sqlite3.Connection, writer: int, after: int, up_to: int, serials: int) -> list[Row]:
    """Rows of other writers, from number `after` on, with about so many serials: what is to be read."""
    rows = db.execute(
        "SELECT n, serials FROM ended WHERE n > ? AND n <= ? AND writer <> ? ORDER BY n",
        (after, up_to, writer),
    )
    return _some(rows, serials)


def left_behind(
    db: sqlite3.Connection, slot: int, writer: int, sharers: Collection[int], serials: int
) -> list[Row]:
    """Rows that no living process deletes, with about so many serials: what is to be written into the index.

    They are nobody's, or of an earlier process of this slot, or of a slot that is no more.
    """
    marks = ",".join("?" * len(sharers))
    rows = db.execute(
        f"SELECT n, serials FROM ended WHERE writer = {NOBODY}"  # noqa: S608 (constant, marks)
        f" OR (slot = ? AND writer <> ?) OR slot NOT IN ({marks}) ORDER BY n",
        (slot, writer, *sharers),
    )
    return _some(rows, serials)


def delete(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Deletes rows that were read in the same transaction: later on their numbers may be others'."""
    db.executemany("DELETE FROM ended WHERE n = ?", [(n,) for n, _ in rows])


def _some(rows: sqlite3.Cursor, most: int) -> list[Row]:
    some: list[Row] = []
    for n, blob in rows:
        serials = list(struct.unpack(f"<{len(blob) // 8}q", blob))
        some.append((n, serials))
        most -= len(serials)
        if most <= 0:
            break
    rows.close()
    return some
