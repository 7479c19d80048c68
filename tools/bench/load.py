"""The load generator: lines rendered beforehand, every reply counted and its beginning checked.

About 1 µs of its own CPU a request pipelined, 8 µs with one in flight a connection
(most of it the two system calls): its CPU is printed beside that of what it measures.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple, cast

import uvloop

from tools.bench.errors import BenchError
from tools.bench.meter import Meter, Spent
from tools.bench.programs import Tree
from tools.bench.rig import Address

DEADLINE_S = 180.0
# Long: an engine that pushes millions of tasks to proxies that just came greets slowly.
CONNECT_DEADLINE_S = 60.0
# uvloop does not come to its end while a transport is open, and one that was aborted closes a turn later.
LAST_TURN_S = 0.01


class Shape(NamedTuple):
    """How the load comes: so many connections, each with so many requests in flight."""

    connections: int
    depth: int

    def __str__(self) -> str:
        return f"{self.connections}×{self.depth}"


class Speech(NamedTuple):
    """What the other side says: the greeting it wants, `%d` for a worker, and how each reply begins."""

    greeting: bytes = b"hello v=1 role=client worker=%d\n"
    reply: bytes = b"ok task_id="


class Measured(NamedTuple):
    """One run."""

    rate: float
    p50_ms: float
    p99_ms: float
    spent: Spent


class Replies:
    """Counts the lines in a stream, and that each begins as it should."""

    def __init__(self, begins: bytes) -> None:
        self._begins = begins
        self._tail = b""

    def feed(self, data: bytes) -> int:
        """How many lines `data` completes. Raises: BenchError for one that begins otherwise."""
        if self._tail:
            data = self._tail + data
        end = data.rfind(b"\n") + 1
        self._tail = data[end:]
        if self._tail:
            data = data[:end]
        number = data.count(b"\n")
        # A reply holds its beginning once, so counting tells of every one of them.
        if data.count(self._begins) != number:
            bad = next((line for line in data.split(b"\n") if not line.startswith(self._begins)), b"")
            raise BenchError(f"got the reply {bad[:200]!r}, wanted one with {self._begins!r}")
        return number


class _Client(asyncio.Protocol):
    """One connection: keeps `depth` requests in flight until its lines are used up."""

    def __init__(self, run: _Run, greeting: bytes, lines: Iterator[bytes], speech: Speech) -> None:
        self.greeted: asyncio.Future[None] = run.loop.create_future()
        self._run = run
        self._greeting = greeting
        self._lines = lines
        self._replies = Replies(speech.reply)
        self._sent: deque[tuple[float, int]] = deque()
        """When, and how many; of what is not answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._greeting:
            self.transport.write(self._greeting)
        else:
            self.greeted.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.fail(BenchError(f"a connection was closed: {exc}"))

    def send(self, number: int) -> None:
        """Sends the next lines, as many as there are."""
        lines = list(islice(self._lines, number))
        if lines:
            self._sent.append((time.perf_counter(), len(lines)))
            self.transport.write(b"".join(lines))

    def data_received(self, data: bytes) -> None:
        if not self.greeted.done():
            self._check_greeting(data)
            return
        try:
            number = self._replies.feed(data)
        except BenchError as error:
            self._run.fail(error)
            return
        if number:
            self._time(number)
            self._run.answered(number)
            self.send(number)

    def _check_greeting(self, data: bytes) -> None:
        if data.startswith(b"ok ") and data.endswith(b"\n"):
            self.greeted.set_result(None)
        else:
            self.greeted.set_exception(BenchError(f"got {data[:200]!r} for a greeting, wanted ok"))

    def _time(self, number: int) -> None:
        now = time.perf_counter()
        while number:
            at, waiting = self._sent.popleft()
            answered = min(waiting, number)
            self._run.latencies.append((now - at, answered))
            number -= answered
            if answered < waiting:
                self._sent.appendleft((at, waiting - answered))


class _Run:
    """All connections of one measurement."""

    def __init__(self, total: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.latencies: list[tuple[float, int]] = []
        """(seconds, how many requests took them)"""
        self.done: asyncio.Future[None] = self.loop.create_future()
        self._left = total

    def answered(self, number: int) -> None:
        self._left -= number
        if self._left <= 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BenchError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def drive_here(
    addresses: list[Address],
    dealt: list[list[bytes]],
    shape: Shape,
    programs: Iterable[Tree] = (),
    speech: Speech = Speech(),  # noqa: B008 (a tuple)
) -> Measured:
    """As `drive`, in the loop that runs."""
    total = sum(map(len, dealt))
    run = _Run(total)
    shared = [iter(lines) for lines in dealt]
    clients: list[_Client] = []
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            for number in range(shape.connections):
                worker = number % len(dealt)
                greeting = speech.greeting % worker if speech.greeting else b""
                client = _Client(run, greeting, shared[worker], speech)
                address = addresses[worker % len(addresses)]
                await run.loop.create_connection(lambda client=client: client, *address)  # type: ignore[misc]
                clients.append(client)
            await asyncio.gather(*(client.greeted for client in clients))
        meter = Meter(programs)
        for client in clients:
            client.send(shape.depth)
        async with asyncio.timeout(DEADLINE_S):
            await run.done
        spent = meter.spent(total)
    finally:
        for client in clients:
            client.transport.abort()
        await asyncio.sleep(LAST_TURN_S)
    p50_ms, p99_ms = (round(seconds * 1000, 2) for seconds in percentiles(run.latencies, (0.5, 0.99)))
    return Measured(round(total / spent.elapsed_s), p50_ms, p99_ms, spent)


def drive(
    addresses: list[Address],
    dealt: list[list[bytes]],
    shape: Shape,
    programs: Iterable[Tree] = (),
    speech: Speech = Speech(),  # noqa: B008 (a tuple)
) -> Measured:
    """Sends all lines, each list of `dealt` to its worker, and waits for every reply.

    Worker I is at address I; where there is one address, it is everyone's.
    Raises: BenchError for replies that are not what was wanted; TimeoutError.
    """
    with undisturbed(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(drive_here(addresses, dealt, shape, programs, speech))


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection of this process in what is measured."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def percentiles(weighted: list[tuple[float, int]], shares: tuple[float, ...]) -> list[float]:
    """The smallest value that is not exceeded by such a share of the weight, for each share."""
    ordered = sorted(weighted)
    total = sum(weight for _, weight in ordered)
    found: list[float] = []
    for share in shares:
        below = 0
        for value, weight in ordered:
            below += weight
            if below >= share * total:
                found.append(value)
                break
    return found
