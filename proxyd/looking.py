"""A client for requests whose answers are looked at: looks, and purges that are to be proved (`course.py`).

It is a `CacheClient` with one request in flight a connection, for a look may wait for a fetch of the cache's,
and keeps of an answer the status and a few headers. A HEAD's answer ends with its headers.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Iterator

import httptools
import msgspec

from proxyd.breaker import Breaker
from proxyd.caches.base import Canary
from proxyd.connection import Connection, Limits
from proxyd.pipeline import CacheClient, Ended
from proxyd.prefetch.buckets import Bucket
from proxyd.sight import Answer
from proxyd.tasks import Exchange

# All others are dropped unread.
_KEPT = frozenset(
    {
        b"age", b"etag", b"last-modified", b"x-refreshd-now", b"x-refreshd-look", b"x-refreshd-begun",
        b"x-refreshd-ttl",
    }
)  # fmt: skip
# A header of this kind is a word; what is longer is not kept.
_VALUE_MAX_BYTES = 256
# Between two wake-ups for what was to be done later.
LATER_MIN_S = 0.002


class LookConnection(Connection):
    """One connection: an answer counts with its headers."""

    __slots__ = ("_headers", "_is_head", "answers")

    def __init__(self, client: LookClient, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(client, loop)
        self._headers: dict[bytes, bytes] = {}
        self._is_head = False
        self.answers: deque[Answer] = deque()

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        name = name.lower()
        if name in _KEPT and len(value) <= _VALUE_MAX_BYTES:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """httptools: all headers are there. What a HEAD is answered with has no body, whatever they say."""
        self._is_head = bool(self.in_flight) and self.in_flight[0].deed.method == b"HEAD"
        if self._is_head:
            super().on_message_complete()
            self._keep()

    def on_message_complete(self) -> None:
        """See `Connection`."""
        if not self._is_head:
            super().on_message_complete()
            self._keep()

    def _keep(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, {}
        if status >= 200:
            self.answers.append(Answer(status, headers, self._loop.time()))

    def data_received(self, data: bytes) -> None:
        """See `Connection`."""
        super().data_received(data)
        if self._is_head:
            # It would wait for the body that the headers announce.
            self._is_head = False
            self._parser = httptools.HttpResponseParser(self)


class LookClient(CacheClient):
    """As `CacheClient`; the answer to an exchange is in its course when that ends.

    `canaries` bounds how many are planted a second, at all caches that share it.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        limits: Limits,
        ended: Ended,
        breaker: Breaker | None = None,
        canaries: Bucket | None = None,
    ) -> None:
        super().__init__(name, host, port, one_at_a_time(limits), ended, breaker)
        self._canaries = Bucket() if canaries is None else canaries
        self._later: list[tuple[float, int, Exchange, int]] = []
        """A heap: when it is due, a number, what, its priority."""
        self._numbers = itertools.count()
        self._later_timer: asyncio.TimerHandle | None = None

    def set_limits(self, limits: Limits) -> None:
        """See `CacheClient`."""
        super().set_limits(one_at_a_time(limits))

    def make_connection(self) -> Connection:
        """See `CacheClient`."""
        return LookConnection(self, self._loop)

    def answered(self, connection: Connection, statuses: list[int]) -> None:
        """See `CacheClient`."""
        answers = connection.answers if isinstance(connection, LookConnection) else deque()
        # (One is in flight at the most.)
        for exchange in list(connection.in_flight)[: len(answers)]:
            answer = answers.popleft()
            if exchange.course is not None:
                exchange.course.answer = answer
                exchange.course.sent_at = exchange.sent_at
        super().answered(connection, statuses)

    # What is to be done again a little later.

    def put_later(self, exchange: Exchange, priority: int, delay_s: float) -> None:
        """As `put`, after a while (0: at once). It is bounded with all that is in hand, see `dispatch.py`.

        A canary waits for its turn among those of all caches.
        """
        now = self._loop.time()
        if isinstance(exchange.deed, Canary):
            delay_s = max(delay_s, self._canaries.wait_s(now))
            self._canaries.spend(1, now)
        if not delay_s:
            self.put(exchange, priority)
            return
        heapq.heappush(self._later, (now + delay_s, next(self._numbers), exchange, priority))
        self._wake_for_later()

    def _wake_for_later(self) -> None:
        """Sets the timer to when the first is due, unless it is."""
        if not self._later:
            return
        at = max(self._later[0][0], self._loop.time() + LATER_MIN_S)
        if self._later_timer is not None:
            if self._later_timer.when() <= at:
                return
            self._later_timer.cancel()
        self._later_timer = self._loop.call_at(at, self._put_due)

    def _put_due(self) -> None:
        self._later_timer = None
        now = self._loop.time()
        while self._later and self._later[0][0] <= now:
            _, _, exchange, priority = heapq.heappop(self._later)
            self.put(exchange, priority)
        self._wake_for_later()

    @property
    def delayed(self) -> int:
        """Exchanges that wait for their time."""
        return len(self._later)

    def unended(self) -> Iterator[Exchange]:
        """See `CacheClient`."""
        yield from super().unended()
        for _, _, exchange, _ in self._later:
            yield exchange

    def close(self) -> None:
        """See `CacheClient`."""
        super().close()
        self._later = []
        if self._later_timer is not None:
            self._later_timer.cancel()


def one_at_a_time(limits: Limits) -> Limits:
    """The same limits, without pipelining. A look that is slow is no trouble: it may wait for an origin."""
    return msgspec.structs.replace(limits, depth=1, streaming=True, until_closed=False)
