"""Which store the configuration names, and how its parts are opened: the only place that knows there are two.

kind = open_store(config)        nothing is opened yet
kind.lanes(workers)              the master, once: how many lanes there are
kind.join()                      a worker, before it opens a lane: as which engine it writes
kind.lane(…), kind.reader(…)     one each for every lane of the worker
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from refreshd.config import Config
from refreshd.errors import StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl, read_mysql_url
from refreshd.store import layout
from refreshd.store.base import Lane, Reader
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_engines import Membership, register
from refreshd.store.mysql_reader import MysqlReader
from refreshd.store.mysql_schema import migrate
from refreshd.store.sqlite import SqliteLane
from refreshd.store.sqlite_reader import SqliteReader
from wire import SHARDS


class StoreKind(Protocol):
    """A store as the configuration names it. All calls block."""

    def lanes(self, workers: int) -> int:
        """How many lanes there are, made for `workers` if the store is new. Raises: StoreDamaged, OSError.

        The shards of lane L are those with `shard % lanes == L`.
        """

    def join(self) -> Membership | None:
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
    try:
        url = read_mysql_url(config.store.url)
    except ValueError as error:
        raise StoreFailed(f"store.url cannot be used: {error}") from error
    return MysqlStore(config, url)


class SqliteStore:
    """Files in the data folder, one a lane."""

    def __init__(self, config: Config) -> None:
        self._data = Path(config.engine.data)
        self._retention_s = config.store.retention_s

    def lanes(self, workers: int) -> int:
        """See `StoreKind`."""
        return layout.read_or_create(self._data, workers)

    def join(self) -> Membership | None:
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


class MysqlStore:
    """A database that several engines may share; a lane is a connection of its own."""

    def __init__(self, config: Config, url: MysqlUrl) -> None:
        self._name = config.engine.id
        self._retention_s = config.store.retention_s
        self._line_max = config.engine.line_max
        self._url = url
        self._member: Membership | None = None

    def lanes(self, workers: int) -> int:
        """See `StoreKind`: one a worker, as nothing is written that says otherwise."""
        return min(max(workers, 1), SHARDS)

    def join(self) -> Membership:
        """See `StoreKind`. Brings the schema up to date first."""
        migrate(self._url)
        session = self.session()
        try:
            self._check_room(session)
            self._member = register(session, self._name)
        finally:
            session.drop()
        return self._member

    def _check_room(self, session: Session) -> None:
        """The longest request must fit in a packet, and is written as hex. Raises: StoreUnavailable."""
        (result,) = session.query(b"SELECT @@max_allowed_packet")
        allowed, wanted = int(result.rows[0][0]), 2 * self._line_max + 4096
        if allowed < wanted:
            raise StoreUnavailable(
                f"the database at {self._url.place} takes packets of {allowed:,} bytes, wanted {wanted:,} "
                f"for engine.line_max = {self._line_max:,}; raise its max_allowed_packet, or lower that"
            )

    def lane(
        self, number: int, slot: int, sharers: Sequence[int], shards: frozenset[int] | None = None
    ) -> MysqlLane:
        """See `StoreKind`."""
        return MysqlLane(self._url, self._joined(), self._retention_s)

    def reader(self, number: int, lanes: int) -> MysqlReader:
        """See `StoreKind`."""
        return MysqlReader(self._url, self._joined().number, number, lanes)

    def _joined(self) -> Membership:
        if self._member is None:
            raise RuntimeError("join() comes first: it says as which engine lanes are written")
        return self._member

    def session(self) -> Session:
        """A connection for `mysql_engines`, to be used by one thread at a time; `drop` ends it."""
        return Session(self._url)


__all__ = ["MysqlStore", "SqliteStore", "StoreKind", "open_store"]
