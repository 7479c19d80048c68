"""Which steps prove that a task was done at a kind of cache, or why nothing can. Pure. See `course.py`."""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING

from proxyd.caches import CacheKind, Deed
from proxyd.course import Course, Plan
from proxyd.evidence import Evidence
from wire.fields import TASK_TYPES
from wire.tasks import PushHead

if TYPE_CHECKING:
    from proxyd.route import Lanes

# Nobody can guess the next one, and so have it there.
_RUN = secrets.token_hex(4)
_numbers = itertools.count(1)


def plan_proof(cache: Lanes, head: PushHead) -> Plan | str:
    """The steps of a task at a cache, or why it is refused there."""
    deed, why = cache.deed_of(head.type, force=head.force)
    if deed is None:
        return f"type={head.type} refused: {why}"
    plan = _plan(cache.kind, head, deed, soft=deed in cache.kind.soft.values())
    asked = "verify=1" if head.verify else f"then={head.then}"
    return f"{asked} refused: {plan}" if isinstance(plan, str) else plan


def provable_types(kind: CacheKind) -> list[str]:
    """The task types that can be verified at a kind of cache."""
    heads = [PushHead(task_type, verify=True) for task_type in TASK_TYPES]
    able: list[str] = []
    for head in heads:
        deed = kind.deeds.get(head.type)
        if deed is not None and not isinstance(_plan(kind, head, deed, soft=False), str):
            able.append(head.type)
    return able


def _plan(kind: CacheKind, head: PushHead, deed: Deed, *, soft: bool) -> Plan | str:
    if head.type == "prefetch":
        if kind.look is None:
            return kind.no_look
        return Plan(None, kind.look, None, deed)
    warm = kind.deeds.get("prefetch") if head.then else None
    if head.then and warm is None:
        return kind.refused.get("prefetch", "it cannot be prefetched there")
    if deed.certain:
        return Plan(deed, None, None, warm)
    if head.type == "url":
        if kind.look is None and head.verify:
            return kind.no_look
        return Plan(deed, kind.look, None, warm, soft)
    if kind.look is None:
        return kind.no_look
    if kind.canary is None or head.type not in ("dir", "tag"):
        return f"nothing tells whether all that a type={head.type} is about is gone"
    return Plan(deed, kind.look, kind.canary, warm, tagged=head.type == "tag")


def make_course(cache: Lanes, plan: Plan, host: bytes, path: bytes, evidence: Evidence) -> Course:
    """The course of one target."""
    if plan.plant is None:
        return Course(cache, plan, host, path, evidence)
    below = b"/" if plan.tagged else path
    name = f".refreshd-canary-{_RUN}-{next(_numbers)}".encode()
    return Course(cache, plan, host, path, evidence, below + name)
