"""What waits at one lane of one cache: priority 9 first, then first come, first served."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")

PRIORITIES = 10


class Queue(Protocol[Item]):
    """What a lane needs of its queue: this one, or while the agent catches up `merging.py`."""

    def __len__(self) -> int:
        """What waits."""

    def put(self, item: Item, priority: int) -> None:
        """Adds an item."""

    def take(self, count: int) -> list[Item]:
        """Removes and returns the first items, at most `count`."""

    def remove(self, fits: Callable[[Item], bool]) -> list[Item]:
        """Removes and returns all that fits."""

    def __iter__(self) -> Iterator[Item]:
        """All that waits, first what goes first."""


class PriorityQueue(Generic[Item]):
    """A queue of ten levels. Its length is bounded by who fills it, see `dispatch.py`."""

    __slots__ = ("_highest", "_levels", "_size")

    def __init__(self) -> None:
        self._levels: tuple[deque[Item], ...] = tuple(deque() for _ in range(PRIORITIES))
        # No level above this one holds anything.
        self._highest = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: Item, priority: int) -> None:
        """Adds an item behind those of its priority, 0 to 9."""
        self._levels[priority].append(item)
        self._size += 1
        if priority > self._highest:
            self._highest = priority

    def take(self, count: int) -> list[Item]:
        """Removes and returns the first items, at most `count`."""
        taken: list[Item] = []
        while self._size and count > 0:
            level = self._levels[self._highest]
            if not level:
                self._highest -= 1
                continue
            here = min(count, len(level))
            popleft = level.popleft
            taken += [popleft() for _ in range(here)]
            count -= here
            self._size -= here
        return taken

    def remove(self, fits: Callable[[Item], bool]) -> list[Item]:
        """Removes and returns all that fits, first what goes first."""
        removed: list[Item] = []
        for level in reversed(self._levels):
            out = [item for item in level if fits(item)]
            if out:
                left = [item for item in level if not fits(item)]
                level.clear()
                level += left
                removed += out
        self._size -= len(removed)
        return removed

    def __iter__(self) -> Iterator[Item]:
        """All that waits, first what goes first."""
        return itertools.chain.from_iterable(reversed(self._levels))

    def __repr__(self) -> str:
        levels = {number: len(level) for number, level in enumerate(self._levels) if level}
        return f"<PriorityQueue {levels}>"
