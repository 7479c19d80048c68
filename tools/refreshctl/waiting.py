"""Waiting for many tasks at once, and what their ends mean for the exit code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tools.refreshctl.documents import document, error_document
from tools.refreshctl.exits import Exit, code_of
from tools.refreshctl.progress import Progress
from wire.answers import TaskState
from wire.client import WATCH_TIMEOUT_S, Client
from wire.errors import TimedOut, WireError

# Watched at a time; the others are asked as these end.
WATCHES_MAX = 256


class End(NamedTuple):
    """How the waiting for one task ended: its last known state, and what ended it too early."""

    state: TaskState | None
    error: WireError | None = None

    def document(self) -> dict[str, Any]:
        """The keys of the state, and `error` if there is one."""
        known = {} if self.state is None else document(self.state)
        return known if self.error is None else known | {"error": error_document(self.error)}


class Waiter:
    """Watches tasks until all are final, an error ends them, or the time is over."""

    def __init__(self, client: Client, ids: Sequence[str], timeout_s: float | None, tell: Progress) -> None:
        self._client = client
        self._ids = ids
        self._timeout_s = timeout_s
        self._tell = tell
        self._states: dict[str, TaskState] = {}
        self._done = self._total = 0
        self._ends: dict[str, End] = {}

    async def run(self) -> dict[str, End]:
        """What became of each task, in the order of the ids."""
        limit_s = WATCH_TIMEOUT_S if self._timeout_s is None else self._timeout_s
        deadline = asyncio.get_running_loop().time() + limit_s
        waiting = iter(self._ids)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(WATCHES_MAX, len(self._ids))):
                group.create_task(self._watch_each(waiting, deadline, limit_s))
        return {task_id: self._ends[task_id] for task_id in self._ids}

    async def _watch_each(self, ids: Iterable[str], deadline: float, limit_s: float) -> None:
        for task_id in ids:
            left_s = max(0.0, deadline - asyncio.get_running_loop().time())
            error: WireError | None = None
            try:
                async with contextlib.aclosing(self._client.watch(task_id, timeout_s=left_s)) as states:
                    async for state in states:
                        self._saw(state)
            except TimedOut:
                error = TimedOut(f"not final after {limit_s:.0f} s; it goes on")
            except WireError as met:
                error = met
            self._ends[task_id] = End(self._states.get(task_id), error)

    def _saw(self, state: TaskState) -> None:
        before = self._states.get(state.task_id)
        self._states[state.task_id] = state
        self._done += state.done + state.failed - (before.done + before.failed if before else 0)
        self._total += state.total - (before.total if before else 0)
        self._tell(self._done, self._total)


def code_of_end(end: End) -> Exit:
    """What one task's end means: failed targets beside done ones are `partly`."""
    state, error = end
    if isinstance(error, TimedOut):
        return Exit.FAILED
    if error is not None:
        return code_of(error)
    if state is None or state.state == "complete":
        return Exit.OK
    return Exit.PARTLY if state.state == "failed" and state.done else Exit.FAILED


def merge(codes: Iterable[Exit]) -> Exit:
    """The code of many: what all agree on, else `partly`."""
    found = set(codes)
    if not found:
        return Exit.OK
    return found.pop() if len(found) == 1 else Exit.PARTLY
