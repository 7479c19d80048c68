"""Small things the agent's tests are written with."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import uvloop

from proxyd.caches import Deed
from proxyd.connection import Limits
from proxyd.outbox import Outbox
from proxyd.pipeline import CacheClient
from proxyd.targets import split_target
from proxyd.tasks import Exchange, Task
from wire.tasks import PushHead

Result = TypeVar("Result")

TEST_TIMEOUT_S = 20.0

# For servers that answer: no machine is so slow that these end a good test.
SHORT = Limits(
    connections=2, depth=8, connect_timeout_s=5, answer_timeout_s=10, whole_timeout_s=15, patience_s=10
)
# For servers that never do: given up within a test.
HASTY = msgspec.structs.replace(SHORT, connect_timeout_s=1, answer_timeout_s=0.5, patience_s=0.3)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a test on the loop that the agent runs on, with a deadline."""

    async def bounded() -> Result:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            return await coroutine

    return uvloop.run(bounded())


async def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Waits, with a deadline, on the test's own loop."""
    try:
        async with asyncio.timeout(TEST_TIMEOUT_S / 2):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise TimeoutError(f"{what} did not come true") from None


def make_exchange(target: bytes, deed: Deed, *, expires_at: float = math.inf) -> Exchange:
    """One request as the dispatcher makes it."""
    task = Task(b"t", Outbox(lambda: None), 1, PushHead("url"), 0.0, expires_at)
    return Exchange(task, target, deed.render(*split_target(target)), deed, None)


def make_refresh(task_type: str, target: str = "", force: str = "", *, deed: Deed | None = None) -> Exchange:
    """An exchange as `MergingQueue` looks at it."""
    head = PushHead(task_type, force=bool(force))
    task = Task(b"t", Outbox(lambda: None), 1, head, 0.0, math.inf)
    return Exchange(task, target.encode(), b"", deed or Deed(b"", frozenset()), None)


async def perform(
    address: tuple[str, int], deed: Deed, targets: list[bytes], limits: Limits = SHORT
) -> dict[bytes, list[str | None]]:
    """Sends all targets through one client; returns what it told of each."""
    told: dict[bytes, list[str | None]] = {target: [] for target in targets}
    client = CacheClient("c", *address, limits, lambda exchange, error: told[exchange.target].append(error))
    try:
        for target in targets:
            client.put(make_exchange(target, deed), 5)
        await wait_until(lambda: all(told.values()), f"an end of all of {client}")
    finally:
        client.close()
    return told


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT as a tuple."""
    host, _, port = address.rpartition(":")
    return host, int(port)


Script = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One connection to a `Scripted` server, as its script sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """The next request's line and headers; b"" at the end of the connection."""
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    async def send(self, data: bytes) -> None:
        """Writes, and waits until it is on its way."""
        self._writer.write(data)
        await self._writer.drain()

    async def forever(self) -> None:
        """Says nothing more, until the peer closes."""
        while await self._reader.read(65536):
            pass

    def reset(self) -> None:
        """Ends the connection with an RST."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


class Scripted:
    """A server that does what `script` says on each connection; the end of the script closes it."""

    def __init__(self, script: Script, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self.visits = 0
        self.requests: list[bytes] = []
        self.address = address

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return len(self._tasks)

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_server(self._serve, *self.address)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.visits += 1
        visit = Visit(self.visits, reader, writer)
        take = visit.request

        async def recorded() -> bytes:
            request = await take()
            if request:
                self.requests.append(request)
            return request

        visit.request = recorded  # type: ignore[method-assign]
        try:
            await self._script(visit)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)
