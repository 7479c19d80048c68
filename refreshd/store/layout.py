"""The data folder: how many lane files there are, fixed when it is first used.

data/store/layout       `lanes=2`, written last, so that it tells of a complete folder
data/store/lane-0.db    rows of the shards with shard % lanes == 0
data/store/lane-1.db
data/store/lane-1.made  this lane has had tables: SQLite would take an emptied file for a new database
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from refreshd.errors import StoreDamaged
from wire import SHARDS

_FOLDER = "store"
_MADE = ".made"


def lane_path(data: Path, lane: int) -> Path:
    """The SQLite file of a lane."""
    return data / _FOLDER / f"lane-{lane}.db"


def read_or_create(data: Path, workers: int) -> int:
    """The number of lanes of this data folder; a new one gets a lane for each worker.

    Raises: StoreDamaged when the layout cannot be read or a lane file is missing;
    OSError when the folder cannot be written.
    """
    path = data / _FOLDER / "layout"
    try:
        lanes = _parse(path)
    except FileNotFoundError:
        _refuse_leftovers(data)
        return _create(path, data, lanes_for(workers))
    for lane in range(lanes):
        file = lane_path(data, lane)
        fault = (
            "missing" if not file.exists() else "empty" if _was_made(file) and not file.stat().st_size else ""
        )
        if fault:
            raise StoreDamaged(
                f"{file} is {fault} though {path} tells of {lanes} lanes; "
                "restore it from a backup, or start with an empty data folder"
            )
    return lanes


def lanes_for(workers: int) -> int:
    """How many lanes a store has that is made for so many workers."""
    return min(max(workers, 1), SHARDS)


def lane_is_made(path: Path) -> None:
    """Notes that a lane has its tables, before the first task is written. Raises: OSError."""
    if not _was_made(path):
        path.with_suffix(_MADE).touch(mode=0o600)
        _sync_folder(path.parent)


def _was_made(path: Path) -> bool:
    return path.with_suffix(_MADE).exists()


def _parse(path: Path) -> int:
    text = path.read_text(errors="replace").strip()
    match = re.fullmatch(r"lanes=([0-9]{1,2})", text)
    if match is None or not 1 <= int(match[1]) <= SHARDS:
        raise StoreDamaged(f"{path} says {text[:80]!r}, wanted lanes=N with N from 1 to {SHARDS}")
    return int(match[1])


def _refuse_leftovers(data: Path) -> None:
    """Lane files without a layout: never guess how their shards were dealt out."""
    folder = data / _FOLDER
    for path in folder.glob("lane-*.db") if folder.exists() else ():
        if path.stat().st_size:
            raise StoreDamaged(f"{path} is there but {folder / 'layout'} is not; restore it (lanes=N)")


def _create(path: Path, data: Path, lanes: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    for lane in range(lanes):
        lane_path(data, lane).touch(mode=0o600)
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        file.write(f"lanes={lanes}\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    _sync_folder(path.parent)
    return lanes


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
