"""Which store the configuration names, and how its parts are opened: the only place that knows there are two.

kind = open_store(config)        nothing is opened yet
kind.lanes(workers)              the master, once: how many lanes there are
kind.join()                      a worker, before it opens a lane: as which engine it writes
kind.lane(…), kind.reader(…)     one each for every lane of the worker
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from refreshd.config import Config
from refreshd.store import layout
from refreshd.store.base import Lane, Reader
from refreshd.store.sharing import Shared
from refreshd.store.sqlite import SqliteLane
from refreshd.store.sqlite_reader import SqliteReader


class StoreKind(Protocol):
    """A store as the configuration names it. All calls block."""

    def lanes(self, workers: int) -> int:
        """How many lanes there are, made for `workers` if the store is new. Raises: StoreDamaged, OSError.

        The shards of lane L are those with `shard % lanes == L`.
        """

    def join(self) -> Shared | None:
        """Registers this engine where several share the store; None where none do.

        From now on lanes are opened to write as it, in its present epoch.
        Raises: StoreError, BootError.
        """

    def lane(
        self, number: int, slot: int, sharers: Sequence[int], shards: frozenset[int] | None = None
    ) -> Lane:
        """Opens a lane for the worker in `slot`, one of the `sharers` that write it.

        `shards` are those whose finished ids are to be found at once; None: `index_some` follows.
        Raises: StoreError, OSError.
        """

    def reader(self, number: int, lanes: int) -> Reader:
        """Opens a lane, one of so many, for reading. Raises: StoreError."""


def open_store(config: Config) -> StoreKind:
    """The store that `store.url` names. Raises: StoreFailed for a URL that cannot be read."""
    if config.store.url == "sqlite:":
        return SqliteStore(config)
    # Only here: PyMySQL costs 0.03 s of CPU at each start, for those who have no MySQL, too.
    kind: StoreKind = importlib.import_module("refreshd.store.mysql_store").open_mysql(config)
    return kind


class SqliteStore:
    """Files in the data folder, one a lane."""

    def __init__(self, config: Config) -> None:
        self._data = Path(config.engine.data)
        self._retention_s = config.store.retention_s

    def lanes(self, workers: int) -> int:
        """See `StoreKind`."""
        return layout.read_or_create(self._data, workers)

    def join(self) -> Shared | None:
        """See `StoreKind`."""
        return None

    def lane(
        self, number: int, slot: int, sharers: Sequence[int], shards: frozenset[int] | None = None
    ) -> SqliteLane:
        """See `StoreKind`."""
        path = layout.lane_path(self._data, number)
        lane = SqliteLane(path, self._retention_s, slot=slot, sharers=sharers)
        layout.lane_is_made(path)
        if shards is not None:
            lane.index_finished(shards)
        return lane

    def reader(self, number: int, lanes: int) -> SqliteReader:
        """See `StoreKind`."""
        return SqliteReader(layout.lane_path(self._data, number))
