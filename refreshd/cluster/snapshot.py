"""Which engines there are, as one reading of the registry told it.

Each engine keeps a lease in Redis, and in it says where it is and how it does.
Reading all gives a `Snapshot`, which never changes: it is replaced whole.

Beside the leases lies one word, the *memory*. Whoever renews keeps it, and sets a
fresh one where there is none. It lives a little shorter than a lease, so whatever
takes leases away before their time (FLUSHALL, a restart, a jump of the Redis
machine's clock, Redis stopped for seconds) takes the word, too. That an engine's
lease is missing means that the engine is dead only to one who has read the same
word, from the same run of Redis and without a failure between, for a whole lease:
by then everyone who lives had time to come back. `Watch` measures that.

Pure: times are passed in.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

# Numbers of engines are six bits of a serial, and 0 is nobody.
ENGINES_MAX = 63


class Advert(msgspec.Struct, frozen=True):
    """What an engine says of itself. Fields of later releases are skipped, so they may be added."""

    id: str
    address: str
    """HOST:PORT where other engines, agents and clients reach its text RPC."""
    number: Annotated[int, msgspec.Meta(ge=1, le=ENGINES_MAX)]
    """What stands as owner in its tasks' rows."""
    epoch: Annotated[int, msgspec.Meta(ge=1)]
    boot: str
    """The same for all workers of one master; another after a restart of the engine."""
    workers: int = 0
    release: str = ""
    unfinished: int = 0
    draining: bool = False
    leader_epoch: int = 0
    """By which it leads, 0 if it does not."""


class Entry(msgspec.Struct, frozen=True):
    """An engine that has a lease."""

    advert: Advert
    remaining_ms: int
    """Until its lease ends, when the snapshot was taken."""


class Snapshot(msgspec.Struct, frozen=True):
    """All that the registry said at one moment."""

    engines: tuple[Entry, ...] = ()
    """By number."""
    unreadable: tuple[str, ...] = ()
    """Ids of engines that have a lease and say what this release cannot read. They live."""
    leader: str = ""
    """What stands in the leader's key, "" if nobody leads."""
    memory: str = ""
    at_ms: int = 0
    """When it was asked for, by `clock.now_ms`: it is no older. 0: nothing was ever read."""

    def get(self, engine_id: str) -> Entry | None:
        """The engine of this id, or None if it has no lease."""
        return next((entry for entry in self.engines if entry.advert.id == engine_id), None)

    def numbered(self, number: int) -> Entry | None:
        """The engine that owns tasks under this number, or None if it has no lease."""
        return next((entry for entry in self.engines if entry.advert.number == number), None)

    @property
    def leader_id(self) -> str:
        """The id of the engine that leads, or is about to; "" if nobody does."""
        return self.leader.partition(" ")[0]


class Watch:
    """How long the registry was read without a break. Pure: times are passed in."""

    __slots__ = ("_memory", "_server", "_since_ms")

    def __init__(self) -> None:
        self._memory = ""
        self._server = ""
        self._since_ms: int | None = None

    def read(self, memory: str, server: str, now_ms: int) -> None:
        """The registry was read, with this word, from this run of Redis; the answer came now."""
        if self._since_ms is None or (memory, server) != (self._memory, self._server):
            self._memory = memory
            self._server = server
            # Without a word nobody can tell what was forgotten.
            self._since_ms = now_ms if memory else None

    def missed(self) -> None:
        """Something that was asked of Redis was not answered."""
        self._since_ms = None

    def watched_ms(self, now_ms: int) -> int:
        """How long nothing was forgotten and nothing missed, up to now."""
        return max(now_ms - self._since_ms, 0) if self._since_ms is not None else 0

    def handed(self) -> tuple[str, str, int] | None:
        """For `inherit` in the process that goes on with it."""
        return None if self._since_ms is None else (self._memory, self._server, self._since_ms)

    def inherit(self, handed: tuple[str, str, int] | None) -> None:
        """Goes on where the predecessor of this process was."""
        if handed is not None:
            self._memory, self._server, self._since_ms = handed
