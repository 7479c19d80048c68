"""The origin whose objects change, and the readers at the edge who notice when they are shown an old one.

Both live on one loop, so they know of each other what nobody else does: `versions` is what the origin has,
`floors` what a reader may expect at least, which is raised when a task is complete. A reader notes the floor
*before* it asks: an answer below it is stale.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import closing
from typing import Any, NamedTuple

HOST = "tiers.example"
# Of these, one in SLOW_ONE_IN answers what it had when it was asked, up to SLOW_MAX_S later: what is being
# fetched while it is purged is what makes a cache keep an old copy.
SLOW_ONE_IN = 10
SLOW_MAX_S = 0.03
READERS = 24
# Between two requests of a reader, so that the readers leave the caches some CPU.
PAUSE_S = 0.004
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE).search
_PATH = re.compile(rb"GET /o/(\d+) ").match


class Stale(NamedTuple):
    """An answer that was older than what had been promised."""

    number: int
    got: int
    wanted: int


class World:
    """`objects` of version 1."""

    def __init__(self, objects: int, seed: int = 1) -> None:
        self.versions = [1] * objects
        self.floors = [1] * objects
        self.stale: list[Stale] = []
        self.reads = 0
        self.fetches = 0
        self.window: list[int] = []
        """Objects that are about to change, change or have changed lately: half of the reads are of them."""
        self.random = random.Random(seed)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._readers: list[asyncio.Task[None]] = []

    async def open(self) -> str:
        """Serves the origin; returns its address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _OriginConnection(self), "127.0.0.1", 0, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"127.0.0.1:{self.port}"

    async def close(self) -> None:
        """Ends readers and origin."""
        await self.stop_reading()
        if self._server is not None:
            self._server.close()

    def change(self, numbers: range) -> None:
        """These are of the next version from now on."""
        for number in numbers:
            self.versions[number] += 1

    def promise(self, numbers: range) -> None:
        """A task about these is complete: whoever asks from now on gets what the origin has."""
        for number in numbers:
            self.floors[number] = self.versions[number]

    def read(self, edge: str) -> None:
        """Begins to read at a cache."""
        for _ in range(READERS):
            self._readers.append(asyncio.create_task(self._read_on(edge)))

    async def stop_reading(self) -> None:
        """Ends the readers. Raises what one of them ended with."""
        readers, self._readers = self._readers, []
        for reader in readers:
            reader.cancel()
        for outcome in await asyncio.gather(*readers, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def read_all(self, edge: str) -> None:
        """Each object once, through READERS connections."""
        numbers = iter(range(len(self.versions)))

        async def some() -> None:
            with closing(await Visitor.connect(edge)) as visitor:
                for number in numbers:
                    await self._read_one(visitor, number)

        await asyncio.gather(*(some() for _ in range(READERS)))

    async def _read_on(self, edge: str) -> None:
        choose = self.random
        with closing(await Visitor.connect(edge)) as visitor:
            while True:
                lately = self.window and choose.random() < 0.5
                number = choose.choice(self.window) if lately else choose.randrange(len(self.versions))
                await self._read_one(visitor, number)
                await asyncio.sleep(PAUSE_S)

    async def _read_one(self, visitor: Visitor, number: int) -> None:
        wanted = self.floors[number]
        got = await visitor.get(number)
        self.reads += 1
        if got < wanted:
            self.stale.append(Stale(number, got, wanted))


class Visitor:
    """One keep-alive connection to a cache."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, edge: str) -> Visitor:
        """Connects to HOST:PORT."""
        host, _, port = edge.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def get(self, number: int) -> int:
        """The version of an object as the cache shows it. Raises: OSError, ValueError, EOFError."""
        shown, version = (await self.fetch(HOST, f"/o/{number}")).split()[:2]
        if int(shown) != number:
            raise ValueError(f"asked for object {number}, got {int(shown)}")
        return int(version)

    async def fetch(self, host: str, path: str) -> bytes:
        """The body. Raises: OSError, ValueError, EOFError."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH(head)
        body = await self._reader.readexactly(int(length[1]) if length else 0)
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"{host}{path}: got {head[:40]!r}, wanted 200")
        return body

    def close(self) -> None:
        """Ends the connection."""
        self._writer.close()


class _OriginConnection(asyncio.Protocol):
    """One connection of a cache to the origin. Its answers come in the order of its requests."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        self._free_at = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for request in requests:
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        world, now = self._world, self._loop.time()
        asked = _PATH(request)
        if asked is None:
            self._transport.write(b"HTTP/1.1 404 Not found\r\nContent-Length: 0\r\n\r\n")
            return
        number = int(asked[1])
        world.fetches += 1
        body = b"%d %d " % (number, world.versions[number])
        answer = (
            b"HTTP/1.1 200 Ok\r\nContent-Length: 200\r\nCache-Control: public, max-age=3600\r\n"
            b'ETag: "%d-%d"\r\n\r\n%b' % (number, world.versions[number], body.ljust(200, b"."))
        )
        slow = world.random.randrange(SLOW_ONE_IN) == 0
        due = max(self._free_at, now + (world.random.random() * SLOW_MAX_S if slow else 0.0))
        if due <= now:
            self._transport.write(answer)
            return
        self._free_at = due
        self._loop.call_at(due, self._transport.write, answer)
