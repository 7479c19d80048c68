"""What the playlist that a target is names, at any depth: taken a few at a time. Pure.

    the target: a master playlist ──► media playlists ──► segments, keys, maps

Of a playlist only its text is held and how far it was read. The newest goes first, so what is held is a path
through the tree, not its breadth. A URL is taken once, however often it is named, so a loop ends.

Nothing is left out silently: what is beyond a bound, cannot be read or failed makes the target fail with
their number and the first reason. Not a failure, but counted: what lies at other hosts where those are not
followed, and what has no http URL (`data:`, `skd:`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from proxyd.errors import BadTarget
from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.prefetch.playlists import Address, Child, list_children
from proxyd.prefetch.urls import Elsewhere

# A master playlist is 0, its segments are 2. More is for what nobody has thought of.
DEPTH_MAX = 5
# Of the texts that are held at once, a target: media playlists as large as they may be, and their master.
HELD_MAX_BYTES = 4 << 20
# How many references are looked at in a row, in a turn of the loop: a millisecond or two.
LOOKED_MAX = 500
# What is beyond `playlist_max` is counted so far.
LEFT_OUT_MAX = 50_000
SHOWN_MAX_CHARS = 200


class _Source(NamedTuple):
    """A playlist that is being read."""

    address: Address
    children: Iterator[Child]
    depth: int
    """Of what it names."""
    size_bytes: int


class Tree:
    """One target that is a playlist."""

    def __init__(self, root: Address, limits: PrefetchLimits) -> None:
        self._root = root
        self._limits = limits
        self._sources: list[_Source] = []
        self._held_bytes = 0
        # Hashes: of 10,000 URLs these are 0.7 MB less.
        self._seen = {hash(root)}
        self.children = 0
        """Taken so far."""
        self.failed = 0
        self.left_out = 0
        self.other_hosts = 0
        self.elsewhere = 0
        self._first_error = ""

    def expand(self, address: Address, kind: str, body: bytes, depth: int) -> None:
        """A playlist came that lies `depth` deep (the target is 0); `body` is decoded."""
        if depth >= DEPTH_MAX:
            self.note_failure(
                address, f"a playlist {depth} deep is not expanded, at most {DEPTH_MAX - 1} are"
            )
        elif self._held_bytes + len(body) > HELD_MAX_BYTES:
            self.note_failure(address, f"more than {HELD_MAX_BYTES} bytes of playlists at once")
        else:
            try:
                children = list_children(kind, body, address)
            except BadPlaylist as error:
                self.note_failure(address, str(error))
                return
            self._held_bytes += len(body)
            self._sources.append(_Source(address, children, depth + 1, len(body)))

    @property
    def exhausted(self) -> bool:
        """Whether nothing more is named by what has come so far."""
        return not self._sources

    def take(self, count: int) -> list[tuple[Address, int]]:
        """The next children and their depths, at most `count`; fewer once `LOOKED_MAX` were looked at."""
        taken: list[tuple[Address, int]] = []
        for _ in range(LOOKED_MAX):
            if len(taken) >= count or not self._sources:
                break
            source = self._sources[-1]
            try:
                child = next(source.children, None)
            except BadPlaylist as error:
                self.note_failure(source.address, str(error))
                child = None
            if child is None:
                self._held_bytes -= self._sources.pop().size_bytes
            elif self._is_new(child, source) and isinstance(child, tuple):
                taken.append((child, source.depth))
        return taken

    def _is_new(self, child: Child, source: _Source) -> bool:
        """Whether to fetch it; counts it if not."""
        if isinstance(child, Elsewhere):
            self.elsewhere += 1
            return False
        if isinstance(child, BadTarget):
            self.note_failure(source.address, f"names what cannot be fetched: {child}")
            return False
        mark = hash(child)
        if mark in self._seen:
            return False
        self._seen.add(mark)
        if child[0] != self._root[0] and not self._limits.follow_hosts:
            self.other_hosts += 1
            return False
        if self.children >= self._limits.playlist_max:
            self.left_out += 1
            if self.left_out >= LEFT_OUT_MAX:
                self.stop()
            return False
        self.children += 1
        return True

    def stop(self) -> None:
        """Nothing more is taken."""
        self._sources.clear()
        self._held_bytes = 0

    def note_failure(self, address: Address, error: str) -> None:
        """One that was named could not be fetched, or not be read."""
        self.failed += 1
        if not self._first_error:
            url = (b"http://" + b"".join(address)).decode("ascii", "replace")
            shown = url if len(url) <= SHOWN_MAX_CHARS else url[:SHOWN_MAX_CHARS] + "…"
            self._first_error = f"{shown}: {error}"

    @property
    def error(self) -> str | None:
        """Why the target has failed, or None."""
        parts = []
        if self.failed:
            parts.append(
                f"{self.failed} of {self.children} that its playlist names failed, first {self._first_error}"
            )
        if self.left_out:
            more = "or more " if self.left_out >= LEFT_OUT_MAX else ""
            bound = self._limits.playlist_max
            parts.append(f"{self.left_out} {more}were left out: [slow] playlist_max = {bound}")
        return "; ".join(parts) or None

    def figures(self) -> dict[str, int]:
        """What its evidence says besides."""
        figures = {
            "children": self.children,
            "children_failed": self.failed,
            "children_left_out": self.left_out,
            "at_other_hosts": self.other_hosts,
            "not_http": self.elsewhere,
        }
        return {name: value for name, value in figures.items() if value or name == "children"}
