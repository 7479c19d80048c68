"""Take-over: which engines are dead, and who gets what they left unfinished.

An engine is **fenced** when SQL has it as alive and it has no lease of its present
epoch in a registry that was watched for a whole lease without a break
(`snapshot.Watch`) — and it had one, or has had `boot_ms` to get one: an engine
that boots is alive in SQL some time before worker 0 registers it.

The design asks that the *leader* has held its own lease for so long. What that is
for, that everybody had time to come back after a FLUSHALL, the watch of the registry
gives as well, and any engine may have watched before it leads. So when the engine
that dies is the leader, its successor need not wait another lease.

What a fenced engine left is **dealt out** in batches, each to the living engine
that was given the least of it so far. An engine lives if it has a lease of the
epoch that SQL knows; those that drain get nothing while there is another.

Pure: times are passed in. `acts` does what is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from refreshd.cluster.lease import Timing
from refreshd.cluster.snapshot import Snapshot
from refreshd.cluster.truth import EngineRow

# One transaction: so long its locks are held, and so much is done twice after an error.
BATCH_MAX = 5_000
# Where nobody knows how much there is, batches are small enough to come out even.
BATCH_UNKNOWN = 1_000
# A batch for one task each would be all round trips.
BATCH_MIN = 100

Incarnation = tuple[int, int]
"""(number, epoch) of an engine."""


class Estate(NamedTuple):
    """What a fenced engine left."""

    number: int
    epoch: int
    """The one it was fenced with."""
    name: str


class Plan(NamedTuple):
    """What the leader is to do."""

    fence: tuple[EngineRow, ...] = ()
    estates: tuple[Estate, ...] = ()
    heirs: tuple[int, ...] = ()
    """Numbers of the engines that may be given tasks."""

    def __bool__(self) -> bool:
        return bool(self.fence or (self.estates and self.heirs))


class Sightings:
    """Which incarnations of engines were seen, and which were missed since when. Every engine keeps it."""

    __slots__ = ("_missed", "_seen", "unfinished")

    def __init__(self) -> None:
        self._seen: set[Incarnation] = set()
        self._missed: dict[Incarnation, int] = {}
        self.unfinished: dict[int, int] = {}
        """By number, how many unfinished tasks the engine had when it said so last."""

    def note(self, snapshot: Snapshot) -> None:
        """The registry was read."""
        for entry in snapshot.engines:
            advert = entry.advert
            self._seen.add((advert.number, advert.epoch))
            self._missed.pop((advert.number, advert.epoch), None)
            self.unfinished[advert.number] = advert.unfinished

    def note_rows(self, rows: Iterable[EngineRow], now_ms: int) -> None:
        """SQL was read: what it does not know any more is forgotten, so that nothing here grows."""
        alive = {(row.number, row.epoch) for row in rows if row.alive}
        for incarnation in alive:
            self._missed.setdefault(incarnation, now_ms)
        self._missed = {key: at_ms for key, at_ms in self._missed.items() if key in alive}
        self._seen &= alive

    def had_lease(self, row: EngineRow) -> bool:
        """Whether a lease of this very epoch was seen."""
        return (row.number, row.epoch) in self._seen

    def missed_ms(self, row: EngineRow, now_ms: int) -> int:
        """Since when SQL has it as alive without a lease, as far as this engine knows."""
        return now_ms - self._missed.get((row.number, row.epoch), now_ms)

    def handed(self) -> list[Incarnation]:
        """For `inherit` in the process that goes on."""
        return sorted(self._seen)

    def inherit(self, seen: Iterable[Incarnation]) -> None:
        """Goes on with what the process before this one has seen."""
        self._seen.update(seen)


def decide(
    own_number: int,
    snapshot: Snapshot,
    rows: Sequence[EngineRow],
    sightings: Sightings,
    *,
    watched_ms: int,
    now_ms: int,
    timing: Timing,
) -> Plan:
    """What is to be done now, as far as can be told from what was read last."""
    fence = []
    if watched_ms >= timing.lease_ms:
        fence = [
            row
            for row in rows
            if row.alive
            and row.number != own_number
            and not _has_lease(row, snapshot)
            and (sightings.had_lease(row) or sightings.missed_ms(row, now_ms) >= timing.boot_ms)
        ]
    estates = [Estate(row.number, row.epoch, row.name) for row in rows if row.owns and not row.alive]
    return Plan(tuple(fence), tuple(estates), heirs(snapshot, rows))


def _has_lease(row: EngineRow, snapshot: Snapshot) -> bool:
    """Whether the registry says that the engine lives, as it is in SQL or as it is since."""
    if row.name in snapshot.unreadable:
        return True
    entry = snapshot.get(row.name)
    return entry is not None and entry.advert.number == row.number and entry.advert.epoch >= row.epoch


def heirs(snapshot: Snapshot, rows: Iterable[EngineRow]) -> tuple[int, ...]:
    """Who may be given tasks: the numbers of engines that live by both Redis and SQL."""
    alive = {(row.name, row.number, row.epoch) for row in rows if row.alive}
    living = [
        entry.advert
        for entry in snapshot.engines
        if (entry.advert.id, entry.advert.number, entry.advert.epoch) in alive
    ]
    staying = [advert for advert in living if not advert.draining]
    return tuple(advert.number for advert in staying or living)


def next_heir(heirs: Sequence[int], given: Mapping[int, int]) -> int:
    """Who gets the next batch of an estate, of which each was `given` so many tasks."""
    return min(heirs, key=lambda number: (given.get(number, 0), number))


def batch_limit(unfinished: int | None, heirs: int) -> int:
    """How many tasks a batch has, so that all heirs get about as much; `unfinished` is what is known of it.

    Each gets at least four batches, or the smallest ones: what is known may be old.
    """
    if not unfinished:
        return BATCH_UNKNOWN
    return min(max(-(-unfinished // (4 * heirs)), BATCH_MIN), BATCH_MAX)
