"""`caches` and `breakers`: what only the agents know, asked through the engine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tools.refreshctl.context import Context
from tools.refreshctl.exits import Exit
from tools.refreshctl.tables import Cell, table
from wire.lines import Value

# What became of a question, for people.
_WHY_NOT = {
    "silent": "it did not answer within 3 s",
    "unable": "its agent is too old to know how; upgrade it",
    "offline": "it is not connected",
}
_CACHES = (
    "proxy", "cache", "kind", "address", "group", "state", "waiting", "in_flight", "bans",
    "bans_waiting", "down_for", "why",
)  # fmt: skip
_BREAKERS = (
    "proxy", "cache", "lane", "state", "concurrency", "successes", "failures", "timeouts",
    "consecutive_errors", "error_rate", "for", "why",
)  # fmt: skip


async def ask(
    context: Context,
    what: str,
    fields: Mapping[str, Value] | None = None,
    targets: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """What each proxy says: a row a proxy, with `answer` as a document where it has answered."""
    scope = context.args.scope
    async with context.client() as client:
        asked = {"what": what, "scope": scope, **(fields or {})}
        answer = await client.request("ask_proxies", asked, targets)
    return [_read(row) for row in answer.rows]


def _read(row: Mapping[str, str]) -> dict[str, Any]:
    read: dict[str, Any] = dict(row)
    for key in ("layer", "ms"):
        if row.get(key, "").isdecimal():
            read[key] = int(row[key])
    if "answer" in row:
        read["answer"] = json.loads(row["answer"])
    return read


def complain_of_silence(context: Context, rows: list[dict[str, Any]]) -> Exit:
    """One line for each proxy of which nothing is known, or not all; and the exit code for that."""
    known = 0
    for row in rows:
        answer = row.get("answer") or {}
        why = _WHY_NOT.get(row["state"], row["state"]) if not answer else answer.get("error")
        if why is None and answer.get("cut"):
            why = f"only a part of its answer fits: {answer.get('of', 'more')} rows; ask with --scope"
        if why is None:
            known += 1
        else:
            context.complain(f"{row['proxy']}: {why}")
    if known == len(rows):
        return Exit.OK
    return Exit.PARTLY if known else Exit.FAILED


async def caches(context: Context) -> Exit:
    """A row a cache."""
    rows = await ask(context, "caches")
    shown = [_of_cache(proxy, cache) for proxy, cache in _caches(rows)]
    return _show(context, rows, shown, _CACHES)


async def breakers(context: Context) -> Exit:
    """A row a cache and lane."""
    rows = await ask(context, "caches")
    shown = [
        _with_span({"proxy": proxy, "cache": cache.get("cache"), **lane}, "for_s", "for")
        for proxy, cache in _caches(rows)
        for lane in dicts(cache.get("lanes"))
    ]
    return _show(context, rows, shown, _BREAKERS)


def _caches(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(row["proxy"], cache) for row in rows for cache in dicts((row.get("answer") or {}).get("caches"))]


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects in a list of an answer, whatever an agent has put there."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _of_cache(proxy: str, cache: dict[str, Any]) -> dict[str, Cell]:
    return _with_span({"proxy": proxy, **cache}, "down_for_s", "down_for")


def _with_span(row: dict[str, Any], key: str, name: str) -> dict[str, Cell]:
    """With a time as people read it."""
    seconds = row.get(key)
    return row | {name: f"{seconds:g} s" if isinstance(seconds, int | float) else None}


def _show(
    context: Context, rows: list[dict[str, Any]], shown: list[dict[str, Cell]], columns: tuple[str, ...]
) -> Exit:
    context.show({"proxies": rows}, table(columns, shown) if shown else "")
    return complain_of_silence(context, rows)
