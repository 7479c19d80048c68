"""The store in MySQL or MariaDB, put together: `opening.StoreKind`. Only loaded where it is used."""

from __future__ import annotations

from collections.abc import Sequence

from refreshd.config import Config
from refreshd.errors import StoreFailed, StoreUnavailable
from refreshd.mysql_url import MysqlUrl, read_mysql_url
from refreshd.store import layout
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_engines import Membership, register
from refreshd.store.mysql_reader import MysqlReader
from refreshd.store.mysql_schema import migrate
from refreshd.store.mysql_shared import MysqlShared
from refreshd.store.sharing import Shared


def open_mysql(config: Config) -> MysqlStore:
    """The database that `store.url` names. Raises: StoreFailed for a URL that cannot be read."""
    try:
        return MysqlStore(config, read_mysql_url(config.store.url))
    except ValueError as error:
        raise StoreFailed(f"store.url cannot be used: {error}") from error


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
        return layout.lanes_for(workers)

    def join(self) -> Shared:
        """See `StoreKind`. Brings the schema up to date first."""
        migrate(self._url)
        session = self.session()
        try:
            self._check_room(session)
            self._member = register(session, self._name)
        finally:
            session.drop()
        return MysqlShared(self._url, self._member)

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
