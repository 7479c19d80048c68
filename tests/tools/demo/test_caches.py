"""Each cache the demo can start does the same for visitors and agents: the little one purges like Varnish."""

import asyncio
from pathlib import Path

import pytest

from tools.demo.caches import KINDS, Kind, Running
from tools.demo.http1 import Address, HttpError, Request, Response, Server, fetch
from tools.demo.origin import Origin

START_S = 30.0
VARNISH = pytest.param("varnish", marks=pytest.mark.needs("varnishd"))
ATS = pytest.param("ats", marks=pytest.mark.needs("traffic_server"))


async def ask(cache: Address, method: str, target: bytes) -> Response:
    return await fetch(cache, Request(method, target, {"host": "www.example.com"}))


async def wait_until_up(cache: Running) -> None:
    async with asyncio.timeout(START_S):
        while True:
            if cache.child is not None:
                cache.child.check()
            try:
                await ask(cache.address, "GET", b"/is-it-up")
                return
            except (OSError, HttpError):
                await asyncio.sleep(0.05)


def kind_of(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


async def bodies(cache: Address, *targets: bytes) -> list[bytes]:
    return [(await ask(cache, "GET", target)).body for target in targets]


@pytest.mark.parametrize("name", [VARNISH, ATS, "little"])
def test_a_purge_takes_one_url_byte_for_byte(name: str, tmp_path: Path) -> None:
    one, other = b"/a%2Fb?x=1", b"/a/b?x=1"

    async def run() -> None:
        origin = Origin()
        async with Server(origin.handle) as server, kind_of(name).start(tmp_path, server.address) as cache:
            await wait_until_up(cache)
            origin.objects |= {one: b"old", other: b"old"}
            assert await bodies(cache.address, one, other) == [b"old", b"old"]
            origin.objects |= {one: b"new", other: b"new"}
            assert await bodies(cache.address, one, other) == [b"old", b"old"]
            assert (await ask(cache.address, "PURGE", one)).status == 200
            assert await bodies(cache.address, one, other) == [b"new", b"old"]
            assert "age" in (await ask(cache.address, "GET", one)).headers

    asyncio.run(run())


@pytest.mark.parametrize("name", [VARNISH, "little"])
def test_a_ban_takes_a_directory(name: str, tmp_path: Path) -> None:
    inside, outside = (b"/d.x/1", b"/d.x/e/2?y"), (b"/d.x", b"/dax/1")

    async def run() -> None:
        origin = Origin()
        async with Server(origin.handle) as server, kind_of(name).start(tmp_path, server.address) as cache:
            await wait_until_up(cache)
            origin.objects |= dict.fromkeys(inside + outside, b"old")
            await bodies(cache.address, *inside, *outside)
            origin.objects |= dict.fromkeys(inside + outside, b"new")
            assert (await ask(cache.address, "BAN", b"/d.x/")).status == 200
            assert await bodies(cache.address, *inside, *outside) == [b"new", b"new", b"old", b"old"]

    asyncio.run(run())
