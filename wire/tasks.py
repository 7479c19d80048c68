"""What a task asks for, as it stands on the wire (PROTOCOL.md, "Client verbs").

`TaskHead` is the part that many tasks share (everything but id and targets);
one object of it serves all tasks that came with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from wire import fields as f
from wire.errors import Refused
from wire.heads import HeadTable
from wire.lines import Line, format_line
from wire.verbs import VERBS, read_fields


class TaskHead(msgspec.Struct, frozen=True):
    """The content of a task but for its id and targets, with defaults filled in.

    `due` is in Unix seconds (None: at once); `ttl_s` counts from `due` or acceptance.
    """

    type: str
    scope: tuple[str, ...] | None = None
    due: int | None = None
    ttl_s: int = f.DEFAULT_TTL_S
    priority: int = f.DEFAULT_PRIORITY
    callback: str | None = None
    force: bool = False
    verify: bool = False
    """Done means seen to be gone (or warm)."""
    then: str | None = None
    """What follows at each proxy once it is done: `prefetch` or nothing."""


class NewTask(msgspec.Struct, frozen=True):
    """A task as a client posts it."""

    task_id: str
    head: TaskHead
    targets: tuple[str, ...]

    def line(self) -> bytes:
        """The `post_task` line. Raises: LocalError for what no line can carry."""
        return format_post(self.task_id, self.head, self.targets)


def read_task_head(line: Line) -> TaskHead:
    """Reads the fields of a `post_task` line; its items are not looked at.

    Raises: Refused, `missing_field` or `bad_field`.
    """
    values = read_fields(_POST_FIELDS_ONLY, line)
    check_then(values)
    return TaskHead(
        type=values["type"],
        scope=values.get("scope"),
        due=values.get("due"),
        ttl_s=values.get("ttl", f.DEFAULT_TTL_S),
        priority=values.get("priority", f.DEFAULT_PRIORITY),
        callback=values.get("callback"),
        force=values.get("force", False),
        verify=values.get("verify", False),
        then=values.get("then"),
    )


def check_then(values: Mapping[str, Any]) -> None:
    """Raises: Refused, where nobody can say what `then` would be done to."""
    if values.get("then") is not None and values["type"] != "url":
        raise Refused(
            "bad_field",
            f"then: got {values['then']} with type={values['type']}, wanted type=url: only there it is known"
            " which objects are to follow",
            field="then",
        )


_POST_FIELDS_ONLY = VERBS["post_task"]._replace(items_required=False)


def post_head_table() -> HeadTable[TaskHead]:
    """A table of heads for one reader of `post_task` lines."""
    return HeadTable("post_task", read_task_head)


def check_targets(task_type: str, targets: Iterable[str]) -> None:
    """Raises: Refused, `missing_field` or `bad_field`, with `field=target`."""
    number = 0
    for number, target in enumerate(targets, 1):
        fault = f.target_fault(task_type, target)
        if fault is not None:
            shown = target if len(target) <= 120 else target[:117] + "..."
            raise Refused("bad_field", f"target {number}, {shown!r}: {fault}", field="target")
    if number == 0:
        raise f.missing_field("target", "at least one after --")


def format_post(task_id: str, head: TaskHead, targets: Iterable[str]) -> bytes:
    """The `post_task` line, in the order of fields that an engine reads fastest."""
    return format_line(
        "post_task",
        {
            "task_id": task_id,
            "type": head.type,
            "scope": ",".join(head.scope) if head.scope else None,
            "due": head.due,
            "ttl": head.ttl_s if head.ttl_s != f.DEFAULT_TTL_S else None,
            "priority": head.priority if head.priority != f.DEFAULT_PRIORITY else None,
            "callback": head.callback,
            "force": 1 if head.force else None,
            "verify": 1 if head.verify else None,
            "then": head.then,
        },
        targets,
    )


class PushHead(msgspec.Struct, frozen=True):
    """The content of a `!task` push but for its id and targets."""

    type: str
    ttl_s: int | None = None
    priority: int = f.DEFAULT_PRIORITY
    force: bool = False
    verify: bool = False
    then: str | None = None


_PUSH = VERBS["post_task"]._replace(
    name="!task",
    items_required=False,
    fields=tuple(
        field
        for field in VERBS["post_task"].fields
        if field.name in ("task_id", "type", "ttl", "priority", "force", "verify", "then")
    ),
)


def read_push_head(line: Line) -> PushHead:
    """Reads the fields of a `!task` line. Raises: Refused, naming what an engine got wrong."""
    values = read_fields(_PUSH, line)
    check_then(values)
    return PushHead(
        type=values["type"],
        ttl_s=values.get("ttl"),
        priority=values.get("priority", f.DEFAULT_PRIORITY),
        force=values.get("force", False),
        verify=values.get("verify", False),
        then=values.get("then"),
    )


def push_head_table() -> HeadTable[PushHead]:
    """A table of heads for one reader of `!task` lines."""
    return HeadTable("!task", read_push_head)
