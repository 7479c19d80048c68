"""Rounds of quotas against a real Redis: repeated, late, lost, and by engines that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from refreshd.cluster import quotas
from refreshd.cluster.quotas import SharedQuotas
from refreshd.limits import Limits, Share, Spent
from tests.redis_fixtures import redis_server
from tests.refreshd.cluster.timing import UNTIL_S, until
from tools.servers import RedisServer

__all__ = ["redis_server"]

pytestmark = pytest.mark.needs("redis-server")
DAY = 20_774
LIMITS = Limits(rate_milli=100_000, burst=100, in_flight=100, per_day=(1000, 0, 0, 0, 0))


class Engine:
    """What an engine has counted for one key, and what it was dealt."""

    def __init__(self, client: redis.asyncio.Redis, name: str) -> None:
        self.taken = 0
        self.in_flight = 0
        self.day = DAY
        self.today = 0
        self.share: Share | None = None
        self.rounds = SharedQuotas(client, "test", name, self)

    def spent(self) -> Mapping[str, Spent]:
        return {"acme": Spent(self.taken, 0, 0, self.in_flight, self.day, (self.today, 0, 0, 0, 0))}

    def limits(self) -> Mapping[str, Limits]:
        return {"acme": LIMITS, "free": Limits()}

    def dealt(self, shares: Mapping[str, Share]) -> None:
        assert list(shares) in ([], ["acme"])
        self.share = shares.get("acme", self.share)

    def counted_before(self, key: str, day: int, today: tuple[int, ...]) -> None:
        assert (key, day) == ("acme", DAY)
        self.today += today[0]

    @property
    def got(self) -> Share:
        assert self.share is not None
        return self.share


@asynccontextmanager
async def client_of(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis(
        host="127.0.0.1", port=server.port, retry=Retry(NoBackoff(), 0), socket_timeout=1
    )
    try:
        yield client
    finally:
        await client.aclose()


def test_engines_know_of_each_other(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            one, two = Engine(client, "e1"), Engine(client, "e2")
            one.in_flight, one.today, two.today = 30, 100, 200
            for engine in (one, two) * 5:
                assert await engine.rounds.round()
            assert (one.got.engines, two.got.engines) == (2, 2)
            assert one.got.rate_milli + two.got.rate_milli == 100_000
            assert (one.got.elsewhere[0], two.got.elsewhere[0]) == (200, 100)
            assert 90 <= one.got.in_flight + two.got.in_flight <= 100
            assert 900 <= one.got.per_day[0] + two.got.per_day[0] <= 1000

    asyncio.run(run())


def test_demand_moves_the_shares(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            one, two = Engine(client, "e1"), Engine(client, "e2")
            for _ in range(4):
                one.taken += 10_000
                # In no time at all it would have no rate.
                await asyncio.sleep(0.01)
                await one.rounds.round()
                await two.rounds.round()
            assert one.got.rate_milli > 98_000
            assert two.got.rate_milli == 500

    asyncio.run(run())


def test_everything_expires(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            engine = Engine(client, "e1")
            engine.today = 5
            await engine.rounds.round()
            await engine.rounds.round()
        keys = redis_server.client.keys("*")
        assert sorted(keys) == ["refreshd:{test}:quotas", f"refreshd:{{test}}:quotas:{DAY}"]
        assert all(0 < redis_server.client.pttl(key) <= 2 * 86_400_000 for key in keys)

    asyncio.run(run())


def test_the_script_may_run_again_or_late(redis_server: RedisServer) -> None:
    """A round that comes once more, and one that comes behind a later one, change nothing."""
    client = redis_server.client
    script = client.register_script(quotas.SCRIPT)

    def say(number: int, row: str, incarnation: str = "a") -> list[list[str]]:
        args = ["e1", incarnation, number, row, row, 15_000, 60_000, 60_000]
        answer: list[list[str]] = script(["live", "day"], args)
        return answer

    assert say(7, "seven") == [["e1", "seven"], ["e1", "seven"]]
    assert say(7, "again") == [["e1", "seven"], ["e1", "seven"]]
    assert say(6, "late") == [["e1", "seven"], ["e1", "seven"]]
    assert say(10, "ten") == [["e1", "ten"], ["e1", "ten"]]
    assert say(1, "anew", "b") == [["e1", "anew"], ["e1", "anew"]]
    assert say(2, "", "b") == [["e1", ""], ["e1", "anew"]]


def test_who_is_silent_has_no_share_but_has_counted(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            one, two = Engine(client, "e1"), Engine(client, "e2")
            one.today, two.today = 10, 300
            for engine in (two, two, one, one):
                await engine.rounds.round()
            assert one.got.engines == 2
            monkeypatch.setattr(quotas, "SILENT_MS", -1)
            await one.rounds.round()
            assert one.got.elsewhere[0] == 300, "its own is not somebody else's"
            monkeypatch.undo()
            await one.rounds.round()
            assert (one.got.engines, one.got.rate_milli) == (1, 100_000)
            assert (one.got.elsewhere[0], one.got.per_day[0]) == (300, 700)

    asyncio.run(run())


def test_an_engine_that_starts_anew_learns_what_it_had_counted(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            before = Engine(client, "e1")
            before.today = 40
            await before.rounds.round()
            await before.rounds.round()
            again = Engine(client, "e1")
            again.today = 30
            await again.rounds.round()
            assert again.today == 40
            again.today += 5
            await again.rounds.round()
            await again.rounds.round()
            assert again.today == 45, "once only"
            assert again.got.elsewhere[0] == 0

    asyncio.run(run())


def test_redis_away_leaves_all_as_it_was(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            one, two = Engine(client, "e1"), Engine(client, "e2")
            one.today = 10
            for engine in (one, two) * 4:
                await engine.rounds.round()
            share = one.share
            redis_server.kill()
            assert not await one.rounds.round()
            assert not await one.rounds.round()
            assert one.share == share
            redis_server.restart()
            one.today = 12
            for engine in (one, two, one):
                assert await engine.rounds.round()
            assert (one.got.engines, two.got.elsewhere[0]) == (2, 12), "all of it is told anew"

    asyncio.run(run())


def test_a_redis_that_hangs_holds_nobody_up(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "DEADLINE_S", 0.1)

    async def run() -> None:
        async with client_of(redis_server) as client:
            engine = Engine(client, "e1")
            await engine.rounds.round()
            redis_server.pause()
            assert not await engine.rounds.round()
            redis_server.resume()
            async with asyncio.timeout(UNTIL_S):
                while not await engine.rounds.round():
                    await asyncio.sleep(0.01)

    asyncio.run(run())


def test_what_cannot_be_read_counts_as_nothing(redis_server: RedisServer) -> None:
    async def run() -> None:
        async with client_of(redis_server) as client:
            redis_server.client.hset(f"refreshd:{{test}}:quotas:{DAY}", "e9", "nonsense")
            engine = Engine(client, "e1")
            redis_server.client.hset("refreshd:{test}:quotas", "e8", "a 1 99999999999999 {nonsense")
            assert await engine.rounds.round()
            assert await engine.rounds.round()
            assert engine.got.engines == 2
            assert engine.got.elsewhere[0] == 0

    asyncio.run(run())


def test_rounds_go_on_until_closed(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "ROUND_S", 0.01)

    async def run() -> None:
        async with client_of(redis_server) as client:
            engine = Engine(client, "e1")
            engine.rounds.start()
            await until(lambda: engine.share is not None)
            first = engine.share
            await until(lambda: engine.share is not first)
            await engine.rounds.close()
            await engine.rounds.close()
            assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    asyncio.run(run())


def test_a_fault_in_a_round_is_not_the_end(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "ROUND_S", 0.001)

    async def run() -> None:
        async with client_of(redis_server) as client:
            engine = Engine(client, "e1")
            good, calls = engine.spent, iter(range(3))

            def spent() -> Mapping[str, Spent]:
                if next(calls, None) is not None:
                    raise KeyError("a fault")
                return good()

            monkeypatch.setattr(engine, "spent", spent)
            engine.rounds.start()
            await until(lambda: engine.share is not None)
            await engine.rounds.close()

    asyncio.run(run())


def test_closed_at_any_moment_of_a_round(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py makes a ConnectionError of some cancellations: these are not the end by themselves."""
    monkeypatch.setattr(quotas, "ROUND_S", 0)

    async def run() -> None:
        for turn in range(400):
            async with client_of(redis_server) as client:
                engine = Engine(client, "e1")
                engine.rounds.start()
                # The moment: a little later each time.
                await asyncio.sleep(turn * 1e-5)
                async with asyncio.timeout(UNTIL_S):
                    await engine.rounds.close()

    asyncio.run(run())
