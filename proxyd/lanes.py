"""The caches that are acted on: a client for each lane of each, as the configuration wants it now.

    wanted ──► in use ──gone from the configuration──► leaving ──all ended, or LEAVE_S──► closed

A cache is known by its name, kind and address together: under another address it
is another cache, whatever its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import msgspec

from proxyd.caches import KINDS, CacheKind, kind_of
from proxyd.caches.ats_rules import RuleFile
from proxyd.caches.nginx_files import NginxFolder
from proxyd.config import AgentConfig, CacheConfig, LaneConfig
from proxyd.connection import Limits
from proxyd.lane_client import LaneClient
from proxyd.local import LocalClient
from proxyd.looking import LookClient
from proxyd.pipeline import CacheClient, Ended
from proxyd.replay import Replay
from proxyd.route import Lanes
from proxyd.split import SplitClient
from proxyd.tasks import Exchange
from proxyd.waiting import wait_until

# A cache that is taken out may be dead: what waits for it must not wait for long.
LEAVE_S = 30.0


class Caches:
    """All lanes. `in_use` is what new tasks are done at."""

    def __init__(self, ended: Ended, *, leave_s: float = LEAVE_S) -> None:
        self._ended = ended
        self._leave_s = leave_s
        self._in_use: dict[CacheConfig, Lanes] = {}
        self._leaving: dict[asyncio.Task[None], Lanes] = {}

    @property
    def in_use(self) -> tuple[Lanes, ...]:
        """What is acted on, in the order of the configuration."""
        return tuple(self._in_use.values())

    @property
    def leaving(self) -> tuple[Lanes, ...]:
        """What was taken out and still has something in hand."""
        return tuple(self._leaving.values())

    def apply(self, config: AgentConfig) -> None:
        """Makes, keeps and lets go of lanes; those that are kept get the limits that hold now."""
        slow = _limits(config.slow, streaming=True)
        before, self._in_use = self._in_use, {}
        for cache in config.caches:
            lanes = before.pop(cache, None)
            if lanes is None:
                lanes = self._make(cache, config, slow)
            else:
                lanes.fast.set_limits(_fast_limits(config.fast, lanes.kind))
                lanes.slow.set_limits(slow)
                if lanes.look is not None:
                    lanes.look.set_limits(_look_limits(config))
            self._in_use[cache] = lanes
        for lanes in before.values():
            task = asyncio.get_running_loop().create_task(self._let_go(lanes))
            self._leaving[task] = lanes
            task.add_done_callback(self._leaving.pop)

    def _make(self, cache: CacheConfig, config: AgentConfig, slow: Limits) -> Lanes:
        files = cache.files
        path = files.path if files else ""
        rules = cache.rules is not None
        kind = kind_of(cache.kind, requests=cache.requests, path=path, purge=cache.purge, rules=rules)
        kind = kind or KINDS[cache.kind]
        fast = _fast_limits(config.fast, kind)
        quick: LaneClient
        if files is not None:
            quick = LocalClient(cache.name, NginxFolder(files), fast, self._ended)
        else:
            quick = CacheClient(cache.name, *cache.address, fast, self._ended)
        if cache.rules is not None:
            quick = SplitClient(quick, LocalClient(cache.name, RuleFile(cache.rules), fast, self._ended))
        long = CacheClient(cache.name, *cache.address, slow, self._ended)
        look = None
        if kind.look is not None:
            look = LookClient(cache.name, *cache.address, _look_limits(config), self._ended)
        return Lanes(cache.name, kind, quick, long, Replay(quick, long, look), look, cache.soft)

    async def _let_go(self, lanes: Lanes) -> None:
        await wait_until(lambda: is_idle([lanes]), self._leave_s)
        for client in (*lanes.quick_clients, lanes.slow):
            client.give_up("taken out of the configuration")

    def unended(self) -> Iterator[Exchange]:
        """All that is in hand at any cache."""
        for lanes in (*self.in_use, *self.leaving):
            for exchange in lanes.fast.unended():
                yield exchange
                yield from exchange.followers or ()
            yield from lanes.replay.unended()
            yield from lanes.slow.unended()
            if lanes.look is not None:
                yield from lanes.look.unended()

    @property
    def quick_is_idle(self) -> bool:
        """Whether no purge and no ban is in hand."""
        return is_idle((*self.in_use, *self.leaving), quick_only=True)

    def close(self) -> None:
        """Drops everything at once."""
        for task in self._leaving:
            task.cancel()
        for lanes in (*self.in_use, *self.leaving):
            for client in (*lanes.quick_clients, lanes.slow):
                client.close()


def is_idle(all_lanes: Iterable[Lanes], *, quick_only: bool = False) -> bool:
    """Whether nothing waits and nothing is in flight."""
    for lanes in all_lanes:
        clients = lanes.quick_clients if quick_only else (*lanes.quick_clients, lanes.slow)
        if any(client.waiting or client.in_flight for client in clients) or lanes.looks_waiting:
            return False
    return True


def _fast_limits(lane: LaneConfig, kind: CacheKind) -> Limits:
    limits = _limits(lane, streaming=kind.streams)
    if not kind.streams:
        return limits
    # Behind a large object the next one would wait, and be blamed for it.
    return msgspec.structs.replace(limits, depth=1, until_closed=True)


def _look_limits(config: AgentConfig) -> Limits:
    limits = _limits(config.fast)
    timeout_s = config.look.answer_timeout_s
    return msgspec.structs.replace(
        limits,
        connections=config.look.connections,
        answer_timeout_s=timeout_s,
        whole_timeout_s=max(timeout_s, limits.whole_timeout_s),
    )


def _limits(lane: LaneConfig, *, streaming: bool = False) -> Limits:
    limits = Limits(
        connections=lane.connections,
        depth=lane.depth,
        connect_timeout_s=lane.connect_timeout_s,
        answer_timeout_s=lane.answer_timeout_s,
        whole_timeout_s=lane.whole_timeout_s,
        patience_s=lane.patience_s,
    )
    if streaming:
        return msgspec.structs.replace(limits, answer_max_bytes=None, streaming=True)
    return limits
