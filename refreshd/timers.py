"""Timers: one wheel a worker, whatever the number of entries.

Entries are kept in buckets of 100 ms for what is near and of ever coarser grain
for what is far; a coarse bucket is dealt out to finer ones when its time comes.
Adding, removing and firing cost the same with ten entries and with a million.

Pure: `now_ms` is passed in, and must be monotonic.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Entry = TypeVar("Entry")

TICK_MS = 100
_FANOUT_BITS = 6
# 64^5 ticks are 3.4 years; what is later is dealt out again when that time comes.
_LEVELS = 5


class Wheel(Generic[Entry]):
    """A timing wheel. Each entry is in it at most once."""

    def __init__(self, now_ms: int) -> None:
        self._tick = now_ms // TICK_MS
        self._buckets: list[dict[int, dict[Entry, int]]] = [{} for _ in range(_LEVELS)]
        self._where: dict[Entry, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._where)

    def add(self, entry: Entry, at_ms: int) -> None:
        """Fires `entry` at the first tick at or after `at_ms`, in place of any earlier setting."""
        self.remove(entry)
        # Rounded up: a timer may be late by a tick, never early.
        self._put(entry, max(-(-at_ms // TICK_MS), self._tick + 1))

    def _put(self, entry: Entry, tick: int) -> None:
        distance = tick - self._tick
        level = 0
        while level < _LEVELS - 1 and distance >> _FANOUT_BITS * (level + 1):
            level += 1
        key = tick >> _FANOUT_BITS * level
        self._buckets[level].setdefault(key, {})[entry] = tick
        self._where[entry] = (level, key)

    def remove(self, entry: Entry) -> bool:
        """Takes an entry out. Returns whether it was in."""
        where = self._where.pop(entry, None)
        if where is None:
            return False
        level, key = where
        bucket = self._buckets[level][key]
        del bucket[entry]
        if not bucket:
            del self._buckets[level][key]
        return True

    def advance(self, now_ms: int) -> list[Entry]:
        """The entries whose time has come, earliest first; they are out of the wheel."""
        fired: list[Entry] = []
        last = now_ms // TICK_MS
        if not self._where:
            self._tick = max(self._tick, last)
            return fired
        while self._tick < last:
            self._tick += 1
            self._deal_out()
            bucket = self._buckets[0].pop(self._tick, None)
            if bucket:
                for entry in bucket:
                    del self._where[entry]
                fired += bucket
        return fired

    def _deal_out(self) -> None:
        """Moves the entries of coarse buckets whose time begins now to finer ones."""
        for level in range(_LEVELS - 1, 0, -1):
            shift = _FANOUT_BITS * level
            if self._tick & ((1 << shift) - 1):
                continue
            bucket = self._buckets[level].pop(self._tick >> shift, None)
            for entry, tick in (bucket or {}).items():
                self._put(entry, tick)
