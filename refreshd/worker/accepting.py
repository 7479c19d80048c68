"""What is said of a task that is posted: accepted, known, or refused, and why. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from refreshd.errors import StoreError
from refreshd.task import Task, Terms, read_terms
from wire.errors import Refused
from wire.lines import parse

BUSY_RETRY_MS = 200


def accepted_reply(task: Task) -> bytes:
    """The reply to a task that was just accepted."""
    return b"ok task_id=%b state=pending total=%d\n" % (task.id, task.layer.plan.size * task.count)


def dup_reply(task: Task) -> bytes:
    """The reply to a repeat of a task."""
    return b"ok task_id=%b state=%b total=%d dup=1\n" % (task.id, task.state.text.encode(), task.total)


def conflict(task_id: bytes) -> Refused:
    """The refusal for an id that is in use for something else."""
    return Refused("conflict", f"the task {task_id.decode()} exists with another content; make up a new id")


def unavailable(error: StoreError) -> Refused:
    """The refusal while the store cannot keep anything."""
    return Refused("unavailable", f"{error}; nothing was accepted", retry_ms=1000)


def same_content(one: bytes, other: bytes) -> bool:
    """Whether two `post_task` lines ask for the same (PROTOCOL.md: order is part of nothing)."""
    if one == other:
        return True
    first, second = parse(one), parse(other)
    if sorted(first.items or ()) != sorted(second.items or ()):
        return False
    return read_terms(first).head == read_terms(second).head


def check_domains(key: str, domains: Sequence[str] | None, terms: Terms, raw: bytes) -> None:
    """Checks that a key may touch all targets. `domains` is None where the key is not known.

    Raises: Refused, `denied` or `busy`.
    """
    if domains is None:
        # The sibling that greeted it was configured a moment sooner, or later.
        raise Refused("busy", f"the keys change; {key} is not known here", retry_ms=BUSY_RETRY_MS)
    if terms.type == "tag":
        raise Refused("denied", f"key {key} is bound to domains, and a tag has none")
    for target in parse(raw).items or ():
        host = target.split("://", 1)[1].partition("/")[0].partition("?")[0]
        host = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdecimal() else host
        host = host.lower().rstrip(".")
        if not any(host == domain or host.endswith("." + domain) for domain in domains):
            raise Refused("denied", f"key {key} may not touch {host}; its domains are {', '.join(domains)}")
