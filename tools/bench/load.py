"""The load generator: lines rendered beforehand, replies counted by their line ends.

About 8 µs of its own CPU a request with one in flight a connection, 1 µs pipelined:
it must not be what is measured, so its CPU is printed beside the others'.
"""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from typing import NamedTuple, cast

import uvloop

from tools.bench.rig import BenchError, Cpu, Program
from wire.shards import worker_of

_PAD = "x" * 250
DEADLINE_S = 120.0


class Measured(NamedTuple):
    """One run: rate, latencies of a round (ms), CPU µs an operation by process."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: dict[str, float]


def post_lines(number: int, workers: int, *, ids: str = "random", cross: float = 0.0) -> list[list[bytes]]:
    """`number` post_task lines of about 330 bytes, dealt to the workers they are sent to.

    `ids`: random (UUIDs) or ascending. `cross`: the share that is sent to a worker
    that does not own the shard.
    """
    dealt: list[list[bytes]] = [[] for _ in range(workers)]
    for count in range(number):
        task_id = uuid.uuid4().hex if ids == "random" else f"task-{count:027d}"
        line = f"post_task task_id={task_id} type=url -- http://www.example.com/{_PAD}{count}\n".encode()
        away = 1 if cross and count % 100 < cross * 100 else 0
        dealt[(worker_of(task_id.encode(), workers) + away) % workers].append(line)
    return dealt


class _Client(asyncio.Protocol):
    """One connection: keeps `depth` requests in flight until its lines are used up."""

    def __init__(self, run: _Run, greeting: bytes, lines: list[bytes], depth: int, head: bytes) -> None:
        self.greeted: asyncio.Future[None] = run.loop.create_future()
        self._run = run
        self._greeting = greeting
        self._lines = lines
        self._depth = depth
        self._head = head
        self._sent_at = 0.0
        self._faults = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._greeting:
            self.transport.write(self._greeting)
        else:
            self.greeted.set_result(None)

    def begin(self) -> None:
        self._send(self._depth)

    def _send(self, number: int) -> None:
        lines = self._lines
        if lines:
            some = lines[-number:]
            del lines[-number:]
            self._sent_at = time.perf_counter()
            self.transport.write(b"".join(some) if number > 1 else some[0])

    def data_received(self, data: bytes) -> None:
        if not self.greeted.done():
            self.greeted.set_result(None)
            return
        self._run.latencies.append(time.perf_counter() - self._sent_at)
        number = data.count(b"\n")
        if self._head not in data:
            self._faults += 1
            if self._faults > 3:
                self._run.fail(f"got {data[:200]!r}, wanted replies with {self._head!r}")
        self._run.answered(number)
        self._send(number)


class _Run:
    """All connections of one measurement."""

    def __init__(self, total: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = self.loop.create_future()
        self._left = total

    def answered(self, number: int) -> None:
        self._left -= number
        if self._left <= 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchError(why))


async def _drive(
    address: tuple[str, int],
    dealt: list[list[bytes]],
    connections: int,
    depth: int,
    programs: list[Program],
    greeting: bytes,
    head: bytes,
    replies_per_line: int,
) -> Measured:
    total = sum(map(len, dealt))
    run = _Run(total * replies_per_line)
    clients: list[_Client] = []
    try:
        for number in range(connections):
            lines = dealt[number % len(dealt)]
            hello = greeting % (number % len(dealt)) if greeting else b""
            client = _Client(run, hello, lines, depth, head)
            await run.loop.create_connection(lambda client=client: client, *address)  # type: ignore[misc]
            clients.append(client)
        await asyncio.gather(*(client.greeted for client in clients))
        cpu = Cpu(programs)
        for client in clients:
            client.begin()
        async with asyncio.timeout(DEADLINE_S):
            await run.done
        rate = total / cpu.elapsed_s
        cpu_us = cpu.us_per(total)
    finally:
        for client in clients:
            client.transport.abort()
        # uvloop does not come to its end while a transport is open.
        await asyncio.sleep(0.01)
    latencies = sorted(run.latencies)
    return Measured(
        round(rate),
        round(latencies[len(latencies) // 2] * 1000, 2),
        round(latencies[int(len(latencies) * 0.99)] * 1000, 2),
        cpu_us,
    )


def drive(
    address: tuple[str, int],
    dealt: list[list[bytes]],
    connections: int,
    depth: int,
    programs: list[Program],
    *,
    greeting: bytes = b"hello v=1 role=client worker=%d\n",
    head: bytes = b"ok task_id=",
    replies_per_line: int = 1,
) -> Measured:
    """Sends all lines over `connections`, `depth` in flight each, and waits for every reply.

    Raises: BenchError for replies that are not what was wanted; TimeoutError.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(
                _drive(address, dealt, connections, depth, programs, greeting, head, replies_per_line)
            )
    finally:
        gc.enable()
        gc.unfreeze()
