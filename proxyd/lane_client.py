"""What the agent asks of a lane: of a `CacheClient`, which sends requests, or a `LocalClient`, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from proxyd.breaker import Breaker
from proxyd.connection import Limits
from proxyd.queues import Queue
from proxyd.tasks import Exchange


class LaneClient(Protocol):
    """Takes exchanges and tells of the end of each, once, in no promised order."""

    queue: Queue[Exchange]
    limits: Limits
    breaker: Breaker

    @property
    def waiting(self) -> int:
        """Exchanges that are not begun."""

    @property
    def in_flight(self) -> int:
        """Exchanges that are begun and have not ended."""

    def is_stalled(self, now: float) -> bool:
        """Whether what it has in hand does not go on: its breaker is not closed, or nothing was heard."""

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes an exchange."""

    def set_limits(self, limits: Limits) -> None:
        """From now on other limits hold."""

    def unended(self) -> Iterator[Exchange]:
        """What was put in and has not ended; what follows something that was begun is left out."""

    def give_up(self, error: str) -> None:
        """Ends everything that has not ended with this error, and closes."""

    def close(self) -> None:
        """Drops everything at once; nothing more is told of what was not ended."""
