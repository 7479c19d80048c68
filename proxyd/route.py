"""Where a task is done: at which caches, through which lane of each, and why not at the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from proxyd.bans import Bans
from proxyd.caches import CacheKind, Deed
from proxyd.lane_client import LaneClient
from proxyd.looking import LookClient
from proxyd.merging import DROP
from proxyd.pipeline import CacheClient
from proxyd.replay import Door, Replay
from proxyd.targets import split_directory, split_drop, split_pattern, split_tag, split_target

SLOW_TYPES = frozenset({"prefetch"})
"""What goes through the slow lane; all else is quick."""


class Lanes(msgspec.Struct, frozen=True):
    """One cache: what it is, and a client of its own for each lane."""

    name: str
    kind: CacheKind
    fast: LaneClient
    slow: LaneClient
    replay: Replay
    look: LookClient | None = None
    """For what is to be proved, where the cache can be looked at."""
    soft: bool = False
    """What is refreshed there without `force` is refreshed softly, where the kind can."""
    address: tuple[str, int] = ("", 0)
    group: str = ""
    """What it is shown under."""

    def deed_of(self, task_type: str, *, force: bool) -> tuple[Deed | None, str]:
        """The deed of a task type, or None and why there is none."""
        if self.soft and not force and task_type in self.kind.soft:
            return self.kind.soft[task_type], ""
        return self.kind.deed_of(task_type)

    @property
    def bans(self) -> Bans | None:
        """Its bans, if it has any."""
        return self.fast.bans if isinstance(self.fast, CacheClient) else None

    @property
    def looks_waiting(self) -> int:
        """What waits to be looked at, or to be purged and looked at."""
        return 0 if self.look is None else self.look.waiting + self.look.delayed

    @property
    def clients(self) -> tuple[LaneClient, ...]:
        """One a lane."""
        return (*self.quick_clients, self.slow)

    def lane_name(self, client: LaneClient) -> str:
        """What the lane of a client is called."""
        return "fast" if client is self.fast else "slow" if client is self.slow else "look"

    @property
    def quick_clients(self) -> tuple[LaneClient, ...]:
        """Those that purge."""
        return (self.fast,) if self.look is None else (self.fast, self.look)


class Route(msgspec.Struct, frozen=True):
    """What is done for one task type: at which caches, and why not at the others."""

    steps: tuple[tuple[Deed, Door], ...]
    refusal: str | None
    split: Callable[[bytes], tuple[bytes, bytes]]


SPLITS = {"dir": split_directory, "regex": split_pattern, "tag": split_tag, DROP: split_drop}


def plan_route(task_type: str, caches: Iterable[Lanes], *, force: bool = False) -> Route:
    """The route of a task type; the first refusal stands for all."""
    steps: list[tuple[Deed, Door]] = []
    refusal: str | None = None
    for cache in caches:
        deed, why = cache.deed_of(task_type, force=force)
        if deed is not None:
            steps.append((deed, _door_of(cache, task_type)))
        elif refusal is None:
            refusal = f"cache {cache.name}: type={task_type} refused: {why}"
    return Route(tuple(steps), refusal, SPLITS.get(task_type, split_target))


def _door_of(cache: Lanes, task_type: str) -> Door:
    """Where it is put in: while the order holds that a replay has (`replay.py`), into that."""
    if task_type in SLOW_TYPES:
        return cache.replay.prefetches if cache.replay.on else cache.slow
    return cache.replay if cache.replay.on else cache.fast
