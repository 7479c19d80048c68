"""`submit`: targets become tasks, which are posted and, if asked for, waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tools.refreshctl.context import Context
from tools.refreshctl.documents import document, error_document
from tools.refreshctl.exits import Exit, code_of, explain, usage
from tools.refreshctl.ids import ids_for
from tools.refreshctl.progress import bar
from tools.refreshctl.tables import count, table
from tools.refreshctl.targets import gather, split
from tools.refreshctl.times import seconds, unix_seconds
from tools.refreshctl.waiting import End, Waiter, code_of_end, merge
from wire.client import Client, Outcome
from wire.errors import Refused
from wire.fields import DEFAULT_PRIORITY, DEFAULT_TTL_S, read_id
from wire.lines import parse
from wire.tasks import NewTask, TaskHead, read_task_head

# On a terminal, more tasks than this are summed up instead of listed.
LISTED_MAX = 20


async def submit(context: Context) -> Exit:
    """Submits; the exit code tells of posting, and under --wait of the ends."""
    args = context.args
    timeout_s = seconds(args.timeout, "--timeout") if args.timeout is not None else None
    tasks = make_tasks(args, time.time())
    async with context.client() as client:
        outcomes = await _post(client, tasks)
        accepted = [outcome.task_id for outcome in outcomes if outcome.accepted]
        ends: dict[str, End] = {}
        if args.wait and accepted:
            with bar("waiting", 0) as tell:
                ends = await Waiter(client, accepted, timeout_s, tell).run()
    context.show(_document(outcomes, ends), _text(outcomes, ends) if accepted else "")
    _complain(context, outcomes, ends)
    return _code(outcomes, ends)


def make_tasks(args: Any, now_s: float) -> list[NewTask]:
    """The tasks that the arguments ask for. Raises: Failure, before anything is sent."""
    head = _head(args, now_s)
    parts = split(gather(args.targets, args.file, args.type), args.per_task)
    ids = ids_for(len(parts), args.id, int(now_s * 1000))
    for task_id in (ids[0], ids[-1]):
        try:
            read_id(task_id)
        except ValueError:
            raise usage(f"--id: got {task_id!r}, wanted 1 to 64 of A-Za-z0-9._:-") from None
    return [NewTask(task_id, head, targets) for task_id, targets in zip(ids, parts, strict=True)]


def _head(args: Any, now_s: float) -> TaskHead:
    head = TaskHead(
        args.type,
        scope=tuple(sorted(set(args.scope.split(",")))) if args.scope is not None else None,
        due=unix_seconds(args.due, now_s) if args.due is not None else None,
        ttl_s=seconds(args.ttl, "--ttl") if args.ttl is not None else DEFAULT_TTL_S,
        priority=DEFAULT_PRIORITY if args.priority is None else args.priority,
        callback=args.callback,
        force=args.force,
        verify=args.verify,
        then=args.then,
    )
    try:
        # Written and read back, so that what an engine would refuse is found here, by its rules.
        return read_task_head(parse(NewTask("x", head, ("x",)).line()[:-1]))
    except Refused as refused:
        raise usage(f"--{refused.msg}") from None


async def _post(client: Client, tasks: list[NewTask]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with bar("submitting", len(tasks)) as tell:
        async for outcome in client.post_many(tasks):
            outcomes.append(outcome)
            tell(len(outcomes), len(tasks))
    return outcomes


def _row(outcome: Outcome, ends: Mapping[str, End]) -> dict[str, Any]:
    row: dict[str, Any] = {"task_id": outcome.task_id}
    if outcome.accepted is not None:
        row |= document(outcome.accepted)
    elif outcome.error is not None:
        row["error"] = error_document(outcome.error)
    end = ends.get(outcome.task_id)
    return row if end is None else row | end.document()


def _document(outcomes: list[Outcome], ends: Mapping[str, End]) -> dict[str, Any]:
    accepted = sum(outcome.accepted is not None for outcome in outcomes)
    return {
        "accepted": accepted,
        "refused": len(outcomes) - accepted,
        "tasks": [_row(outcome, ends) for outcome in outcomes],
    }


def _text(outcomes: list[Outcome], ends: Mapping[str, End]) -> str:
    rows = [_row(outcome, ends) for outcome in outcomes if outcome.accepted]
    for row in rows:
        row["targets"] = row["total"]
    columns = ["task_id", "state", "total", *(["done", "failed"] if ends else [])]
    if len(rows) <= LISTED_MAX:
        return table(columns, rows)
    states: dict[str, int] = {}
    for row in rows:
        states[row["state"]] = states.get(row["state"], 0) + 1
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    first, last = rows[0]["task_id"], rows[-1]["task_id"]
    return f"{count(len(rows), 'task')}, {first} to {last}: {told}\n"


def _complain(context: Context, outcomes: list[Outcome], ends: Mapping[str, End]) -> None:
    """One line for what was not accepted, one for what did not end well."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        which = (
            "" if len(outcomes) == 1 else f"{len(errors)} of {len(outcomes)} tasks not accepted; the first: "
        )
        context.complain(which + explain(errors[0], context.socket))
    bad = [(task_id, end) for task_id, end in ends.items() if code_of_end(end) is not Exit.OK]
    if bad:
        task_id, end = bad[0]
        state = end.state.state if end.state else "unknown"
        how = f"ended {state}" if end.error is None else explain(end.error, context.socket)
        which = "" if len(ends) == 1 else f"{len(bad)} of {len(ends)} tasks did not complete; the first: "
        context.complain(f"{which}{task_id} {how}; see `refreshctl show {task_id}`")


def _code(outcomes: list[Outcome], ends: Mapping[str, End]) -> Exit:
    codes = [code_of(outcome.error) for outcome in outcomes if outcome.error is not None]
    if ends:
        codes += [code_of_end(end) for end in ends.values()]
    elif len(codes) < len(outcomes):
        codes.append(Exit.OK)
    return merge(codes)
