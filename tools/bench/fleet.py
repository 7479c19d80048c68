"""Simulated proxies: many in one process, cheap enough not to be what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from tools.bench.errors import BenchError
from tools.bench.load import CONNECT_DEADLINE_S, LAST_TURN_S
from tools.bench.rig import GROUP, Engine

# Half of what PROTOCOL.md asks for, so that a slow turn of the loop makes no proxy go offline.
BEAT_S = 2.5
_LOOK_S = 0.02
_ID_AT = len(b"!task task_id=")
_ID_END = _ID_AT + 32


def done_line(ids: list[bytes]) -> bytes:
    """The report that all of these are done."""
    return b"report state=done ms=1 -- " + b" ".join(ids) + b"\n"


class _Link(asyncio.Protocol):
    """One connection of a proxy to one worker."""

    def __init__(self, fleet: Fleet, name: str, worker: int, credit: int) -> None:
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self.worker = worker
        hello = f"hello v=1 role=proxy name={name} group={GROUP} worker={worker}"
        self._first = f"{hello}\nready credit={credit}\n".encode()
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fleet.fail(BenchError(f"the engine closed a connection of a proxy: {exc}"))

    def data_received(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data if self._tail else data).split(b"\n")
        # The id is cut by its place: the bench made it, and parsing would cost more than the engine does.
        ids = [line[_ID_AT:_ID_END] for line in lines if line.startswith(b"!task ")]
        if ids:
            self._fleet.pushed += len(ids)
            if self._fleet.reports:
                self.transport.write(done_line(ids))
        if not self._fleet.reports:
            self._fleet.took(sum(line.startswith(b"ok n=") for line in lines))
        if not self.greeted.done() and lines:
            self.greeted.set_result(None)


class Fleet:
    """Proxies with a connection to each worker. With `reports` each push is reported at once, all of a
    read in one line; else never."""

    def __init__(self, engine: Engine, proxies: int, *, credit: int = 100_000, reports: bool = True) -> None:
        self.reports = reports
        self.pushed = 0
        """(task, proxy) pairs."""
        self._owed = 0
        """Lines of `report_all` that are not answered."""
        self._settled = asyncio.Event()
        self._engine = engine
        self._credit = credit
        self._names = [f"p{number}" for number in range(proxies)]
        self._links: list[_Link] = []
        self._over = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Fleet:
        loop = asyncio.get_running_loop()
        address = self._engine.address
        # From the start: greeting all of them can take longer than a silent proxy is waited for.
        self._beating = asyncio.create_task(self._beat())
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            for name in self._names:
                for worker in range(self._engine.workers):
                    link = _Link(self, name, worker, self._credit)
                    await loop.create_connection(lambda made=link: made, *address)  # type: ignore[misc]
                    self._links.append(link)
            await self.until(asyncio.gather(*(link.greeted for link in self._links)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._over = True
        if self._beating is not None:
            self._beating.cancel()
        for link in self._links:
            link.transport.abort()
        await asyncio.sleep(LAST_TURN_S)

    async def report_all(self, lines: list[list[bytes]], proxies: int) -> None:
        """So many of the proxies send the reports `lines[worker]` to each worker, and wait for the replies.

        One line a link at a time, so that nothing piles up on the way.
        """
        links = self._links[: proxies * self._engine.workers]
        for at in range(max(map(len, lines))):
            for link in links:
                if at < len(lines[link.worker]):
                    self._owed += 1
                    link.transport.write(lines[link.worker][at])
            self._settled.clear()
            await self.until(self._settled.wait())

    async def pushed_to_all(self, tasks: int) -> None:
        """Waits until every task was pushed to every proxy."""
        while self.pushed < tasks * len(self._names):
            await self.until(asyncio.sleep(_LOOK_S))

    async def until(self, event: Awaitable[object]) -> None:
        """Waits for it. Raises: BenchError when a connection is lost meanwhile."""
        waiting = asyncio.ensure_future(event)
        await asyncio.wait((waiting, self._failed), return_when=asyncio.FIRST_COMPLETED)
        if self._failed.done():
            waiting.cancel()
            self._failed.result()

    def fail(self, error: BenchError) -> None:
        """The measurement is spoilt."""
        if not self._over and not self._failed.done():
            self._failed.set_exception(error)

    def took(self, number: int) -> None:
        """The engine answered so many reports."""
        self._owed -= number
        if not self._owed:
            self._settled.set()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for link in self._links:
                link.transport.write(b"beat\n")
