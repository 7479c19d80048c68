"""Which engines share the database, who of them is fenced, and whose tasks are whose.

This is the truth of it; Redis only says who is heard of (leases) and who shall
act (the election), and may lose all it has. Each function is one transaction;
all may be run again although they were done. They block, for as long as
`Session.atomically` does, and raise StoreUnavailable, StoreFailed, StoreDamaged
besides what they say.

    register ──► alive, epoch E ── fence (the leader) ──► fenced, epoch E+1 ── register ──► alive, epoch E+2
                                                            │
                                                            └── hand_out, in batches: its tasks are others'

Locks are taken in one order: the row of `cluster`, rows of `engine`, rows of `task`.
The first is one lock for all that changes engines and hand-outs. So what is read of them
under it stays as it is, and hand-outs become visible in the order of their ids: whoever
reads on from an id misses none. Commits take no part in it: they share their engine's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from refreshd.errors import BootError, NotLeader, StoreFenced
from refreshd.store.mysql_connection import Result, Session
from refreshd.store.mysql_rows import hexed, numbers
from refreshd.store.sharing import EngineRow, Handout

# An engine's number has six bits in a serial; 0 is no engine.
ENGINES_MAX = 63
# Tasks that are handed out in one transaction: 0.2 s, in which nobody registers.
HANDOUT_ROWS = 5_000
# Hand-outs that are read at a time.
HANDOUTS_READ = 1_000
_SERIALS_ASKED = 4_096
_LOCK_CLUSTER = b"SELECT leader_epoch, leader FROM cluster WHERE one=1 FOR UPDATE"


class Membership(NamedTuple):
    """As which engine a process writes, and in which epoch of it."""

    number: int
    epoch: int

    @property
    def seen(self) -> bytes:
        """A statement that every transaction begins with; its result is for `check`."""
        return b"SELECT epoch, alive FROM engine WHERE number=%d LOCK IN SHARE MODE" % self.number

    def check(self, seen: Result) -> None:
        """Raises: StoreFenced if the engine was fenced."""
        if list(seen.rows) != [(self.epoch, 1)]:
            now = "is not known" if not seen.rows else "has epoch {}, alive {}".format(*seen.rows[0])
            raise StoreFenced(
                f"engine {self.number} was fenced: it wrote in epoch {self.epoch} and {now}; "
                "its tasks are given to others"
            )


class Leadership(NamedTuple):
    """Who leads, by number (0: nobody ever did), and in which epoch."""

    epoch: int
    leader: int


def register(session: Session, name: str) -> Membership:
    """The engine of this name, from now on alive: a new one, one that was fenced, or one that others run too.

    To be called by each worker before it reads or writes anything.
    Raises: BootError when there are too many engines.
    """

    def work() -> Membership:
        _, found = session.query(_LOCK_CLUSTER, b"SELECT number, name, epoch, alive FROM engine")
        rows = {row[1]: row for row in found.rows}
        if name in rows:
            number, _, epoch, alive = rows[name]
            if not alive:
                epoch += 1
                session.query(b"UPDATE engine SET epoch=%d, alive=1 WHERE number=%d" % (epoch, number))
            return Membership(number, epoch)
        free = set(range(1, ENGINES_MAX + 1)) - {row[0] for row in rows.values()}
        if not free:
            raise BootError(
                f"{ENGINES_MAX} engines share the database at {session.place} already; "
                "take out the rows of those that are gone for good (table engine, with no task of theirs)"
            )
        session.query(b"INSERT INTO engine VALUES (%d, %b, 1, 1)" % (min(free), hexed(name.encode())))
        return Membership(min(free), 1)

    return session.atomically(work)


def engines(session: Session) -> list[EngineRow]:
    """All engines there have been, by number. For the leader: who is alive, and who still has tasks."""
    rows = session.read(
        b"SELECT number, name, epoch, alive, EXISTS ("
        b"SELECT 1 FROM task FORCE INDEX (by_state) WHERE state=0 AND owner=engine.number)"
        b" FROM engine ORDER BY number"
    )
    return [
        EngineRow(number, name, epoch, alive == 1, owns == 1) for number, name, epoch, alive, owns in rows
    ]


def unfinished_counts(session: Session) -> dict[int, int]:
    """How many unfinished tasks each engine has, by number. Walks over them all: 0.3 s a million."""
    rows = session.read(
        b"SELECT owner, count(*) FROM task FORCE INDEX (by_state) WHERE state=0 GROUP BY owner"
    )
    return dict(rows)


def leadership(session: Session) -> Leadership:
    """Who leads just now."""
    (row,) = session.read(b"SELECT leader_epoch, leader FROM cluster WHERE one=1")
    return Leadership(*row)


def lead(session: Session, number: int) -> int:
    """Engine `number` has won the election: whoever led before cannot act any more. Returns the new epoch."""

    def work() -> int:
        _, _, result = session.query(
            _LOCK_CLUSTER,
            b"UPDATE cluster SET leader_epoch=leader_epoch+1, leader=%d WHERE one=1" % number,
            b"SELECT leader_epoch FROM cluster WHERE one=1",
        )
        return int(result.rows[0][0])

    return session.atomically(work)


def fence(session: Session, leader_epoch: int, number: int) -> int:
    """Ends what engine `number` may do. Returns the epoch in which it is fenced: for `hand_out`.

    Waits for its commits that are under way, and raises StoreUnavailable when one stays under way for
    LOCK_WAIT_S: a paused engine's, until the server ends it (IDLE_IN_TRANSACTION_S). Then try
    again. One that is fenced already stays as it is. Raises: NotLeader.
    """

    def work() -> int:
        (cluster,) = session.query(_LOCK_CLUSTER)
        _check_leader(leader_epoch, cluster)
        _, result = session.query(
            b"UPDATE engine SET epoch=epoch+1, alive=0 WHERE number=%d AND alive=1" % number,
            b"SELECT epoch FROM engine WHERE number=%d" % number,
        )
        return int(result.rows[0][0])

    return session.atomically(work)


def hand_out(
    session: Session, leader_epoch: int, fenced: Membership, to: int, now_ms: int, limit: int = HANDOUT_ROWS
) -> int:
    """Gives engine `to` the oldest unfinished tasks of one that was fenced in this epoch; returns how many.

    0 when it has none left, or is back: then what is left is its own. Also 0 when
    `to` is fenced itself by now. Raises: NotLeader.
    """

    def work() -> int:
        cluster, states, found = session.query(
            _LOCK_CLUSTER,
            b"SELECT number, epoch, alive FROM engine WHERE number IN (%d,%d)" % (fenced.number, to),
            b"SELECT min(serial), max(serial), count(*) FROM (SELECT serial FROM task FORCE INDEX (by_state)"
            b" WHERE state=0 AND owner=%d ORDER BY serial LIMIT %d) AS oldest" % (fenced.number, limit),
        )
        _check_leader(leader_epoch, cluster)
        state = {number: (epoch, alive) for number, epoch, alive in states.rows}
        if state.get(fenced.number) != (fenced.epoch, 0) or state.get(to, (0, 0))[1] != 1:
            return 0
        first, last, count = found.rows[0]
        if not count:
            return 0
        session.query(
            b"UPDATE task FORCE INDEX (by_state) SET owner=%d"
            b" WHERE state=0 AND owner=%d AND serial BETWEEN %d AND %d" % (to, fenced.number, first, last),
            _handout(to, first, last, now_ms),
        )
        return int(count)

    return session.atomically(work)


def give_back(session: Session, member: Membership, serials: Sequence[int], now_ms: int) -> None:
    """Makes those of these tasks that are kept a hand-out of their own engine to itself.

    For tasks of a commit that nobody answered: they were refused, but who has them in
    the database must also work on them. Waits for that commit, should it still be under way.
    Raises: StoreFenced.
    """

    def work() -> None:
        _, seen = session.query(_LOCK_CLUSTER, member.seen)
        member.check(seen)
        kept: list[int] = []
        for at in range(0, len(serials), _SERIALS_ASKED):
            (result,) = session.query(
                b"SELECT serial FROM task WHERE serial IN (%b) AND state=0 AND owner=%d LOCK IN SHARE MODE"
                % (numbers(serials[at : at + _SERIALS_ASKED]), member.number)
            )
            kept += [row[0] for row in result.rows]
        if kept:
            session.query(_handout(member.number, min(kept), max(kept), now_ms))

    session.atomically(work)


def last_handout(session: Session, before_ms: int | None = None) -> int:
    """The id of the last hand-out, or of the last one before that time; 0 if there was none.

    A worker asks before it reads its tasks for the first time: what is handed out later has larger ids.
    """
    older = b"" if before_ms is None else b" WHERE at_ms < %d" % before_ms
    return int(session.read(b"SELECT coalesce(max(id), 0) FROM handout" + older)[0][0])


def handouts(session: Session, owner: int, after: int) -> list[Handout]:
    """What was handed out to an engine after the hand-out with this id, in order; HANDOUTS_READ at most."""
    rows = session.read(
        b"SELECT id, first_serial, last_serial FROM handout WHERE owner=%d AND id>%d ORDER BY id LIMIT %d"
        % (owner, after, HANDOUTS_READ)
    )
    return [Handout(*row) for row in rows]


def _handout(to: int, first: int, last: int, now_ms: int) -> bytes:
    values = b"%d, %d, %d, %d" % (to, first, last, now_ms)
    return b"INSERT INTO handout (owner, first_serial, last_serial, at_ms) VALUES (%b)" % values


def _check_leader(leader_epoch: int, cluster: Result) -> None:
    """Raises: NotLeader if another engine has won the election since, or this one anew."""
    now, leader = cluster.rows[0]
    if now != leader_epoch:
        raise NotLeader(f"epoch {leader_epoch} of the leader is over: engine {leader} leads in epoch {now}")
