"""What a balancer's check is answered, also one that means no good."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxyd import health as module
from proxyd.carry import close
from proxyd.health import CONNECTIONS_MAX, REQUEST_MAX_BYTES, Health
from proxyd.logs import Log
from tests.proxyd.rig import run, wait_until
from tools.servers.waiting import free_port

CHECK = b"GET /caught-up HTTP/1.1\r\nHost: h\r\n\r\n"


class Place:
    """A listening `Health`, whose status a test sets."""

    def __init__(self) -> None:
        self.waits: str | None = None
        self.listen = f"127.0.0.1:{free_port()}"
        self.caches: dict[str, str | None] = {"v1": None, "v2": "down: killed: cannot connect"}
        self.health = Health(lambda: self.waits, Log("error"), lambda name: self.caches[name])

    async def ask(self, request: bytes = CHECK) -> bytes:
        """All that is answered until the connection ends."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.listen.partition(":")
        return await asyncio.open_connection(host, int(port))


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    made = Place()
    made.health.apply(made.listen)
    await wait_until(lambda: made.health.listening)
    try:
        yield made
    finally:
        made.health.close()


def test_the_answers() -> None:
    async def test() -> None:
        async with place() as here:
            answer = await here.ask()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close\r\n" in answer
            assert b"\r\nContent-Length: 10\r\n" in answer
            assert answer.endswith(b"\r\n\r\ncaught up\n")
            here.waits = "e1 worker 0: 3 tasks"
            answer = await here.ask()
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert answer.endswith(b"\r\n\r\nbehind: e1 worker 0: 3 tasks\n")
            here.waits = "x" * 10_000
            assert len(await here.ask()) < 1000
            assert (await here.ask(CHECK.replace(b"GET", b"HEAD"))).endswith(b"\r\n\r\n")
            assert (await here.ask(CHECK.replace(b"/caught-up", b"/healthz?x"))).endswith(b"\r\n\r\nok\n")

    run(test())


def test_the_answers_of_one_cache() -> None:
    async def test() -> None:
        async with place() as here:
            for name, status, text in (
                (b"v1", b"200", b"up"),
                (b"v2?x", b"503", b"down: killed: cannot connect"),
                (b"v3", b"404", b"there is no cache of that name here"),
                (b"", b"404", b"there is no cache of that name here"),
            ):
                answer = await here.ask(CHECK.replace(b"/caught-up", b"/caches/" + name))
                assert answer.startswith(b"HTTP/1.1 " + status)
                assert answer.endswith(b"\r\n\r\n" + text + b"\n")

    run(test())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (CHECK.replace(b"/caught-up", b"/"), b"404"),
        (CHECK.replace(b"GET", b"POST"), b"405"),
        (b"\x16\x03\x01\x00\xa5\x01\r\n\r\n", b"400"),
        (b"GET /caught-up HTTP/1.1\r\nX: " + b"x" * REQUEST_MAX_BYTES, b"431"),
        (b"GET /" + b"x" * REQUEST_MAX_BYTES, b"431"),
        (b"GET /healthz HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", b"200"),
        # What follows the first request is not looked at.
        (CHECK * 3, b"200"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 60_000, b"431"),
    ],
)
def test_odd_requests_are_answered_once_and_closed(request_: bytes, status: bytes) -> None:
    async def test() -> None:
        async with place() as here:
            try:
                answer = await here.ask(request_)
            except ConnectionResetError:
                # More was sent than is read; the kernel says so.
                assert len(request_) > REQUEST_MAX_BYTES
            else:
                assert answer.startswith(b"HTTP/1.1 " + status)
                assert answer.count(b"HTTP/1.1 ") == 1
            await wait_until(lambda: not here.health.connections)

    run(test())


def test_one_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)

    async def test() -> None:
        async with place() as here:
            assert await here.ask(b"") == b""
            assert await here.ask(CHECK[:20]) == b""

    run(test())


def test_only_so_many_at_once() -> None:
    async def test() -> None:
        async with place() as here:
            held = [await here.connect() for _ in range(CONNECTIONS_MAX)]
            await wait_until(lambda: len(here.health.connections) == CONNECTIONS_MAX)
            try:
                assert await here.ask() == b""
            except ConnectionResetError:
                pass
            held.pop()[1].close()
            await wait_until(lambda: len(here.health.connections) < CONNECTIONS_MAX)
            assert (await here.ask()).startswith(b"HTTP/1.1 200")
            for _, writer in held:
                writer.close()

    run(test())


def test_an_address_that_is_taken_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)

    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            here = Place()
            here.listen = f"127.0.0.1:{taken.getsockname()[1]}"
            here.health.apply(here.listen)
            await asyncio.sleep(0.1)
            assert not here.health.listening
        await wait_until(lambda: here.health.listening)
        assert (await here.ask()).startswith(b"HTTP/1.1 200")
        here.health.apply("")
        assert not here.health.listening
        with pytest.raises(ConnectionRefusedError):
            await here.ask()

    run(test())


def test_the_sockets_go_on_in_other_hands() -> None:
    async def test() -> None:
        async with place() as here:
            await here.health.freeze()
            carried = here.health.carry()
            assert carried is not None
            assert not here.health.listening
            # Nobody accepts, and nobody is refused.
            asked = asyncio.ensure_future(here.ask())
            close(here.health._frozen)
            here.health = Health(lambda: None, Log("error"), {}.__getitem__)
            await here.health.resume(carried)
            assert (await asked).startswith(b"HTTP/1.1 200")
            here.health.apply(here.listen)
            assert here.health.listening

    run(test())


def test_where_there_is_no_next_code_it_goes_on() -> None:
    async def test() -> None:
        async with place() as here:
            await here.health.freeze()
            asked = asyncio.ensure_future(here.ask())
            carried = here.health.carry()
            assert carried is not None
            close(carried.fds)
            await here.health.thaw()
            assert (await asked).startswith(b"HTTP/1.1 200")

    run(test())


def test_nothing_is_carried_where_nobody_listens() -> None:
    async def test() -> None:
        assert Health(lambda: None, Log("error"), {}.__getitem__).carry() is None

    run(test())
