"""One connection to a cache: writes batches of requests, counts answers, knows how it died.

Requests were written by `caches/`; answers are read by httptools and thrown away but for their status.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol, cast

import httptools
import msgspec

from proxyd.blame import Death
from proxyd.tasks import Exchange


class Limits(msgspec.Struct, frozen=True):
    """The bounds of one client. Times are in seconds."""

    connections: int
    depth: int
    """Requests in flight on one connection."""
    connect_timeout_s: float
    answer_timeout_s: float
    """Longest time without progress on a connection with requests in flight: without an answer,
    or where `streaming`, without a byte."""
    whole_timeout_s: float
    """Longest time from sending a request to the end of its answer."""
    patience_s: float
    """How long what waits may wait for a cache that cannot be talked to."""
    answer_max_bytes: int | None = 64 * 1024
    """Longest answer; a purge's is 200 to 500 bytes. None: any, it is streamed to nowhere."""
    streaming: bool = False
    until_closed: bool = False
    """An answer counts once the cache has closed the connection behind it, not before."""


class Client(Protocol):
    """Whose connection it is."""

    limits: Limits

    def opened(self, connection: Connection) -> None:
        """The connection is up."""

    def answered(self, connection: Connection, statuses: list[int]) -> None:
        """Answers came, in the order of the requests."""

    def died(self, connection: Connection, death: Death) -> None:
        """The connection is gone, with what is in flight on it."""


class Connection(asyncio.Protocol):
    """One connection: writes batches, counts answers, knows how it died."""

    __slots__ = (
        "_client", "_loop", "_parser", "_statuses", "_transport", "_unfinished_bytes", "alone",
        "answered", "closing", "death", "in_flight", "limits", "progress_at", "surplus",
    )  # fmt: skip

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self.limits = client.limits
        self._loop = loop
        self._statuses: list[int] = []
        self._parser: Any = httptools.HttpResponseParser(self)
        self._unfinished_bytes = 0
        self.in_flight: deque[Exchange] = deque()
        self.answered = 0
        self.alone = False
        """It carries one exchange that is tried alone."""
        self.closing = False
        """Nothing more may be sent."""
        self.surplus = False
        """It is one too many: it ends when nothing is in flight on it."""
        self.progress_at = 0.0
        self.death: Death | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def send(self, batch: list[Exchange], *, alone: bool = False) -> None:
        """Writes requests, which it has room for."""
        now = self._loop.time()
        if not self.in_flight:
            self.progress_at = now
        for exchange in batch:
            exchange.sent_at = now
        self.alone = alone
        self.in_flight.extend(batch)
        # The transport's buffer is bounded by depth × TARGET_MAX_BYTES, so it is not watched.
        self._transport.write(b"".join([exchange.request for exchange in batch]))

    def is_overdue(self, now: float) -> bool:
        """Whether the first request in flight has waited too long."""
        if not self.in_flight:
            return False
        limits = self.limits
        return (
            now - self.progress_at > limits.answer_timeout_s
            or now - self.in_flight[0].sent_at > limits.whole_timeout_s
        )

    def kill(self, death: Death) -> None:
        """Ends the connection because of what the cache did or did not do."""
        if self.death is None:
            self.death = death
            self.closing = True
            self._transport.abort()

    def retire(self) -> None:
        """Closes the connection, which has nothing in flight, to make room for another."""
        self.closing = True
        self._transport.close()

    def eof_received(self) -> None:
        """The cache has closed its side: what is sent from now on is lost."""
        self.closing = True
        if self.limits.until_closed and self.death is None and self._statuses:
            statuses, self._statuses = self._statuses, []
            self._client.answered(self, statuses)

    def abandon(self) -> None:
        """Ends the connection because the agent stops."""
        self.closing = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.closing and self.death is not None:
            return
        self._unfinished_bytes += len(data)
        statuses = self._statuses
        spoilt = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # Answers that came whole before it count.
            spoilt = True
        if statuses:
            self._unfinished_bytes = 0
            self.progress_at = self._loop.time()
            if len(statuses) > len(self.in_flight):
                # It answers what was not asked: no answer on this connection can be trusted any more.
                statuses.clear()
                spoilt = True
            if statuses and not self.limits.until_closed:
                self._statuses = []
                self._client.answered(self, statuses)
            if self.closing and not spoilt and not self.limits.until_closed:
                self._transport.close()
        elif self.limits.streaming:
            self.progress_at = self._loop.time()
        limit = self.limits.answer_max_bytes
        if spoilt:
            self.kill(Death.GARBAGE)
        elif limit is not None and self._unfinished_bytes > limit:
            self.kill(Death.OVERSIZE)

    def on_message_complete(self) -> None:
        """httptools: an answer is whole. Interim answers (1xx) are not the answer."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._statuses.append(status)
            if not self._parser.should_keep_alive():
                self.closing = True

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        if self.death is None:
            # An answer without a length, ended by the end of the connection, counts as cut: whether it was
            # whole cannot be told, and caches give HTTP/1.1 clients a length or chunks.
            self.death = Death.RESET if error is not None else Death.CLOSED
        self._client.died(self, self.death)
