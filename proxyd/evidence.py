"""What was done to a target at a cache, and what was seen there; kept for tasks that are to prove it. Pure.

An `Evidence` is filled in by whoever does something to the target (a purge, a look, a prefetch) while its
exchange is in hand; when that ends, the dispatcher adds it to its task's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from wire.tasks import PushHead

# Of one task: 0.4 KB each. What is beyond is counted, see `Task.evidence_left_out`.
EVIDENCE_MAX = 1000


class Evidence(msgspec.Struct, omit_defaults=True):
    """One target at one cache. Times of day are Unix ms; None where it was not done."""

    cache: str
    target: str
    purges: int = 0
    """How often it was purged: more than once if an old copy was seen to be back."""
    purged_ms: int | None = None
    """When the cache had answered the last purge."""
    verified_ms: int | None = None
    """When it was seen to be gone (of a prefetch: to be there)."""
    status: int | None = None
    """What the prefetch was answered with."""
    size_bytes: int | None = None
    """What came of bodies, in all, as they were sent."""
    took_ms: int | None = None
    """How long the prefetch took."""
    hit: bool = False
    """The prefetch found it there."""
    error: str | None = None
    more: dict[str, Any] = {}
    """What else is worth telling, by kind of work."""


def is_evidence_wanted(head: PushHead) -> bool:
    """Whether a task like this has evidence."""
    return head.verify or head.then is not None or head.type == "prefetch"
