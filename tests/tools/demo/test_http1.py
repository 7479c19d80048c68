"""The demo's small HTTP/1.1: what it takes, what it refuses, and that targets stay byte for byte."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tools.demo import http1
from tools.demo.http1 import HttpError, Request, Response, Server, fetch

DEADLINE_S = 10.0


async def echo(request: Request) -> Response:
    return Response(200, {"x-method": request.method}, request.target + b" " + request.body)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(DEADLINE_S), Server(echo) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        try:
            yield reader, writer
        finally:
            writer.close()


async def talk(sent: bytes, *, cut: int | None = None) -> bytes:
    """All that comes back for SENT, given whole or in pieces of CUT bytes, until the server closes."""
    async with connected() as (reader, writer):
        for start in range(0, len(sent), cut or len(sent)):
            writer.write(sent[start : start + (cut or len(sent))])
            await writer.drain()
        return await reader.read()


@pytest.mark.parametrize("target", [b"/", b"/a%2Fb/../c%7e?x=%2F+", b"//x", b"/?", b"/a;b='\"<>|^`{}"])
def test_a_target_stays_as_it_came(target: bytes) -> None:
    async def run() -> Response:
        async with Server(echo) as server:
            return await fetch(server.address, Request("GET", target, {"host": "x"}), timeout_s=DEADLINE_S)

    assert asyncio.run(run()).body == target + b" "


PIPELINED = (
    b"PUT /one HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    b"HEAD /two HTTP/1.1\r\nhost: x\r\n\r\n"
    b"GET /three HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
)


@pytest.mark.parametrize("cut", [None, 1])
def test_pipelined_requests_are_answered_in_order(cut: int | None) -> None:
    got = asyncio.run(talk(PIPELINED, cut=cut))
    one, two, three = got.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert one.endswith(b"\r\n\r\n/one abc")
    assert b"content-length: 5\r\n" in two
    assert two.endswith(b"\r\n\r\n")
    assert three.endswith(b"\r\n\r\n/three ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nnocolon\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\ncontent-length: +3\r\n\r\nabc", 400),
        (b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (http1.BODY_MAX_BYTES + 1), 413),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * http1.HEAD_MAX_BYTES, 400),
    ],
)
def test_a_bad_request_is_refused_and_ends_the_connection(sent: bytes, status: int) -> None:
    got = asyncio.run(talk(sent))
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in got


def test_half_a_head_and_then_the_end_is_answered_too() -> None:
    async def run() -> bytes:
        async with connected() as (reader, writer):
            writer.write(b"GET / HT")
            writer.write_eof()
            return await reader.read()

    assert asyncio.run(run()).startswith(b"HTTP/1.1 400 ")


def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "IDLE_S", 0.05)

    async def run() -> bytes:
        async with connected() as (reader, _):
            return await reader.read()

    assert asyncio.run(run()) == b""


def test_connections_beyond_the_limit_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "CONNECTIONS_MAX", 0)

    async def run() -> bytes:
        async with connected() as (reader, _):
            return await reader.read()

    assert asyncio.run(run()) == b""


@pytest.mark.parametrize(
    "reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"]
)
def test_a_bad_response_is_an_http_error(reply: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            with pytest.raises(HttpError):
                await fetch(address, Request("GET", b"/"), timeout_s=DEADLINE_S)

    asyncio.run(run())


def test_a_server_that_never_answers_is_given_up() -> None:
    async def never(request: Request) -> Response:
        await asyncio.Event().wait()
        return Response(200)

    async def run() -> None:
        async with Server(never) as server:
            with pytest.raises(TimeoutError):
                await fetch(server.address, Request("GET", b"/"), timeout_s=0.05)

    asyncio.run(run())
