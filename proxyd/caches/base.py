"""What the agent knows of a kind of cache: one frozen description a kind, one file each.

A kind says, for each task type, which request does it and which answers mean
that it was done, or why it cannot be done there. The rest of the agent treats
all kinds alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from proxyd.sight import Answer, Sight, read_only_if_cached
from proxyd.targets import split_target


class Deed(msgspec.Struct, frozen=True):
    """One kind of request, and how its answer is judged.

    `good` are the statuses that mean done. `hints` say what to do about others.
    """

    method: bytes
    good: frozenset[int]
    hints: Mapping[int, str] = {}
    headers: bytes = b""
    """Whole header lines, each with its CRLF, sent besides Host."""
    path_start: bytes = b""
    """What stands before the path in the request, where that is no path by itself."""
    exact: bool = True
    """False where it has the effect by other means than a purge: then `note` says which."""
    note: str = ""
    """What the docs say of it besides (`table.py`)."""
    bans: bool = False
    """It adds to what the cache compares objects with: see `bans.py`."""
    certain: bool = False
    """Who does it sees by itself that it took effect: nothing needs to be looked at."""

    def render(self, host: bytes, path: bytes) -> bytes:
        """The request as it goes out.

        `host` and `path` come from `split_target`: no byte of them can end a line. Raises: BadTarget.
        """
        line = b"%b %b%b HTTP/1.1" % (self.method, self.path_start, path)
        return b"%b\r\nHost: %b\r\n%b\r\n" % (line, host, self.headers)

    def judge(self, status: int) -> str | None:
        """None if the answer means done, else what was wrong."""
        if status in self.good:
            return None
        hint = self.hints.get(status)
        return f"{self.method.decode()} was answered {status}" + (f" ({hint})" if hint else "")


class Look(Deed, frozen=True, kw_only=True):
    """A request that shows whether a copy is there, and has the cache fetch none."""

    read: Callable[[Answer], Sight | str]
    """What an answer shows, or what is wrong with it."""
    tells_begun: bool = False
    """It shows when the fetch of a copy began, by the clock that a purge's answer shows, too."""

    def see(self, answer: Answer) -> Sight | str:
        """What an answer shows, or what is wrong with it."""
        return self.read(answer)

    def judge(self, status: int) -> str | None:
        """Never a fault: what an answer means is seen by `see`."""
        return None


class Canary(Deed, frozen=True):
    """A request that has the cache make an object of ours, for a ban to take along."""

    def render_tagged(self, host: bytes, path: bytes, tag: bytes) -> bytes:
        """The request for one with a tag."""
        line = b"%b %b HTTP/1.1" % (self.method, path)
        return b"%b\r\nHost: %b\r\nX-Refreshd-Tags: %b\r\n\r\n" % (line, host, tag)


class LocalDeed(Deed, frozen=True):
    """What is done on this machine instead of asked for; `method` says what. See `proxyd/local.py`."""

    sweeps: bool = False
    """It takes a look at all that the cache holds."""
    split: Callable[[bytes], tuple[bytes, bytes]] = split_target
    """Cuts a target for who does it."""

    def render(self, host: bytes, path: bytes) -> bytes:
        """No request goes out: who does it reads the target."""
        return b""


class CacheKind(msgspec.Struct, frozen=True):
    """One kind of cache. Each task type stands in exactly one of the two tables."""

    name: str
    deeds: Mapping[str, Deed]
    refused: Mapping[str, str]
    """Why a type cannot be done there, by type."""
    drop: Deed | None = None
    """Drops all that the cache holds."""
    no_drop: str = ""
    """Why it cannot be asked to, where `drop` is None."""
    configurable: frozenset[str] = frozenset()
    """The types (and "drop") for which the configuration may say what to ask for (`http.py`)."""
    look: Look | None = None
    """Shows whether a copy of a URL is there."""
    no_look: str = "there is nothing that it can be asked whether it has a copy, without having it fetch one"
    """Why nothing does, where `look` is None."""
    canary: Canary | None = None
    """Makes an object of ours: a directory, or a tag, is seen to be gone by it."""
    soft: Mapping[str, Deed] = {}
    """By type: has what is there fetched anew at the next visit, instead of removing it."""
    streams: bool = False
    """A refresh is answered with the object itself: of any length, and one a connection.

    It is done when the cache closes that.
    """

    def deed_of(self, task_type: str) -> tuple[Deed | None, str]:
        """The deed of a task type, or None and why there is none."""
        if task_type == "drop":
            return self.drop, self.no_drop
        return self.deeds.get(task_type), self.refused.get(task_type, "this agent does not know this type")


# A prefetch is done when the object came whole with one of these.
_SUCCESSES = frozenset(range(200, 300))

# Browsers all take gzip: where answers vary by it, this is the variant to warm. (Varnish keeps one for all.)
PREFETCH = Deed(
    method=b"GET",
    good=_SUCCESSES,
    note="through the cache, thrown away",
    headers=b"User-Agent: refreshd-prefetch\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n",
)

# Without a body, and answered from what is kept: RFC 9111, 5.2.1.7.
LOOK_ONLY_IF_CACHED = Look(
    method=b"HEAD",
    good=frozenset(range(200, 600)),
    headers=b"Cache-Control: only-if-cached\r\n",
    read=read_only_if_cached,
)

NOT_YET = "this agent cannot refresh by {} yet"
