"""The bans of one cache: merged, several put into one, and bounded in number. Pure.

A ban is a line in a list that the cache compares objects with: each object with every ban that is younger
than the last time it was looked at. So their number costs visits (measured: after 5,000 bans that matched
nothing, the first touch of an object cost a Varnish 425 µs instead of 25). Two things keep it low:

- What waits to be sent is merged (`merging.py`): a repeat joins what it repeats, a directory swallows what
  lies below it. Directories of one host that wait together are sent as one ban with alternatives.
- No more than `bans_max` are sent within LIFE_S. What is beyond that waits here, and is merged further.
  Varnish's lurker begins on a ban when it is 60 s old (`ban_lurker_age`), and has done with it soon after.

    exchange ──take_in──► waits, merged ──give_out, while there is room──► sent, with what it satisfies

What is merged ends as that does which it was merged into, and has that task's id in its evidence.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator

from proxyd.caches import Deed
from proxyd.evidence import Evidence
from proxyd.merging import MergingQueue
from proxyd.targets import split_directory
from proxyd.tasks import Exchange

# Longer than Varnish's ban_lurker_age (60 s) by what the lurker takes for a cache of some size.
LIFE_S = 75.0
BANS_MAX = 1000
# Below what Varnish takes as a request line (8 KB) with all around it.
ALTERNATIVES_MAX_BYTES = 4000
ALTERNATIVES_MAX = 100
_MEANS_SOMETHING = re.compile(rb"([^A-Za-z0-9/_-])")


class Bans:
    """The bans of the cache `name`. `combined`: the deed for several directories at once, if there is one."""

    def __init__(self, name: str, combined: Deed | None, *, bans_max: int = BANS_MAX) -> None:
        self.name = name
        self.bans_max = bans_max
        self._combined = combined
        self._queue = MergingQueue()
        self._sent_at: deque[float] = deque()

    @property
    def waiting(self) -> int:
        """Exchanges that wait to be sent."""
        return len(self._queue)

    def alive(self, now: float) -> int:
        """Bans that were sent and may still be in the cache's list."""
        sent_at = self._sent_at
        while sent_at and now - sent_at[0] > LIFE_S:
            sent_at.popleft()
        return len(sent_at)

    def satisfying(self, task_type: str, target: bytes, *, force: bool) -> Exchange | None:
        """What waits here and would do what such a refresh asks for."""
        return self._queue.satisfying(task_type, target, force=force)

    def take_in(self, batch: list[Exchange]) -> list[Exchange]:
        """Keeps what is a ban; returns the others."""
        others: list[Exchange] = []
        for exchange in batch:
            if not exchange.deed.bans:
                others.append(exchange)
                continue
            # (What was merged while the agent was behind is merged anew.)
            for each in (exchange, *exchange.part()):
                self._queue.put(each, each.task.head.priority)
        return others

    def give_out(self, now: float, room: int) -> list[Exchange]:
        """What may be sent now, at most `room`; each has behind it what it satisfies."""
        if not self._queue:
            return []
        room = min(room, self.bans_max - self.alive(now))
        given: list[Exchange] = []
        groups: list[list[Exchange]] = []
        newest: dict[tuple[bytes, int], list[Exchange]] = {}
        while len(given) < room and (taken := self._queue.take(1)):
            exchange = taken[0]
            if self._combined is None or exchange.task.head.type != "dir":
                given.append(exchange)
                continue
            host, path = split_directory(exchange.target)
            priority = exchange.task.head.priority
            group = newest.get((host, priority))
            if group is None or not _fits(group, path):
                group = newest[host, priority] = []
                groups.append(group)
                given.append(exchange)
            group.append(exchange)
        self._sent_at += [now] * len(given)
        for group in groups:
            self._combine(group)
        for exchange in given:
            self._note_merged(exchange)
        return given

    def _combine(self, group: list[Exchange]) -> None:
        """The first stands for all."""
        if len(group) == 1 or self._combined is None:
            return
        leader, *others = group
        followers = leader.part()
        for other in others:
            followers.append(other)
            followers += other.part()
        leader.followers = followers
        host, _ = split_directory(leader.target)
        leader.deed = self._combined
        leader.request = self._combined.render(host, make_alternatives([_path_of(each) for each in group]))

    def _note_merged(self, leader: Exchange) -> None:
        for follower in leader.followers or ():
            task = follower.task
            if task is leader.task:
                continue
            if task.evidence is None:
                task.evidence = []
            if follower.evidence is None:
                follower.evidence = Evidence(self.name, follower.target.decode("utf-8", "replace"))
            follower.evidence.more = {**follower.evidence.more, "merged_into": leader.task.id.decode()}

    def remove(self, fits: Callable[[Exchange], bool]) -> list[Exchange]:
        """Removes and returns all that fits of what waits."""
        return self._queue.remove(fits)

    def unended(self) -> Iterator[Exchange]:
        """What waits here."""
        return iter(self._queue)

    def __repr__(self) -> str:
        return f"<Bans {self.name} {len(self._sent_at)} sent lately, {self.waiting} wait>"


def make_alternatives(paths: list[bytes]) -> bytes:
    """A pattern, as `BANREGEX` takes it, of all that begins with one of these paths (each begins with /)."""
    escaped = [_MEANS_SOMETHING.sub(rb"\\\1", path[1:]) for path in paths]
    return b"/(?:%b).*" % b"|".join(escaped)


def _path_of(exchange: Exchange) -> bytes:
    return split_directory(exchange.target)[1]


def _fits(group: list[Exchange], path: bytes) -> bool:
    """Whether another path may stand in a group's pattern. Each byte may have a backslash before it."""
    size = sum(2 * len(_path_of(each)) + 1 for each in group)
    return len(group) < ALTERNATIVES_MAX and size + 2 * len(path) < ALTERNATIVES_MAX_BYTES
