"""The little cache's answers: hit, miss and pass, ages, what it must not keep."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tools.demo.http1 import HttpError, Request, Response, Server
from tools.demo.littlecache import LittleCache, fresh_for
from tools.demo.origin import Origin

HOST = {"host": "www.example.com"}
DEADLINE_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A little cache in front of an origin, asked without a socket on the visitors' side."""

    def __init__(self, cache: LittleCache, origin: Origin, clock: Clock) -> None:
        self.cache, self.origin, self.clock = cache, origin, clock

    async def ask(self, method: str, target: bytes, host: str = "www.example.com") -> Response:
        return await self.cache.handle(Request(method, target, {"host": host}))


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    origin, clock = Origin(), Clock()
    origin.objects[b"/a"] = b"one"
    async with asyncio.timeout(DEADLINE_S), Server(origin.handle) as server:
        yield Bench(LittleCache(server.address, clock), origin, clock)


def on_bench(play: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        async with bench() as made:
            await play(made)

    asyncio.run(run())


def test_miss_then_hit_with_its_age() -> None:
    async def play(at: Bench) -> None:
        first = await at.ask("GET", b"/a")
        at.clock.now_s += 7.5
        second = await at.ask("GET", b"/a", "WWW.Example.COM")
        assert (first.body, first.headers["x-cache"], first.headers.get("age")) == (b"one", "miss", None)
        assert (second.body, second.headers["x-cache"], second.headers["age"]) == (b"one", "hit", "7")
        assert at.origin.visits[b"/a"] == 1

    on_bench(play)


def test_it_serves_the_old_until_purged() -> None:
    async def play(at: Bench) -> None:
        await at.ask("GET", b"/a")
        at.origin.objects[b"/a"] = b"two"
        assert (await at.ask("GET", b"/a")).body == b"one"
        assert (await at.ask("PURGE", b"/a")).headers["x-purged"] == "1"
        assert (await at.ask("PURGE", b"/a")).status == 200
        assert (await at.ask("GET", b"/a")).body == b"two"

    on_bench(play)


def test_it_asks_again_when_the_hour_is_over() -> None:
    async def play(at: Bench) -> None:
        await at.ask("GET", b"/a")
        at.clock.now_s += 3600
        assert (await at.ask("GET", b"/a")).headers["x-cache"] == "miss"

    on_bench(play)


def test_a_ban_takes_the_directory() -> None:
    async def play(at: Bench) -> None:
        for target in (b"/d/1", b"/d/2", b"/e"):
            at.origin.objects[target] = b"x"
            await at.ask("GET", target)
        assert (await at.ask("BAN", b"/d/")).headers["x-purged"] == "2"
        assert (await at.ask("GET", b"/e")).headers["x-cache"] == "hit"

    on_bench(play)


def test_a_look_shows_whether_it_is_there_and_fetches_nothing() -> None:
    async def play(at: Bench) -> None:
        assert (await at.ask("LOOK", b"/a")).headers["x-refreshd-look"] == "Gone"
        assert at.origin.visits[b"/a"] == 0
        await at.ask("GET", b"/a")
        look = await at.ask("LOOK", b"/a")
        assert (look.status, look.headers["x-refreshd-look"]) == (299, "There")
        assert look.headers["x-refreshd-begun"] == "1000.000"
        at.clock.now_s += 1
        assert (await at.ask("PURGE", b"/a")).headers["x-refreshd-now"] == "1001.000"
        assert (await at.ask("LOOK", b"/a")).headers["x-refreshd-look"] == "Gone"

    on_bench(play)


def test_head_is_answered_from_the_object_and_passed_without_one() -> None:
    async def play(at: Bench) -> None:
        assert (await at.ask("HEAD", b"/a")).headers["x-cache"] == "pass"
        await at.ask("GET", b"/a")
        assert (await at.ask("HEAD", b"/a")).headers["x-cache"] == "hit"

    on_bench(play)


def test_an_error_of_the_origin_is_passed_on_and_not_kept() -> None:
    async def play(at: Bench) -> None:
        assert (await at.ask("GET", b"/none")).status == 404
        assert len(at.cache.objects) == 0

    on_bench(play)


def test_an_origin_that_is_away_is_a_bad_gateway() -> None:
    response = asyncio.run(LittleCache(("127.0.0.1", 1)).handle(Request("GET", b"/", HOST)))
    assert response.status == 502


def test_other_methods_and_requests_without_a_host_are_refused() -> None:
    async def play(at: Bench) -> None:
        assert (await at.ask("POST", b"/a")).status == 405
        with pytest.raises(HttpError):
            await at.cache.handle(Request("GET", b"/a"))

    on_bench(play)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (200, {}, 120),
        (200, {"cache-control": "public, max-age=60"}, 60),
        (200, {"cache-control": "max-age=60, s-maxage=5"}, 5),
        (200, {"cache-control": 'Max-Age="60"'}, 60),
        (200, {"cache-control": "max-age=soon"}, 0),
        (200, {"cache-control": "no-store"}, 0),
        (200, {"cache-control": "private, max-age=60"}, 0),
        (200, {"cache-control": "no-cache"}, 0),
        (200, {"vary": "cookie"}, 0),
        (200, {"set-cookie": "a=b"}, 0),
        (404, {"cache-control": "max-age=60"}, 0),
    ],
)
def test_how_long_a_response_is_fresh(status: int, headers: dict[str, str], seconds: float) -> None:
    assert fresh_for(Response(status, headers)) == seconds
