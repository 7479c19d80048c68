"""Rates as operators read them: the 1, 5 and 15 minute averages of a counter.

Exponentially damped, as the load averages of Unix are: every 5 s the events since
the last turn are folded in. Averages of several workers add up to the engine's.
Pure: `now_s` is passed in, monotonic.
"""

from __future__ import annotations

import math
from typing import Any

TURN_S = 5.0
_WINDOWS_S = {"1m": 60.0, "5m": 300.0, "15m": 900.0}


class Rate:
    """Events a second over three windows, over all, and how many there were."""

    __slots__ = ("_averages", "_folded", "_folded_at", "_started_at", "count")

    def __init__(self, now_s: float) -> None:
        self.count = 0
        """Events so far; hot paths add to it in place."""
        self._folded = 0
        self._folded_at = self._started_at = now_s
        self._averages = dict.fromkeys(_WINDOWS_S, 0.0)

    def turn(self, now_s: float) -> None:
        """Folds in what happened; to be called about every TURN_S."""
        elapsed_s = now_s - self._folded_at
        if elapsed_s <= 0:
            return
        rate = (self.count - self._folded) / elapsed_s
        for name, window_s in _WINDOWS_S.items():
            keep = math.exp(-elapsed_s / window_s)
            self._averages[name] = self._averages[name] * keep + rate * (1 - keep)
        self._folded, self._folded_at = self.count, now_s

    def to_plain(self) -> dict[str, Any]:
        """All there is, for `take_over` in another process of this machine."""
        return {
            "count": self.count, "folded": self._folded, "folded_at": self._folded_at,
            "started_at": self._started_at, "averages": self._averages,
        }  # fmt: skip

    def take_over(self, plain: dict[str, Any]) -> None:
        """Goes on where another process left the rate, with what was counted here meanwhile."""
        self.count += plain["count"]
        self._folded += plain["folded"]
        self._folded_at = plain["folded_at"]
        self._started_at = plain["started_at"]
        self._averages = dict(plain["averages"])

    def figures(self, now_s: float) -> dict[str, float]:
        """`{"1m", "5m", "15m", "avg", "count"}`, events a second but for the count."""
        lived_s = max(now_s - self._started_at, 1e-9)
        return {
            **{name: round(value, 3) for name, value in self._averages.items()},
            "avg": round(self.count / lived_s, 3),
            "count": self.count,
        }
