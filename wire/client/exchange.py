"""Calls: begun, sent by way of a lane, tried again, and settled exactly once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from wire import answers
from wire.client.call import Call
from wire.client.gate import Gate
from wire.client.lanes import Lanes
from wire.client.link import Link
from wire.client.watcher import Watcher
from wire.dialogue import Credentials
from wire.errors import ConnectionLost, LocalError, Refused, TimedOut, WireError
from wire.retry import Verdict, Window, delay_s, judge
from wire.sessions import Push, Reply


class Exchange:
    """All that a client has under way."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: Credentials | None,
        zipped: bool,
        patient: bool,
        requests_max: int,
        bytes_max: int,
        silence_s: float,
    ) -> None:
        self.gate = Gate(Window(requests_max, bytes_max))
        self.calls: set[Call] = set()
        self.watchers: dict[str, set[Watcher]] = {}
        self.lanes = Lanes(
            self, addresses, credentials=credentials, zipped=zipped, patient=patient, silence_s=silence_s
        )
        self._closed = False

    def __repr__(self) -> str:
        return f"{self.lanes}, {self.gate.window.requests} in flight, {len(self.gate.waiting)} waiting"

    # -- a call's life -----------------------------------------------------------------

    async def begin(
        self, verb: str, line: bytes, task_id: str | None, timeout_s: float, watcher: Watcher | None = None
    ) -> Call:
        """Starts a call as soon as the window has room for it."""
        if self._closed:
            raise LocalError("the client is closed")
        self.check_size(line)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        call = Call(verb, line, task_id, deadline, loop.create_future(), watcher)
        await self.gate.enter(len(line), deadline)
        self.calls.add(call)
        call.expiry = loop.call_at(deadline, self._expire, call)
        self.lanes.dispatch(call)
        return call

    def check_size(self, line: bytes) -> None:
        """Raises: LocalError for a line that would end the connection for all."""
        if len(line) > self.lanes.line_max:
            raise LocalError(
                f"a line of {len(line)} bytes; the engine takes {self.lanes.line_max}: "
                "split the task in several"
            )

    def settle(self, call: Call, outcome: Reply[Call] | WireError) -> None:
        """Ends a call. On a link it keeps its place in the window until the link lets go of it."""
        if call.done:
            return
        call.done = True
        self.calls.discard(call)
        for timer in (call.expiry, call.retry):
            if timer is not None:
                timer.cancel()
        if call.lane is not None:
            call.lane.queue.pop(call, None)
        if not call.on_link:
            self.gate.leave(len(call.line))
        if not call.future.done():
            call.future.set_result(outcome)

    def _expire(self, call: Call) -> None:
        silence = f"no answer to {call.verb} within the deadline; whether it took effect is not known"
        self.settle(call, call.error or TimedOut(silence))

    def _again(self, call: Call, error: WireError, address: str) -> None:
        """A try has failed: tries again later, elsewhere, or not."""
        call.error = error
        verdict = judge(error)
        if verdict is Verdict.FAIL or self._closed:
            self.settle(call, error)
            return
        call.attempts += 1
        retry_ms = error.retry_ms if isinstance(error, Refused) else None
        if verdict is Verdict.ELSEWHERE and self.lanes.leave(address):
            retry_ms = None
        wait_s = delay_s(call.attempts, random.random(), retry_ms)
        loop = asyncio.get_running_loop()
        if loop.time() + wait_s >= call.deadline:
            self.settle(call, error)
        else:
            call.retry = loop.call_later(wait_s, self.lanes.dispatch, call)

    async def close(self) -> None:
        """Ends all calls and connections."""
        self._closed = True
        await self.lanes.stop_opening()
        error = ConnectionLost("the client was closed")
        for call in list(self.calls):
            self.settle(call, error)
        self.gate.close()
        await self.lanes.close()

    # -- what links tell, see LinkOwner ------------------------------------------------

    def replied(self, link: Link, reply: Reply[Call]) -> None:
        call = reply.token
        call.on_link = False
        self.lanes.answered()
        if call.done:
            self.gate.leave(len(call.line))
        elif reply.refused is not None:
            self._again(call, reply.refused, link.address)
        elif call.watcher is not None:
            self.settle(call, _watching(call.watcher, link, reply))
        else:
            self.settle(call, reply)

    def pushed(self, link: Link, push: Push) -> None:
        line = push.line
        if line.verb == "!state":
            try:
                state = answers.read_task_state(line.fields)
            except WireError as error:
                link.give_up(error)
                return
            for watcher in self.watchers.get(state.task_id, ()):
                if watcher.link is link:
                    watcher.put(state)
        elif line.verb == "!drain":
            self.lanes.drained(link, line.fields.get("to", ""))

    def idle(self, link: Link) -> None:
        # Nobody waits for the answer: that it comes is what counts.
        loop = asyncio.get_running_loop()
        ping = Call("ping", b"ping\n", None, loop.time(), loop.create_future())
        ping.done = True
        self.gate.window.add(len(ping.line))
        link.send(ping)

    def lost(self, link: Link, error: WireError) -> None:
        self.lanes.lost(link)
        for call in link.dialogue.abandon():
            call.on_link = False
            if call.done:
                self.gate.leave(len(call.line))
            else:
                self._again(call, error, link.address)

    # -- watchers ----------------------------------------------------------------------

    def add_watcher(self, task_id: str, watcher: Watcher) -> None:
        """The watcher is told of the task's states, once its `watch_task` is answered."""
        self.watchers.setdefault(task_id, set()).add(watcher)

    def forget_watcher(self, task_id: str, watcher: Watcher) -> None:
        """The watcher is told no more."""
        watchers = self.watchers[task_id]
        watchers.discard(watcher)
        if not watchers:
            del self.watchers[task_id]
        if watcher.link is not None:
            watcher.link.watchers.discard(watcher)


def _watching(watcher: Watcher, link: Link, reply: Reply[Call]) -> Reply[Call] | WireError:
    try:
        watcher.begin(link, answers.read_task_state(reply.fields))
    except WireError as error:
        return error
    return reply
