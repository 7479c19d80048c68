"""Just enough HTTP/1.1 (RFC 9112) for the demo's origin and little cache: bodies of known length, keep-alive,
pipelining. Request targets are bytes and stay as they came, because the key of a cached object is bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

#: The longest head: what Varnish takes for one by default.
HEAD_MAX_BYTES = 32 * 1024
#: The demo's objects are a few lines; whoever puts a bigger one in is told, instead of filling the memory.
BODY_MAX_BYTES = 1024 * 1024
#: More visitors at once than a demo has; the next one is closed at once.
CONNECTIONS_MAX = 256
#: A connection on which nothing comes for so long, or whose request or reply takes so long, is closed.
IDLE_S = 60.0

REASONS = {
    200: "OK",
    201: "Created",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    502: "Bad Gateway",
}

Address = tuple[str, int]


class HttpError(Exception):
    """The peer sent what this small HTTP does not take; `status` is the reply to it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Names of headers are lower case; of a repeated header the last one counts."""

    method: str
    target: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One response; `content-length` is added when it is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


Handler = Callable[[Request], Awaitable[Response]]


def parse_headers(lines: list[bytes]) -> dict[str, str]:
    """Raises: HttpError for a line without a colon, or with a space around the name (RFC 9112, 5.1)."""
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise HttpError(400, f"bad header line {line!r}")
        headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
    return headers


def parse_request_head(head: bytes) -> Request:
    """HEAD ends with its empty line. Raises: HttpError."""
    first, *lines = head[:-4].split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HttpError(400, f"bad request line {first!r}")
    method, target, version = parts
    if not target.startswith(b"/") or not all(0x21 <= byte <= 0x7E for byte in target):
        raise HttpError(400, f"want a target that begins with / and is printable ASCII, got {target!r}")
    headers = parse_headers(lines)
    if version == b"HTTP/1.0":
        headers.setdefault("connection", "close")
    return Request(method.decode("latin-1"), target, headers)


def parse_response_head(head: bytes) -> Response:
    """HEAD ends with its empty line. Raises: HttpError."""
    first, *lines = head[:-4].split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise HttpError(502, f"bad status line {first!r}")
    return Response(int(parts[1]), parse_headers(lines))


def body_length(headers: Mapping[str, str]) -> int:
    """Raises: HttpError when the length is unknown, malformed or over BODY_MAX_BYTES."""
    if "transfer-encoding" in headers:
        raise HttpError(400, "want a body with a content-length, got transfer-encoding")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise HttpError(400, f"bad content-length {text!r}")
    if int(text) > BODY_MAX_BYTES:
        raise HttpError(413, f"want at most {BODY_MAX_BYTES} bytes, got {text}")
    return int(text)


def render_headers(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode("latin-1")


def render_response(response: Response, *, to_head: bool = False) -> bytes:
    """The bytes of RESPONSE; `to_head`: it answers a HEAD, so the body stays away but its length is told."""
    status = f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Unknown')}"
    head = render_headers(status, response.headers, response.body)
    return head if to_head else head + response.body


def render_request(request: Request) -> bytes:
    first = f"{request.method} {request.target.decode('ascii')} HTTP/1.1"
    return render_headers(first, request.headers, request.body) + request.body


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, or None when the peer closed between two. Raises: HttpError."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise HttpError(400, "the connection ended inside a head") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise HttpError(400, f"want a head of at most {HEAD_MAX_BYTES} bytes") from error
    request = parse_request_head(head)
    body = await reader.readexactly(body_length(request.headers))
    return Request(request.method, request.target, request.headers, body)


class Server:
    """Serves HANDLER on a free port of 127.0.0.1; as a context manager it takes its connections with it."""

    def __init__(self, handler: Handler) -> None:
        self.address: Address = ("127.0.0.1", 0)
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=HEAD_MAX_BYTES)
        self.address = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the peer went away or went silent: nobody is left to tell
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when the connection ends with it."""
        request = None
        async with asyncio.timeout(IDLE_S):
            try:
                request = await read_request(reader)
                if request is None:
                    return False
                response = await self._handler(request)
            except HttpError as error:
                response = Response(error.status, {"connection": "close"}, f"{error}\n".encode())
            to_head = request is not None and request.method == "HEAD"
            writer.write(render_response(response, to_head=to_head))
            await writer.drain()
        ends = request is None or request.headers.get("connection", "").lower() == "close"
        return not ends and response.headers.get("connection") != "close"


async def fetch(address: Address, request: Request, *, timeout_s: float = 5.0) -> Response:
    """Send REQUEST on a connection of its own and read the whole response.

    Raises: HttpError for a response this small HTTP does not take; OSError, TimeoutError.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(*address, limit=HEAD_MAX_BYTES)
        try:
            headers = {**request.headers, "connection": "close"}
            writer.write(render_request(Request(request.method, request.target, headers, request.body)))
            return await _read_response(reader, request.method)
        finally:
            writer.close()


async def _read_response(reader: asyncio.StreamReader, method: str) -> Response:
    try:
        response = parse_response_head(await reader.readuntil(b"\r\n\r\n"))
        if method == "HEAD":
            return response
        body = await reader.readexactly(body_length(response.headers))
    except asyncio.IncompleteReadError as error:
        raise HttpError(502, "the connection ended inside a response") from error
    return Response(response.status, response.headers, body)
