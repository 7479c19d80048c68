"""One keep-alive connection of the slow lane: a request, its answer streamed to nowhere, the next request.

Bodies are read into one buffer that all connections of a client share: whoever is given bytes works them off
before anybody else is given any. So memory does not grow with objects, nor with connections.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

import httptools

from proxyd.blame import Death
from proxyd.connection import Limits
from proxyd.prefetch.buckets import Bucket
from proxyd.prefetch.heads import Head, cut_head
from proxyd.prefetch.hits import DRAIN_MAX_BYTES
from proxyd.prefetch.resource import Look, Resource

# A head, or what is no body: trailers, the extensions of chunks. Caches send 300 to 500 bytes.
HEAD_MAX_BYTES = 64 * 1024
HEAD_USUAL_BYTES = 1024


class Client(Protocol):
    """Whose connection it is."""

    limits: Limits

    def opened(self, connection: Connection) -> None:
        """The connection is up."""

    def answered(self, connection: Connection, resource: Resource, head: Head, size_bytes: int) -> None:
        """An answer is whole, or as much of it as was wanted; the connection may be `closing`."""

    def died(self, connection: Connection, death: Death) -> None:
        """The connection is gone, and what was in flight on it has no answer."""

    def held(self, connection: Connection) -> None:
        """It is not read until its buckets are out of debt."""


class Connection(asyncio.BufferedProtocol):
    """One connection; a `resource` is in flight on it, or it is idle."""

    __slots__ = (
        "_buffer", "_client", "_collects", "_done", "_head", "_interim", "_look", "_loop", "_parser",
        "_quiet_bytes", "_raw", "_read_bytes", "_size_bytes", "_spoilt", "_transport", "answered", "buckets",
        "closing", "death", "held_at", "limits", "progress_at", "resource", "surplus",
    )  # fmt: skip

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self._client = client
        self._loop = loop
        self._buffer = buffer
        self.limits = client.limits
        self._parser: Any = httptools.HttpResponseParser(self)
        self.resource: Resource | None = None
        self.buckets: tuple[Bucket, ...] = ()
        """What is read is paid for here."""
        self.answered = 0
        self.closing = False
        """Nothing more may be sent."""
        self.surplus = False
        """It is one too many: it ends when nothing is in flight on it."""
        self.progress_at = 0.0
        self.held_at = 0.0
        """Since when it is not read; 0 if it is."""
        self.death: Death | None = None
        self._reset()

    def _reset(self) -> None:
        self._raw = b""
        """What came of an answer, until its head is whole."""
        self._read_bytes = 0
        self._interim = 0
        self._head: Head | None = None
        self._look = Look.STREAM
        self._collects = False
        self._size_bytes = 0
        self._quiet_bytes = 0
        self._done = False
        self._spoilt = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.opened(self)

    def begin(self, resource: Resource, buckets: tuple[Bucket, ...], now: float) -> None:
        """Sends the request that a resource is at."""
        self.resource = resource
        self.buckets = buckets
        self.progress_at = resource.sent_at = now
        self._transport.write(resource.next_request())

    # ── what comes ────────────────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        resource = self.resource
        if self.death is not None:
            return
        if resource is None:
            # It answers what was not asked.
            self.kill(Death.GARBAGE)
            return
        size_before = self._size_bytes
        self._read_bytes = nbytes
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoilt = True
        if self._spoilt:
            self.kill(Death.GARBAGE)
            return
        if self.buckets:
            self._pay(nbytes)
        head = self._head
        if self._done and head is not None:
            self._finish(resource, head)
            return
        if head is None:
            # (An answer whose head is longer than this is ended below.)
            self._raw += self._buffer[: min(nbytes, HEAD_MAX_BYTES)]
        self.progress_at = now = self._loop.time()
        if head is not None and self._look is Look.SPARE and self._is_long(head):
            self._pass_over(resource, head)
        elif self._size_bytes == size_before and self._is_endless(nbytes):
            self.kill(Death.GARBAGE)
        elif self.buckets and not self.held_at and self.owes(now):
            self.held_at = now
            self._transport.pause_reading()
            self._client.held(self)

    def _is_endless(self, nbytes: int) -> bool:
        """Whether what comes is no body and has no end."""
        self._quiet_bytes += nbytes
        return self._quiet_bytes > HEAD_MAX_BYTES

    def _is_long(self, head: Head) -> bool:
        """Whether so much is still to come that it is not waited for, or nobody knows how much."""
        length = head.length
        return length is None or length - self._size_bytes > DRAIN_MAX_BYTES

    def on_headers_complete(self) -> None:
        """httptools: a head is whole. Interim answers (1xx) are not the answer."""
        status = self._parser.get_status_code()
        if self._done or self.resource is None:
            self._spoilt = True
        elif status < 200:
            self._interim += 1
        else:
            self._head = head = Head(status, self._take_head())
            self._look = look = self.resource.look(head)
            self._collects = look is Look.READ
            if look is Look.NONE:
                self._end_message()

    def _take_head(self) -> bytes:
        """The head that is whole now, as it came."""
        before, self._raw = self._raw, b""
        for most_bytes in (HEAD_USUAL_BYTES, HEAD_MAX_BYTES):
            came = before + self._buffer[: min(self._read_bytes, most_bytes)]
            if head := cut_head(came, self._interim):
                return head
        return b""

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        self._size_bytes += len(body)
        if self._collects and self.resource is not None:
            self.resource.read(body)
        elif self._done:
            self._spoilt = True

    def on_message_complete(self) -> None:
        """httptools: an answer is whole."""
        if self._head is not None and not self._done:
            self._end_message()

    def _end_message(self) -> None:
        self._done = True
        if not self._parser.should_keep_alive():
            self.closing = True

    # ── what is made of it ────────────────────────────────────────────────────────────────

    def _finish(self, resource: Resource, head: Head) -> None:
        if self._look is Look.NONE:
            # It waits for the body that its Content-Length tells of, and that HEAD has none of.
            self._parser = httptools.HttpResponseParser(self)
        self._tell(resource, head)
        if self.closing:
            self._transport.close()

    def _pass_over(self, resource: Resource, head: Head) -> None:
        """The cache has it: what is still to come is not waited for."""
        self.closing = True
        self._tell(resource, head)
        self._transport.abort()

    def _tell(self, resource: Resource, head: Head) -> None:
        size_bytes = self._size_bytes
        self.resource = None
        self.answered += 1
        self._reset()
        self._client.answered(self, resource, head, size_bytes)

    def _pay(self, nbytes: int) -> None:
        now = self._loop.time()
        for bucket in self.buckets:
            bucket.spend(nbytes, now)

    def owes(self, now: float) -> bool:
        """Whether any of its buckets is in debt."""
        return any(bucket.wait_s(now) for bucket in self.buckets)

    def go_on(self, now: float) -> None:
        """Reads again. The time that it was held counts for no deadline."""
        if self.resource is not None:
            self.resource.sent_at += now - self.held_at
        self.held_at = 0.0
        self.progress_at = now
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # ── its end ───────────────────────────────────────────────────────────────────────────

    def is_overdue(self, now: float) -> bool:
        """Whether no byte came for too long, or the answer takes too long."""
        resource = self.resource
        if resource is None or self.held_at:
            return False
        limits = self.limits
        return (
            now - self.progress_at > limits.answer_timeout_s
            or now - resource.sent_at > limits.whole_timeout_s
        )

    def kill(self, death: Death) -> None:
        """Ends the connection because of what the cache did or did not do."""
        if self.death is None:
            self.death = death
            self.closing = True
            self._transport.abort()

    def retire(self) -> None:
        """Closes the connection, which has nothing in flight."""
        self.closing = True
        self._transport.close()

    def abandon(self) -> None:
        """Ends the connection because the agent stops."""
        self.closing = True
        self._transport.abort()

    def eof_received(self) -> None:
        """The cache has closed its side: what is sent from now on is lost."""
        self.closing = True

    def connection_lost(self, error: Exception | None) -> None:
        self.closing = True
        if self.death is None:
            # See proxyd/connection.py: an answer that ends with its connection counts as cut.
            self.death = Death.RESET if error is not None else Death.CLOSED
        self._client.died(self, self.death)
