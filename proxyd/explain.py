"""A dry run: what would be done with some targets at each cache, and why not. Nothing is changed anywhere.

`explain` is pure. `Sizes` asks caches how long objects are, where that makes none fetch what it has not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from proxyd.caches import CacheKind, Deed
from proxyd.course import Plan
from proxyd.errors import BadTarget
from proxyd.merging import MergingQueue
from proxyd.proving import plan_proof
from proxyd.route import SLOW_TYPES, SPLITS, Lanes
from proxyd.targets import split_target
from proxyd.tasks import Exchange
from wire.tasks import PushHead

Document = dict[str, Any]

# Objects that caches are asked about for one question, and for how long: an operator waits for 3 s.
SIZES_MAX = 8
SIZES_S = 2.0
_HEAD_MAX_BYTES = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE).search
# Of an answer that refreshd.vcl has made, whose own length is another one.
_KEPT_LENGTH = re.compile(rb"\r\nx-refreshd-size:[ \t]*([0-9]{0,15})[ \t]*\r\n", re.IGNORECASE).search
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})").match

# What each kind is asked, so that it neither fetches a whole object nor keeps one: nginx turns a HEAD into a
# GET, whose answer it keeps; Varnish would, too, and has a method of ours.
SIZE_METHODS = {"ats": b"HEAD", "squid": b"HEAD", "varnish": b"SIZE"}


def explain(caches: Iterable[Lanes], head: PushHead, targets: Sequence[bytes]) -> Document:
    """What a task of this head would do with each target, at each cache."""
    lanes = list(caches)
    return {"targets": [_explain_target(lanes, head, target) for target in targets]}


def _explain_target(caches: list[Lanes], head: PushHead, target: bytes) -> Document:
    shown: Document = {"target": target.decode("utf-8", "replace")}
    try:
        parts = SPLITS.get(head.type, split_target)(target)
    except BadTarget as error:
        return shown | {"refused": str(error)}
    rows = [_explain_at(cache, head.type, parts, head, target) for cache in caches]
    if head.then is not None:
        rows += [_explain_at(cache, head.then, parts, head, target) for cache in caches]
    return shown | {"caches": rows}


def _explain_at(
    cache: Lanes, task_type: str, parts: tuple[bytes, bytes], head: PushHead, target: bytes
) -> Document:
    """One request to one cache, or why there is none."""
    row: Document = {"cache": cache.name, "kind": cache.kind.name, "type": task_type}
    deed, why = cache.deed_of(task_type, force=head.force)
    if deed is None:
        return row | {"refused": why}
    proof: Document = {}
    if task_type == head.type and (head.verify or head.then is not None):
        plan = plan_proof(cache, head)
        if isinstance(plan, str):
            return row | {"refused": plan}
        proof = _proof_of(plan, deed)
    try:
        request = deed.render(*parts)
    except BadTarget as error:
        return row | {"refused": str(error)}
    row |= {"method": deed.method.decode(), "exact": deed.exact, "note": deed.note}
    row |= {"lane": "slow" if task_type in SLOW_TYPES else "fast", "request": printable(request)}
    ban = ban_of(cache.kind, task_type, parts)
    if ban is not None:
        row["ban"] = ban
    row |= proof
    # What is looked at goes through a lane of its own, in which nothing is merged.
    merges = task_type not in SLOW_TYPES and row["lane"] == "fast"
    merged = _merged_into(cache, head, target) if merges else None
    if merged is not None:
        row["merged_into"] = merged
    return row


def _proof_of(plan: Plan, deed: Deed) -> Document:
    """How it is seen that it was done, or that nothing shows it."""
    if deed.certain:
        return {"verified_by": "who does it sees it"}
    if plan.look is None:
        return {"unverified": "nothing shows whether it is gone"}
    planted = "" if plan.plant is None else f" of what {plan.plant.method.decode()} has put there before"
    return {"lane": "look", "verified_by": f"{plan.look.method.decode()}{planted}"}


def _merged_into(cache: Lanes, head: PushHead, target: bytes) -> Document | None:
    """What waits at the cache that would do it as well, see `merging.py`.

    All is merged while the agent catches up; bans are, too, while too many of them are there.
    """
    exchange: Exchange | None = None
    queue = cache.fast.queue
    if isinstance(queue, MergingQueue):
        exchange = queue.satisfying(head.type, target, force=head.force)
    if exchange is None and cache.bans is not None:
        exchange = cache.bans.satisfying(head.type, target, force=head.force)
    if exchange is None:
        return None
    return {"type": exchange.task.head.type, "target": exchange.target.decode("utf-8", "replace")}


def printable(request: bytes) -> str:
    """A request as people read it: its lines, without the CRs, bytes that are no text as `?`."""
    text = request.decode("ascii", "replace").replace("\ufffd", "?").replace("\r\n", "\n").rstrip("\n")
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


_SPECIAL = re.compile(rb"([^A-Za-z0-9/_-])")


def ban_of(kind: CacheKind, task_type: str, parts: tuple[bytes, bytes]) -> str | None:
    """The expression of the ban that `refreshd.vcl` makes of a request; None where none is made."""
    if kind.name != "varnish":
        return None
    host, path = parts
    on_host = b"obj.http.x-refreshd-host == %b && obj.http.x-refreshd-url ~ " % host.lower()
    match task_type:
        case "dir":
            ban = on_host + b"^" + _SPECIAL.sub(rb"\\\1", path)
        case "regex":
            ban = on_host + b"^(?:%b)$" % path
        case "tag":
            tag = _SPECIAL.sub(rb"\\\1", path)
            ban = rb"obj.http.x-refreshd-tags ~ (?:^|[\x20,])" + tag + rb"(?:$|[\x20,])"
        case _:
            return None
    return ban.decode("ascii", "replace")


class Sizes:
    """Asks caches how many bytes prefetches would move."""

    async def add(self, caches: Iterable[Lanes], document: Document) -> None:
        """Adds `bytes` to each prefetch of an explained document: None, and `bytes_why`, where not known."""
        addresses = {cache.name: cache for cache in caches}
        rows = [
            (target["target"].encode(), row)
            for target in document["targets"]
            for row in target.get("caches", ())
            if row["type"] in SLOW_TYPES and "refused" not in row
        ]
        asked: list[Coroutine[Any, Any, None]] = []
        for target, row in rows:
            row["bytes"] = None
            cache = addresses[row["cache"]]
            if cache.kind.name not in SIZE_METHODS:
                row["bytes_why"] = "a HEAD would have this kind of cache fetch and keep the object"
            elif len(asked) >= SIZES_MAX:
                row["bytes_why"] = f"caches are asked about {SIZES_MAX} objects at a time"
            else:
                asked.append(self._add_one(cache, target, row))
        if asked:
            await asyncio.gather(*asked)

    async def _add_one(self, cache: Lanes, target: bytes, row: Document) -> None:
        try:
            async with asyncio.timeout(SIZES_S):
                method = SIZE_METHODS[cache.kind.name]
                length = await ask_length(cache.address, split_target(target), method)
        except (TimeoutError, OSError) as error:
            row["bytes_why"] = f"the cache does not answer: {str(error) or f'{SIZES_S:g} s'}"
        else:
            row |= {"bytes": length} if isinstance(length, int) else {"bytes_why": length}


async def ask_length(
    address: tuple[str, int], parts: tuple[bytes, bytes], method: bytes = b"HEAD"
) -> int | str:
    """The length of an object as the headers of an answer tell it, or why that is not known.

    Raises: OSError.
    """
    deed = Deed(method=method, good=frozenset(), headers=b"Connection: close\r\nAccept-Encoding: gzip\r\n")
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(deed.render(*parts))
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _HEAD_MAX_BYTES:
            data = await reader.read(16 * 1024)
            if not data:
                break
            answer += data
    finally:
        writer.close()
    status = _STATUS(answer)
    if status is None:
        return "the cache's answer is not one of HTTP"
    if not status[1].startswith(b"2"):
        return f"it was answered {status[1].decode()}"
    head = answer.partition(b"\r\n\r\n")[0] + b"\r\n"
    length = _KEPT_LENGTH(head) or _LENGTH(head)
    return int(length[1]) if length and length[1] else "the answer does not say how long it is"
