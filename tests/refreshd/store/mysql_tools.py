"""Engines and lanes in a database of the test's own, and faults of the way there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refreshd.mysql_url import MysqlUrl
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_connection import Result, Session
from refreshd.store.mysql_engines import Membership, register
from refreshd.store.mysql_errors import Lost
from refreshd.store.mysql_reader import MysqlReader
from tests.refreshd.store.making import RETENTION_S, START_MS, content_of


class Site:
    """A database that has its tables. Sessions, lanes and readers that it makes are closed with it."""

    def __init__(self, url: MysqlUrl) -> None:
        self.url = url
        self.now_ms = START_MS
        self._open: list[Any] = []
        self.session = self.connect()

    def connect(self) -> Session:
        session = Session(self.url)
        self._open.append(session.drop)
        return session

    def join(self, name: str = "e1") -> Membership:
        return register(self.session, name)

    def lane(self, member: Membership) -> MysqlLane:
        lane = MysqlLane(self.url, member, RETENTION_S, lambda: self.now_ms)
        self._open.append(lane.close)
        return lane

    def reader(self, owner: int, lane: int = 0, lanes: int = 1) -> MysqlReader:
        reader = MysqlReader(self.url, owner, lane, lanes)
        self._open.append(reader.close)
        return reader

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a statement."""
        return list(self.session.read(sql.encode()))

    def a_transaction_waits(self) -> bool:
        """For a row that another has locked. (Of innodb_trx, whoever asks often is told old news.)"""
        return self.ask("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'") != [
            ("Innodb_row_lock_current_waits", "0")
        ]

    def content(self, owner: int) -> tuple[dict[int, bytes], set[int]]:
        """See `content_of`: all tasks, and which of them are unfinished and of this engine."""
        return content_of(self.reader(owner))

    def close(self) -> None:
        for close in self._open:
            close()


class Losing:
    """Within it, a session loses its connection at statements that hold `text`.

    `sent`: when they were carried out, and only the answer is lost. `times` bounds how
    often; `lost` tells how often it was.
    """

    def __init__(self, session: Session, text: str, *, sent: bool = False, times: int = 1_000) -> None:
        self._session: Any = session
        self._text = text.encode()
        self._sent = sent
        self._times = times
        self.lost = 0

    def _query(self, *statements: bytes) -> Sequence[Result]:
        loses = self.lost < self._times and any(self._text in statement for statement in statements)
        results: Sequence[Result] = []
        if self._sent or not loses:
            results = type(self._session).query(self._session, *statements)
        if loses:
            self.lost += 1
            self._session.drop()
            raise Lost(f"injected at {self._text.decode()}")
        return results

    def __enter__(self) -> Losing:
        self._session.query = self._query
        return self

    def __exit__(self, *_: object) -> None:
        del self._session.query

    def __bool__(self) -> bool:
        return self.lost > 0
