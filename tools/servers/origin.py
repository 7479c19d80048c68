"""A small origin whose objects change when told to. Runs in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from concurrent.futures import Future
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import httptools

START_TIMEOUT_S = 10.0
_RANGE = re.compile(rb"bytes=(\d+)-(\d+)").fullmatch


class Origin:
    """Answers every path with `v=VERSION HOST PATH` and `max_age_s` to live; counts what it was asked.

    `bump()` makes every object change. `sizes[path]` pads an answer to so many bytes,
    `bodies[path]` is another body, `types[path]` its type;
    `statuses[path]` answers with another status, `silent` holds the paths that get no answer at all.
    `varies[path]` names a request header, in lower case: its value stands in the answer, and Vary says so.
    `held` are paths whose answers are made, and go out when they are `release`d.
    `headers[path]` are header lines that an answer has besides. A `Range` of one part is answered with that.
    Its clock is `ahead_s` ahead.
    """

    def __init__(self, *, max_age_s: int = 3600) -> None:
        self.version = 1
        self.max_age_s = max_age_s
        self.ahead_s = 0.0
        self.port = 0
        self.sizes: dict[bytes, int] = {}
        self.bodies: dict[bytes, bytes] = {}
        self.types: dict[bytes, bytes] = {}
        self.statuses: dict[bytes, int] = {}
        self.headers: dict[bytes, bytes] = {}
        self.silent: set[bytes] = set()
        self.held: set[bytes] = set()
        self._answers: dict[bytes, list[tuple[asyncio.Transport, bytes]]] = {}
        self.varies: dict[bytes, bytes] = {}
        self.asked: Counter[tuple[bytes, bytes]] = Counter()
        """How often each (host, path) was asked for, bytes as they came."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def bump(self) -> int:
        """Every object is another one from now on; returns the new version."""
        self.version += 1
        return self.version

    def release(self, path: bytes) -> None:
        """Sends what is held of a path; it is not held any more."""
        self.held.discard(path)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._send_held, path)

    def _send_held(self, path: bytes) -> None:
        for transport, answer in self._answers.pop(path, []):
            transport.write(answer)

    def answer(self, path: bytes, transport: asyncio.Transport, data: bytes) -> None:
        """Sends an answer, or holds it."""
        if path in self.held:
            self._answers.setdefault(path, []).append((transport, data))
        else:
            transport.write(data)

    def start(self) -> Self:
        """Listens on a port that the kernel picks."""
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="origin", daemon=True)
        self._thread.start()
        self.port = ready.result(START_TIMEOUT_S)
        return self

    def stop(self) -> None:
        """Closes every connection; harmless when repeated."""
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(START_TIMEOUT_S)
            self._thread = None

    def _serve(self, ready: Future[int]) -> None:
        self._loop = loop = asyncio.new_event_loop()
        connections: set[_Connection] = set()
        server = loop.run_until_complete(
            loop.create_server(lambda: _Connection(self, connections), "127.0.0.1", 0, backlog=1024)
        )
        ready.set_result(server.sockets[0].getsockname()[1])
        try:
            loop.run_forever()
        finally:
            server.close()
            for connection in list(connections):
                connection.transport.abort()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Connection(asyncio.Protocol):
    def __init__(self, origin: Origin, connections: set[_Connection]) -> None:
        self._origin = origin
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_message_complete(self) -> None:
        origin = self._origin
        host = self._headers.get(b"host", b"")
        origin.asked[host, self._url] += 1
        if self._url in origin.silent:
            return
        body = b"v=%d %s %s\n" % (origin.version, host, self._url)
        vary = b""
        if name := origin.varies.get(self._url):
            body += b"%s: %s\n" % (name, self._headers.get(name, b""))
            vary = b"Vary: %s\r\n" % name
        body = origin.bodies.get(self._url, body).ljust(origin.sizes.get(self._url, 0), b".")
        status = origin.statuses.get(self._url, 200)
        more = origin.headers.get(self._url, b"")
        kind = origin.types.get(self._url, b"text/plain")
        if part := _RANGE(self._headers.get(b"range", b"")):
            status, whole = 206, len(body)
            body = body[int(part[1]) : int(part[2]) + 1]
            last = int(part[1]) + len(body) - 1
            more += b"Content-Range: bytes %b-%d/%d\r\n" % (part[1], last, whole)
        date = formatdate(time.time() + origin.ahead_s, usegmt=True).encode()
        answer = (
            b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\nCache-Control: public, max-age=%d\r\n"
            # Without a Date, a max-age means nothing to Squid.
            b"Content-Type: %b\r\nDate: %s\r\n%b%b\r\n"
            % (status, len(body), origin.max_age_s, kind, date, vary, more)
        )
        if self._parser.get_method() != b"HEAD":
            answer += body
        origin.answer(self._url, self.transport, answer)
