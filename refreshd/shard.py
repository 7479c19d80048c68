"""Who owns which task: 64 shards by CRC-32 of the id, dealt to workers and to lanes.

    shard  = crc32(task_id) % 64
    worker = shard % workers      owns the shard's state in memory
    lane   = shard % lanes        the store file that holds the shard's rows

The number of lanes is fixed when the data folder is first used, so a task's row
never has to move; the number of workers may change at every start.

While a worker hands over to another (docs/handover.md), a shard's owner is not the
worker that the rule names: `give` says who it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from zlib import crc32

from wire import SHARDS

# Owners that are no slot.
SUCCESSOR = -1
"""The process that this one hands over to, in the same slot."""
PREDECESSOR = -2
"""The process that this one takes over from, in the same slot."""
FROZEN = -3
"""This process, which is just sending it to another: what comes for it follows."""
HELD = -4
"""Nobody just now: requests wait until the shard was read from the store."""
GIVEN = (SUCCESSOR, FROZEN)


class ShardMap:
    """The view of one worker (`slot`) of who owns what."""

    __slots__ = ("lane_by_shard", "lanes", "owned", "owner_by_shard", "slot", "workers")

    def __init__(self, slot: int, workers: int, lanes: int) -> None:
        self.slot = slot
        self.workers = workers
        self.lanes = lanes
        self.owner_by_shard = [shard % workers for shard in range(SHARDS)]
        """Changed in place by `give`: hot paths hold on to it."""
        self.lane_by_shard = tuple(shard % lanes for shard in range(SHARDS))
        self.owned = frozenset(shard for shard in range(SHARDS) if shard % workers == slot)
        """The shards that are this slot's by the rule."""

    def owner(self, task_id: bytes) -> int:
        """The slot of the worker that owns a task, or SUCCESSOR, PREDECESSOR, HELD."""
        return self.owner_by_shard[crc32(task_id) & 63]

    def owns(self, task_id: bytes) -> bool:
        """Whether this process owns a task."""
        return self.owner_by_shard[crc32(task_id) & 63] == self.slot

    def give(self, shards: Iterable[int], owner: int) -> None:
        """From now on these shards are another's, or this worker's."""
        for shard in shards:
            self.owner_by_shard[shard] = owner

    def remap(self, workers: int) -> None:
        """From now on there are this many workers, and every shard is whose it is by the rule."""
        self.workers = workers
        self.owner_by_shard[:] = [shard % workers for shard in range(SHARDS)]
        self.owned = frozenset(self.with_owner(self.slot))

    def with_owner(self, owner: int) -> list[int]:
        """The shards that have this owner now."""
        return [shard for shard in range(SHARDS) if self.owner_by_shard[shard] == owner]

    def home(self, task_id: bytes) -> int:
        """The slot that a task belongs to by the rule, whoever owns it just now."""
        return (crc32(task_id) & 63) % self.workers

    def lane(self, task_id: bytes) -> int:
        """The lane of the store that holds a task."""
        return self.lane_by_shard[crc32(task_id) & 63]

    def own_lanes(self) -> list[int]:
        """The lanes in which this worker's shards lie."""
        return sorted({self.lane_by_shard[shard] for shard in self.owned})

    def sharers(self, lane: int) -> list[int]:
        """The workers that write a lane; more than one where there are more workers than lanes."""
        return sorted({shard % self.workers for shard in range(SHARDS) if self.lane_by_shard[shard] == lane})


# A serial is a 63-bit number: 42 bits of Unix milliseconds, 6 of the engine's number (0 for one that
# shares its store with no other), 6 of the worker's slot, 9 of sequence. It orders tasks by acceptance
# over all workers, tells when a task was accepted, and makes rows of the store append only.
_SEQUENCE_BITS = 9
_SLOT_BITS = 6
_ENGINE_BITS = 6
_ENGINE_SHIFT = _SEQUENCE_BITS + _SLOT_BITS
_MS_SHIFT = _ENGINE_SHIFT + _ENGINE_BITS
ENGINE_MAX = (1 << _ENGINE_BITS) - 1
SERIAL_MAX = (1 << 63) - 1


class SerialClock:
    """Gives out serials that only grow, whatever the wall clock does.

    Two processes may give out serials of one slot at a time: one is `side` 0, the
    other 1, and their sequence numbers are even and odd.
    """

    __slots__ = ("_first", "_last")

    def __init__(self, slot: int, last: int = 0, side: int = 0, engine: int = 0) -> None:
        self._first = engine << _ENGINE_SHIFT | slot << _SEQUENCE_BITS | side
        self._last = 0
        self.after(last)

    @property
    def last(self) -> int:
        """No serial given out so far is larger: what a successor goes on behind (`after`)."""
        return self._last

    def next(self, now_ms: int) -> int:
        """A serial that is larger than any before it. `now_ms` is Unix milliseconds."""
        serial = now_ms << _MS_SHIFT | self._first
        if serial <= self._last:
            serial = self._last + 2
            if serial >> _SEQUENCE_BITS != self._last >> _SEQUENCE_BITS:
                # The sequence is used up: borrow the next millisecond.
                serial = ((self._last >> _MS_SHIFT) + 1) << _MS_SHIFT | self._first
        self._last = serial
        return serial

    def after(self, serial: int) -> None:
        """Go on behind `serial`, which was given out in an earlier life."""
        if serial > self._last:
            ms = serial >> _MS_SHIFT
            self._last = (ms + 1) << _MS_SHIFT | self._first


def created_ms(serial: int) -> int:
    """When the task with this serial was accepted, in Unix milliseconds."""
    return serial >> _MS_SHIFT


def first_serial(ms: int) -> int:
    """The smallest serial that can be given out at or after `ms`."""
    return max(ms, 0) << _MS_SHIFT
