"""The caches of this agent as plain values: for `refreshctl caches` and `breakers`. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from proxyd.addresses import format_address
from proxyd.dispatch import Lanes
from proxyd.lane_client import LaneClient


def describe_caches(caches: Iterable[Lanes], now: float) -> list[dict[str, Any]]:
    """A dict a cache, in the order of the configuration; values are text, numbers, None, lists and dicts.

    `state`: "up"; "down" while its fast lane's breaker is not closed; "replaying" until what waited for it
    then has ended. `why` says more, unless it is up. `waiting`: targets that are not sent, in both lanes.
    `lanes` are breakers: see `breaker.BreakerRow`. `bans` is None where nobody has counted them. Times are in
    seconds.
    """
    return [_describe(cache, now) for cache in caches]


def _describe(cache: Lanes, now: float) -> dict[str, Any]:
    breaker = cache.fast.breaker
    down_since = breaker.down_since
    state, why = "up", ""
    if down_since is not None:
        state, why = "down", breaker.reason
    elif cache.replay.catching_up:
        state, why = "replaying", f"{cache.fast.waiting + cache.fast.in_flight} targets to go"
    return {
        "cache": cache.name,
        "kind": cache.kind.name,
        "address": format_address(cache.address),
        "group": cache.group,
        "state": state,
        "why": why,
        "down_for_s": None if down_since is None else round(now - down_since, 1),
        "waiting": cache.fast.waiting + cache.slow.waiting + cache.replay.waiting,
        "in_flight": cache.fast.in_flight + cache.slow.in_flight,
        "queue_max": breaker.settings.queue_max,
        "bans": None,
        "lanes": [_describe_lane("fast", cache.fast, now), _describe_lane("slow", cache.slow, now)],
    }


def _describe_lane(name: str, client: LaneClient, now: float) -> dict[str, Any]:
    row = client.breaker.row(now, client.in_flight)
    return {"lane": name, "waiting": client.waiting, **msgspec.structs.asdict(row)}
