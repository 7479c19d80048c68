"""`show`, `wait`, `list` and `cancel`: what is known of tasks, and ending them."""

from __future__ import annotations

import time
from typing import Any

from tools.refreshctl.context import Context
from tools.refreshctl.documents import document, error_document
from tools.refreshctl.exits import Exit, code_of, explain, usage
from tools.refreshctl.progress import bar
from tools.refreshctl.tables import count, pairs, span, table, when
from tools.refreshctl.times import seconds
from tools.refreshctl.waiting import Waiter, code_of_end, merge
from wire.errors import WireError
from wire.fields import read_id


def _task_id(text: str) -> str:
    try:
        return read_id(text)
    except ValueError:
        raise usage(f"{text[:80]!r} is not a task id; wanted 1 to 64 of A-Za-z0-9._:-") from None


async def show(context: Context) -> Exit:
    """One task: its counts, and how it stands at each proxy."""
    task_id = _task_id(context.args.id)
    async with context.client() as client:
        status = await client.get(task_id)
        proxies = await client.detail(task_id)
    fields = document(status)
    rows = [document(proxy) for proxy in proxies]
    text = pairs({**fields, "created": when(status.created), "updated": when(status.updated)})
    if rows:
        columns = ["proxy", "layer", "state", "done", "failed", "ms"]
        columns += ["verified"] if any(proxy.verified for proxy in proxies) else []
        columns += ["error"] if any(proxy.error for proxy in proxies) else []
        shown = [row | {"verified": "yes" if row.get("verified") else None} for row in rows]
        text += "\n" + table(columns, shown)
    context.show({"task": fields, "proxies": rows}, text)
    return Exit.OK


async def wait(context: Context) -> Exit:
    """Waits; the exit code tells how the tasks ended."""
    ids = list(dict.fromkeys(_task_id(text) for text in context.args.ids))
    timeout = context.args.timeout
    timeout_s = seconds(timeout, "--timeout") if timeout is not None else None
    async with context.client() as client:
        with bar("waiting", 0) as tell:
            ends = await Waiter(client, ids, timeout_s, tell).run()
    for task_id, end in ends.items():
        if end.error is not None:
            context.complain(f"{task_id}: {explain(end.error, context.socket)}")
    rows = [{"task_id": task_id} | end.document() for task_id, end in ends.items()]
    known = [row for row in rows if "state" in row]
    columns = ["task_id", "state", "total", "done", "failed"]
    context.show({"tasks": rows}, table(columns, known) if known else "")
    return merge(code_of_end(end) for end in ends.values())


async def list_(context: Context) -> Exit:
    """Tasks, newest first."""
    args = context.args
    if args.limit < 1:
        raise usage(f"--limit: got {args.limit}, wanted 1 or more")
    after = _task_id(args.after) if args.after is not None else None
    async with context.client() as client:
        listed = client.list_tasks(state=args.state, limit=args.limit, after=after)
        tasks = [status async for status in listed]
    rows = [document(status) for status in tasks]
    now_ms = time.time() * 1000
    shown = [row | {"created": f"{span(now_ms - row['created'])} ago"} for row in rows]
    columns = ["task_id", "type", "state", "total", "done", "failed", "created"]
    text = table(columns, shown) if rows else "no tasks\n"
    if len(rows) == args.limit and not context.json:
        text += f"\nmay be more: refreshctl list --after {tasks[-1].task_id}\n"
    context.show({"tasks": rows}, text)
    return Exit.OK


async def cancel(context: Context) -> Exit:
    """Ends tasks. One that is final keeps its state, which is no failure."""
    rows: list[dict[str, Any]] = []
    codes: list[Exit] = []
    ids = list(dict.fromkeys(_task_id(text) for text in context.args.ids))
    async with context.client() as client:
        for task_id in ids:
            try:
                rows.append({"task_id": task_id, "state": await client.cancel(task_id)})
                codes.append(Exit.OK)
            except WireError as error:
                context.complain(f"{task_id}: {explain(error, context.socket)}")
                rows.append({"task_id": task_id, "error": error_document(error)})
                codes.append(code_of(error))
                if codes[-1] is Exit.UNREACHABLE:
                    break
    known = [row for row in rows if "error" not in row]
    context.show({"tasks": rows}, table(["task_id", "state"], known) if known else "")
    if len(rows) < len(ids):
        context.complain(f"{count(len(ids) - len(rows), 'task')} not tried")
    return merge(codes)
