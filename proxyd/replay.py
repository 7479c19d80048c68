"""The order at one cache while the agent catches up: a prefetch waits for the refreshes before it. Pure.

What is refreshed goes through another lane than what is prefetched, and is merged on its way
(`merging.py`). So that an object that was prefetched last is there in the end, and fresh, a prefetch is
passed on only once every refresh has ended that came before it. (In the daily flow nobody waits: a refresh
is through before a prefetch is begun.)

    refresh refresh prefetch prefetch | refresh prefetch | refresh
    └────────── a segment ──────────┘   └── a segment ─┘   └─ a segment

It holds while the agent is behind (`begin`, `end`), when refreshes are merged, too; and while a cache is down
and until what waited for it meanwhile has ended (`hold_order`, `release_order`), at that cache only. Then
nothing is merged: that costs the agent 10 us a refresh, which those for the other caches would wait for, and
saves this one, once it is back, a purge of 12 us.

Refreshes of a segment are counted down; when those of the first are none, its prefetches are passed on, and
the next segment is the first. Which URLs they are of is not looked at: a purge takes microseconds, a
prefetch can wait for others' too. Refreshes wait for nothing: they may pass a prefetch, see `merging.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from proxyd.merging import MergingQueue
from proxyd.queues import PriorityQueue, Queue
from proxyd.tasks import Exchange


class Door(Protocol):
    """Where exchanges are put in."""

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes an exchange."""


class Lane(Door, Protocol):
    """What is needed of a `CacheClient`."""

    queue: Queue[Exchange]

    def unended(self) -> Iterator[Exchange]:
        """What was put in and has not ended."""


class Segment:
    """Refreshes that have not ended, and the prefetches that came behind them."""

    __slots__ = ("left", "prefetches", "replay", "sealed")

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.left = 0
        self.sealed = False
        """Whether it takes no more: with its end the order does, too."""
        self.prefetches: list[tuple[Exchange, int]] = []

    def end_one(self) -> None:
        """One of its refreshes has ended."""
        self.left -= 1
        if not self.left:
            self.replay.pass_on()


class Replay:
    """One cache. What is put in here goes to the lanes in the order that holds while catching up."""

    def __init__(self, fast: Lane, slow: Door, look: Lane | None = None) -> None:
        self._fast = fast
        self._look = look
        self._slow = slow
        self._segments: deque[Segment] = deque()
        self.on = False
        """Whether the order holds: what comes is to be put in here, not into the lanes."""
        self.changed: Callable[[], None] = lambda: None
        """Called when `on` has changed."""
        self._behind = False
        self._down = False
        self.prefetches = PrefetchDoor(self)

    def begin(self) -> None:
        """From now on refreshes are merged; those that are in hand count as such that came first."""
        if self._behind:
            return
        self._behind = True
        self._turn_on()
        queue = MergingQueue()
        for exchange in self._fast.queue.take(len(self._fast.queue)):
            for each in (exchange, *exchange.part()):
                queue.put(each, each.task.head.priority)
        self._fast.queue = queue

    def end(self) -> None:
        """The daily flow goes on. What was merged stays so; prefetches that wait are passed on in order."""
        if not self._behind:
            return
        self._behind = False
        self._turn_off()
        plain: PriorityQueue[Exchange] = PriorityQueue()
        queue = self._fast.queue
        if isinstance(queue, MergingQueue):
            for exchange, priority in queue.take_placed(len(queue)):
                plain.put(exchange, priority)
        self._fast.queue = plain

    def hold_order(self) -> None:
        """The cache is down: prefetches wait for the refreshes that do."""
        self._down = True
        if self._segments:
            # It may be down again before what waited for it the last time has ended.
            self._segments[-1].sealed = False
        self._turn_on()

    def release_order(self) -> None:
        """The cache is back: the order ends with what has waited."""
        if not self._down:
            return
        if self._segments:
            self._segments[-1].sealed = True
        else:
            self._down = False
            self._turn_off()

    def _turn_on(self) -> None:
        if self.on:
            return
        self.on = True
        self.changed()
        for exchange in self._fast.unended():
            self.count(exchange)
        if self._look is not None:
            for exchange in self._look.unended():
                if exchange.task.head.type != "prefetch":
                    self.count(exchange)

    def _turn_off(self) -> None:
        if self.on and not self._behind and not self._down:
            self.on = False
            self.changed()

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes a refresh."""
        self.count(exchange)
        self._fast.put(exchange, priority)

    def count(self, exchange: Exchange) -> None:
        """What is prefetched from now on waits for the end of a refresh."""
        if exchange.segment is not None:
            return
        if not self._segments or self._segments[-1].prefetches or self._segments[-1].sealed:
            self._segments.append(Segment(self))
        segment = exchange.segment = self._segments[-1]
        segment.left += 1

    def put_prefetch(self, exchange: Exchange, priority: int) -> None:
        """Takes a prefetch."""
        if self._segments:
            self._segments[-1].prefetches.append((exchange, priority))
        else:
            self._slow.put(exchange, priority)

    def pass_on(self) -> None:
        """Passes on what waits for nothing any more."""
        while self._segments and not self._segments[0].left:
            segment = self._segments.popleft()
            for exchange, priority in segment.prefetches:
                self._slow.put(exchange, priority)
            if segment.sealed:
                self._down = False
                self._turn_off()

    @property
    def catching_up(self) -> bool:
        """Whether the cache was down and what waited for it has not ended."""
        return self._down

    @property
    def waiting(self) -> int:
        """Prefetches that are held back."""
        return sum(len(segment.prefetches) for segment in self._segments)

    def unended(self) -> Iterator[Exchange]:
        """The prefetches that are held back."""
        return (exchange for segment in self._segments for exchange, _ in segment.prefetches)

    def __repr__(self) -> str:
        return f"<Replay {'on' if self.on else 'off'}, {self.waiting} prefetches wait>"


class PrefetchDoor:
    """Where prefetches are put in."""

    __slots__ = ("_replay",)

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def put(self, exchange: Exchange, priority: int) -> None:
        """See `Replay.put_prefetch`."""
        self._replay.put_prefetch(exchange, priority)
