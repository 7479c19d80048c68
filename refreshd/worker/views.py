"""Tasks as the wire shows them: from memory or from the store, in one form."""

from __future__ import annotations

from refreshd.fanout import Cursor
from refreshd.fleet import Plan, plan_size
from refreshd.shard import created_ms
from refreshd.store.base import ReceiptRow, Stored
from refreshd.task import Failure, State, Task, read_marks, read_terms, read_verified
from refreshd.worker.parked import task_of
from wire.lines import Value, format_line, parse

Fields = dict[str, Value]
# Of receipts in one reply; escaped, they may be twice as long.
RECEIPTS_MAX_BYTES = 1 << 20


def describe(task: Task) -> Fields:
    """The fields of get_task for a task in memory."""
    done, failed = task.counts()
    return {
        "task_id": task.id.decode(),
        "type": task.terms.type,
        "state": task.state.text,
        "total": task.total,
        "done": done,
        "failed": failed,
        "created": created_ms(task.serial),
        "updated": task.updated_ms,
    }


def describe_ended(task: Task) -> Fields:
    """As `describe`, for a task whose end has just been saved."""
    done, failed = task.final_counts()
    return {**describe(task), "done": done, "failed": failed}


def describe_stored(stored: Stored, state: State | None = None) -> Fields:
    """The fields of get_task for a row of the store; `state` where it has no result and is not parked."""
    parked = task_of(stored)
    if parked is not None:
        return describe(parked)
    line = parse(stored.line)
    result = stored.result
    shown = state if result is None or state is not None else result.state
    return {
        "task_id": stored.id.decode(),
        "type": read_terms(line).type,
        "state": (shown or State.PENDING).text,
        "total": plan_size(stored.plan) * len(line.items or ()),
        "done": result.done if result else 0,
        "failed": result.failed if result else 0,
        "created": created_ms(stored.serial),
        "updated": result.updated_ms if result else created_ms(stored.serial),
    }


def state_push(task: Task) -> bytes:
    """The `!state` push of a task in its present state."""
    done, failed = task.final_counts() if task.closing is task.state else task.counts()
    return b"!state task_id=%b state=%b done=%d failed=%d total=%d\n" % (
        task.id,
        task.state.text.encode(),
        done,
        failed,
        task.total,
    )


def stored_push(stored: Stored) -> bytes:
    """The `!state` push of a row of the store."""
    fields = describe_stored(stored)
    return format_line(
        "!state", {key: fields[key] for key in ("task_id", "state", "done", "failed", "total")}
    )


def detail(task: Task) -> bytes:
    """The whole task_detail reply for a task in memory."""
    marks = read_marks(bytes(task.marks or b""))
    verified = read_verified(bytes(task.marks or b"")) if task.terms.verify else ()
    cursors = _cursors(task)
    rows = []
    for rank, (name, layer) in enumerate(task.layer.plan.ranks):
        if rank in marks:
            rows.append(_ended_row(name, layer.number, task.count, *marks[rank], verified=rank in verified))
            continue
        state = State.PENDING
        if layer is task.layer and name in cursors and cursors[name].has_passed(task):
            state = State.ACTIVE
        done, failed = task.extra.progress.get(rank, (0, 0)) if task.extra else (0, 0)
        rows.append(_row(name, layer.number, state.text, done, failed, 0))
    return _listing(rows)


def _cursors(task: Task) -> dict[str, Cursor]:
    """Proxy → cursor, for the log that the task is in."""
    if task.segment is None:
        return {}
    return {getattr(link, "name", ""): cursor for link, cursor in task.segment.log.cursors.items()}


def stored_detail(stored: Stored) -> bytes:
    """The whole task_detail reply for a finished or parked task."""
    parked = task_of(stored)
    if parked is not None:
        return detail(parked)
    result = stored.result
    marks = read_marks(result.marks) if result else {}
    verified = read_verified(result.marks) if result else ()
    state = result.state if result else State.PENDING
    count = len(parse(stored.line).items or ())
    rows = []
    for rank, (name, layer) in enumerate(Plan.from_text(stored.plan).ranks):
        if rank in marks:
            rows.append(_ended_row(name, layer.number, count, *marks[rank], verified=rank in verified))
        else:
            failed = 0 if state is State.CANCELLED else count
            rows.append(_row(name, layer.number, state.text, 0, failed, 0))
    return _listing(rows)


def _ended_row(
    name: str, layer: int, count: int, ms: int, failure: Failure | None, *, verified: bool
) -> bytes:
    if failure is None:
        return _row(name, layer, State.COMPLETE.text, count, 0, ms, verified=verified)
    return _row(name, layer, State.FAILED.text, failure.done, failure.failed, ms, failure.error)


def _row(
    name: str,
    layer: int,
    state: str,
    done: int,
    failed: int,
    ms: int,
    error: str = "",
    *,
    verified: bool = False,
) -> bytes:
    fields: Fields = {"proxy": name, "layer": layer, "state": state, "done": done, "failed": failed, "ms": ms}
    return format_line("+", {**fields, "verified": 1 if verified else None, "error": error or None})


def _listing(rows: list[bytes]) -> bytes:
    return b"ok n=%d\n" % len(rows) + b"".join(rows)


def receipts(found: list[ReceiptRow], *, may_be_more: bool) -> bytes:
    """The `task_receipt` reply: as many as fit in it, and whether it is worth while to ask for more."""
    shown: list[ReceiptRow] = []
    room = RECEIPTS_MAX_BYTES
    for row in found:
        room -= len(row.text)
        if shown and room < 0:
            may_be_more = True
            break
        shown.append(row)
    more = b" more=1" if may_be_more else b""
    return b"ok n=%d%b\n" % (len(shown), more) + b"".join(
        format_line("+", {"proxy": row.proxy, "bytes": len(row.text), "receipt": row.text.decode()})
        for row in shown
    )


def ok(fields: Fields) -> bytes:
    """An `ok` reply with fields."""
    return format_line("ok", fields)


def row(fields: Fields) -> bytes:
    """One row of a listing."""
    return format_line("+", fields)


def rows(fields: list[Fields]) -> bytes:
    """A whole listing."""
    return _listing([format_line("+", row) for row in fields])
