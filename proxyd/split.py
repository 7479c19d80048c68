"""A client for a fast lane of which one part is requests to the cache, and the other is done by hand.

    put ──► a LocalDeed ──► LocalClient
      └───► else ─────────► CacheClient

Each part has its own queue, so that a URL, which takes microseconds, never waits for what is done by hand.
What is promised of order does not need one queue: refreshes wait for no other refresh, and a prefetch waits
for those before it because `replay.py` counts exchanges, whoever ends them; `unended` gives those of both.

While the agent catches up its `queue` is replaced by one that merges (`replay.py`): here, that of the
requests. What is done by hand needs none: it is all taken at once, and merged by who does it. A URL is then
not merged into a directory that waits: it is purged for itself, which is earlier.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from proxyd.breaker import Breaker
from proxyd.caches.base import LocalDeed
from proxyd.connection import Limits
from proxyd.lane_client import LaneClient
from proxyd.queues import Queue
from proxyd.tasks import Exchange


class SplitClient:
    """Two clients that look like one."""

    def __init__(self, requests: LaneClient, by_hand: LaneClient) -> None:
        self._requests = requests
        self._by_hand = by_hand

    @property
    def queue(self) -> Queue[Exchange]:
        """What waits to be requested, see above."""
        return self._requests.queue

    @queue.setter
    def queue(self, queue: Queue[Exchange]) -> None:
        self._requests.queue = queue

    @property
    def limits(self) -> Limits:
        """See `LaneClient`."""
        return self._requests.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.set_limits(limits)

    @property
    def breaker(self) -> Breaker:
        """That of the requests: what is done by hand has one only to be counted by (`local.py`)."""
        return self._requests.breaker

    @breaker.setter
    def breaker(self, breaker: Breaker) -> None:
        self._requests.breaker = breaker

    @property
    def waiting(self) -> int:
        """See `LaneClient`."""
        return self._requests.waiting + self._by_hand.waiting

    @property
    def in_flight(self) -> int:
        """See `LaneClient`."""
        return self._requests.in_flight + self._by_hand.in_flight

    def is_stalled(self, now: float) -> bool:
        """See `LaneClient`."""
        return self._requests.is_stalled(now) or self._by_hand.is_stalled(now)

    def put(self, exchange: Exchange, priority: int) -> None:
        """See `LaneClient`."""
        client = self._by_hand if isinstance(exchange.deed, LocalDeed) else self._requests
        client.put(exchange, priority)

    def set_limits(self, limits: Limits) -> None:
        """See `LaneClient`."""
        self._requests.set_limits(limits)
        self._by_hand.set_limits(limits)

    def unended(self) -> Iterator[Exchange]:
        """See `LaneClient`."""
        return itertools.chain(self._requests.unended(), self._by_hand.unended())

    def give_up(self, error: str) -> None:
        """See `LaneClient`."""
        self._requests.give_up(error)
        self._by_hand.give_up(error)

    def close(self) -> None:
        """See `LaneClient`."""
        self._requests.close()
        self._by_hand.close()

    def __repr__(self) -> str:
        return f"<SplitClient {self._requests} {self._by_hand}>"
