"""How many requests a lane has under way at a cache, so that one in difficulty is spared. Pure.

    limit: 1 ──each lump of answers──► twice ──…──► `most` (connections × depth), where a healthy cache stays
              ◄──answers come late: 0.7 of it────┤
              ◄──an error: half of it────────────┘   at most once in the time that an answer takes

It begins, and goes on, at `most`; a breaker that closes begins at 1 (`restart`), for a cache that was just
started is not to be met with all that waited. Up to where it was cut it doubles, beyond that it grows by a
sixteenth of `most` a lump: what was too much a moment ago is come near to with care.

Late is an answer that took more than 0.1 s *and* eight times the quickest of late (the floor, of the last
minute or so). Requests are pipelined, so an answer's time grows with how many stand before it, without any
harm: 256 at a Varnish that does 40,000/s take 6 ms. So only what no healthy cache shows counts, and where
nothing is wrong, the limit is `most`: then this costs two comparisons a lump.
"""

from __future__ import annotations

import math

# No cache that is well takes this long for a purge, even behind a full pipeline on a busy machine.
LATE_S = 0.1
LATE_FACTOR = 8
LATE_CUT = 0.7
ERROR_CUT = 0.5
STEPS = 16
# How long a floor holds: the machine, or what runs on it, may be another later.
FLOOR_S = 60.0


class Pace:
    """`limit` is what may be under way. Tell it of each lump of answers, and of each error."""

    __slots__ = ("_cut_at", "_floor_at", "_floor_s", "_threshold", "limit", "most")

    def __init__(self, most: int) -> None:
        self.most = self.limit = max(1, most)
        self._threshold = self.most
        """Up to here the limit doubles."""
        self._floor_s = math.inf
        self._floor_at = 0.0
        self._cut_at = 0.0

    def set_most(self, most: int) -> None:
        """Another bound holds."""
        full = self.limit >= self.most
        self.most = max(1, most)
        self.limit = self.most if full else min(self.limit, self.most)
        self._threshold = min(self._threshold, self.most) if not full else self.most

    def answered(self, took_s: float, now: float) -> None:
        """A lump of answers came; the first of them took so long."""
        if took_s < self._floor_s or now - self._floor_at > FLOOR_S:
            self._floor_s, self._floor_at = took_s, now
        if took_s > LATE_S and took_s > LATE_FACTOR * self._floor_s:
            self._cut(LATE_CUT, took_s, now)
        elif self.limit < self.most:
            step = self.limit if self.limit < self._threshold else max(1, self.most // STEPS)
            self.limit = min(self.most, self.limit + step)

    def failed(self, now: float) -> None:
        """An error: no answer, or one that says that it is too much."""
        self._cut(ERROR_CUT, LATE_S, now)

    def _cut(self, factor: float, took_s: float, now: float) -> None:
        if now - self._cut_at < took_s:
            # What is late now was sent before the last cut.
            return
        self._cut_at = now
        self.limit = self._threshold = max(1, int(self.limit * factor))

    def restart(self) -> None:
        """Begins with one."""
        self._threshold = max(1, self.limit // 2)
        self.limit = 1

    def __repr__(self) -> str:
        return f"<Pace {self.limit} of {self.most}>"
