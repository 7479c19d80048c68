"""The registry in a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from refreshd.cluster import registry as module
from refreshd.cluster.client import ClusterClient
from refreshd.cluster.registry import Registry
from refreshd.cluster.snapshot import Advert
from tests.refreshd.cluster.timing import NAMES, TIMING, run, until
from tools.servers import RedisServer

pytestmark = pytest.mark.needs("redis-server")


def an_advert(number: int = 1, epoch: int = 1, boot: str = "b", **more: Any) -> Advert:
    return Advert(f"e{number}", f"10.0.0.{number}:7070", number, epoch, boot, **more)


@asynccontextmanager
async def a_registry(server: RedisServer, **timing: int) -> AsyncIterator[Registry]:
    client = ClusterClient(server.url)
    try:
        yield Registry(client, NAMES, TIMING._replace(**{"lease_ms": 60_000, **timing}))
    finally:
        await client.close()


def ids(snapshot: Any) -> list[str]:
    return [entry.advert.id for entry in snapshot.engines]


def test_what_is_registered_is_read_whole(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            empty = await registry.read()
            assert (empty.engines, empty.unreadable, empty.leader, empty.memory) == ((), (), "", "")
            second = an_advert(2, epoch=7, workers=4, unfinished=10, draining=True, release="1.2")
            assert await registry.register(second) == (True, None)
            assert await registry.register(an_advert(1)) == (True, None)
            snapshot = await registry.read()
            assert [entry.advert for entry in snapshot.engines] == [an_advert(1), second]
            assert all(0 < entry.remaining_ms <= 60_000 for entry in snapshot.engines)
            assert snapshot.memory
            assert snapshot.at_ms >= empty.at_ms

    run(test())


def test_a_lease_that_is_not_renewed_ends(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server, lease_ms=400) as registry:
            await registry.register(an_advert(1))
            await until(lambda: not redis_server.client.exists(NAMES.engine("e1")))
            assert ids(await registry.read()) == []

    run(test())


def test_a_renewal_says_what_is_new_and_what_was_there(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1, unfinished=1))
            redis_server.client.pexpire(NAMES.engine("e1"), 5_000)
            assert await registry.register(an_advert(1, unfinished=2)) == (True, an_advert(1, unfinished=1))
            (entry,) = (await registry.read()).engines
            assert entry.advert.unfinished == 2
            assert entry.remaining_ms > 5_000

    run(test())


def test_a_process_of_an_earlier_epoch_cannot_take_the_lease_back(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1, epoch=3))
            assert await registry.register(an_advert(1, epoch=1)) == (False, an_advert(1, epoch=3))
            assert (await registry.read()).engines[0].advert.epoch == 3
            assert (await registry.register(an_advert(1, epoch=5)))[0]

    run(test())


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"id":"e2"}', "\xff", "null"])
def test_what_cannot_be_read_is_told_once_and_counts_as_alive(
    redis_server: RedisServer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **more: Any) -> None:
            told.append(more)

    monkeypatch.setattr(module, "log", Log())

    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1))
            await registry.register(an_advert(2))
            redis_server.client.set(NAMES.engine("e2"), text)
            for _ in range(3):
                snapshot = await registry.read()
                assert ids(snapshot) == ["e1"]
                assert snapshot.unreadable == ("e2",)
            assert [more["of"] for more in told] == ["e2"]
            # And who it belongs to puts it right.
            assert (await registry.register(an_advert(2)))[0]
            assert ids(await registry.read()) == ["e1", "e2"]

    run(test())


def test_an_entry_under_another_ones_key_is_not_taken_for_it(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(2))
            redis_server.client.set(NAMES.engine("e2"), msgspec.json.encode(an_advert(1)))
            snapshot = await registry.read()
            assert (ids(snapshot), snapshot.unreadable) == ([], ("e2",))

    run(test())


def test_only_who_has_a_lease_gives_it_up(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1, epoch=2, boot="now"))
            await registry.give_up(an_advert(1, epoch=2, boot="before"))
            await registry.give_up(an_advert(1, epoch=1, boot="now"))
            assert ids(await registry.read()) == ["e1"]
            await registry.give_up(an_advert(1, epoch=2, boot="now"))
            await registry.give_up(an_advert(1, epoch=2, boot="now"))
            assert ids(await registry.read()) == []
            assert redis_server.client.zcard(NAMES.engines) == 0

    run(test())


def test_the_memory_stays_while_anybody_renews_and_ends_with_what_ends_leases(
    redis_server: RedisServer,
) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1))
            word = (await registry.read()).memory
            redis_server.client.pexpire(NAMES.memory, 5_000)
            await registry.register(an_advert(2))
            assert (await registry.read()).memory == word
            assert redis_server.client.pttl(NAMES.memory) > 5_000
            assert redis_server.client.pttl(NAMES.memory) < redis_server.client.pttl(NAMES.engine("e1"))
            redis_server.client.flushall()
            assert (await registry.read()).memory == ""
            await registry.register(an_advert(1))
            assert (await registry.read()).memory not in ("", word)

    run(test())


def test_engines_that_are_gone_are_forgotten(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1))
            redis_server.client.zadd(NAMES.engines, {"gone": 1})
            await registry.register(an_advert(1))
            assert redis_server.client.zrange(NAMES.engines, 0, -1) == ["e1"]

    run(test())


def test_two_clusters_share_a_redis(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            await registry.register(an_advert(1))
            registry._names = type(NAMES)("other")
            assert ids(await registry.read()) == []

    run(test())


def test_a_full_registry_is_read_at_once(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_registry(redis_server) as registry:
            for number in range(1, 64):
                await registry.register(an_advert(number))
            assert ids(await registry.read()) == [f"e{number}" for number in range(1, 64)]

    run(test())
