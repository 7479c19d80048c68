"""Links: the ways on which a worker reaches a proxy.

A proxy opens a connection to each worker; a worker that has none reaches the
proxy through a sibling that has one. Either way there is one link a proxy, with
a credit, and a cursor in each log that the proxy takes part in.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from refreshd.fanout import Cursor, Log, Segment

if TYPE_CHECKING:
    from refreshd.worker.replay import Replay

PRIORITIES = 10
_DOWNWARDS = range(PRIORITIES - 1, -1, -1)
# Targets that may be under way to one proxy through a sibling. A proxy that wants
# more throughput opens its connections, as PROTOCOL.md asks it to.
RELAY_CREDIT = 1024
# What a link has outstanding while its connection is on its way here: how much of it is
# freed meanwhile is then seen from what is left.
AWAITED_OUTSTANDING = 1 << 50


class Wire(Protocol):
    """What a link writes to."""

    @property
    def full(self) -> bool:
        """Whether to wait with more until `Pusher.writable` is called."""

    def send(self, data: bytes) -> None:
        """Writes whole lines."""


class Relayed(NamedTuple):
    """A push that came from a sibling, to go out on a link here."""

    task_id: bytes
    targets: int
    line: bytes
    slot: int


class Nowhere:
    """What a link writes to while its connection is on its way here."""

    full = True

    def send(self, data: bytes) -> None:
        """Nothing is sent: the link is held."""


class Link:
    """One way to one proxy."""

    def __init__(self, name: str, wire: Wire, *, via: int | None = None) -> None:
        self.name = name
        self.wire = wire
        self.via = via
        """The sibling it goes through, None for a connection of this worker."""
        self.credit = 0 if via is None else RELAY_CREDIT
        """How many targets may be outstanding."""
        self.outstanding = 0
        """Targets that were pushed and are not reported."""
        self.cursors: dict[Log, Cursor] = {}
        self.waiting: list[dict[Log, Cursor]] = [{} for _ in range(PRIORITIES)]
        """By priority, the cursors that may have something to read."""
        self.cancelled: list[bytes] = []
        self.relay: deque[Relayed] = deque()
        """Pushes of siblings that wait for credit; each sibling sends RELAY_CREDIT targets at most."""
        self.relayed: dict[bytes, tuple[int, int]] = {}
        """Pushes of siblings that are outstanding: id → (targets, slot)."""
        self.replay: Replay | None = None
        """Brings parked tasks back for the proxy, while there are any: they go before later ones."""
        self.tell_caught_up = False
        """Whether the proxy is still to be told that it has been given all there was for it when it came."""
        self.drop_after_s: int | None = None
        """After how long an absence the proxy may be told to drop its cache; None: never."""
        self.held = False
        """Nothing is pushed here just now: the connection is on its way to another process."""
        self.awaited = False
        """The connection is on its way to this process."""

    @classmethod
    def await_(cls, name: str, via: int | None) -> Link:
        """A link whose connection is on its way here: it counts what is reported, and pushes nothing."""
        link = cls(name, Nowhere(), via=via)
        link.awaited = link.held = True
        link.outstanding = AWAITED_OUTSTANDING
        return link

    def arrive(self, wire: Wire, credit: int, outstanding: int) -> None:
        """Its connection is here. What was reported meanwhile is no longer outstanding."""
        freed = AWAITED_OUTSTANDING - self.outstanding if self.awaited else 0
        self.wire = wire
        self.credit = credit
        self.outstanding = max(outstanding - freed, 0)
        self.awaited = self.held = False

    def note(self, cursor: Cursor) -> None:
        """The cursor's log has grown."""
        self.waiting[cursor.log.priority][cursor.log] = cursor

    def attach(self, log: Log, *, moved: bool = False) -> None:
        """Begins to read a log that the proxy takes part in; see `Log.attach`."""
        place = log.layer.places.get(self.name)
        if place is not None and log not in self.cursors:
            cursor = self.cursors[log] = log.attach(self, place, moved=moved)
            if log.live:
                self.note(cursor)

    def drop(self, log: Log) -> None:
        """The log is no more."""
        self.cursors.pop(log, None)
        self.waiting[log.priority].pop(log, None)

    def detach(self) -> None:
        """Stops reading: the link is gone."""
        self.replay = None
        for log in self.cursors:
            log.detach(self)
        self.cursors.clear()
        for waiting in self.waiting:
            waiting.clear()

    def has_read(self, segment: Segment) -> int:
        """Up to which place a segment's tasks were given to this link."""
        cursor = self.cursors.get(segment.log)
        if cursor is None:
            return 0
        if segment.given & cursor.bit:
            return len(segment.tasks)
        if segment.number > cursor.segment.number:
            return 0
        return cursor.offset if segment is cursor.segment else len(segment.tasks)

    def next_cursor(self) -> Cursor | None:
        """The cursor to read from next: highest priority, then the oldest task.

        While parked tasks of a priority are still to come, these go first, and all of
        a lower priority waits.
        """
        for priority in _DOWNWARDS:
            waiting = self.waiting[priority]
            if waiting:
                for log, cursor in list(waiting.items()):
                    if cursor.at_end():
                        del waiting[log]
            if self.replay is not None and priority <= self.replay.priority:
                replayed = [cursor for log, cursor in waiting.items() if log.is_replay]
                return min(replayed, key=Cursor.next_serial, default=None)
            if len(waiting) == 1:
                return next(iter(waiting.values()))
            if waiting:
                return min(waiting.values(), key=Cursor.next_serial)
        return None

    @property
    def has_caught_up(self) -> bool:
        """Whether it was given all there is for it."""
        return self.replay is None and not self.relay and self.next_cursor() is None

    def freed(self, targets: int) -> None:
        """Targets were reported or withdrawn."""
        # A report for what an earlier connection was given may free more than this one has outstanding.
        self.outstanding = max(self.outstanding - targets, 0)

    def __repr__(self) -> str:
        way = "" if self.via is None else f" via worker {self.via}"
        return f"<Link {self.name}{way}: {self.outstanding} of {self.credit} outstanding>"
