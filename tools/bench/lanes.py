"""What prefetches cost purges: one-URL refreshes at a real Varnish, alone, and while large files are fetched.

The large files are all misses, from an origin that is a process of its own, so that the agent's slow lane,
the cache and the origin are as busy as this machine lets them; they share its cores with all else.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvloop

from tools.bench.endtoend import complete_each
from tools.bench.errors import BenchError
from tools.bench.lines import post_lines
from tools.bench.report import Aim, Row
from tools.bench.rig import Engine, agent, folder
from tools.servers import Varnish

LARGE_BYTES = 4 << 20
# How many refreshes, one after the other, and how many prefetches: quick, in full.
REFRESHES = (200, 1_000)
PREFETCHES = (1_000, 10_000)
TARGETS_A_TASK = 1_000


def run(quick: bool) -> list[Row]:
    """The 99th percentile of a refresh, from post to complete, alone and beside the prefetches."""
    refreshes, prefetches = REFRESHES[not quick], PREFETCHES[not quick]
    with (
        folder() as where,
        Engine(where) as engine,
        _large_origin() as origin,
        Varnish(origin) as varnish,
        agent(where, engine, varnish.address),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        lines = post_lines(2 * refreshes, 1)[0]
        idle = _p99_ms(runner.run(complete_each(engine, lines[:refreshes])))
        runner.run(_post_prefetches(engine, prefetches))
        busy = _p99_ms(runner.run(complete_each(engine, lines[refreshes:])))
        left = runner.run(_prefetches_left(engine, prefetches))
    if not left:
        raise BenchError(f"all {prefetches} prefetches had ended before the {refreshes} refreshes")
    extra = {"idle_p99_ms": idle, "busy_p99_ms": busy, "prefetches_left": left}
    aims = (Aim("value", most=2),)
    return [Row("one-URL refreshes beside large prefetches", round(busy / idle, 2), "× p99", {}, extra, aims)]


def _p99_ms(latencies: list[float]) -> float:
    return round(sorted(latencies)[int(len(latencies) * 0.99)] * 1000, 2)


async def _post_prefetches(engine: Engine, number: int) -> None:
    """Posts them, and waits until some are done."""
    reader, writer = await asyncio.open_connection(*engine.address, limit=1 << 20)
    for first in range(0, number, TARGETS_A_TASK):
        targets = " ".join(f"http://large.example/{n}" for n in range(first, first + TARGETS_A_TASK))
        writer.write(f"post_task task_id=large-{first} type=prefetch -- {targets}\n".encode())
        if not (reply := await reader.readline()).startswith(b"ok "):
            raise BenchError(f"got {reply!r}, wanted a task that is taken")
    async with asyncio.timeout(30):
        while await _done(reader, writer, number) == 0:
            await asyncio.sleep(0.1)
    writer.close()


async def _prefetches_left(engine: Engine, number: int) -> int:
    reader, writer = await asyncio.open_connection(*engine.address)
    left = number - await _done(reader, writer, number)
    writer.close()
    return left


async def _done(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> int:
    """How many have ended. Raises: BenchError, if any has failed."""
    done = 0
    for first in range(0, number, TARGETS_A_TASK):
        writer.write(f"get_task task_id=large-{first}\n".encode())
        words = (await reader.readline()).decode().split()
        fields = dict(word.split("=", 1) for word in words[1:])
        if fields.get("failed") != "0":
            raise BenchError(f"got {' '.join(words)}, wanted prefetches that do not fail")
        done += int(fields["done"])
    return done


@contextmanager
def _large_origin() -> Iterator[str]:
    """HOST:PORT of a process that answers everything with a large object."""
    command = [sys.executable, "-m", "tools.bench.lanes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (port := process.stdout.readline().strip()):
                raise BenchError("the origin of large objects did not start")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()


class _Large(asyncio.Protocol):
    """One connection; requests are small and come one at a time."""

    answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nContent-Length: %d\r\n\r\n%b" % (
        LARGE_BYTES,
        bytes(LARGE_BYTES),
    )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._asked = b""

    def data_received(self, data: bytes) -> None:
        self._asked += data
        if self._asked.endswith(b"\r\n\r\n"):
            self._asked = b""
            self._transport.write(self.answer)


async def _serve_large() -> None:
    server = await asyncio.get_running_loop().create_server(_Large, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve_large())
