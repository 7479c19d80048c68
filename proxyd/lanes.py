"""The caches that are acted on: a client for each lane of each, as the configuration wants it now.

    wanted ──► in use ──gone from the configuration──► leaving ──all ended, or LEAVE_S──► closed

A cache is known by its name, kind and address together: under another address it
is another cache, whatever its name.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Iterator

import msgspec

from proxyd.bans import Bans
from proxyd.breaker import Breaker, BreakerSettings, State
from proxyd.caches import KINDS, CacheKind, kind_of
from proxyd.caches.ats_rules import RuleFile
from proxyd.caches.nginx_files import NginxFolder
from proxyd.config import AgentConfig, CacheConfig, LaneConfig
from proxyd.connection import Limits
from proxyd.lane_client import LaneClient
from proxyd.local import LocalClient
from proxyd.logs import Log
from proxyd.looking import LookClient
from proxyd.pipeline import CacheClient, Ended
from proxyd.prefetch.buckets import Bucket
from proxyd.prefetch.client import PrefetchClient
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.probes import Prober
from proxyd.replay import Replay
from proxyd.route import Lanes
from proxyd.split import SplitClient
from proxyd.tasks import Exchange
from proxyd.waiting import wait_until

# A cache that is taken out may be dead: what waits for it must not wait for long.
LEAVE_S = 30.0


class Caches:
    """All lanes. `in_use` is what new tasks are done at."""

    def __init__(self, ended: Ended, log: Log | None = None, *, leave_s: float = LEAVE_S) -> None:
        self._ended = ended
        self._log = Log("error") if log is None else log
        self._leave_s = leave_s
        self._in_use: dict[CacheConfig, Lanes] = {}
        self._leaving: dict[asyncio.Task[None], Lanes] = {}
        self._canaries = Bucket()
        """Those that may be planted a second, at all caches together."""
        self.budget = Bucket()
        """What prefetches may bring at all caches together: this agent's part of the fleet's."""
        self._probers: dict[CacheConfig, Prober] = {}
        self._breaker = BreakerSettings()
        self._down: set[Breaker] = set()
        """Those that have not been closed since they opened."""

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
        self._breaker = config.breaker
        self._canaries.set_rate(config.look.canaries_per_s, asyncio.get_running_loop().time())
        slow = _slow_limits(config)
        before, self._in_use = self._in_use, {}
        for cache in config.caches:
            lanes = before.pop(cache.identity, None)
            if lanes is None:
                lanes = self._make(cache, config, slow)
            else:
                lanes.fast.set_limits(_fast_limits(config.fast, config.breaker, lanes.kind))
                lanes.slow.set_limits(slow)
                for client in lanes.clients:
                    client.breaker.settings = config.breaker
                if lanes.look is not None:
                    lanes.look.set_limits(_look_limits(config))
            if lanes.group != cache.group:
                lanes = msgspec.structs.replace(lanes, group=cache.group)
            self._in_use[cache.identity] = lanes
            self._probe(lanes, cache)
        for identity in before:
            self._probers.pop(identity).close()
        for lanes in before.values():
            task = asyncio.get_running_loop().create_task(self._let_go(lanes))
            self._leaving[task] = lanes
            task.add_done_callback(self._leaving.pop)

    def _probe(self, lanes: Lanes, cache: CacheConfig) -> None:
        prober = self._probers.get(cache.identity)
        if prober is None:
            self._probers[cache.identity] = Prober(lanes, cache.probe)
        else:
            prober.path = cache.probe

    def probe(self) -> None:
        """Asks caches whether they are there, where it is time; to be called a few times a second."""
        now = asyncio.get_running_loop().time()
        for prober in self._probers.values():
            prober.look(now)

    def _make(self, cache: CacheConfig, config: AgentConfig, slow: Limits) -> Lanes:
        files = cache.files
        path = files.path if files else ""
        rules = cache.rules is not None
        kind = kind_of(cache.kind, requests=cache.requests, path=path, purge=cache.purge, rules=rules)
        kind = kind or KINDS[cache.kind]
        fast = _fast_limits(config.fast, config.breaker, kind)
        quick: LaneClient
        breaker = Breaker(self._breaker)
        # (Files say nothing of who serves them.)
        above = None if files is not None else breaker
        if files is not None:
            quick = LocalClient(cache.name, NginxFolder(files), fast, self._ended, breaker)
        else:
            bans = _bans_of(cache.name, kind, config.fast)
            quick = CacheClient(cache.name, *cache.address, fast, self._ended, breaker, bans)
        if cache.rules is not None:
            by_hand = LocalClient(cache.name, RuleFile(cache.rules), fast, self._ended)
            quick = SplitClient(quick, by_hand)
        long = PrefetchClient(
            cache.name, *cache.address, slow, self._ended, self._breaker_below(above), kind=cache.kind,
            budget=self.budget,
        )  # fmt: skip
        look = None
        if kind.look is not None:
            limits = _look_limits(config)
            below = self._breaker_below(above)
            look = LookClient(cache.name, *cache.address, limits, self._ended, below, self._canaries)
        replay = Replay(quick, long, look)
        lanes = Lanes(cache.name, kind, quick, long, replay, look, cache.soft, cache.address, cache.group)
        for client in lanes.clients:
            client.breaker.changed = functools.partial(self._note_change, lanes, client)
        return lanes

    def _breaker_below(self, above: Breaker | None) -> Breaker:
        return Breaker(self._breaker, above)

    def _note_change(self, lanes: Lanes, client: LaneClient) -> None:
        """A breaker has another state."""
        if lanes.fast.breaker.closed:
            lanes.replay.release_order()
        else:
            lanes.replay.hold_order()
        breaker, lane = client.breaker, lanes.lane_name(client)
        if breaker.state is State.OPEN and breaker not in self._down:
            self._down.add(breaker)
            self._log.sampled(
                f"cache {lanes.name} {lane}", "cache down", cache=lanes.name, lane=lane, why=breaker.why
            )
        elif breaker.state is State.CLOSED:
            self._down.discard(breaker)
            self._log.info("cache up", cache=lanes.name, lane=lane, was=breaker.why)

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

    def left_behind(self, open_targets: int, now: float) -> int:
        """How many of the open targets wait only for caches that do not keep up; 0 if all caches do, or none.

        What the others have in hand is counted at the busiest: each is sent every target, so that
        one has about all that any of them has.
        """
        up = [
            lanes
            for lanes in self._in_use.values()
            if lanes.slow.breaker.closed and not lanes.fast.is_stalled(now)
        ]
        if not up or len(up) == len(self._in_use):
            return 0
        return max(0, open_targets - max(in_hand(lanes) for lanes in up))

    @property
    def quick_is_idle(self) -> bool:
        """Whether no purge and no ban is in hand."""
        return is_idle((*self.in_use, *self.leaving), quick_only=True)

    def close(self) -> None:
        """Drops everything at once."""
        for prober in self._probers.values():
            prober.close()
        for task in self._leaving:
            task.cancel()
        for lanes in (*self.in_use, *self.leaving):
            for client in (*lanes.quick_clients, lanes.slow):
                client.close()


def in_hand(lanes: Lanes) -> int:
    """Targets that a cache has not done yet."""
    waiting = sum(client.waiting + client.in_flight for client in lanes.clients)
    return waiting + lanes.replay.waiting + (0 if lanes.look is None else lanes.look.delayed)


def is_idle(all_lanes: Iterable[Lanes], *, quick_only: bool = False) -> bool:
    """Whether nothing waits and nothing is in flight."""
    for lanes in all_lanes:
        clients = lanes.quick_clients if quick_only else (*lanes.quick_clients, lanes.slow)
        if any(client.waiting or client.in_flight for client in clients) or lanes.looks_waiting:
            return False
    return True


def _fast_limits(lane: LaneConfig, breaker: BreakerSettings, kind: CacheKind) -> Limits:
    limits = _limits(lane, breaker, streaming=kind.streams)
    if not kind.streams:
        return limits
    # Behind a large object the next one would wait, and be blamed for it.
    return msgspec.structs.replace(limits, depth=1, until_closed=True)


def _slow_limits(config: AgentConfig) -> PrefetchLimits:
    lane = config.slow
    variants = tuple(
        tuple((name.encode(), value.encode()) for name, value in variant) for variant in lane.variants
    )
    return PrefetchLimits(
        **msgspec.structs.asdict(_limits(lane, config.breaker, streaming=True)),
        per_host=lane.per_host,
        bytes_per_s=lane.bytes_per_s,
        host_bytes_per_s=lane.host_bytes_per_s,
        range_bytes=lane.range_bytes,
        variants=variants,
        skip_hits=lane.skip_hits,
        playlists=lane.playlists,
        playlist_max=lane.playlist_max,
        follow_hosts=lane.follow_hosts,
    )


def _bans_of(name: str, kind: CacheKind, lane: LaneConfig) -> Bans | None:
    if not any(deed.bans for deed in kind.deeds.values()):
        return None
    return Bans(name, kind.deeds.get("regex"), bans_max=lane.bans_max)


def _look_limits(config: AgentConfig) -> Limits:
    limits = _limits(config.fast, config.breaker)
    timeout_s = config.look.answer_timeout_s
    return msgspec.structs.replace(
        limits,
        connections=config.look.connections,
        answer_timeout_s=timeout_s,
        whole_timeout_s=max(timeout_s, limits.whole_timeout_s),
    )


def _limits(lane: LaneConfig, breaker: BreakerSettings, *, streaming: bool = False) -> Limits:
    limits = Limits(
        connections=lane.connections,
        depth=lane.depth,
        connect_timeout_s=lane.connect_timeout_s,
        answer_timeout_s=lane.answer_timeout_s,
        whole_timeout_s=lane.whole_timeout_s,
        patience_s=breaker.wait_s,
    )
    if streaming:
        return msgspec.structs.replace(limits, answer_max_bytes=None, streaming=True)
    return limits
