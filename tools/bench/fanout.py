"""Fan-out with reports: simulated proxies that report every push at once."""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop

from tools.bench.load import DEADLINE_S, post_lines
from tools.bench.report import Row
from tools.bench.rig import BenchError, Cpu, Engine, Folder

_POSTED_AT_A_TIME = 64


class _Proxy(asyncio.Protocol):
    """One connection of a simulated proxy to one worker."""

    def __init__(self, fleet: _Fleet, name: str, worker: int) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self._hello = b"hello v=1 role=proxy name=%b group=all worker=%d\nready credit=100000\n" % (
            name.encode(),
            worker,
        )
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        # `!task task_id=` and 32 hex digits: cut, not parsed, as the generator must stay cheap.
        ids = [line[14:46] for line in lines if line.startswith(b"!task")]
        if ids:
            self._fleet.pairs += len(ids)
            self.transport.write(b"report state=done ms=1 -- " + b" ".join(ids) + b"\n")
        if not self.ready.done():
            self.ready.set_result(None)


class _Fleet:
    """How many (task, proxy) pairs were pushed."""

    pairs = 0


def run(quick: bool) -> list[Row]:
    """100 and 1,000 proxies, the same number of pairs."""
    pairs = 200_000 if quick else 2_000_000
    few, many = (_measure(proxies, pairs // proxies) for proxies in (100, 1_000))
    growth = round(many.cpu_us["engine"] / few.cpu_us["engine"], 2)
    return [
        few._replace(target="≥ 300,000 pairs/s"),
        many,
        Row("cost of a pair, 1,000 : 100 proxies", "×", growth, target="not growing"),
    ]


def _measure(proxies: int, tasks: int) -> Row:
    with (
        Folder() as folder,
        Engine(folder, proxies=proxies) as engine,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        rate, cpu_us = runner.run(_fan_out(engine, proxies, tasks))
    return Row(f"fan-out to {proxies:,} proxies", "pairs/s", rate, cpu_us=cpu_us)


async def _fan_out(engine: Engine, proxies: int, tasks: int) -> tuple[float, dict[str, float]]:
    loop = asyncio.get_running_loop()
    fleet = _Fleet()
    connections: list[_Proxy] = []
    for number in range(proxies):
        for worker in range(engine.workers):
            connection = _Proxy(fleet, f"p{number}", worker)
            await loop.create_connection(lambda made=connection: made, *engine.address)  # type: ignore[misc]
            connections.append(connection)
    await asyncio.gather(*(connection.ready for connection in connections))
    lines = [line for dealt in post_lines(tasks, 1) for line in dealt]
    reader, writer = await asyncio.open_connection(*engine.address)
    cpu = Cpu([engine.program])
    for at in range(0, tasks, _POSTED_AT_A_TIME):
        some = lines[at : at + _POSTED_AT_A_TIME]
        writer.write(b"".join(some))
        for _ in some:
            reply = await reader.readline()
            if not reply.startswith(b"ok "):
                raise BenchError(f"a task was refused: {reply!r}")
    async with asyncio.timeout(DEADLINE_S):
        while await _complete(reader, writer) < tasks:
            await asyncio.sleep(0.01)  # the engine is asked, it does not tell
    rate = tasks * proxies / cpu.elapsed_s
    cpu_us = cpu.us_per(tasks * proxies)
    for connection in connections:
        connection.transport.close()
    writer.close()
    return round(rate), cpu_us


async def _complete(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """How many tasks the engine counts as complete."""
    return int((await stats(reader, writer))["tasks_complete"])


async def stats(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, float]:
    """The engine's figures."""
    writer.write(b"stats\n")
    head = (await reader.readline()).decode()
    figures = {}
    for _ in range(int(head.split("n=")[1])):
        row = dict(pair.split("=", 1) for pair in (await reader.readline()).decode().split()[1:])
        figures[row["name"]] = float(row["value"])
    return figures
