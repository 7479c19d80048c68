"""What an engine tells of itself: queue lengths, rates, counts. Summed over the workers.

The names are those of the original's stats interface where it had one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from refreshd.fanout import Log, Segment
from refreshd.task import State
from refreshd.worker.links import Link
from wire.lines import Value

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

Figures = dict[str, float]

_ADDED = ("links", "credit", "outstanding", "waiting", "parked")
# Names whose figures of several workers are not added up.
_NOT_ADDED = frozenset({"timestamp", "draining"})


def collect(hub: Hub) -> Figures:
    """This worker's figures."""
    engine = hub.engine
    now_s = time.monotonic()
    savers = engine.savers.values()
    figures: Figures = {
        "timestamp": engine.clock.wall_ms,
        "input_task_queue": sum(len(saver.batch.tasks) for saver in savers),
        "reporting_queue": sum(len(saver.batch.closing) for saver in savers),
        "saver_queue": sum(saver.in_flight for saver in savers),
        "pushing_queue": sum(_unpushed(log) for log in engine.logs),
        "relay_queue": sum(len(link.relay) for link in hub.pusher.links.values()),
        "mesh_queue": hub.mesh.waiting,
        "query_queue": hub.queries.waiting,
        # Callbacks and alerts are not part of this version: nothing can wait for them.
        "notify_queue": 0,
        "alert_queue": 0,
        "draining": int(engine.draining),
        "tasks_in_cache": len(engine.tasks),
        "tasks_bytes": engine.held_bytes,
        "tasks_parked": len(hub.parking),
        "timer_tasks": len(engine.wheel),
        "watched_tasks": len(hub.watches),
        "connections": len(hub.connections),
        "proxy_links": len(hub.proxies.sessions),
        "tasks_accepted": engine.counters.accepted,
        "pairs_reported": engine.counters.pairs,
        "receipts_queue_bytes": sum(saver.batch.receipt_bytes for saver in savers),
        "receipts_kept": engine.counters.receipts,
        "receipts_dropped": engine.counters.receipts_dropped,
        "commits": sum(saver.commits for saver in savers),
    }
    for state, number in engine.counters.finished.items():
        if state > State.ACTIVE:
            figures[f"tasks_{state.text}"] = number
    for name, rate in (("qps_boss", hub.rate_boss), ("qps_proxy", hub.rate_proxy)):
        for window, value in rate.figures(now_s).items():
            figures[f"{name}.{window}"] = value
    return figures


def _unpushed(log: Log) -> int:
    """Tasks of a log that no proxy was given yet. They are at its end."""
    number = 0
    segment: Segment | None = log.tail
    while segment is not None and segment.pushed < len(segment.tasks):
        number += len(segment.tasks) - segment.pushed
        segment = segment.prev
    return number


def add_up(parts: list[Figures]) -> Figures:
    """The engine's figures from its workers'."""
    total: Figures = {}
    for part in parts:
        for name, value in part.items():
            total[name] = max(total.get(name, 0), value) if name in _NOT_ADDED else total.get(name, 0) + value
    return total


def to_rows(figures: Figures) -> list[dict[str, Value]]:
    """As `stats` lists them."""
    return [{"name": name, "value": round(value, 3)} for name, value in sorted(figures.items())]


def proxies(hub: Hub) -> dict[str, dict[str, Any]]:
    """This worker's view of each proxy of the fleet."""
    waiting = _waiting_by_link(hub)
    views: dict[str, dict[str, Any]] = {}
    for proxy in hub.fleet:
        link = hub.pusher.links.get(proxy.name)
        session = hub.proxies.sessions.get(proxy.name)
        views[proxy.name] = {
            "group": proxy.group,
            "layer": proxy.layer,
            "listed": proxy.listed,
            "links": int(session is not None),
            "credit": session.link.credit if session is not None else 0,
            "outstanding": session.link.outstanding if session is not None else 0,
            "waiting": waiting[link] if link is not None else _owed(hub, proxy.name),
            "parked": hub.parking.owed_by(proxy.name),
            "seen": hub.proxies.seen_ms_ago(proxy.name),
            "receipt_key": session.receipt_key if session is not None else "",
        }
    return views


def add_views(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The view of a worker and its successor: a proxy's connection is at one of them, tasks are at both."""
    added = {**other, **one}
    for name in one.keys() & other.keys():
        seen = [view["seen"] for view in (one[name], other[name]) if view["seen"] is not None]
        numbers = {key: one[name].get(key, 0) + other[name].get(key, 0) for key in _ADDED}
        key = one[name].get("receipt_key") or other[name].get("receipt_key") or ""
        added[name] = {**one[name], **numbers, "seen": min(seen, default=None), "receipt_key": key}
    return added


def _waiting_by_link(hub: Hub) -> dict[Link, int]:
    """Tasks that each link has still to be given. One walk a log, whatever the number of links."""
    waiting = dict.fromkeys(hub.pusher.links.values(), 0)
    for log in hub.engine.logs:
        behind: dict[Segment, int] = {}
        total = 0
        for segment in reversed(list(log.segments())):
            behind[segment] = total
            total += segment.live
        for link, cursor in log.cursors.items():
            if isinstance(link, Link):
                here = sum(task is not None for task in cursor.segment.tasks[cursor.offset :])
                waiting[link] += behind.get(cursor.segment, 0) + here
    return waiting


def _owed(hub: Hub, name: str) -> int:
    """Tasks that wait for a proxy that is away."""
    return sum(log.live for log in hub.engine.logs if name in log.layer.places)
