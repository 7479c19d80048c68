"""What a client decides, without doing it: whether to try again, when, and where.

Every client verb may be repeated: a task is known by its id (`dup=1`), asking
changes nothing, and cancelling twice is cancelling. So the only questions are
whether the same request may succeed later, and at which engine.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from wire.errors import ConnectionLost, Refused, WireError

# The first wait is about one round of an engine's event loop under load; the
# longest is short beside the time an operator takes to mend what is broken.
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 5.0
# What an engine may ask for with retry_ms; more than an hour is a mistake.
RETRY_MS_MAX = 3_600_000
# A cluster has a handful of engines; more are not learned from `!drain to=`.
ADDRESSES_MAX = 64


class Verdict(enum.Enum):
    """What becomes of a request after an error."""

    FAIL = "fail"
    AGAIN = "again"
    ELSEWHERE = "elsewhere"
    """Again, and at another engine if one is known."""


def judge(error: WireError) -> Verdict:
    """Whether the request that met `error` may be sent again, with the same task id."""
    if isinstance(error, ConnectionLost):
        return Verdict.AGAIN
    if not isinstance(error, Refused) or not error.retry:
        return Verdict.FAIL
    return Verdict.ELSEWHERE if error.code == "draining" else Verdict.AGAIN


def delay_s(attempt: int, chance: float, retry_ms: int | None = None) -> float:
    """Seconds to wait before trying for the (`attempt` + 1)th time.

    Exponential, capped, with full jitter: `chance` is a random number from 0 to
    1. `retry_ms` is the least, for an engine that says when to come back; then
    the jitter is added, so that its clients do not all come back at once.
    """
    jitter_s = chance * min(FIRST_DELAY_S * (1 << min(attempt - 1, 16)), LONGEST_DELAY_S)
    if retry_ms is None:
        return jitter_s
    return min(retry_ms, RETRY_MS_MAX) / 1000 + jitter_s


class Rotation:
    """The engines' addresses: which one is used, and what failed since the last success.

    A client talks to one engine at a time. The next address is tried at once;
    after a whole round without success it waits, longer with every round.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self._at = 0
        self.failures = 0
        """Connections in a row that could not be made."""

    @property
    def current(self) -> str:
        """The address to connect to."""
        return self._addresses[self._at]

    def __len__(self) -> int:
        return len(self._addresses)

    def succeeded(self) -> None:
        """An engine answered a request (being greeted is not enough: it may be draining)."""
        self.failures = 0

    def failed(self, address: str, failures_before: int) -> bool:
        """`address` could not be reached; returns whether `current` changed by that.

        `failures_before` is what `failures` was when the attempt began: attempts
        that ran side by side count as one.
        """
        self.failures = max(self.failures, failures_before + 1)
        return self.leave(address)

    def leave(self, address: str) -> bool:
        """Goes on to the next address if `address` is the current one; whether it changed."""
        if address != self.current or len(self._addresses) == 1:
            return False
        self._at = (self._at + 1) % len(self._addresses)
        return True

    def go_to(self, addresses: Sequence[str]) -> bool:
        """An engine said where to go (`!drain to=`); the first becomes current, all are kept."""
        before = self.current
        addresses = addresses[: ADDRESSES_MAX - len(self._addresses)]
        self._addresses += [address for address in addresses if address not in self._addresses]
        if addresses:
            self._at = self._addresses.index(addresses[0])
        return self.current != before

    def delay_s(self, chance: float) -> float:
        """Seconds to wait before the next attempt to connect."""
        rounds = self.failures // len(self._addresses)
        return delay_s(rounds, chance) if rounds else 0.0

    def __repr__(self) -> str:
        return f"<Rotation at {self.current}, {self.failures} failures>"


class Window:
    """How much may be in flight: requests, and bytes of them. A request alone always fits."""

    def __init__(self, requests_max: int, bytes_max: int) -> None:
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self.requests = 0
        self.bytes = 0

    def fits(self, size: int) -> bool:
        """Whether a request of `size` bytes may be added now."""
        if not self.requests:
            return True
        return self.requests < self._requests_max and self.bytes + size <= self._bytes_max

    def add(self, size: int) -> None:
        """A request is in flight."""
        self.requests += 1
        self.bytes += size

    def remove(self, size: int) -> None:
        """It is not any more."""
        self.requests -= 1
        self.bytes -= size
