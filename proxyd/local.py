"""A client for one lane of one cache whose work is done on this machine, not by a request.

It stands where a `CacheClient` stands, behind the same face (`LaneClient`): reports, merging, replay,
dispatch and the upgrade see no difference. What to do is an exchange with a `LocalDeed`; who does it are
`Hands`, in threads, because files may be slow and there is nothing to wait for them with.

    queue ──► quick batch (one at a time, 256) ──done, or failed──► ended
                 └──"take it along"──► waits ──► a sweep (one at a time) ──► ended

A sweep goes over all that the cache holds, so one is done for everything that waits when it begins; what
comes later waits for the next: the first part of the cache was looked at before that came.

What is bounded: two threads a cache, whatever waits; what waits, by who fills the queue (`dispatch.py`). A
thread cannot be ended from outside. One that shows no progress for `answer_timeout_s`, or is not through
after `whole_timeout_s` (a sweep: `SWEEP_MAX_S`), is told to stop and given up: what it had in hand has
failed. Until it comes back no other is begun in its place, and what has waited for `patience_s` then fails,
too. That is its breaker: this lane has another only to be counted by, which stops nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from proxyd.breaker import Breaker, Outcome
from proxyd.caches.base import LocalDeed
from proxyd.connection import Limits
from proxyd.hands import TAKE_ALONG, Hands, Pulse, TakeAlong, Work
from proxyd.queues import PriorityQueue, Queue
from proxyd.tasks import Exchange

# Enough for a thread's start (60 µs) not to be felt, few enough for 10 ms.
BATCH_MAX = 256
# What one sweep looks for at once; each object is compared with that.
SWEPT_MAX = 1024
SWEEP_MAX_S = 3600.0
LOOK_EVERY_S = 0.25


Ended = Callable[[Exchange, str | None], None]


class _Batch:
    """What one thread has in hand."""

    def __init__(self, exchanges: list[Exchange], now: float) -> None:
        self.exchanges = exchanges
        self.pulse = Pulse()
        self.began_at = self.progress_at = now
        self.beats_seen = 0


class LocalClient:
    """Has `hands` do exchanges and tells `ended(exchange, error)` for each, once, as `CacheClient` does."""

    def __init__(
        self, name: str, hands: Hands, limits: Limits, ended: Ended, breaker: Breaker | None = None
    ) -> None:
        self.name = name
        self.breaker = Breaker() if breaker is None else breaker
        self.limits = limits
        self.queue: Queue[Exchange] = PriorityQueue()
        self._hands = hands
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._for_sweep: deque[Exchange] = deque()
        self._quick: _Batch | None = None
        self._sweep: _Batch | None = None
        self._pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Exchanges that no thread has in hand."""
        return len(self.queue) + len(self._for_sweep)

    @property
    def in_flight(self) -> int:
        """Exchanges that a thread has in hand."""
        return sum(len(batch.exchanges) for batch in self._batches)

    @property
    def _batches(self) -> list[_Batch]:
        return [batch for batch in (self._quick, self._sweep) if batch is not None]

    def is_stalled(self, now: float) -> bool:
        """Whether a thread that was given up has not come back."""
        return any(batch.pulse.stop.is_set() for batch in self._batches)

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes an exchange; it is begun at the end of this turn of the loop or when there is room."""
        self.queue.put(exchange, priority)
        self._pump_soon()

    def set_limits(self, limits: Limits) -> None:
        """From now on other limits hold."""
        self.limits = limits

    def unended(self) -> Iterator[Exchange]:
        """What was put in and has not ended; what follows something that was begun is left out."""
        for batch in self._batches:
            yield from batch.exchanges
        yield from self._for_sweep
        yield from self.queue

    def give_up(self, error: str) -> None:
        """Ends everything that has not ended with this error, and closes."""
        left = list(self.unended())
        self.close()
        for exchange in left:
            self._ended(exchange, self._named(error))

    def close(self) -> None:
        """Drops everything at once; nothing more is told of what was not ended."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for batch in self._batches:
            batch.pulse.stop.set()
            batch.exchanges = []

    def __repr__(self) -> str:
        return f"<LocalClient {self.name} {self.in_flight} in hand, {self.waiting} waiting>"

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed:
            return
        while self._quick is None and self.queue:
            batch = self._fresh(self.queue.take(BATCH_MAX))
            self._for_sweep += [exchange for exchange in batch if _sweeps(exchange)]
            if quick := [exchange for exchange in batch if not _sweeps(exchange)]:
                self._quick = _Batch(quick, self._loop.time())
                self._start(self._quick, self._hands.act)
        if self._sweep is None and self._for_sweep:
            count = min(SWEPT_MAX, len(self._for_sweep))
            if batch := self._fresh([self._for_sweep.popleft() for _ in range(count)]):
                self._sweep = _Batch(batch, self._loop.time())
                self._start(self._sweep, self._hands.sweep)
        if self._timer is None and (self._batches or self.waiting):
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _fresh(self, batch: list[Exchange]) -> list[Exchange]:
        """Those whose time is not up; the others are ended."""
        now = self._loop.time()
        fresh: list[Exchange] = []
        for exchange in batch:
            if exchange.task.expires_at > now:
                fresh.append(exchange)
                continue
            # What was to end with it is still wanted.
            for follower in exchange.part():
                self.queue.put(follower, follower.task.head.priority)
            self._ended(exchange, "its ttl ended before it was begun")
        return fresh

    # ── threads ───────────────────────────────────────────────────────────────────────────

    def _start(
        self, batch: _Batch, do: Callable[[Sequence[Work], Pulse], Sequence[str | TakeAlong | None]]
    ) -> None:
        works = [_work_of(exchange) for exchange in batch.exchanges]

        def run() -> None:
            results: Sequence[str | TakeAlong | None]
            try:
                results = do(works, batch.pulse)
            except Exception as error:
                # A fault of ours; it must not keep the lane for ever.
                results = [f"{type(error).__name__}: {error}"] * len(works)
            try:
                self._loop.call_soon_threadsafe(self._returned, batch, results)
            except RuntimeError:
                # The loop is gone, and whoever waited.
                return

        # A daemon: one that hangs on a dead disk must not keep the agent from ending.
        threading.Thread(target=run, name=f"{self.name} by hand", daemon=True).start()

    def _returned(self, batch: _Batch, results: Sequence[str | TakeAlong | None]) -> None:
        if self._quick is batch:
            self._quick = None
        elif self._sweep is batch:
            self._sweep = None
        # (Empty if it was given up.)
        exchanges, batch.exchanges = batch.exchanges, []
        failed = sum(isinstance(result, str) for result in results[: len(exchanges)])
        now = self._loop.time()
        for outcome, count in ((Outcome.FAILED, failed), (Outcome.OK, len(exchanges) - failed)):
            if count:
                self.breaker.note(outcome, now, count, blame=False)
        for exchange, result in zip(exchanges, results, strict=False):
            if result is TAKE_ALONG:
                self._for_sweep.append(exchange)
            else:
                self._ended(exchange, self._named(result) if result is not None else None)
        if self.waiting:
            self._pump_soon()

    def _look(self) -> None:
        """Gives up what does not go on; runs while there is anything that could be."""
        self._timer = None
        now = self._loop.time()
        for batch, whole_s in ((self._quick, self.limits.whole_timeout_s), (self._sweep, SWEEP_MAX_S)):
            if batch is not None:
                self._look_at(batch, whole_s, now)
        if self._batches or self.waiting:
            self._timer = self._loop.call_later(LOOK_EVERY_S, self._look)
            self._pump_soon()

    def _look_at(self, batch: _Batch, whole_s: float, now: float) -> None:
        if batch.pulse.beats != batch.beats_seen:
            batch.beats_seen, batch.progress_at = batch.pulse.beats, now
        stalled_s = now - batch.progress_at
        if stalled_s > self.limits.answer_timeout_s:
            error = f"no progress for {self.limits.answer_timeout_s:g} s; is the disk all right?"
        elif now - batch.began_at > whole_s:
            error = f"not through after {whole_s:g} s"
        else:
            return
        batch.pulse.stop.set()
        exchanges, batch.exchanges = batch.exchanges, []
        self.breaker.note(Outcome.TIMEOUT, now, len(exchanges), why=error, blame=False)
        if not exchanges and stalled_s > self.limits.answer_timeout_s + self.limits.patience_s:
            # It was given up a while ago, and has not come back.
            if batch is self._sweep:
                exchanges = list(self._for_sweep)
                self._for_sweep.clear()
            else:
                exchanges = self.queue.take(len(self.queue))
        for exchange in exchanges:
            self._ended(exchange, self._named(error))

    def _named(self, error: str | TakeAlong) -> str:
        return f"cache {self.name}: {error}"


def _sweeps(exchange: Exchange) -> bool:
    return isinstance(exchange.deed, LocalDeed) and exchange.deed.sweeps


def _work_of(exchange: Exchange) -> Work:
    # (What a drop is of has no host.)
    deed = exchange.deed
    host, path = (
        deed.split(exchange.target) if exchange.target and isinstance(deed, LocalDeed) else (b"", b"")
    )
    return Work(deed.method, host, path)
