"""What clients and proxies met: latencies, refusals, lost connections; and whether a fault explains them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# What a fault breaks is noticed at once, and made good within this after the engine is whole again.
GRACE_S = 3.0
# Of one kind; a run that goes wrong goes wrong a million times.
_NOTES_MAX = 20
_STEPS_A_SECOND = 4_000
_STEPS_MAX = 30 * _STEPS_A_SECOND


class Histogram:
    """Latencies to a quarter of a millisecond, up to 30 s; the largest one exactly."""

    def __init__(self) -> None:
        self.count = 0
        self.worst_s = 0.0
        self._steps: Counter[int] = Counter()

    def add(self, latency_s: float) -> None:
        """Notes one."""
        self.count += 1
        self._steps[min(int(latency_s * _STEPS_A_SECOND), _STEPS_MAX)] += 1
        self.worst_s = max(self.worst_s, latency_s)

    def percentile_ms(self, share: float) -> float:
        """What that share of all does not exceed, in milliseconds; 0 when there are none."""
        below = 0
        for step in sorted(self._steps):
            below += self._steps[step]
            if below >= share * self.count:
                return min((step + 1) / _STEPS_A_SECOND, self.worst_s) * 1000
        return 0.0

    def merged(self, other: Histogram) -> Histogram:
        """Both together."""
        both = Histogram()
        both.count = self.count + other.count
        both.worst_s = max(self.worst_s, other.worst_s)
        both._steps = self._steps + other._steps
        return both


class Tally:
    """Filled by every connection; `faulty` and `rolling` are told by whoever does that to the engine."""

    def __init__(self) -> None:
        self.calm, self.rolls, self.faults = Histogram(), Histogram(), Histogram()
        """Replies while nothing was done to the engine; during reloads and upgrades; around faults."""
        self.failed: Counter[str] = Counter()
        """Requests that were refused, or broke the protocol, by code."""
        self.dropped: Counter[str] = Counter()
        """Connections that the engine ended, by who had them."""
        self.failed_explained: Counter[str] = Counter()
        self.dropped_explained: Counter[str] = Counter()
        self.notes: list[str] = []
        """The first of what nothing explains, in words."""
        self._faults_now = 0
        self._rolls_now = 0
        self._explained_until = 0.0
        self._began = time.monotonic()

    @contextmanager
    def faulty(self) -> Iterator[None]:
        """What goes wrong within, and a moment after, is a fault's doing."""
        self._faults_now += 1
        try:
            yield
        finally:
            self._faults_now -= 1
            self._explained_until = time.monotonic() + GRACE_S

    @contextmanager
    def rolling(self) -> Iterator[None]:
        """A reload or an upgrade goes on. It explains nothing."""
        self._rolls_now += 1
        try:
            yield
        finally:
            self._rolls_now -= 1

    @property
    def is_faulty(self) -> bool:
        """Whether what goes wrong now is explained."""
        return self._faults_now > 0 or time.monotonic() < self._explained_until

    def answered(self, latency_s: float) -> None:
        """A request was answered after that long."""
        if self._faults_now or (self._explained_until and self.is_faulty):
            self.faults.add(latency_s)
        elif self._rolls_now:
            self.rolls.add(latency_s)
        else:
            self.calm.add(latency_s)

    def refused(self, code: str, who: str, line: bytes = b"") -> None:
        """A request was not answered with `ok`."""
        if self.is_faulty:
            self.failed_explained[code] += 1
        else:
            self.failed[code] += 1
            self._note(self.failed[code], f"{who}: {code} {line[:200]!r}")

    def lost(self, who: str, error: Exception | None) -> None:
        """The engine ended a connection."""
        if self.is_faulty:
            self.dropped_explained[who] += 1
        else:
            self.dropped[who] += 1
            self._note(self.dropped[who], f"{who}: connection lost ({error or 'closed'})")

    def _note(self, number: int, text: str) -> None:
        if number <= _NOTES_MAX:
            self.notes.append(f"{time.monotonic() - self._began:.1f} s: {text}")
