"""A bound on bytes a second: a token bucket that may go into debt. Pure.

What has come has come, so it is paid for afterwards: whoever is in debt waits until it is paid off. Over any
time t no more than `rate × t + burst + one read` comes through.
"""

from __future__ import annotations

# What may come at once after a rest, in seconds of the rate: a round of answers, not a second's worth.
BURST_S = 0.1


class Bucket:
    """One bound. With a rate of 0 there is none."""

    __slots__ = ("_at", "_level", "_rate")

    def __init__(self, bytes_per_s: float = 0.0) -> None:
        self._rate = bytes_per_s
        self._level = bytes_per_s * BURST_S
        self._at = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second; 0: no bound."""
        return self._rate

    def set_rate(self, bytes_per_s: float, now: float) -> None:
        """Another rate from now on. A debt stays."""
        if bytes_per_s != self._rate:
            self._fill(now)
            self._rate = bytes_per_s
            self._level = min(self._level, bytes_per_s * BURST_S)

    def spend(self, count: int, now: float) -> None:
        """So many bytes have come."""
        if self._rate:
            self._fill(now)
            self._level -= count

    def wait_s(self, now: float) -> float:
        """How long nothing more may come; 0 where something may."""
        if not self._rate:
            return 0.0
        self._fill(now)
        return max(0.0, -self._level / self._rate)

    def is_full(self, now: float) -> bool:
        """Whether it is as one that was just made."""
        self._fill(now)
        return self._level >= self._rate * BURST_S

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self._level + (now - self._at) * self._rate, self._rate * BURST_S)
            self._at = now

    def __repr__(self) -> str:
        return f"<Bucket {self._rate:g} bytes/s, {self._level:.0f} left>"
