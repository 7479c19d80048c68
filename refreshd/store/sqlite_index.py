"""The index of a lane's finished tasks by id, in two levels.

    recent    ◄── entries as they come, a bucket at a time (store/ids.py)
      │ merged when it has RECENT_MAX entries, one stretch of CRCs after the other, in upkeep
      ▼
    finished  all others

Ids are random: once an index has more pages than entries are written to it at a time, each
entry writes a page of its own, twice (log and file). `recent` stays so small that a bucket's
entries share pages, and is so large that a stretch of it shares pages in `finished`. With
5 million ids that is 3.2 KB written a task instead of 8.5, and a p99 of 29 ms a commit instead of 132.

An id is in both levels at the most after its task was dropped and the id was used again:
only one of the two tasks is still there.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence

from refreshd.store.base import IdEntry
from refreshd.store.sqlite_rows import filled, insert

# 25 MB. A stretch is then 512 entries, as a bucket is: 10 ms in upkeep.
RECENT_MAX = 524_288
STRETCHES = 1_024
# Stretches that are counted to tell how full `recent` is: 1 ms.
_SAMPLE = 8
_LEVELS = ("recent", "finished")
# Of two tasks the later counts; an entry that is there already costs a look.
_LATER = "ON CONFLICT (crc, id) DO UPDATE SET serial = excluded.serial WHERE excluded.serial > {level}.serial"


def add(db: sqlite3.Connection, entries: Sequence[IdEntry]) -> None:
    """Writes entries, which had best be in order. Raises: sqlite3.Error, as all here."""
    insert(db, "INSERT INTO recent VALUES", entries, _LATER.format(level="recent"))


def any_entry(db: sqlite3.Connection) -> bool:
    """Whether there is any."""
    return any(db.execute(f"SELECT 1 FROM {level} LIMIT 1").fetchone() for level in _LEVELS)  # noqa: S608 (constants)


def known(db: sqlite3.Connection, crcs: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """(id, serial) of all entries with these CRCs, and no others, whose tasks are there."""
    for some in filled(crcs):
        marks = ",".join(f"?{number}" for number in range(1, len(some) + 1))
        for level in _LEVELS:
            # Joined: an id may outlive its task for a while, see `sweep`.
            query = f"SELECT i.id, serial FROM {level} AS i JOIN task USING (serial) WHERE crc IN ({marks})"  # noqa: S608 (constants)
            yield from db.execute(query, some)


def find(db: sqlite3.Connection, task_id: bytes, crc: int) -> list[int]:
    """The serials of a task's id: one, or that of a dropped task too."""
    query = " UNION ALL ".join(f"SELECT serial FROM {level} WHERE crc = ?1 AND id = ?2" for level in _LEVELS)  # noqa: S608 (constants)
    return [serial for (serial,) in db.execute(query, (crc, task_id))]


def about(db: sqlite3.Connection) -> int:
    """About how many entries `recent` has."""
    chosen = random.sample(range(STRETCHES), _SAMPLE)
    counted = sum(
        db.execute("SELECT count(*) FROM recent WHERE crc >= ? AND crc < ?", _ends(stretch)).fetchone()[0]
        for stretch in chosen
    )
    return int(counted * STRETCHES / _SAMPLE)


def merge(db: sqlite3.Connection, stretch: int) -> int:
    """Moves one of the STRETCHES of `recent` into `finished`. Returns how many entries that were."""
    ends = _ends(stretch)
    later = _LATER.format(level="finished")
    db.execute(
        "INSERT INTO finished SELECT crc, id, serial FROM recent"  # noqa: S608 (constants)
        f" WHERE crc >= ? AND crc < ? ORDER BY crc, id {later}",
        ends,
    )
    return db.execute("DELETE FROM recent WHERE crc >= ? AND crc < ?", ends).rowcount


def sweep(db: sqlite3.Connection, start: int, end: int, before: int) -> None:
    """Drops entries with CRCs in [start, end) of tasks that are gone; looks at serials below `before`.

    Ids are dropped stretch by stretch, not task by task, as neighbours share
    pages. Until its turn comes an id may outlive its task; `known` sees that.
    """
    for level in _LEVELS:
        db.execute(
            f"DELETE FROM {level} WHERE crc >= ? AND crc < ? AND serial < ?"  # noqa: S608 (constants)
            f" AND NOT EXISTS (SELECT 1 FROM task WHERE task.serial = {level}.serial)",
            (start, end, before),
        )


def _ends(stretch: int) -> tuple[int, int]:
    width = (1 << 32) // STRETCHES
    return stretch * width, (stretch + 1) * width
