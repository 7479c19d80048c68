"""`stats`, `status`, `workers`, `proxies`, `quotas` and `ping`: the engine itself."""

from __future__ import annotations

import time
from typing import Any

from tools.refreshctl.context import Context
from tools.refreshctl.exits import Exit
from tools.refreshctl.operations import describe
from tools.refreshctl.tables import mebibytes, pairs, span, table, when
from wire.answers import OperationStatus, read_operation, read_value


async def stats(context: Context) -> Exit:
    """The engine's figures by name."""
    async with context.client() as client:
        figures = await client.stats()
    context.show(figures, pairs(figures))
    return Exit.OK


# What stays text, whatever it looks like.
_TEXTS = frozenset(
    {"key", "proxy", "group", "release", "step", "why", "engine", "address", "error", "receipt_key"}
)


def _values(fields: dict[str, str]) -> dict[str, Any]:
    return {key: value if key in _TEXTS else read_value(value) for key, value in fields.items()}


async def _rows(context: Context, verb: str) -> list[dict[str, Any]]:
    async with context.client() as client:
        answer = await client.request(verb)
    return [_values(row) for row in answer.rows]


async def status(context: Context) -> Exit:
    """The engine as a whole. The master answers."""
    async with context.client() as client:
        answer = await client.request("engine_status")
    values = _values(answer.fields)
    shown = {key: value for key, value in values.items() if key not in _OF_OPERATION}
    if "operation" in answer.fields:
        shown["operation"] = describe(read_operation(answer.fields))
    context.show(values, pairs(shown))
    return Exit.OK


_OF_OPERATION = frozenset(OperationStatus.__struct_fields__)


async def workers(context: Context) -> Exit:
    """The worker processes. The master answers, so it works when no worker does."""
    rows = await _rows(context, "list_workers")
    shown = [
        row | {"mem": mebibytes(row["mem"]) if isinstance(row.get("mem"), int) else row.get("mem")}
        for row in rows
    ]
    context.show({"workers": rows}, table(_columns(rows), shown) if rows else "no workers\n")
    return Exit.OK


async def proxies(context: Context) -> Exit:
    """The fleet, or with --forget taking one proxy out of it."""
    name = context.args.forget
    if name is not None:
        async with context.client() as client:
            await client.request("forget_proxy", {"name": name})
        context.show({"forgotten": name}, f"{name} is forgotten; new tasks do not wait for it\n")
        return Exit.OK
    rows = await _rows(context, "list_proxies")
    shown = [_readable(row) for row in rows]
    context.show({"proxies": rows}, table(_columns(shown), shown) if rows else "no proxies\n")
    return Exit.OK


async def quotas(context: Context) -> Exit:
    """The keys: limits and use."""
    rows = await _rows(context, "list_quotas")
    shown = [_used_of_limit(row) for row in rows]
    context.show({"quotas": rows}, table(_columns(shown), shown) if rows else "no keys\n")
    return Exit.OK


def _used_of_limit(row: dict[str, Any]) -> dict[str, Any]:
    """What is used and its limit in one cell, `80/100`; where there is no limit, what is used."""
    shown: dict[str, Any] = {}
    for key, value in row.items():
        limit = row.get(f"{key}_max")
        if key in ("rate", "burst"):
            shown[key] = value or None
        elif not key.endswith("_max"):
            shown[key] = f"{value}/{limit}" if limit else value
    return shown


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Flags as words, and how long ago the proxy was heard; only of one that is connected."""
    seen = row.get("seen")
    # Of 64 digits, for programs.
    row = {key: value for key, value in row.items() if key != "receipt_key"}
    flags = {key: "yes" if row[key] else "no" for key in ("listed", "online") if key in row}
    return row | flags | {"seen": f"{span(seen)} ago" if isinstance(seen, int) else None}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """All keys, in the order in which the engine names them."""
    return list(dict.fromkeys(key for row in rows for key in row))


async def cluster(context: Context) -> Exit:
    """The engines that share the store."""
    rows = await _rows(context, "list_engines")
    shown = [_of_engine(row) for row in rows]
    alone = "no other engine shares this one's store\n"
    context.show({"engines": rows}, table(_columns(shown), shown) if rows else alone)
    return Exit.OK


def _of_engine(row: dict[str, Any]) -> dict[str, Any]:
    """Flags as words, times as spans."""
    flags = {key: "yes" if row[key] else "no" for key in ("self", "alive", "leads", "draining") if key in row}
    spans = {key: span(row[key]) for key in ("lease", "lag") if isinstance(row.get(key), int)}
    return row | flags | spans


async def ping(context: Context) -> Exit:
    """Whether the engine answers, and how fast."""
    async with context.client() as client:
        await client.ping()
        start = time.monotonic()
        now = await client.ping()
        ms = round((time.monotonic() - start) * 1000, 3)
    context.show({"now": now, "ms": ms}, f"answered in {ms} ms; the engine's clock says {when(now)}\n")
    return Exit.OK
