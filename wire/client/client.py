"""The verbs of PROTOCOL.md as methods."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from wire import answers
from wire.answers import Accepted, Answer, ProxyStatus, TaskState, TaskStatus
from wire.client.call import Call
from wire.client.exchange import Exchange
from wire.client.lanes import SILENCE_S
from wire.client.watcher import Watcher
from wire.dialogue import Credentials
from wire.errors import ConnectionLost, LocalError, TimedOut, WireError
from wire.lines import Value, format_line
from wire.sessions import Reply
from wire.tasks import NewTask

# A call that is not told otherwise ends after this long, whatever happens.
TIMEOUT_S = 30.0
# As long as a task lives unless it says otherwise; a watch is no shorter.
WATCH_TIMEOUT_S = 86_400.0
# In flight at once: enough to fill a worker's batches over a long line, and 8 MiB of memory.
REQUESTS_MAX = 2048
REQUEST_BYTES_MAX = 8 << 20
LIST_PAGE = 1000


class Outcome(NamedTuple):
    """What became of one task of `post_many`: accepted, or else an error."""

    task_id: str
    accepted: Accepted | None
    error: WireError | LocalError | None


class Client:
    """Talks to one engine at a time out of `addresses`; safe to share among tasks of one loop.

    An address is `HOST:PORT`, or `unix:PATH` for an admin socket: one
    connection, no greeting. `key` and `secret` sign the greetings; `zip`
    compresses. `timeout_s` is the default deadline of a call, retries and all.
    With `patient=False` an engine that cannot be reached at the first try ends
    the calls at once instead of at their deadline. A link on which nothing came
    for `silence_s`, though something was asked, is given up.

    Every call raises, of wire.errors: Refused (what may be retried was, until
    the deadline), ConnectionLost, TimedOut, PeerMisbehaved, LocalError.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        key: str | None = None,
        secret: bytes | None = None,
        zip: bool = False,
        timeout_s: float = TIMEOUT_S,
        patient: bool = True,
        requests_max: int = REQUESTS_MAX,
        bytes_max: int = REQUEST_BYTES_MAX,
        silence_s: float = SILENCE_S,
    ) -> None:
        if (key is None) != (secret is None):
            raise LocalError("key and secret go together")
        self._timeout_s = timeout_s
        self._exchange = Exchange(
            [addresses] if isinstance(addresses, str) else list(addresses),
            credentials=None if key is None or secret is None else Credentials(key, secret),
            zipped=zip,
            patient=patient,
            requests_max=requests_max,
            bytes_max=bytes_max,
            silence_s=silence_s,
        )

    def __repr__(self) -> str:
        return f"<Client of {self._exchange!r}>"

    # -- the verbs ---------------------------------------------------------------------

    async def post(self, task: NewTask, *, timeout_s: float | None = None) -> Accepted:
        """Gives the engine a task; it is on stable storage when this returns.

        Posting the same task again is success, with `dup` set. After TimedOut or
        ConnectionLost it may have been accepted: post it again with the same id.
        """
        reply = await self._ask("post_task", task.line(), task.task_id, timeout_s)
        return answers.read_accepted(reply.fields)

    async def post_many(
        self, tasks: Iterable[NewTask], *, timeout_s: float | None = None
    ) -> AsyncGenerator[Outcome]:
        """Posts many tasks, pipelined; yields what became of each, in their order.

        Reads `tasks` no further ahead than the client's window. `timeout_s` is
        for each task, from when its turn comes.
        """
        pending: deque[Call | Outcome] = deque()
        window = self._exchange.gate.window
        try:
            for task in tasks:
                started: Call | Outcome
                try:
                    line = task.line()
                    while pending and (_is_over(pending[0]) or not window.fits(len(line))):
                        yield await _outcome(pending.popleft())
                    started = await self._begin_post(task, line, timeout_s)
                except (WireError, LocalError) as error:
                    started = Outcome(task.task_id, None, error)
                pending.append(started)
            while pending:
                yield await _outcome(pending.popleft())
        finally:
            for started in pending:
                if isinstance(started, Call):
                    self._exchange.settle(started, ConnectionLost("given up by the caller"))

    async def get(self, task_id: str, *, timeout_s: float | None = None) -> TaskStatus:
        """Where a task stands."""
        answer = await self.request("get_task", {"task_id": task_id}, timeout_s=timeout_s)
        return answers.read_task_status(answer.fields)

    async def detail(self, task_id: str, *, timeout_s: float | None = None) -> list[ProxyStatus]:
        """Where a task stands at each proxy."""
        answer = await self.request("task_detail", {"task_id": task_id}, timeout_s=timeout_s)
        return [answers.read_proxy_status(row) for row in answer.rows]

    async def cancel(self, task_id: str, *, timeout_s: float | None = None) -> str:
        """Ends a task; returns its state, which for a finished one is what it was."""
        answer = await self.request("cancel_task", {"task_id": task_id}, timeout_s=timeout_s)
        return answer.fields.get("state", "cancelled")

    async def list_tasks(
        self,
        *,
        state: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[TaskStatus]:
        """Tasks, newest first, at most `limit`, going on behind `after`; `timeout_s` is for a page."""
        missing = limit
        while missing is None or missing > 0:
            page = LIST_PAGE if missing is None else min(missing, LIST_PAGE)
            fields: dict[str, Value] = {"state": state, "limit": page, "after": after}
            answer = await self.request("list_tasks", fields, timeout_s=timeout_s)
            for row in answer.rows[:page]:
                status = answers.read_task_status(row)
                yield status
                after = status.task_id
            if len(answer.rows) < page:
                return
            if missing is not None:
                missing -= page

    async def stats(self, *, timeout_s: float | None = None) -> dict[str, int | float | str]:
        """The engine's figures by name."""
        answer = await self.request("stats", timeout_s=timeout_s)
        return {row["name"]: answers.read_value(row.get("value", "")) for row in answer.rows if "name" in row}

    async def ping(self, *, timeout_s: float | None = None) -> int:
        """The engine's clock, in Unix milliseconds."""
        answer = await self.request("ping", timeout_s=timeout_s)
        return answers.read_now(answer.fields)

    async def request(
        self,
        verb: str,
        fields: Mapping[str, Value] | None = None,
        items: Iterable[str] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        """Any verb that may be repeated; goes to the owner of the field `task_id`, if it has one."""
        task_id = (fields or {}).get("task_id")
        line = format_line(verb, fields, items)
        reply = await self._ask(verb, line, task_id if isinstance(task_id, str) else None, timeout_s)
        return Answer(reply.fields, reply.rows)

    async def watch(self, task_id: str, *, timeout_s: float = WATCH_TIMEOUT_S) -> AsyncGenerator[TaskState]:
        """The task's state now and at every change, until it is final.

        Survives lost connections: it asks again, and what happened meanwhile
        shows as one change. A slow reader misses states, never the last one.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        watcher = Watcher()
        self._exchange.add_watcher(task_id, watcher)
        line = format_line("watch_task", {"task_id": task_id})
        seen: TaskState | None = None
        try:
            while True:
                if watcher.link is None and not watcher.events:
                    await self._ask("watch_task", line, task_id, deadline - loop.time(), watcher)
                try:
                    state = await watcher.next(deadline)
                except TimeoutError:
                    raise TimedOut(f"{task_id} was not final after {timeout_s:.0f} s; it goes on") from None
                if state is None or state == seen:
                    continue
                seen = state
                yield state
                if state.final:
                    return
        finally:
            self._exchange.forget_watcher(task_id, watcher)

    async def wait(self, task_id: str, *, timeout_s: float = WATCH_TIMEOUT_S) -> TaskState:
        """The task's final state, once it is there."""
        async with contextlib.aclosing(self.watch(task_id, timeout_s=timeout_s)) as states:
            async for state in states:
                last = state
        return last

    async def close(self) -> None:
        """Ends all calls and connections. The client cannot be used again."""
        await self._exchange.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- asking ------------------------------------------------------------------------

    async def _ask(
        self,
        verb: str,
        line: bytes,
        task_id: str | None,
        timeout_s: float | None,
        watcher: Watcher | None = None,
    ) -> Reply[Call]:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        call = await self._exchange.begin(verb, line, task_id, timeout_s, watcher)
        try:
            outcome = await call.future
        except asyncio.CancelledError:
            self._exchange.settle(call, ConnectionLost("given up by the caller"))
            raise
        if isinstance(outcome, WireError):
            raise outcome
        return outcome

    async def _begin_post(self, task: NewTask, line: bytes, timeout_s: float | None) -> Call:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await self._exchange.begin("post_task", line, task.task_id, timeout_s)


def _is_over(started: Call | Outcome) -> bool:
    return isinstance(started, Outcome) or started.future.done()


async def _outcome(started: Call | Outcome) -> Outcome:
    if isinstance(started, Outcome):
        return started
    task_id = started.task_id or ""
    reply = await started.future
    try:
        if isinstance(reply, WireError):
            raise reply
        return Outcome(task_id, answers.read_accepted(reply.fields), None)
    except WireError as error:
        return Outcome(task_id, None, error)
