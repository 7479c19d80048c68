"""Lanes come, change and go with the configuration."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from proxyd.breaker import Outcome
from proxyd.caches.ats_rules import AtsRules
from proxyd.caches.nginx_files import NginxFiles
from proxyd.config import AgentConfig, CacheConfig, default_config
from proxyd.lanes import Caches, is_idle
from proxyd.links import Links
from proxyd.local import LocalClient
from proxyd.logs import Log
from proxyd.split import SplitClient
from tests.proxyd.rig import Scripted, Visit, make_exchange, run, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def config(*caches: tuple[str, tuple[str, int]], connections: int = 2) -> AgentConfig:
    """A configuration with these Varnishes."""
    default = default_config()
    return msgspec.structs.replace(
        default,
        caches=[CacheConfig(name, "varnish", address) for name, address in caches],
        fast=msgspec.structs.replace(default.fast, connections=connections, depth=1),
    )


def purge(caches: Caches, number: int = 0) -> None:
    """One purge at one of the caches."""
    lanes = caches.in_use[number]
    lanes.fast.put(make_exchange(b"http://h/1", lanes.kind.deeds["url"]), 5)


def test_what_stays_is_kept_and_gets_the_new_limits() -> None:
    async def test() -> None:
        caches = Caches(lambda *_: None)
        caches.apply(config(("a", ("127.0.0.1", 1)), ("b", ("127.0.0.1", 2))))
        a, b = caches.in_use
        caches.apply(config(("b", ("127.0.0.1", 2)), ("a", ("127.0.0.1", 3)), connections=7))
        assert [lanes.name for lanes in caches.in_use] == ["b", "a"]
        assert caches.in_use[0] is b
        assert b.fast.limits.connections == 7
        assert b.slow.limits.streaming
        # Another address is another cache.
        assert caches.in_use[1] is not a
        assert caches.leaving == (a,)
        caches.close()

    run(test())


def test_a_traffic_server_with_rules_has_two_ways() -> None:
    rules = AtsRules("/nowhere/r", "/nowhere/s", "/nowhere/m", ("true",), 1, 60, 0.0)
    both = [CacheConfig("a", "ats", ("127.0.0.1", 1), rules=rules), CacheConfig("b", "ats", ("127.0.0.1", 1))]

    async def test() -> None:
        caches = Caches(lambda *_: None)
        caches.apply(msgspec.structs.replace(config(), caches=both))
        with_rules, without = caches.in_use
        assert isinstance(with_rules.fast, SplitClient)
        assert set(with_rules.kind.deeds) == {"url", "dir", "regex", "prefetch"}
        assert not isinstance(without.fast, SplitClient)
        assert set(without.kind.deeds) == {"url", "prefetch"}
        caches.close()

    run(test())


def test_an_nginx_is_refreshed_by_whom_its_settings_say() -> None:
    files = NginxFiles("/nowhere", (1, 2), "$uri", "", variants=False)
    there = CacheConfig("a", "nginx", ("127.0.0.1", 1), files=files)

    async def test() -> None:
        caches = Caches(lambda *_: None)
        both = msgspec.structs.replace(config(), caches=[there, CacheConfig("b", "nginx", ("127.0.0.1", 1))])
        caches.apply(both)
        by_hand, by_request = caches.in_use
        assert isinstance(by_hand.fast, LocalClient)
        assert (by_hand.kind.name, by_hand.kind.drop is not None) == ("nginx", True)
        # Objects come back, of any length: one at a time, and streamed.
        for lanes in (by_hand, by_request):
            assert (lanes.slow.limits.streaming, lanes.slow.limits.answer_max_bytes) == (True, None)
        for connections in (2, 7):
            caches.apply(
                msgspec.structs.replace(
                    both, fast=msgspec.structs.replace(both.fast, connections=connections, depth=9)
                )
            )
            limits = by_request.fast.limits
            assert (limits.streaming, limits.answer_max_bytes, limits.depth) == (True, None, 1)
            assert limits.until_closed
            assert (limits.connections, by_hand.fast.limits.depth) == (connections, 9)
        assert caches.in_use == (by_hand, by_request)
        # Another folder is another cache.
        elsewhere = msgspec.structs.replace(there, files=msgspec.structs.replace(files, path="/elsewhere"))
        caches.apply(msgspec.structs.replace(both, caches=[elsewhere]))
        assert by_hand not in caches.in_use
        caches.close()

    run(test())


def test_the_least_that_an_engine_with_a_link_allows_holds_for_prefetches() -> None:
    def engine(rate: int, *, up: bool = True) -> SimpleNamespace:
        return SimpleNamespace(up=up, prefetch_bytes_per_s=rate)

    links = cast("Any", SimpleNamespace(_engines={}))
    for engines, rate in (
        ([], 0),
        ([engine(0)], 0),
        ([engine(500), engine(0), engine(900), engine(7, up=False)], 500),
    ):
        links._engines = dict(enumerate(engines))
        assert Links.prefetch_bytes_per_s.fget(links) == rate  # type: ignore[attr-defined]


def test_what_goes_finishes_first() -> None:
    told: list[str | None] = []
    answer = asyncio.Event()

    async def late(visit: Visit) -> None:
        while await visit.request():
            await answer.wait()
            await visit.send(OK)

    async def test() -> None:
        async with Scripted(late) as server:
            caches = Caches(lambda _, error: told.append(error))
            caches.apply(config(("a", server.address), ("b", ("127.0.0.1", 1))))
            for _ in range(5):
                purge(caches)
            await wait_until(lambda: len(server.requests) == 2)
            caches.apply(config(("b", ("127.0.0.1", 1))))
            assert [lanes.name for lanes in caches.in_use] == ["b"]
            assert told == []
            answer.set()
            await wait_until(lambda: not caches.leaving, "the lanes are closed")
            assert told == [None] * 5
            await wait_until(lambda: server.open == 0, "its connections are closed")
            caches.close()

    run(test())


def test_what_goes_and_never_ends_fails() -> None:
    told: list[str | None] = []

    async def test() -> None:
        async with Scripted(lambda visit: visit.forever()) as server:
            caches = Caches(lambda _, error: told.append(error), leave_s=0.1)
            caches.apply(config(("a", server.address)))
            for _ in range(5):
                purge(caches)
            await wait_until(lambda: caches.in_use[0].fast.in_flight == 2)
            assert not is_idle(caches.in_use)
            caches.apply(config(("b", server.address)))
            assert is_idle(caches.in_use)
            await wait_until(lambda: not caches.leaving, "the lanes are closed")
            assert told == ["cache a: taken out of the configuration"] * 5
            caches.close()

    run(test())


def test_what_waits_only_for_a_cache_that_does_not_keep_up() -> None:
    async def test() -> None:
        async with Scripted(lambda visit: visit.forever()) as server:
            caches = Caches(lambda *_: None)
            caches.apply(config(("good", server.address), ("bad", ("127.0.0.1", 1))))
            now = asyncio.get_running_loop().time()
            for _ in range(5):
                purge(caches, 0)
            assert caches.left_behind(100, now) == 0
            for _ in range(3):
                caches.in_use[1].fast.breaker.note(Outcome.FAILED, now)
            # Of 100 open targets the good one has 5 to do.
            assert caches.left_behind(100, now) == 95
            await wait_until(lambda: caches.in_use[0].fast.in_flight == 2)
            assert caches.left_behind(100, asyncio.get_running_loop().time()) == 95
            # Now it has said nothing for a while either: nobody is ahead.
            assert caches.left_behind(100, asyncio.get_running_loop().time() + 1) == 0
            caches.close()

    run(test())


def test_a_breaker_that_opens_is_logged_once_until_it_closes() -> None:
    async def test() -> None:
        log = Log("info")
        told: list[tuple[str, object]] = []
        log._write = lambda level, event, fields: told.append((event, fields["lane"]))  # type: ignore[method-assign]
        caches = Caches(lambda *_: None, log)
        caches.apply(config(("a", ("127.0.0.1", 1))))
        [lanes] = caches.in_use
        for lane in (lanes.fast, lanes.slow):
            for number in range(6):
                lane.breaker.note(Outcome.FAILED, 1.0 + number)
                lane.breaker.may_send(2.0 + number)
            assert lanes.replay.on
        lanes.fast.breaker.note(Outcome.OK, 10.0)
        assert not lanes.replay.on
        assert told == [("cache down", "fast"), ("cache down", "slow"), ("cache up", "fast")]
        caches.close()

    run(test())
