"""The workers that only read along."""

from __future__ import annotations

import asyncio

import pytest

from refreshd.cluster import news as module
from refreshd.cluster.client import ClusterClient
from refreshd.cluster.news import News
from refreshd.cluster.registry import Registry
from refreshd.cluster.snapshot import Advert, Snapshot
from refreshd.cluster.watcher import Watcher
from tests.refreshd.cluster.timing import NAMES, TIMING, UNTIL_S, run, until
from tools.servers import RedisServer

pytestmark = pytest.mark.needs("redis-server")


def test_it_reads_along_and_keeps_what_it_read_while_redis_is_away(redis_server: RedisServer) -> None:
    async def test() -> None:
        client = ClusterClient(redis_server.url, call_s=TIMING.call_ms / 1000)
        registry = Registry(client, NAMES, TIMING._replace(lease_ms=60_000))
        seen: list[Snapshot] = []
        watcher = Watcher(client, NAMES, on_registry=seen.append, timing=TIMING)
        watcher.start()
        try:
            await registry.register(Advert("e1", "127.0.0.1:1", 1, 1, "b"))
            await until(lambda: watcher.snapshot.get("e1"))
            assert watcher.snapshot is seen[-1]
            redis_server.kill()
            await until(lambda: watcher.error)
            assert watcher.snapshot.get("e1")
            redis_server.restart()
            await until(lambda: not watcher.error and not watcher.snapshot.engines)
        finally:
            await watcher.close()
            await client.close()

    run(test())


def test_news_make_it_look_at_once_and_reach_who_listens(redis_server: RedisServer) -> None:
    async def test() -> None:
        client = ClusterClient(redis_server.url)
        news = News(client, NAMES)
        registry = Registry(client, NAMES, TIMING._replace(lease_ms=60_000))
        handouts: list[int] = []
        # It would look by itself in 5 s, and is not woken sooner than in a tenth of that.
        slow = TIMING._replace(poll_ms=5_000)
        watcher = Watcher(client, NAMES, on_handout=handouts.append, timing=slow)
        watcher.start()
        try:
            await until(lambda: dict(redis_server.client.pubsub_numsub(NAMES.news))[NAMES.news] == 1)
            for strange in (
                "",
                "handout",
                "handout x",
                "handout 1 2",
                "colour blue",
                "\xff" * 200,
                "x" * 200,
            ):
                redis_server.client.publish(NAMES.news, strange)
            await news.tell_handout(3)
            await until(lambda: handouts == [3])
            await registry.register(Advert("e1", "127.0.0.1:1", 1, 1, "b"))
            await news.tell_registry()
            await until(lambda: watcher.snapshot.get("e1"))
        finally:
            await watcher.close()
            await client.close()

    run(test())


def test_news_are_listened_to_again_after_redis_was_away(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.05)

    async def test() -> None:
        client = ClusterClient(redis_server.url, call_s=TIMING.call_ms / 1000)
        heard: list[int] = []
        news = News(client, NAMES, on_handout=heard.append)
        news.start()
        try:
            redis_server.kill()
            await news.tell_handout(1)  # Raises nothing.
            redis_server.restart()
            # Who does not listen yet misses what is said: it is said again.
            async with asyncio.timeout(UNTIL_S):
                while not heard:
                    await news.tell_handout(2)
                    await asyncio.sleep(0.01)
            assert set(heard) == {2}
        finally:
            await news.close()
            await client.close()

    run(test())
