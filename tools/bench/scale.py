"""A million unfinished tasks: their memory, and a start with them."""

from __future__ import annotations

import asyncio
from typing import cast

from tools.bench.load import DEADLINE_S, drive, post_lines
from tools.bench.report import Row
from tools.bench.rig import Engine, Folder

PROXIES = 100
_CHUNK = 250_000


def run(quick: bool) -> list[Row]:
    """100 proxies in scope: away, then there but silent; then kill -9 and a start."""
    number = 50_000 if quick else 1_000_000
    with Folder() as folder, Engine(folder, proxies=PROXIES) as engine:
        before = engine.memory_bytes()
        _fill(engine, number)
        away = engine.memory_bytes() - before
        silent = asyncio.run(_pushed_to_all(engine, number)) - before
        seconds = engine.restart_after_kill()
        again = engine.memory_bytes() - before
    name = f"{number:,} unfinished tasks, {PROXIES} proxies"
    return [
        Row(f"memory, {name} away", "bytes a task", round(away / number), target="≤ 1,024"),
        Row(f"memory, {name} silent", "bytes a task", round(silent / number), target="≤ 1,024"),
        Row(f"restart after kill -9, {name}", "s", round(seconds, 2), target="< 15 s"),
        Row("memory after that restart", "bytes a task", round(again / number)),
    ]


def _fill(engine: Engine, number: int) -> None:
    for at in range(0, number, _CHUNK):
        drive(engine.address, post_lines(min(_CHUNK, number - at), engine.workers), 8, 64, [])


class _Silent(asyncio.Protocol):
    """A proxy that takes everything and reports nothing."""

    def __init__(self, hello: bytes) -> None:
        self._hello = hello
        self.bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)


async def _pushed_to_all(engine: Engine, number: int) -> int:
    """Memory once a part of the tasks was pushed to every proxy."""
    loop = asyncio.get_running_loop()
    # Each proxy's share: all of it would be 30 GB over loopback and shows nothing more.
    credit = min(number, 10_000) // engine.workers
    proxies: list[_Silent] = []
    for number_ in range(PROXIES):
        for worker in range(engine.workers):
            hello = f"hello v=1 role=proxy name=p{number_} group=all worker={worker}\nready credit={credit}\n"
            silent = _Silent(hello.encode())
            await loop.create_connection(lambda silent=silent: silent, *engine.address)  # type: ignore[misc]
            proxies.append(silent)
    async with asyncio.timeout(DEADLINE_S):
        while min(proxy.bytes for proxy in proxies) < credit * 300:
            await asyncio.sleep(0.05)
    memory = await asyncio.to_thread(engine.memory_bytes)
    for proxy in proxies:
        proxy.transport.close()
    return memory
