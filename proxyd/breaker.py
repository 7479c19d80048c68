"""The circuit breaker of one lane of one cache: whether anything is to be sent there now. Pure.

    CLOSED ──too many errors──► OPEN ──its wait is over──► HALF-OPEN ──one request is answered──► CLOSED
                                 ▲                             │
                                 └──that one failed, too───────┘   (and the next wait is twice as long)

CLOSED: everything is sent. It opens when `errors` errors come in a row, or when at least `error_rate_min`
requests ended in the last 10 s and `error_rate` of them badly. OPEN: nothing is sent. HALF-OPEN: whoever asks
`may_send` first may send one request; what becomes of that decides. Only that: what was sent before and ends
meanwhile is counted, and changes nothing.

An error is what the *cache* did: no connection, no answer in time, a connection that is reset or spoilt, an
answer of 500 and above. A 4xx or a 501 is an answer: the cache is alive, and its configuration refuses (403,
405) or does not know PURGE. Where an answer is the object itself (a prefetch, an nginx that fetches anew),
5xx and silence may be an origin's: they are counted, but no `blame` is in them, and they do not open it.

In a row, an error is an event: a connection that falls silent with 64 requests on it is one (of 64
time-outs). Else one request that hangs a thread of the cache would open it, while all other connections are
answered.

Each lane of a cache has its own, so that a slow origin, of which prefetches suffer, keeps no purge waiting.
The other way round a cache that cannot do a purge is not asked for objects: the slow lane's breaker has the
fast lane's `above` it, and lets nothing through while that is not closed.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

import msgspec

from proxyd.backoff import Backoff

# What the table tells is of the last ten whole seconds and the one that is under way.
WINDOW_S = 10
WHY_MAX_CHARS = 200


class State(enum.Enum):
    """See above. (The values are what people read.)"""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Event(enum.Enum):
    """What changes the state."""

    TRIPPED = "too many errors"
    TRIED = "one request may be sent"
    MENDED = "the request was answered"
    FAILED = "the request failed"


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.CLOSED: {Event.TRIPPED: State.OPEN},
    State.OPEN: {Event.TRIED: State.HALF_OPEN},
    State.HALF_OPEN: {Event.MENDED: State.CLOSED, Event.FAILED: State.OPEN},
}


class Outcome(enum.IntEnum):
    """How a request ended. The value is the row of the window that counts it."""

    OK = 0
    FAILED = 1
    TIMEOUT = 2


class BreakerSettings(msgspec.Struct, frozen=True):
    """[breaker] in proxyd.toml; times in seconds."""

    errors: int = 3
    error_rate: float = 0.5
    error_rate_min: int = 20
    retry_first_s: float = 0.25
    retry_max_s: float = 1.0
    queue_max: int = 100_000
    wait_s: float = 120.0
    probe_every_s: float = 2.0


class BreakerRow(msgspec.Struct, frozen=True):
    """A breaker as people see it. Counts are of the last 10 s."""

    state: str
    concurrency: int
    successes: int
    failures: int
    timeouts: int
    consecutive_errors: int
    error_rate: float
    for_s: float
    """Since when it is in this state."""
    why: str
    """Why it is not closed, or was not, last; empty if it always was."""
    retry_in_s: float | None
    """When one request is tried next; None unless it is open."""


class Window:
    """Counts of the last 10 s, in buckets of a second."""

    __slots__ = ("_buckets", "_second", "sums")

    def __init__(self) -> None:
        self._buckets = [[0, 0, 0] for _ in range(WINDOW_S + 1)]
        self._second = 0
        self.sums = [0, 0, 0]
        """By `Outcome`."""

    def add(self, outcome: Outcome, count: int, now: float) -> None:
        """Counts."""
        second = int(now)
        if second != self._second:
            self.advance(now)
            second = self._second
        self._buckets[second % (WINDOW_S + 1)][outcome] += count
        self.sums[outcome] += count

    def advance(self, now: float) -> None:
        """Forgets what is too old. A clock that goes back changes nothing."""
        second = int(now)
        for each in range(max(self._second + 1, second - WINDOW_S), second + 1):
            bucket = self._buckets[each % (WINDOW_S + 1)]
            for row, count in enumerate(bucket):
                self.sums[row] -= count
                bucket[row] = 0
        self._second = max(self._second, second)


class Breaker:
    """Asked before anything is sent (`may_send`), told how it ended (`note`). The clock is passed in.

    `changed` is called behind every change of the state.
    """

    __slots__ = (
        "_backoff", "_below", "_random", "_settings", "_window", "above", "changed", "closed", "consecutive",
        "heard_at", "last_error", "retry_at", "since", "state", "unwell_since", "why",
    )  # fmt: skip

    def __init__(
        self,
        settings: BreakerSettings | None = None,
        above: Breaker | None = None,
        random_source: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings or BreakerSettings()
        self._random = random_source
        self._backoff = self._fresh_backoff()
        self._window = Window()
        self.above = above
        """Nothing is sent while that one is not closed."""
        self.closed: bool = above is None or above.closed
        """Whether everything is sent. (Looked at once a purge: so it is no property.)"""
        self._below: list[Breaker] = []
        if above is not None:
            above._below.append(self)
        self.changed: Callable[[], None] = lambda: None
        self.state = State.CLOSED
        self.since: float | None = None
        """When it came into this state; None if it always was closed."""
        self.unwell_since: float | None = None
        """When it opened, if it has not been closed since."""
        self.consecutive = 0
        self.heard_at = 0.0
        """When a request was answered last."""
        self.last_error = ""
        self.why = ""
        self.retry_at = 0.0

    @property
    def settings(self) -> BreakerSettings:
        """What it opens at, and how long it waits then."""
        return self._settings

    @settings.setter
    def settings(self, settings: BreakerSettings) -> None:
        if settings != self._settings:
            self._settings = settings
            self._backoff = self._fresh_backoff()

    def _fresh_backoff(self) -> Backoff:
        first_s, max_s = self._settings.retry_first_s, self._settings.retry_max_s
        return Backoff(first_s, max(first_s, max_s), self._random)

    @property
    def down_since(self) -> float | None:
        """Since when not everything is sent; None if it is."""
        above = None if self.above is None else self.above.down_since
        own = self.unwell_since
        return min(own, above) if own is not None and above is not None else own if above is None else above

    @property
    def reason(self) -> str:
        """Why not everything is sent, or was not, last."""
        above = self.above
        return above.reason if above is not None and not above.closed else self.why

    def may_send(self, now: float) -> bool:
        """Whether a request may be sent: any while it is closed, else one after each wait.

        After a True while it is not closed, `note` must follow, some time.
        """
        if self.above is not None and not self.above.closed:
            return False
        if self.state is State.OPEN and now >= self.retry_at:
            self._change(Event.TRIED, now)
            return True
        return self.state is State.CLOSED

    def note(
        self,
        outcome: Outcome,
        now: float,
        count: int = 1,
        *,
        why: str = "",
        in_a_row: int = 1,
        blame: bool = True,
    ) -> None:
        """`count` requests have ended so. `in_a_row`: how many errors that is, see above."""
        self._window.add(outcome, count, now)
        if outcome is Outcome.OK:
            self.heard_at = now
            self.consecutive = 0
            if self.state is State.HALF_OPEN:
                self._change(Event.MENDED, now)
            return
        if why:
            self.last_error = why[:WHY_MAX_CHARS]
        if not blame and self.state is State.CLOSED:
            return
        if not blame and self.state is State.HALF_OPEN and outcome is Outcome.FAILED:
            # Whoever's error it is: the cache has answered.
            self._change(Event.MENDED, now)
            return
        self.consecutive += in_a_row
        if self.state is State.HALF_OPEN:
            self.why = self.last_error
            self._change(Event.FAILED, now)
        elif self.state is State.CLOSED and (too_many := self._too_many(now)) is not None:
            self.why = too_many
            self._change(Event.TRIPPED, now)

    def _too_many(self, now: float) -> str | None:
        """Why it opens; None if it does not."""
        settings = self._settings
        if self.consecutive >= settings.errors:
            return self.last_error
        if self.since is not None and now - self.since < WINDOW_S:
            # The window holds what it opened for the last time.
            return None
        self._window.advance(now)
        good, failed, late = self._window.sums
        ended = good + failed + late
        bad = failed + late
        if ended >= settings.error_rate_min and bad >= settings.error_rate * ended:
            return f"{self.last_error} ({bad} of {ended} requests failed in {WINDOW_S} s)"
        return None

    def _change(self, event: Event, now: float) -> None:
        self.state = TRANSITIONS[self.state][event]
        self.since = now
        self._settle()
        if self.state is State.CLOSED:
            self._backoff.reset()
            self.unwell_since = None
            self.consecutive = 0
        elif self.state is State.OPEN:
            self.retry_at = now + self._backoff.next_s()
            if self.unwell_since is None:
                self.unwell_since = now
        self.changed()

    def _settle(self) -> None:
        self.closed = self.state is State.CLOSED and (self.above is None or self.above.closed)
        for each in self._below:
            each._settle()

    def row(self, now: float, concurrency: int) -> BreakerRow:
        """What is shown of it. `concurrency`: requests that are under way."""
        self._window.advance(now)
        good, failed, late = self._window.sums
        ended = good + failed + late
        return BreakerRow(
            state=self.state.value,
            concurrency=concurrency,
            successes=good,
            failures=failed,
            timeouts=late,
            consecutive_errors=self.consecutive,
            error_rate=round((failed + late) / ended, 3) if ended else 0.0,
            for_s=round(now - self.since, 1) if self.since is not None else 0.0,
            why=self.why,
            retry_in_s=round(max(0.0, self.retry_at - now), 2) if self.state is State.OPEN else None,
        )

    def __repr__(self) -> str:
        return f"<Breaker {self.state.value}, {self.consecutive} errors in a row>"
