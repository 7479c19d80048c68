"""The ways to the workers of one engine, and the move to another engine."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Sequence
from typing import Protocol

from wire import DEFAULT_LINE_MAX_BYTES
from wire.addresses import is_unix, read_address
from wire.client.call import Call
from wire.client.link import Link, LinkOwner
from wire.dialogue import Credentials, Dialogue, Welcome, format_hello
from wire.errors import ConnectionLost, LocalError, Refused, WireError
from wire.retry import Rotation, Verdict, judge
from wire.shards import worker_of

# Connecting and greeting, on one address; the next is tried after that.
CONNECT_TIMEOUT_S = 5.0
# A link on which nothing came for this long, though something was asked, is given up.
SILENCE_S = 15.0
# How long closing waits for the transports to say goodbye.
CLOSE_TIMEOUT_S = 1.0


class Lane:
    """The way to one worker (None: to whichever answers), and the calls that wait for it to open."""

    __slots__ = ("alive", "link", "opening", "queue", "worker")

    def __init__(self, worker: int | None) -> None:
        self.worker = worker
        self.link: Link | None = None
        self.opening: asyncio.Task[None] | None = None
        self.queue: dict[Call, None] = {}
        self.alive = True


class LaneOwner(LinkOwner, Protocol):
    """Who is told of calls that no connection could be made for."""

    def settle(self, call: Call, outcome: WireError) -> None:
        """Ends a call."""


class Lanes:
    """Sends each call to the worker that owns its task, connecting where need be."""

    def __init__(
        self,
        owner: LaneOwner,
        addresses: Sequence[str],
        *,
        credentials: Credentials | None,
        zipped: bool,
        patient: bool,
        silence_s: float,
    ) -> None:
        if not addresses:
            raise LocalError("a client needs an address")
        for address in addresses:
            read_address(address)
        self.rotation = Rotation(addresses)
        self.links: set[Link] = set()
        self.line_max = DEFAULT_LINE_MAX_BYTES
        self._owner = owner
        self._credentials = credentials
        self._zipped = zipped
        self._patient = patient
        self._silence_s = silence_s
        self._lanes: dict[int | None, Lane] = {}
        self._openings: set[asyncio.Task[None]] = set()
        self._workers = 0
        """The engine's, as its last greeting told; 0 while that is not known."""
        self._connected_once = False
        self._closed = False
        self._tick_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"{self.rotation.current}, {len(self.links)} links"

    # -- sending -----------------------------------------------------------------------

    def dispatch(self, call: Call) -> None:
        """Sends a call, or puts it in the queue of a lane that opens."""
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

    def _lane_of(self, call: Call) -> Lane:
        worker: int | None = None
        if self._workers:
            if call.task_id is not None:
                worker = worker_of(call.task_id.encode(), self._workers)
            else:
                # Anyone can answer: whoever is connected.
                worker = next((lane.worker for lane in self._lanes.values() if lane.link), 0)
        lane = self._lanes.get(worker)
        if lane is None:
            lane = self._lanes[worker] = Lane(worker)
        return lane

    # -- opening -----------------------------------------------------------------------

    async def _open(self, lane: Lane) -> None:
        """Connects a lane; gives up when nobody waits for it any more."""
        wait_s = 0.0
        try:
            # A lane that was left has an empty queue.
            while lane.queue:
                await asyncio.sleep(max(wait_s, self.rotation.delay_s(random.random())))
                if not lane.queue:
                    return
                address, failures = self.rotation.current, self.rotation.failures
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

    async def _dial(self, address: str, worker: int | None) -> Link:
        """Makes a connection and greets. Raises: ConnectionLost, Refused, PeerMisbehaved."""
        hello = None if is_unix(address) else self._hello(worker)
        link = Link(self._owner, address, Dialogue(hello, zipped=self._zipped))
        self.links.add(link)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await _connect(link, address)
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
                    self.links.discard(link)
        return link

    def _hello(self, worker: int | None) -> bytes:
        nonce = secrets.token_hex(16)
        return format_hello(
            self._credentials, ts=int(time.time()), nonce=nonce, worker=worker, zipped=self._zipped
        )

    def _not_opened(self, lane: Lane, error: WireError, address: str, failures: int) -> float:
        """What a failed connection means for those who wait for it; returns how long to wait."""
        if isinstance(error, Refused) and error.field == "worker" and lane.worker is not None:
            # The engine has fewer workers than it had: learn anew.
            self._reset()
            return 0.0
        moved = self.rotation.failed(address, failures)
        never_there = not self._connected_once and self.rotation.failures >= len(self.rotation)
        for call in list(lane.queue):
            call.error = error
            if judge(error) is Verdict.FAIL or (never_there and not self._patient):
                self._owner.settle(call, error)
        if moved:
            self._reset()
        return (error.retry_ms or 0) / 1000 if isinstance(error, Refused) else 0.0

    def _opened(self, lane: Lane, link: Link) -> None:
        lane.opening = None
        self._connected_once = True
        if not lane.alive or self._closed:
            link.retire()
            return
        lane.link = link
        if link.dialogue.welcome is not None:
            self._learn(lane, link.dialogue.welcome)
        self._redispatch([lane])
        if self._tick_timer is None:
            self._tick()

    def _learn(self, lane: Lane, welcome: Welcome) -> None:
        self.line_max = welcome.line_max
        if welcome.workers != self._workers:
            self._workers = welcome.workers
            self._drop_lanes_from(welcome.workers)
        if lane.worker is None:
            del self._lanes[None]
            lane.worker = welcome.worker
            self._lanes[welcome.worker] = lane

    def _drop_lanes_from(self, workers: int) -> None:
        """The engine has so many workers now; the lanes of others lead nowhere of their own."""
        gone = [lane for number, lane in self._lanes.items() if number is not None and number >= workers]
        for lane in gone:
            del self._lanes[lane.worker]
            lane.alive = False
            if lane.link is not None:
                lane.link.retire()
        self._redispatch(gone)

    def _redispatch(self, lanes: Sequence[Lane]) -> None:
        calls: list[Call] = []
        for lane in lanes:
            calls += lane.queue
            lane.queue.clear()
        for call in calls:
            self.dispatch(call)

    # -- leaving -----------------------------------------------------------------------

    def answered(self) -> None:
        """A request was answered: the engine is well."""
        if self.rotation.failures:
            self.rotation.succeeded()

    def leave(self, address: str) -> bool:
        """Goes to another engine, if one is known and it was not done yet; whether there is one."""
        if self.rotation.leave(address):
            self._reset()
        return len(self.rotation) > 1

    def drained(self, link: Link, to: str) -> None:
        """The engine goes away: this link sends no more, another takes its place when one is needed."""
        # Counted as a failure, so that an engine that greets and drains is not asked in a hot loop.
        moved = self.rotation.failed(link.address, self.rotation.failures)
        named = _addresses(to)
        if named:
            moved = self.rotation.go_to(named) or moved
        link.retire()
        if moved:
            self._reset()

    def lost(self, link: Link) -> None:
        """A link is gone."""
        self.links.discard(link)
        for lane in self._lanes.values():
            if lane.link is link:
                lane.link = None

    def _reset(self) -> None:
        """Leaves the engine: what is sent is awaited, all else goes where `rotation` says now."""
        lanes, self._lanes, self._workers = list(self._lanes.values()), {}, 0
        for lane in lanes:
            lane.alive = False
            if lane.link is not None:
                lane.link.retire()
        self._redispatch(lanes)

    def _tick(self) -> None:
        """Gives up links that went silent, and asks those that are idle whether they live."""
        loop = asyncio.get_running_loop()
        for link in list(self.links):
            link.check_alive(loop.time(), self._silence_s)
        self._tick_timer = loop.call_later(self._silence_s / 4, self._tick) if self.links else None

    async def stop_opening(self) -> None:
        """Makes no more connections."""
        self._closed = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        for task in list(self._openings):
            task.cancel()
        await asyncio.gather(*self._openings, return_exceptions=True)

    async def close(self) -> None:
        """Ends all connections, once what was written is sent."""
        gone = [link.gone for link in self.links]
        for link in list(self.links):
            link.close()
        if gone:
            await asyncio.wait(gone, timeout=CLOSE_TIMEOUT_S)


async def _connect(link: Link, text: str) -> None:
    loop = asyncio.get_running_loop()
    host, port, path = read_address(text)
    if path is not None:
        await loop.create_unix_connection(lambda: link, path)
    else:
        await loop.create_connection(lambda: link, host, port)


def _addresses(to: str) -> list[str]:
    """The addresses that a `!drain` names; none if one of them is no address."""
    named = to.split(",") if to else []
    with contextlib.suppress(LocalError):
        for address in named:
            read_address(address)
        return named
    return []
