"""Caches that are asked whether they are there, and what the breaker makes of what they say."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from proxyd import probes
from proxyd.breaker import BreakerSettings, Outcome, State
from proxyd.config import AgentConfig, CacheConfig, default_config
from proxyd.lanes import Caches
from proxyd.probes import Finding, Prober, probe
from tests.proxyd.rig import Scripted, Visit, make_exchange, run, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
QUICK = BreakerSettings(retry_first_s=0.05, retry_max_s=0.1, probe_every_s=0.1)


def config(address: tuple[str, int], path: str = "", settings: BreakerSettings = QUICK) -> AgentConfig:
    cache = CacheConfig("c", "varnish", address, probe=path)
    return msgspec.structs.replace(default_config(), caches=[cache], breaker=settings)


async def ok(visit: Visit) -> None:
    await visit.request()
    await visit.send(OK)


async def busy(visit: Visit) -> None:
    await visit.request()
    await visit.send(OK.replace(b"200", b"503"))


async def garbage(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"220 mail.example ESMTP\r\n")


async def endless(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 " + b"x" * 100_000)
    await visit.forever()


async def never(visit: Visit) -> None:
    await visit.forever()


async def listens(visit: Visit) -> None:
    await visit.request()
    await visit.forever()


async def hang_up(visit: Visit) -> None:
    await visit.request()


@pytest.mark.parametrize(
    ("script", "path", "down", "finding"),
    [
        (ok, "/up", False, Finding(Outcome.OK)),
        (ok, "", True, Finding(Outcome.OK)),
        (never, "", False, Finding(None)),
        (never, "", True, Finding(Outcome.TIMEOUT, "frozen: no answer to a probe within 0.2 s")),
        (never, "/up", False, Finding(Outcome.TIMEOUT, "frozen: no answer to a probe within 0.2 s")),
        (busy, "/up", False, Finding(Outcome.FAILED, "full: GET /up was answered 503")),
        (busy, "", True, Finding(Outcome.OK)),
        (garbage, "/up", False, Finding(Outcome.FAILED, "garbled: what the cache answered is not HTTP")),
        (endless, "/up", False, Finding(Outcome.FAILED, "garbled: the cache's answer is too large")),
        (
            hang_up,
            "/up",
            False,
            Finding(Outcome.FAILED, "killed: the cache closed the connection before its answer was whole"),
        ),
    ],
)
def test_what_a_probe_finds(
    script: object, path: str, down: bool, finding: Finding, monkeypatch: pytest.MonkeyPatch
) -> None:
    if finding.outcome is Outcome.TIMEOUT:
        monkeypatch.setattr(probes, "TIMEOUT_S", 0.2)

    async def test() -> None:
        async with Scripted(script) as server:  # type: ignore[arg-type]
            assert await probe(server.address, path, down=down) == finding
            wanted = [b"GET /up HTTP/1.1"] if path else [b"OPTIONS * HTTP/1.1"] if down else []
            await wait_until(lambda: len(server.requests) == len(wanted) or script is never)
            assert [request.split(b"\r\n")[0] for request in server.requests] in ([], wanted)

    run(test())


def test_a_silent_cache_is_found_dead_and_alive_again() -> None:
    async def test() -> None:
        async with Scripted(ok) as server:
            address = server.address
        caches = Caches(lambda *_: None)
        caches.apply(config(address, "/up"))
        breaker = caches.in_use[0].fast.breaker

        async def look(until: State) -> None:
            def seen() -> bool:
                caches.probe()
                return breaker.state is until

            await wait_until(seen, until.value)

        await look(State.OPEN)
        assert breaker.why == "killed: cannot connect: Connection refused"
        async with Scripted(ok, address) as server:
            await look(State.CLOSED)
            assert server.requests[0].startswith(b"GET /up HTTP/1.1\r\n")
        caches.close()

    run(test())


def test_who_is_heard_is_not_asked() -> None:
    async def test() -> None:
        async with Scripted(ok) as server:
            caches = Caches(lambda *_: None)
            caches.apply(config(server.address, "/up"))
            [lanes] = caches.in_use
            prober = Prober(lanes, "/up")
            now = asyncio.get_running_loop().time()
            lanes.fast.breaker.note(Outcome.OK, now)
            prober.look(now + 0.09)
            assert prober._asking is None
            prober.look(now + 0.11)
            assert prober._asking is not None
            await wait_until(lambda: prober._asking is None)
            assert server.visits == 1
            lanes.fast.breaker.settings = msgspec.structs.replace(QUICK, probe_every_s=0.0)
            prober.look(now + 1000)
            assert prober._asking is None
            caches.close()

    run(test())


def test_where_something_waits_that_is_tried_and_no_probe() -> None:
    async def test() -> None:
        async with Scripted(listens) as server:
            caches = Caches(lambda *_: None)
            slowly = msgspec.structs.replace(QUICK, retry_first_s=100.0, retry_max_s=100.0)
            caches.apply(config(server.address, "/up", slowly))
            [lanes] = caches.in_use
            for _ in range(3):
                lanes.fast.breaker.note(Outcome.FAILED, 0.0)
            lanes.fast.put(make_exchange(b"http://h/", lanes.kind.deeds["url"]), 5)
            lanes.fast.breaker.retry_at = 0.0
            caches.probe()
            assert lanes.fast.breaker.state is State.OPEN
            await wait_until(lambda: server.requests, "it is tried")
            assert server.requests[0].startswith(b"PURGE ")
            caches.close()

    run(test())


def test_what_it_is_asked_for_changes_with_a_reload() -> None:
    async def test() -> None:
        async with Scripted(ok) as server:
            caches = Caches(lambda *_: None)
            caches.apply(config(server.address, "/up"))
            before = caches.in_use
            caches.apply(config(server.address, "/other"))
            assert caches.in_use == before
            caches.probe()
            await wait_until(lambda: server.requests)
            assert server.requests[0].startswith(b"GET /other ")
            caches.close()

    run(test())
