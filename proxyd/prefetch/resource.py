"""One URL that is warmed: which requests it takes, one after the other, and what came of them. Pure.

    for each variant:   probe ──has it──────────────► next variant
                          └─► GET, or its first range ─► next range ─► … ─► next variant

The first request of most is the last one; what they need is kept apart from the rest (`_plain`).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from proxyd.prefetch.heads import Head
from proxyd.prefetch.hits import DRAIN_MAX_BYTES, PROBE_HEADERS, PROBED_KINDS, is_hit, is_probe_hit
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.prefetch.playlists import PLAYLIST_MAX_BYTES, kind_of
from proxyd.prefetch.ranges import next_first, range_header
from proxyd.prefetch.variants import Variants, with_headers, with_method

if TYPE_CHECKING:
    from proxyd.caches import Deed
    from proxyd.prefetch.job import Job


class Look(enum.Enum):
    """What becomes of a body, by its head."""

    STREAM = "it is streamed to nowhere"
    READ = "it is a playlist"
    SPARE = "it need not come: the cache has it"
    NONE = "there is none: HEAD was asked"


class Resource:
    """One URL of a job."""

    __slots__ = (
        "_first", "_kept", "_kind", "_limits", "_plain", "_probing", "_there", "_variants", "body", "depth",
        "encoding", "error", "host", "job", "missed", "path", "playlist", "request", "requests", "sent_at",
        "size_bytes", "status", "tries",
    )  # fmt: skip

    def __init__(
        self,
        job: Job,
        host: bytes,
        path: bytes,
        request: bytes,
        depth: int,
        kind: str,
        limits: PrefetchLimits,
    ) -> None:
        """`request` is as the deed has rendered it; `kind` is the cache's."""
        self.job = job
        self.host = host
        self.path = path
        self.request = request
        self.depth = depth
        self._kind = kind
        self._limits = limits
        self._plain = not (limits.variants or limits.range_bytes)
        self._probing = limits.skip_hits and kind in PROBED_KINDS
        self._there = False
        """Whether the probe has found it."""
        self._first = 0
        self._kept = 0
        """How much of `body` came with answers that were whole."""
        self._variants: Variants | None = None
        if limits.variants:
            self._variants = Variants(request, limits.variants)
        self.requests = 0
        """How often something was answered."""
        self.sent_at = 0.0
        self.tries = 0
        """How often the request at hand was sent and found no answer."""
        self.status = 0
        """Of the last answer but those to probes."""
        self.size_bytes = 0
        self.missed = False
        """Whether anything was not in the cache."""
        self.error: str | None = None
        self.playlist = ""
        """Of what kind it is, if it is one."""
        self.encoding = b""
        self.body: bytearray | None = None
        """Of a playlist, as it came."""

    @property
    def variants(self) -> tuple[int, int]:
        """(how many were asked for, how many there are to choose from)"""
        return (1, 1) if self._variants is None else (self._variants.asked, len(self._limits.variants))

    def next_request(self) -> bytes:
        """What is to be sent now."""
        if self._plain and not self._probing:
            return self.request
        request = self.request if self._variants is None else self._variants.request
        if self._probing:
            return with_headers(with_method(request, b"HEAD"), PROBE_HEADERS)
        if self._limits.range_bytes and self._first >= 0:
            request = with_headers(request, [range_header(self._first, self._limits.range_bytes)])
        return request

    def look(self, head: Head) -> Look:
        """A head has come: what becomes of what follows."""
        if self._probing:
            return Look.NONE
        limits = self._limits
        head.hit = is_hit(self._kind, head)
        if limits.playlists and 200 <= head.status < 300 and self._is_first_variant:
            self.playlist = self.playlist or kind_of(head.get(b"content-type"), self.path)
            if self.playlist:
                self.encoding = head.get(b"content-encoding")
                self.body = bytearray() if self.body is None else self.body
                # What came before a connection was lost comes again.
                del self.body[self._kept :]
                return Look.READ
        if head.hit and limits.skip_hits:
            length = head.length
            if length is None or length > DRAIN_MAX_BYTES:
                return Look.SPARE
        return Look.STREAM

    @property
    def _is_first_variant(self) -> bool:
        return self._variants is None or self._variants.asked == 1

    def read(self, data: bytes) -> None:
        """A part of a playlist has come."""
        if self.body is not None and len(self.body) + len(data) <= PLAYLIST_MAX_BYTES:
            self.body += data
        else:
            self.error = f"a playlist larger than {PLAYLIST_MAX_BYTES} bytes is not expanded"

    def answered(self, head: Head, size_bytes: int, deed: Deed) -> bool:
        """An answer is whole, or need not be; returns whether there is something more to ask."""
        self.tries = 0
        if self._probing:
            self._probing = False
            self._there = is_probe_hit(head)
            if self._there and not (self._limits.playlists and kind_of(head.get(b"content-type"), self.path)):
                self.status = head.status
                return self._next_variant(head)
            # (A playlist that is there has to be read all the same.)
            return True
        self.requests += 1
        self.status = head.status
        self.size_bytes += size_bytes
        if self.error is None and head.status not in deed.good:
            if head.status == 416 and self._limits.range_bytes and not self._first:
                # It is empty: no range of it is there.
                self._first = -1
                return True
            self.error = deed.judge(head.status)
        if self.error is not None:
            asked, count = self.variants
            if count > 1:
                self.error += f", asked for variant {asked} of {count}"
            return False
        if self.body is not None:
            self._kept = len(self.body)
        if not self._there and not head.hit:
            self.missed = True
        if head.status == 206 and self._limits.range_bytes and self._first >= 0:
            return self._next_range(head)
        return self._next_variant(head)

    def _next_range(self, head: Head) -> bool:
        try:
            first = next_first(self._first, head.get(b"content-range"))
        except ValueError as error:
            self.error = str(error)
            return False
        if first is None:
            return self._next_variant(head)
        self._first = first
        return True

    def _next_variant(self, head: Head) -> bool:
        if self._variants is None or not self._variants.advance(head.get(b"vary")):
            return False
        self._first = 0
        self._there = False
        self._probing = self._limits.skip_hits and self._kind in PROBED_KINDS
        return True

    def __repr__(self) -> str:
        return f"<Resource {(self.host + self.path).decode()} requests={self.requests} tries={self.tries}>"
