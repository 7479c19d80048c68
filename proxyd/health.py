"""What a balancer's health check is answered over HTTP: whether the caches here may serve.

    GET /caught-up   200 "caught up", or 503 "behind: " and what is waited for
    GET /caches/NAME the same of one cache: 503, too, while it is down, and until what waited for it is done
    GET /healthz     200 as long as the agent runs

One request a connection, which is closed then: a check asks once every second or so. Nobody else is to reach
the address, so there is no more to it than that; what it costs at the most is bounded all the same.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, cast

import httptools

from proxyd.addresses import parse_address
from proxyd.carry import CarriedHealth
from proxyd.logs import Log
from proxyd.waiting import wait_until

# A check has one connection at a time; a point of presence has few balancers.
CONNECTIONS_MAX = 64
# From the connect to the end, both sides.
PATIENCE_S = 5.0
REQUEST_MAX_BYTES = 8192
# What is waited for may be many things: an answer names some.
TEXT_MAX_CHARS = 500
# A check that was begun is answered in a millisecond, if its peer has asked.
FROZEN_S = 0.1
# An address that is taken, or not there yet, is tried again.
AGAIN_S = 1.0

Status = Callable[[], str | None]
"""None if the caches may serve, else what is waited for."""
CacheStatus = Callable[[str], str | None]
"""The same of one cache. Raises: KeyError, if there is none of that name."""


class Health:
    """Listens where the configuration says. What cannot be bound is logged, and tried again."""

    def __init__(self, status: Status, log: Log, cache_status: CacheStatus) -> None:
        self.status = status
        self.cache_status = cache_status
        self._log = log
        self._listen = ""
        self._servers: list[asyncio.Server] = []
        self._opening: asyncio.Task[None] | None = None
        self._frozen: list[int] = []
        """Descriptors of the sockets while nothing is accepted."""
        self.connections: set[Check] = set()

    def apply(self, listen: str) -> None:
        """From now on that is the address; empty: none."""
        if listen == self._listen:
            return
        self.close()
        self._listen = listen
        if listen:
            self._opening = asyncio.get_running_loop().create_task(self._open(listen))

    async def _open(self, listen: str) -> None:
        address = parse_address(listen)
        if address is None:
            return
        while True:
            try:
                server = await asyncio.get_running_loop().create_server(self._accept, *address)
            except OSError as error:
                text = error.strerror or str(error)
                self._log.sampled("health", "health_listen cannot be bound", address=listen, error=text)
                await asyncio.sleep(AGAIN_S)
                continue
            self._servers.append(server)
            return

    def _accept(self) -> asyncio.Protocol:
        return Check(self)

    @property
    def listening(self) -> bool:
        """Whether checks are answered."""
        return bool(self._servers)

    # ── crossing an upgrade ───────────────────────────────────────────────────────────────

    async def freeze(self) -> None:
        """Takes no more checks; those that come wait at the sockets, instead of failing."""
        self._frozen = [os.dup(sock.fileno()) for server in self._servers for sock in server.sockets]
        self._close_servers()
        # What was accepted by now is known to us a turn of the loop later.
        await asyncio.sleep(0.01)
        await wait_until(lambda: not self.connections, FROZEN_S)

    def carry(self) -> CarriedHealth | None:
        """Its sockets, for the next code; to be frozen before."""
        fds = [os.dup(fd) for fd in self._frozen]
        return CarriedHealth(self._listen, fds) if fds else None

    async def thaw(self) -> None:
        """Goes on, for there is no next code."""
        fds, self._frozen = self._frozen, []
        await self._serve(fds)

    async def resume(self, carried: CarriedHealth) -> None:
        """Goes on at the sockets of the code before this. Raises: OSError."""
        self._listen = carried.listen
        await self._serve(carried.fds)

    async def _serve(self, fds: list[int]) -> None:
        for fd in fds:
            sock = socket.socket(fileno=fd)
            self._servers.append(await asyncio.get_running_loop().create_server(self._accept, sock=sock))

    def close(self) -> None:
        """Stops listening, and ends what is asked."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        self._close_servers()
        self._listen = ""
        for check in self.connections.copy():
            check.abort()

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers = []


class Check(asyncio.Protocol):
    """One connection: one request, one answer."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._url = b""
        self._bytes = 0
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._health.connections) >= CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._health.connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self.abort)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._answered:
            # Nothing more is read, and nobody fills memory with it: the end is near.
            return
        if self._bytes > REQUEST_MAX_BYTES:
            self._answer(431, "the request is too long")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._answer(400, "this is not HTTP/1.1")

    def on_url(self, url: bytes) -> None:
        """httptools: a piece of the path."""
        self._url += url

    def on_headers_complete(self) -> None:
        """httptools: all is said that is looked at."""
        method = self._parser.get_method()
        path = self._url.partition(b"?")[0]
        about_cache = path.startswith(_OF_A_CACHE)
        if path not in (b"/caught-up", b"/healthz") and not about_cache:
            self._answer(404, "there is /caught-up, /caches/NAME and /healthz")
        elif method not in (b"GET", b"HEAD"):
            self._answer(405, "ask with GET")
        elif path == b"/healthz":
            self._answer(200, "ok")
        elif about_cache:
            self._answer_of_cache(path.removeprefix(_OF_A_CACHE).decode(errors="replace"))
        else:
            waits = self._health.status()
            self._answer(*((200, "caught up") if waits is None else (503, f"behind: {waits}")))

    def _answer_of_cache(self, name: str) -> None:
        try:
            why = self._health.cache_status(name)
        except KeyError:
            self._answer(404, "there is no cache of that name here")
            return
        self._answer(*((200, "up") if why is None else (503, why)))

    def _answer(self, status: int, text: str) -> None:
        transport = self._transport
        if self._answered or transport is None or transport.is_closing():
            return
        self._answered = True
        body = text[:TEXT_MAX_CHARS].encode() + b"\n"
        head = status != 400 and self._parser.get_method() == b"HEAD"
        transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n%b"
            % (status, _REASONS[status], len(body), b"" if head else body)
        )
        transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._health.connections.discard(self)
        # The parser knows us, too.
        self._parser = None
        if self._timer is not None:
            self._timer.cancel()


_OF_A_CACHE = b"/caches/"
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
