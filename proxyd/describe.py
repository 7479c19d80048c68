"""The caches of this agent as plain values: for `refreshctl caches` and `breakers`. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import msgspec

from proxyd.addresses import format_address
from proxyd.lane_client import LaneClient
from proxyd.route import Lanes


class CacheState(enum.Enum):
    """Whether a cache can be purged, and has been of all that it should have been."""

    UP = "up"
    DOWN = "down"
    REPLAYING = "replaying"


def state_of(cache: Lanes) -> tuple[CacheState, str]:
    """The state of a cache, and why, unless it is up."""
    breaker = cache.fast.breaker
    if not breaker.closed:
        return CacheState.DOWN, breaker.reason
    if cache.replay.catching_up:
        return CacheState.REPLAYING, f"{cache.fast.waiting + cache.fast.in_flight} targets to go"
    return CacheState.UP, ""


def describe_caches(caches: Iterable[Lanes], now: float) -> list[dict[str, Any]]:
    """A dict a cache, in the order of the configuration; values are text, numbers, None, lists and dicts.

    `state`: "up"; "down" while its fast lane's breaker is not closed; "replaying" until what waited for it
    then has ended. `why` says more, unless it is up. `waiting`: targets that are not sent, in all lanes.
    `lanes` are breakers: see `breaker.BreakerRow`. `bans`: those that were sent of late and may
    still stand in the cache's list, None where it has none; `bans_waiting`: those held back. Times are in
    seconds.
    """
    return [_describe(cache, now) for cache in caches]


def _describe(cache: Lanes, now: float) -> dict[str, Any]:
    breaker = cache.fast.breaker
    down_since = breaker.down_since
    state, why = state_of(cache)
    return {
        "cache": cache.name,
        "kind": cache.kind.name,
        "address": format_address(cache.address),
        "group": cache.group,
        "state": state.value,
        "why": why,
        "down_for_s": None if down_since is None else round(now - down_since, 1),
        "waiting": sum(client.waiting for client in cache.clients) + cache.replay.waiting,
        "in_flight": sum(client.in_flight for client in cache.clients),
        "queue_max": breaker.settings.queue_max,
        "bans": None if cache.bans is None else cache.bans.alive(now),
        "bans_waiting": 0 if cache.bans is None else cache.bans.waiting,
        "lanes": [_describe_lane(cache.lane_name(client), client, now) for client in cache.clients],
    }


def _describe_lane(name: str, client: LaneClient, now: float) -> dict[str, Any]:
    row = client.breaker.row(now, client.in_flight)
    return {"lane": name, "waiting": client.waiting, **msgspec.structs.asdict(row)}
