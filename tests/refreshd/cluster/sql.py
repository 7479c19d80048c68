"""What `Truth` promises, over a small SQLite file: several processes share it, and every act is noted."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from refreshd.errors import NotLeader, StoreFenced, StoreUnavailable

SCHEMA = """
CREATE TABLE IF NOT EXISTS engine(number INTEGER PRIMARY KEY, name TEXT UNIQUE, epoch INT, alive INT);
CREATE TABLE IF NOT EXISTS cluster(leader_epoch INT, leader INT);
CREATE TABLE IF NOT EXISTS task(serial INTEGER PRIMARY KEY, owner INT);
CREATE TABLE IF NOT EXISTS refusal(engine INT, leader_epoch INT);
CREATE TABLE IF NOT EXISTS act(
    id INTEGER PRIMARY KEY, engine INT, leader_epoch INT, what TEXT, about INT, at_ns INT
);
"""


class Row(NamedTuple):
    """As `EngineRow` wants it."""

    number: int
    name: str
    epoch: int
    alive: bool
    owns: bool


class Act(NamedTuple):
    """Something that a leader did, and SQL let it."""

    engine: int
    leader_epoch: int
    what: str
    about: int
    at_ns: int


class Sql:
    """The database; `truth(number, epoch)` is one engine's view of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            if not db.execute("SELECT 1 FROM cluster").fetchone():
                db.execute("INSERT INTO cluster VALUES (0, 0)")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()

    def boot(self, number: int) -> int:
        """As a worker's boot does it. Returns the engine's epoch."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO engine VALUES (?, ?, 1, 1)", (number, f"e{number}"))
            db.execute(
                "UPDATE engine SET epoch = epoch + 1, alive = 1 WHERE number = ? AND alive = 0", (number,)
            )
            return int(db.execute("SELECT epoch FROM engine WHERE number = ?", (number,)).fetchone()[0])

    def fill(self, owner: int, tasks: int) -> None:
        with self.transaction() as db:
            db.executemany("INSERT INTO task(owner) VALUES (?)", [(owner,)] * tasks)

    def owned(self) -> dict[int, int]:
        """Tasks by owner."""
        with self.transaction() as db:
            return dict(db.execute("SELECT owner, count(*) FROM task GROUP BY owner"))

    def rows(self) -> list[Row]:
        with self.transaction() as db:
            rows = db.execute(
                "SELECT number, name, epoch, alive, EXISTS (SELECT 1 FROM task WHERE owner = number)"
                " FROM engine ORDER BY number"
            ).fetchall()
        return [
            Row(number, name, epoch, bool(alive), bool(owns)) for number, name, epoch, alive, owns in rows
        ]

    def acts(self, what: str = "") -> list[Act]:
        """What leaders did, in order."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT engine, leader_epoch, what, about, at_ns FROM act ORDER BY id"
            ).fetchall()
        return [act for act in (Act(*row) for row in rows) if what in ("", act.what)]

    def refusals(self) -> list[tuple[int, int]]:
        """(engine, leader's epoch) of acts that were refused because there is a later leader."""
        with self.transaction() as db:
            return db.execute("SELECT engine, leader_epoch FROM refusal").fetchall()

    @property
    def leader_epoch(self) -> int:
        with self.transaction() as db:
            return int(db.execute("SELECT leader_epoch FROM cluster").fetchone()[0])


class SqlTruth:
    """One engine's `Truth`. Set `away` to have it fail, `hangs` to have its next calls wait."""

    def __init__(self, sql: Sql, number: int, epoch: int) -> None:
        self.sql = sql
        self.number = number
        self.epoch = epoch
        self.away = False
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.refused = 0
        """Acts of this process that were refused because there is a later leader."""
        self.before: Callable[[str], None] = lambda what: None
        """Called before each act."""

    @contextmanager
    def _acting(self, what: str, about: int, leader_epoch: int | None) -> Iterator[sqlite3.Connection]:
        self.before(what)
        self._answer()
        with self.sql.transaction() as db:
            (latest,) = db.execute("SELECT leader_epoch FROM cluster").fetchone()
            if leader_epoch is not None and latest != leader_epoch:
                self.refused += 1
                db.execute("INSERT INTO refusal VALUES (?, ?)", (self.number, leader_epoch))
                db.execute("COMMIT")
                raise NotLeader(f"leader epoch {leader_epoch}; the store has {latest}")
            yield db
            noted = latest + 1 if leader_epoch is None else leader_epoch
            row = (self.number, noted, what, about, time.monotonic_ns())
            db.execute(
                "INSERT INTO act(engine, leader_epoch, what, about, at_ns) VALUES (?, ?, ?, ?, ?)", row
            )

    def _answer(self) -> None:
        self.goes_on.wait(30)
        if self.away:
            raise StoreUnavailable("the test says so")

    def claim_leadership(self) -> int:
        with self._acting("claim", 0, None) as db:
            own = db.execute("SELECT epoch, alive FROM engine WHERE number = ?", (self.number,)).fetchone()
            if own != (self.epoch, 1):
                raise StoreFenced(f"engine {self.number} at {self.epoch}; the store has {own}")
            db.execute("UPDATE cluster SET leader_epoch = leader_epoch + 1, leader = ?", (self.number,))
            return int(db.execute("SELECT leader_epoch FROM cluster").fetchone()[0])

    def engines(self) -> list[Row]:
        self._answer()
        return self.sql.rows()

    def fence(self, leader_epoch: int, number: int) -> int | None:
        with self._acting("fence", number, leader_epoch) as db:
            db.execute(
                "UPDATE engine SET epoch = epoch + 1, alive = 0 WHERE number = ? AND alive = 1", (number,)
            )
            row = db.execute("SELECT epoch FROM engine WHERE number = ?", (number,)).fetchone()
            return None if row is None else int(row[0])

    def hand_out(self, leader_epoch: int, number: int, fenced_epoch: int, to_number: int, limit: int) -> int:
        with self._acting("hand_out", number, leader_epoch) as db:
            row = db.execute("SELECT epoch, alive FROM engine WHERE number = ?", (number,)).fetchone()
            heir = db.execute("SELECT alive FROM engine WHERE number = ?", (to_number,)).fetchone()
            if row != (fenced_epoch, 0) or heir != (1,):
                return 0
            return db.execute(
                "UPDATE task SET owner = ? WHERE serial IN"
                " (SELECT serial FROM task WHERE owner = ? ORDER BY serial LIMIT ?)",
                (to_number, number, limit),
            ).rowcount
