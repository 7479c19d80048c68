"""The arithmetic of a lease.

                sent ── granted ────────────────── acts until ── over        (here)
                    set ──────────────────────────────────────────── over    (in Redis)

A lease runs in Redis from the moment Redis set it, which is some time after the
request was *sent* and before the answer came. So its holder counts the end from
when it sent (never later than Redis), and since when it holds it from when the
answer came (never earlier). It stops acting a margin before the end: what it had
begun must be over by then.

Pure: times are passed in, in ms of `clock.now_ms`.
"""

from __future__ import annotations

from typing import NamedTuple


class Timing(NamedTuple):
    """How long things take, in ms. Every engine of a cluster must have the same `lease_ms`."""

    lease_ms: int = 10_000
    """An engine that does not renew for so long is dead for the others."""
    renew_ms: int = 2_500
    """How often leases are renewed: three may fail before one ends."""
    poll_ms: int = 1_000
    """How often the registry is read."""
    margin_ms: int = 1_000
    """A leader stops acting so long before its lease ends."""
    retry_ms: int = 500
    """After a renewal that failed, the next."""
    call_ms: int = 1_000
    """What Redis has to answer one call."""
    boot_ms: int = 30_000
    """An engine that SQL has as alive and that never had a lease is dead after so long: it may be loading."""
    truth_ms: int = 10_000
    """What SQL has to answer one call before the leader counts it as away."""
    own_row_ms: int = 5_000
    """How often an engine that does not lead looks whether it was fenced."""

    @property
    def memory_ms(self) -> int:
        """How long the memory word lives: shorter than any lease that is renewed as it should be.

        So whatever makes leases end before their time (a jump of the Redis machine's
        clock, Redis stopped for a while) ends the word first. Longer than two
        renewals: one engine alone keeps it.
        """
        return self.lease_ms - 2 * self.renew_ms + self.renew_ms // 2


TIMING = Timing()


class Lease:
    """One lease as its holder sees it."""

    __slots__ = ("_ends_ms", "_length_ms", "_margin_ms", "_since_ms")

    def __init__(self, length_ms: int, margin_ms: int) -> None:
        """Raises: ValueError unless 0 <= margin < length."""
        if not 0 <= margin_ms < length_ms:
            raise ValueError(f"a margin of {margin_ms} ms in a lease of {length_ms} ms; wanted less")
        self._length_ms = length_ms
        self._margin_ms = margin_ms
        self._ends_ms: int | None = None
        self._since_ms = 0

    def granted(self, sent_ms: int, now_ms: int) -> None:
        """Redis has set or prolonged it: it was asked at `sent_ms`, the answer came now."""
        if not self.acts(now_ms):
            self._since_ms = now_ms
        # Answers may come out of order; none takes back what another has granted.
        self._ends_ms = max(self._ends_ms or 0, sent_ms + self._length_ms)

    def inherit(self, since_ms: int) -> None:
        """It is the same lease that another process of this engine has held since then."""
        self._since_ms = min(self._since_ms, since_ms)

    def drop(self) -> None:
        """It is given up, or known to be lost."""
        self._ends_ms = None

    def acts(self, now_ms: int) -> bool:
        """Whether its holder may act by it."""
        return self._ends_ms is not None and now_ms < self._ends_ms - self._margin_ms

    def remaining_ms(self, now_ms: int) -> int:
        """Until its holder stops acting; 0 if it is over."""
        return max(self._ends_ms - self._margin_ms - now_ms, 0) if self._ends_ms is not None else 0

    def held_ms(self, now_ms: int) -> int:
        """How long it has been held without a break; 0 if it is not."""
        return max(now_ms - self._since_ms, 0) if self.acts(now_ms) else 0

    def __repr__(self) -> str:
        if self._ends_ms is None:
            return "<Lease none>"
        return f"<Lease until {self._ends_ms}, since {self._since_ms}>"
