"""A client of an engine, or of several, on asyncio or uvloop.

    Client ── lanes: one a worker ── each a link: one connection ── a Dialogue: its bytes
       └ calls: one a request, until its answer, its error or its deadline

What to do is decided elsewhere, without I/O: `dialogue.py` reads and writes the
bytes, `retry.py` says whether, when and where to try again. This file holds the
sockets and the timers. A call is on a link, in a lane's queue while that
connects, or waiting for its next try; it never needs a task of its own.

    async with Client("127.0.0.1:7070") as client:
        await client.post(NewTask("t1", TaskHead("url"), ("https://example.com/a",)))
        print(await client.wait("t1"))
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self, cast

from wire import DEFAULT_LINE_MAX_BYTES, answers
from wire.addresses import is_unix, read_address
from wire.answers import Accepted, Answer, ProxyStatus, TaskState, TaskStatus
from wire.dialogue import Credentials, Dialogue, format_hello
from wire.errors import ConnectionLost, LocalError, Refused, TimedOut, WireError
from wire.lines import Value, format_line
from wire.retry import Rotation, Verdict, Window, delay_s, judge
from wire.sessions import Push, Reply
from wire.shards import worker_of
from wire.tasks import NewTask

# A call that is not told otherwise ends after this long, whatever happens.
TIMEOUT_S = 30.0
# As long as a task lives unless it says otherwise; a watch is no shorter.
WATCH_TIMEOUT_S = 86_400.0
# Connecting and greeting, on one address; the next is tried after that.
CONNECT_TIMEOUT_S = 5.0
# A link on which nothing came for this long, though something was asked, is given up.
SILENCE_S = 15.0
# In flight at once: enough to fill a worker's batches over a long line, and 8 MiB of memory.
REQUESTS_MAX = 2048
REQUEST_BYTES_MAX = 8 << 20
# States of one task that a slow reader of `watch` has not fetched; older ones are dropped.
WATCH_EVENTS_MAX = 64
LIST_PAGE = 1000
# How long `close` waits for the transports to say goodbye.
CLOSE_TIMEOUT_S = 1.0


class Outcome(NamedTuple):
    """What became of one task of `post_many`: accepted, or else an error."""

    task: NewTask
    accepted: Accepted | None
    error: WireError | LocalError | None


class Client:
    """Talks to one engine at a time out of `addresses`; safe to share among tasks of one loop.

    An address is `HOST:PORT`, or `unix:PATH` for an admin socket: one
    connection, no greeting. `key` and `secret` sign the greetings; `zip`
    compresses. `timeout_s` is the default deadline of a call, retries and all.
    With `patient=False` an engine that cannot be reached at the first try ends
    the calls at once instead of at their deadline.

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
        listed = [addresses] if isinstance(addresses, str) else list(addresses)
        if not listed:
            raise LocalError("a client needs an address")
        for address in listed:
            read_address(address)
        if (key is None) != (secret is None):
            raise LocalError("key and secret go together")
        self._credentials = None if key is None or secret is None else Credentials(key, secret)
        self._zipped = zip
        self._timeout_s = timeout_s
        self._patient = patient
        self._silence_s = silence_s
        self._rotation = Rotation(listed)
        self._window = Window(requests_max, bytes_max)
        self._entering: deque[tuple[asyncio.Future[None], int]] = deque()
        self._calls: set[_Call] = set()
        self._lanes: dict[int | None, _Lane] = {}
        self._links: set[_Link] = set()
        self._openings: set[asyncio.Task[None]] = set()
        self._watchers: dict[str, set[_Watcher]] = {}
        self._workers = 0
        self._line_max = DEFAULT_LINE_MAX_BYTES
        self._connected_once = False
        self._closed = False
        self._tick_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return (
            f"<Client of {self._rotation.current}, {len(self._links)} links, "
            f"{self._window.requests} in flight, {len(self._entering)} waiting>"
        )

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
        pending: deque[tuple[NewTask, _Call]] = deque()
        try:
            for task in tasks:
                try:
                    line = task.line()
                    self._check_size(line)
                except LocalError as error:
                    while pending:
                        yield await self._outcome(*pending.popleft())
                    yield Outcome(task, None, error)
                    continue
                while pending and (pending[0][1].future.done() or not self._window.fits(len(line))):
                    yield await self._outcome(*pending.popleft())
                pending.append((task, await self._begin("post_task", line, task.task_id, timeout_s)))
            while pending:
                yield await self._outcome(*pending.popleft())
        finally:
            for _, call in pending:
                self._settle(call, ConnectionLost("given up by the caller"))

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
        watcher = _Watcher()
        self._watchers.setdefault(task_id, set()).add(watcher)
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
            self._forget_watcher(task_id, watcher)

    async def wait(self, task_id: str, *, timeout_s: float = WATCH_TIMEOUT_S) -> TaskState:
        """The task's final state, once it is there."""
        async with contextlib.aclosing(self.watch(task_id, timeout_s=timeout_s)) as states:
            async for state in states:
                last = state
        return last

    async def close(self) -> None:
        """Ends all calls and connections. The client cannot be used again."""
        self._closed = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        for task in list(self._openings):
            task.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)
        error = ConnectionLost("the client was closed")
        for call in list(self._calls):
            self._settle(call, error)
        for waiter, _ in self._entering:
            if not waiter.done():
                waiter.cancel()
        gone = [link.gone for link in self._links]
        for link in list(self._links):
            link.close()
        if gone:
            await asyncio.wait(gone, timeout=CLOSE_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- calls -------------------------------------------------------------------------

    async def _ask(
        self,
        verb: str,
        line: bytes,
        task_id: str | None,
        timeout_s: float | None,
        watcher: _Watcher | None = None,
    ) -> Reply[_Call]:
        call = await self._begin(verb, line, task_id, timeout_s, watcher)
        try:
            outcome = await call.future
        except asyncio.CancelledError:
            self._settle(call, ConnectionLost("given up by the caller"))
            raise
        if isinstance(outcome, WireError):
            raise outcome
        return outcome

    async def _outcome(self, task: NewTask, call: _Call) -> Outcome:
        outcome = await call.future
        if isinstance(outcome, WireError):
            return Outcome(task, None, outcome)
        try:
            return Outcome(task, answers.read_accepted(outcome.fields), None)
        except WireError as error:
            return Outcome(task, None, error)

    async def _begin(
        self,
        verb: str,
        line: bytes,
        task_id: str | None,
        timeout_s: float | None,
        watcher: _Watcher | None = None,
    ) -> _Call:
        """Starts a call as soon as the window has room for it."""
        if self._closed:
            raise LocalError("the client is closed")
        self._check_size(line)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout_s if timeout_s is None else timeout_s)
        call = _Call(verb, line, task_id, deadline, loop.create_future(), watcher)
        if not self._entering and self._window.fits(len(line)):
            self._window.add(len(line))
        else:
            await self._enter(len(line), deadline)
        self._calls.add(call)
        call.expiry = loop.call_at(deadline, self._expire, call)
        self._dispatch(call)
        return call

    def _check_size(self, line: bytes) -> None:
        if len(line) > self._line_max:
            raise LocalError(
                f"a line of {len(line)} bytes; the engine takes {self._line_max}: split the task in several"
            )

    async def _enter(self, size: int, deadline: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (waiter, size)
        self._entering.append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._leave(size)
            else:
                with contextlib.suppress(ValueError):
                    self._entering.remove(entry)
            if self._closed:
                raise ConnectionLost("the client was closed") from None
            if isinstance(error, TimeoutError):
                raise TimedOut(
                    f"the deadline passed behind {self._window.requests} requests in flight; send fewer"
                ) from None
            raise

    def _leave(self, size: int) -> None:
        self._window.remove(size)
        while self._entering and self._window.fits(self._entering[0][1]):
            waiter, waiting_size = self._entering.popleft()
            if not waiter.done():
                self._window.add(waiting_size)
                waiter.set_result(None)

    def _expire(self, call: _Call) -> None:
        self._settle(
            call,
            call.error
            or TimedOut(f"no answer to {call.verb} within the deadline; whether it took effect is not known"),
        )

    def _settle(self, call: _Call, outcome: Reply[_Call] | WireError) -> None:
        """Ends a call. On a link it keeps its place in the window until the link lets go of it."""
        if call.done:
            return
        call.done = True
        self._calls.discard(call)
        for timer in (call.expiry, call.retry):
            if timer is not None:
                timer.cancel()
        if call.lane is not None:
            call.lane.queue.pop(call, None)
        if not call.on_link:
            self._leave(len(call.line))
        if not call.future.done():
            call.future.set_result(outcome)

    def _again(self, call: _Call, error: WireError, address: str) -> None:
        """A try has failed: tries again later, elsewhere, or not."""
        if call.done:
            return
        call.error = error
        verdict = judge(error)
        if verdict is Verdict.FAIL or self._closed:
            self._settle(call, error)
            return
        call.attempts += 1
        retry_ms = error.retry_ms if isinstance(error, Refused) else None
        if verdict is Verdict.ELSEWHERE and len(self._rotation) > 1:
            retry_ms = None
            if self._rotation.leave(address):
                self._reset_lanes()
        wait_s = delay_s(call.attempts, random.random(), retry_ms)
        loop = asyncio.get_running_loop()
        if loop.time() + wait_s >= call.deadline:
            self._settle(call, error)
        else:
            call.retry = loop.call_later(wait_s, self._dispatch, call)

    # -- lanes and links ---------------------------------------------------------------

    def _dispatch(self, call: _Call) -> None:
        """Sends a call to the worker that owns its task, connecting to it if need be."""
        if call.done:
            return
        lane = self._lane_of(call)
        if lane.link is not None and lane.link.usable:
            lane.link.send(call)
            return
        lane.queue[call] = None
        call.lane = lane
        if lane.opening is None:
            lane.opening = asyncio.get_running_loop().create_task(self._open(lane))
            self._openings.add(lane.opening)
            lane.opening.add_done_callback(self._openings.discard)

    def _lane_of(self, call: _Call) -> _Lane:
        worker: int | None = None
        if self._workers:
            if call.task_id is not None:
                worker = worker_of(call.task_id.encode(), self._workers)
            else:
                # Anyone can answer: whoever is connected.
                worker = next((lane.worker for lane in self._lanes.values() if lane.link), 0)
        lane = self._lanes.get(worker)
        if lane is None:
            lane = self._lanes[worker] = _Lane(worker)
        return lane

    async def _open(self, lane: _Lane) -> None:
        """Connects a lane; gives up when nobody waits for it any more."""
        wait_s = 0.0
        try:
            # A lane that was left has an empty queue.
            while lane.queue:
                await asyncio.sleep(max(wait_s, self._rotation.delay_s(random.random())))
                if not lane.queue:
                    return
                address, failures = self._rotation.current, self._rotation.failures
                try:
                    link = await self._dial(address, lane.worker)
                except WireError as error:
                    wait_s = self._not_opened(lane, error, address, failures)
                else:
                    self._opened(lane, link)
                    return
        finally:
            if lane.opening is asyncio.current_task():
                lane.opening = None

    async def _dial(self, address: str, worker: int | None) -> _Link:
        """Makes a connection and greets. Raises: ConnectionLost, Refused, PeerMisbehaved."""
        loop = asyncio.get_running_loop()
        hello = None
        if not is_unix(address):
            hello = format_hello(
                self._credentials,
                ts=int(time.time()),
                nonce=secrets.token_hex(16),
                worker=worker,
                zipped=self._zipped,
            )
        link = _Link(self, address, Dialogue(hello, zipped=self._zipped))
        self._links.add(link)
        host, port, path = read_address(address)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if path is not None:
                    await loop.create_unix_connection(lambda: link, path)
                else:
                    await loop.create_connection(lambda: link, host, port)
                error = await link.greeted
            if error is not None:
                raise error
        except TimeoutError:
            raise ConnectionLost(
                f"{address} does not answer within {CONNECT_TIMEOUT_S:.0f} s; is refreshd well there?"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            # The cause is kept: a socket that may not be opened is another matter than one that is gone.
            raise ConnectionLost(
                f"cannot connect to {address} ({reason}); is refreshd running there?"
            ) from error
        finally:
            if not link.usable:
                link.close()
                if link.transport is None:
                    self._links.discard(link)
        return link

    def _not_opened(self, lane: _Lane, error: WireError, address: str, failures: int) -> float:
        """What a failed connection means for those who wait for it; returns how long to wait."""
        if isinstance(error, Refused) and error.field == "worker" and lane.worker is not None:
            # The engine has fewer workers than it had: learn anew.
            self._reset_lanes()
            return 0.0
        moved = self._rotation.failed(address, failures)
        hopeless = (
            not self._patient and not self._connected_once and self._rotation.failures >= len(self._rotation)
        )
        for call in list(lane.queue):
            call.error = error
            if hopeless or judge(error) is Verdict.FAIL:
                self._settle(call, error)
        if moved:
            self._reset_lanes()
        return (error.retry_ms or 0) / 1000 if isinstance(error, Refused) else 0.0

    def _opened(self, lane: _Lane, link: _Link) -> None:
        lane.opening = None
        self._connected_once = True
        if not lane.alive or self._closed:
            link.retire()
            return
        lane.link = link
        welcome = link.dialogue.welcome
        if welcome is not None:
            self._line_max = welcome.line_max
            self._workers = welcome.workers
            if lane.worker is None:
                del self._lanes[None]
                lane.worker = welcome.worker
                self._lanes[welcome.worker] = lane
        calls = list(lane.queue)
        lane.queue.clear()
        for call in calls:
            self._dispatch(call)
        if self._tick_timer is None:
            self._tick()

    def _reset_lanes(self) -> None:
        """Leaves the engine: what is sent is awaited, all else goes where `_rotation` says now."""
        lanes, self._lanes, self._workers = self._lanes, {}, 0
        calls: list[_Call] = []
        for lane in lanes.values():
            lane.alive = False
            calls += lane.queue
            lane.queue.clear()
            if lane.link is not None:
                lane.link.retire()
        for call in calls:
            self._dispatch(call)

    def _tick(self) -> None:
        """Gives up links that went silent, and asks those that are idle whether they live."""
        loop = asyncio.get_running_loop()
        for link in list(self._links):
            link.check_alive(loop.time(), self._silence_s)
        self._tick_timer = loop.call_later(self._silence_s / 4, self._tick) if self._links else None

    # -- what links tell ---------------------------------------------------------------

    def _replied(self, link: _Link, reply: Reply[_Call]) -> None:
        call = reply.token
        call.on_link = False
        if self._rotation.failures:
            self._rotation.succeeded()
        if call.done:
            self._leave(len(call.line))
        elif reply.refused is not None:
            self._again(call, reply.refused, link.address)
        else:
            self._settle(call, reply if call.watcher is None else self._watching(call.watcher, link, reply))

    def _watching(self, watcher: _Watcher, link: _Link, reply: Reply[_Call]) -> Reply[_Call] | WireError:
        try:
            watcher.begin(link, answers.read_task_state(reply.fields))
        except WireError as error:
            return error
        return reply

    def _pushed(self, link: _Link, push: Push) -> None:
        line = push.line
        if line.verb == "!state":
            try:
                state = answers.read_task_state(line.fields)
            except WireError as error:
                link.give_up(error)
                return
            for watcher in self._watchers.get(state.task_id, ()):
                if watcher.link is link:
                    watcher.put(state)
        elif line.verb == "!drain":
            self._drained(link, line.fields.get("to", ""))

    def _drained(self, link: _Link, to: str) -> None:
        """The engine goes away: this link sends no more, another takes its place when one is needed."""
        rotation = self._rotation
        moved = rotation.failed(link.address, rotation.failures)
        if to:
            with contextlib.suppress(LocalError):
                named = to.split(",")
                for address in named:
                    read_address(address)
                moved = rotation.go_to(named) or moved
        link.retire()
        if moved:
            self._reset_lanes()

    def _lost(self, link: _Link, error: WireError) -> None:
        self._links.discard(link)
        for lane in self._lanes.values():
            if lane.link is link:
                lane.link = None
        for call in link.dialogue.abandon():
            call.on_link = False
            if call.done:
                self._leave(len(call.line))
            else:
                self._again(call, error, link.address)

    def _forget_watcher(self, task_id: str, watcher: _Watcher) -> None:
        watchers = self._watchers[task_id]
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[task_id]
        if watcher.link is not None:
            watcher.link.watchers.discard(watcher)


class _Call:
    """One request, until it is answered, refused for good, or too late."""

    __slots__ = (
        "attempts", "deadline", "done", "error", "expiry", "future", "lane", "line", "on_link", "retry",
        "task_id", "verb", "watcher",
    )  # fmt: skip

    def __init__(
        self,
        verb: str,
        line: bytes,
        task_id: str | None,
        deadline: float,
        future: asyncio.Future[Reply[_Call] | WireError],
        watcher: _Watcher | None = None,
    ) -> None:
        self.verb = verb
        self.line = line
        self.task_id = task_id
        self.deadline = deadline
        self.future = future
        self.watcher = watcher
        self.attempts = 0
        self.error: WireError | None = None
        self.on_link = False
        self.done = False
        self.lane: _Lane | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.retry: asyncio.TimerHandle | None = None


class _Lane:
    """The way to one worker (None: to whichever answers), and the calls that wait for it to open."""

    __slots__ = ("alive", "link", "opening", "queue", "worker")

    def __init__(self, worker: int | None) -> None:
        self.worker = worker
        self.link: _Link | None = None
        self.opening: asyncio.Task[None] | None = None
        self.queue: dict[_Call, None] = {}
        self.alive = True


class _Link(asyncio.Protocol):
    """One connection: moves bytes between a transport and a `Dialogue`."""

    def __init__(self, client: Client, address: str, dialogue: Dialogue[_Call]) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self.address = address
        self.dialogue = dialogue
        self.transport: asyncio.Transport | None = None
        self.watchers: set[_Watcher] = set()
        self.greeted: asyncio.Future[WireError | None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._outbox: list[bytes] = []
        self._error: WireError | None = None
        self._retired = False
        self._heard_s = self._asked_s = self._loop.time()

    @property
    def usable(self) -> bool:
        """Whether requests may be sent."""
        return self.dialogue.open and not self._retired and self.transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.dialogue.begin())
        if self.dialogue.open:
            self.greeted.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        try:
            for event in self.dialogue.feed(data):
                if isinstance(event, Push):
                    self._client._pushed(self, event)
                else:
                    self._client._replied(self, event)
        except WireError as error:
            self.give_up(error)
            return
        if self.dialogue.fault is not None:
            self.give_up(self.dialogue.fault)
            return
        if self.dialogue.open and not self.greeted.done():
            self.greeted.set_result(None)
        if self._retired and not self.dialogue.unanswered:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._error or ConnectionLost(
            f"{self.address} closed the connection" + (f" ({exc})" if exc is not None else "")
        )
        self.transport = None
        self._stop(error)
        self._client._lost(self, error)
        self.gone.set_result(None)

    def send(self, call: _Call) -> None:
        """Sends a request; those of one turn of the loop go out in one write."""
        if not self.dialogue.unanswered:
            self._asked_s = self._loop.time()
        self.dialogue.sent(call, call.verb)
        call.on_link = True
        call.lane = None
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(call.line)

    def _flush(self) -> None:
        lines, self._outbox = b"".join(self._outbox), []
        # What is not written is answered by connection_lost, which is under way then.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(self.dialogue.pack(lines))

    def check_alive(self, now_s: float, silence_s: float) -> None:
        """Ends a link that owes an answer for too long; pings one that is idle."""
        if not self.dialogue.open or self.transport is None:
            return
        if self.dialogue.unanswered:
            if now_s - max(self._heard_s, self._asked_s) > silence_s:
                self.give_up(ConnectionLost(f"{self.address} was silent for {silence_s:.0f} s"))
        elif now_s - self._heard_s > silence_s / 2 and self.usable:
            ping = _Call("ping", b"ping\n", None, now_s, self._loop.create_future())
            ping.done = True
            self._client._window.add(len(ping.line))
            self.send(ping)

    def retire(self) -> None:
        """Sends no more; closes once all is answered."""
        self._stop(ConnectionLost(f"{self.address} is draining"))
        if not self.dialogue.unanswered:
            self.close()

    def give_up(self, error: WireError) -> None:
        """Ends the connection now; what is unanswered meets `error`."""
        self._error = error
        self._stop(error)
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Ends the connection once what was written is sent."""
        self._stop(ConnectionLost(f"the connection to {self.address} was closed"))
        if self.transport is not None:
            self.transport.close()

    def _stop(self, error: WireError) -> None:
        self._retired = True
        if not self.greeted.done():
            self.greeted.set_result(error)
        for watcher in self.watchers:
            watcher.lose()
        self.watchers.clear()


class _Watcher:
    """One reader of `Client.watch`: the states it has not fetched, and the link they come from."""

    __slots__ = ("_wake", "events", "link")

    def __init__(self) -> None:
        self.events: deque[TaskState] = deque(maxlen=WATCH_EVENTS_MAX)
        self.link: _Link | None = None
        self._wake: asyncio.Future[None] | None = None

    def begin(self, link: _Link, state: TaskState) -> None:
        """The engine answered `watch_task`; what came before is older."""
        self.events.clear()
        self.events.append(state)
        self.link = link
        link.watchers.add(self)

    def put(self, state: TaskState) -> None:
        self.events.append(state)
        self._rouse()

    def lose(self) -> None:
        """The link is gone; whoever reads must watch again."""
        self.link = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def next(self, deadline: float) -> TaskState | None:
        """The next state, or None if the link is gone. Raises: TimeoutError."""
        while not self.events and self.link is not None:
            self._wake = asyncio.get_running_loop().create_future()
            async with asyncio.timeout_at(deadline):
                await self._wake
        return self.events.popleft() if self.events else None
