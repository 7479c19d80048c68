"""`explain`: a dry run. What a task would do at each cache; nothing is done."""

from __future__ import annotations

from typing import Any

from tools.refreshctl.asking import ask, complain_of_silence, dicts
from tools.refreshctl.context import Context
from tools.refreshctl.exits import Exit, usage
from tools.refreshctl.tables import printable
from wire.errors import Refused
from wire.fields import target_fault


async def explain(context: Context) -> Exit:
    """What every proxy of the scope says; refusals are part of the answer, and no failure."""
    args = context.args
    for target in args.targets:
        fault = target_fault(args.type, target)
        if fault is not None:
            raise usage(f"{target!r}: {fault}")
    fields = {
        "type": args.type,
        "force": 1 if args.force else None,
        "verify": 1 if args.verify else None,
        "then": args.then,
    }
    try:
        rows = await ask(context, "explain", fields, args.targets)
    except Refused as refused:
        if refused.field == "then":
            raise usage(f"--then: {refused.msg}") from None
        raise
    context.show({"proxies": rows}, "".join(_text(row) for row in rows))
    return complain_of_silence(context, rows)


def _text(row: dict[str, Any]) -> str:
    """A proxy: its targets, each with what is done at each cache."""
    answer = row.get("answer") or {}
    state = "" if answer else f": {row['state']}"
    lines = [f"{row['proxy']} (group {row.get('group', '-')}, layer {row.get('layer', '-')}){state}"]
    for target in dicts(answer.get("targets")):
        lines.append(f"  {printable(target.get('target'))}")
        if "refused" in target:
            lines.append(f"    refused: {printable(target['refused'])}")
        for cache in dicts(target.get("caches")):
            lines += [f"    {line}" for line in _of_cache(cache)]
    return "\n".join(lines) + "\n"


def _of_cache(row: dict[str, Any]) -> list[str]:
    begin = f"{printable(row.get('cache'))} ({printable(row.get('kind'))})"
    if "refused" in row:
        return [f"{begin}: type={row.get('type')} refused: {printable(row['refused'])}"]
    request = str(row.get("request") or "").split("\n")
    how = "" if row.get("exact", True) else ", the same effect by other means"
    lines = [f"{begin}: {printable(request[0] or row.get('method'))} ({row.get('lane')} lane{how})"]
    lines += [f"  {printable(line)}" for line in request[1:]]
    if row.get("note"):
        lines.append(f"  takes: {printable(row['note'])}")
    if "ban" in row:
        lines.append(f"  ban: {printable(row['ban'])}")
    for into in dicts([row.get("merged_into")]):
        other = printable(f"type={into.get('type')} {into.get('target')}")
        lines.append(f"  merged into what waits there: {other}")
    for key, what in (("verified_by", "verified by"), ("unverified", "cannot be verified")):
        if key in row:
            lines.append(f"  {what}: {printable(row[key])}")
    if "bytes" in row:
        known, why = row["bytes"], row.get("bytes_why")
        lines.append(f"  bytes: {known if isinstance(known, int) else f'unknown: {printable(why)}'}")
    return lines
