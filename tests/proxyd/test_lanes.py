"""Lanes come, change and go with the configuration."""

from __future__ import annotations

import asyncio

import msgspec

from proxyd.caches.ats_rules import AtsRules
from proxyd.caches.nginx_files import NginxFiles
from proxyd.config import AgentConfig, CacheConfig, default_config
from proxyd.lanes import Caches, is_idle
from proxyd.local import LocalClient
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
