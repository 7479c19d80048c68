"""The slow lane's client against a server that does what each test says."""

from __future__ import annotations

import asyncio
import resource as os_resource
import socket
from typing import Any

import pytest

from proxyd.breaker import BreakerSettings, State
from proxyd.caches.http import Request, make_kind
from proxyd.prefetch import lineup as lineup_module
from proxyd.prefetch.buckets import BURST_S
from proxyd.prefetch.client import BUFFER_BYTES
from proxyd.prefetch.hits import DRAIN_MAX_BYTES
from proxyd.prefetch.playlists import PLAYLIST_MAX_BYTES
from tests.proxyd.prefetch.rig import EAGER, Crowd, Told, answer, exchange, fetch, limits, path_of, serve
from tests.proxyd.rig import Scripted, Visit, run, wait_until

ONE = limits(connections=1)


def target(number: int = 0, host: str = "h") -> bytes:
    return f"http://{host}/{number}".encode()


def test_each_ends_once_with_its_evidence() -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer(b"0123456789"))) as server:
            told = await fetch(server.address, *(target(number) for number in range(50)))
            assert set(map(tuple, told.errors.values())) == {(None,)}
            assert server.visits <= 4
            evidence = told.evidence[target(7)]
            assert (evidence.cache, evidence.target, evidence.status) == ("c", "http://h/7", 200)
            assert (evidence.size_bytes, evidence.hit, evidence.more) == (10, False, {})
            assert evidence.took_ms is not None
            assert sorted(server.requests)[0] == (
                b"GET /0 HTTP/1.1\r\nHost: h\r\nUser-Agent: refreshd-prefetch\r\nAccept: */*\r\n"
                b"Accept-Encoding: gzip\r\n\r\n"
            )

    run(test())


@pytest.mark.parametrize("status", [301, 404, 500, 503])
def test_what_is_no_success_has_failed(status: int) -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer(b"no", status=status))) as server:
            told = await fetch(server.address, target())
            whose = "origin: " if status >= 500 else ""
            assert told.errors[target()] == [f"cache c: {whose}GET was answered {status}"]
            assert (told.evidence[target()].status, told.evidence[target()].hit) == (status, False)

    run(test())


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"5\r\nabcde\r\n6;x=y\r\nfghijk\r\n0\r\nX-T: 1\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    "whole",
    [answer(b"abcdefghijk"), CHUNKED, b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + CHUNKED],
    ids=["length", "chunked", "interim"],
)
def test_an_answer_may_come_in_any_pieces(whole: bytes, step: int) -> None:
    async def slowly(visit: Visit) -> None:
        while await visit.request():
            for start in range(0, len(whole), step):
                await visit.send(whole[start : start + step])
                await asyncio.sleep(0)

    async def test() -> None:
        async with Scripted(slowly) as server:
            told = await fetch(server.address, target(1), target(2), how=ONE)
            assert list(told.errors.values()) == [[None], [None]]
            assert [evidence.size_bytes for evidence in told.evidence.values()] == [11, 11]
            assert server.visits == 1

    run(test())


def test_a_stale_connection_is_no_failure() -> None:
    """A kept connection that closes instead of answering: once more, on a fresh one."""

    async def once(visit: Visit) -> None:
        await visit.request()
        await visit.send(answer())
        await visit.request()

    async def test() -> None:
        async with Scripted(once) as server:
            told = await fetch(server.address, *(target(number) for number in range(6)), how=ONE)
            assert all(errors == [None] for errors in told.errors.values())

    run(test())


HOSTILE = {
    "closes": (b"", "closed the connection before its answer was whole"),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "closed the connection"),
    "without a length": (b"HTTP/1.1 200 OK\r\n\r\nabc", "closed the connection"),
    "garbage": (b"what?\r\n\r\n", "is not HTTP"),
    "two answers": (answer(b"a") + answer(b"b"), "is not HTTP"),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "is not HTTP"),
    "a header without an end": (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "is not HTTP"),
    "a trailer without an end": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 200_000,
        "is not HTTP",
    ),
}


@pytest.mark.parametrize(("sent", "error"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_answer_fails_after_two_tries(sent: bytes, error: str) -> None:
    async def hostile(visit: Visit) -> None:
        if path_of(await visit.request()) == b"/0":
            await visit.send(sent)
        else:
            await visit.send(answer())

    async def test() -> None:
        async with Scripted(hostile) as server:
            told = await fetch(server.address, target(0), target(1), target(2))
            assert told.errors[target(1)] == told.errors[target(2)] == [None]
            assert error in str(told.errors[target(0)][0])
            assert len([request for request in server.requests if path_of(request) == b"/0"]) == 2

    run(test())


def test_silence_ends_and_slowness_does_not() -> None:
    async def silent(visit: Visit) -> None:
        while request := await visit.request():
            if path_of(request) == b"/0":
                await visit.forever()
            for piece in (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", *[b"xx"] * 6):
                await visit.send(piece)
                await asyncio.sleep(0.15)

    async def test() -> None:
        async with Scripted(silent) as server:
            # Six pieces take longer than the longest silence that is allowed.
            told = await fetch(server.address, target(0), target(1), how=EAGER)
            assert told.errors[target(1)] == [None]
            assert told.errors[target(0)] == ["cache c: frozen: the cache gave no answer in time"]

    run(test())


def test_the_whole_has_a_deadline() -> None:
    async def dripping(visit: Visit) -> None:
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await visit.send(b"x")
            await asyncio.sleep(0.02)

    async def test() -> None:
        async with Scripted(dripping) as server:
            told = await fetch(server.address, target(), how=limits(EAGER, whole_timeout_s=0.6))
            assert told.errors[target()] == ["cache c: slow: the cache's answer took too long as a whole"]

    run(test())


def test_a_cache_that_is_not_there_is_waited_for_and_then_fails() -> None:
    async def test() -> None:
        told = await fetch(("127.0.0.1", 1), target(0), target(1), how=EAGER)
        [[error], [other]] = told.errors.values()
        assert error == other
        assert "killed: cannot connect: Connection refused; out of reach for 0.3 s" in str(error)

    run(test())


def test_priority_goes_first_and_within_it_the_order_is_kept() -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer())) as server:
            with Told(server.address, ONE) as told:
                told.put(target(1), target(2), priority=3)
                told.put(target(3), target(4), priority=9)
                await told.all(4)
                assert told.ended == [target(3), target(4), target(1), target(2)]

    run(test())


def test_what_is_expired_or_cancelled_is_not_begun() -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer())) as server:
            with Told(server.address, ONE) as told:
                told.client.put(exchange(target(1), expires_at=0.0), 5)
                told.put(target(2))
                await told.all(2)
                assert told.errors == {target(1): ["its ttl ended before it was begun"], target(2): [None]}
                assert len(server.requests) == 1

    run(test())


# ── a cache that is down ──────────────────────────────────────────────────────────────────


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    return host, port


def test_what_waits_for_a_cache_that_is_down_is_done_once_it_is_back() -> None:
    async def test() -> None:
        address = free_address()
        with Told(address) as told:
            told.put(*(target(number) for number in range(30)))
            await wait_until(lambda: told.client.breaker.state is State.OPEN)
            assert told.client.is_stalled(0.0)
            async with Scripted(serve(lambda request: answer()), address):
                await told.all(30)
            assert all(errors == [None] for errors in told.errors.values())
            assert told.client.breaker.closed

    run(test())


def test_one_request_is_tried_at_a_cache_that_was_down() -> None:
    """It goes away with four requests under way; until it answers one it is asked for one at a time."""
    tried: list[int] = []
    well = asyncio.Event()

    async def ill(visit: Visit) -> None:
        while request := await visit.request():
            if not well.is_set():
                tried.append(told.client.in_flight)
                visit.reset()
                return
            await visit.send(answer(b"", status=200 if request else 500))

    async def test() -> None:
        nonlocal told
        async with Scripted(ill) as server:
            with Told(server.address) as told:
                told.put(*(target(number) for number in range(30)))
                await wait_until(lambda: len(tried) > 8)
                assert told.client.breaker.state is not State.CLOSED
                assert told.errors == {}
                well.set()
                await told.all(30)
                # What the cache did to them is no fault of theirs.
                assert all(errors == [None] for errors in told.errors.values())

    told: Any = None
    run(test())


def test_an_origin_that_fails_opens_nothing() -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer(status=503))) as server:
            with Told(server.address) as told:
                told.put(*(target(number) for number in range(60)))
                await told.all(60)
                assert told.client.breaker.closed
                assert told.errors[target()] == ["cache c: origin: GET was answered 503"]

    run(test())


def test_no_more_wait_for_a_cache_that_is_down_than_may() -> None:
    async def test() -> None:
        with Told(free_address()) as told:
            told.client.breaker.settings = BreakerSettings(queue_max=5)
            told.put(target(0))
            await wait_until(lambda: told.client.breaker.state is State.OPEN)
            told.put(*(target(number) for number in range(1, 9)))
            assert len(told.errors) in (3, 4)
            assert all(
                "5 targets wait for it, as many as may" in str(error) for [error] in told.errors.values()
            )

    run(test())


# ── bounds ────────────────────────────────────────────────────────────────────────────────


def test_a_slow_origin_holds_up_only_its_own() -> None:
    async def test() -> None:
        crowd = Crowd()
        crowd.held.add(b"slow")
        async with Scripted(crowd) as server:
            with Told(server.address, limits(connections=4, per_host=2)) as told:
                told.put(*(target(number, "slow") for number in range(20)))
                told.put(*(target(number, "quick") for number in range(20)))
                await told.all(20)
                assert all(b"//quick/" in ended for ended in told.ended)
                assert crowd.most == {b"slow": 2, b"quick": 2}
                assert told.client.in_flight == 2
                crowd.held.clear()
                crowd.open.set()
                await told.all(40)
                assert crowd.most[b"slow"] == 2
                assert server.visits <= 4

    run(test())


def test_what_begun_and_waits_is_known_as_unended() -> None:
    async def test() -> None:
        crowd = Crowd()
        crowd.held.add(b"h")
        async with Scripted(crowd) as server:
            with Told(server.address, limits(per_host=2)) as told:
                told.put(*(target(number) for number in range(5)))
                await wait_until(lambda: crowd.now.get(b"h") == 2)
                assert (told.client.in_flight, told.client.waiting) == (2, 3)
                unended = [exchange.target for exchange in told.client.unended()]
                assert unended == [target(number) for number in range(5)]
                told.client.give_up("taken out")
                assert told.errors == {target(number): ["cache c: taken out"] for number in range(5)}
            crowd.open.set()
            await wait_until(lambda: not server.open, "its connections are closed")

    run(test())


def test_other_limits_hold_at_once() -> None:
    async def test() -> None:
        crowd = Crowd()
        async with Scripted(crowd) as server:
            with Told(server.address, limits(connections=6, per_host=6)) as told:
                told.put(*(target(number) for number in range(30)))
                await wait_until(lambda: crowd.most.get(b"h") == 6)
                told.client.set_limits(limits(connections=2, per_host=1))
                await wait_until(lambda: crowd.now[b"h"] <= 1)
                crowd.most.clear()
                await told.all(30)
                assert crowd.most.get(b"h", 1) == 1
                await wait_until(lambda: server.open <= 2, "the connections beyond are closed")

    run(test())


# One that is held while it comes; many, each of which comes in one read.
@pytest.mark.parametrize(("count", "size"), [(1, 800_000), (40, 20_000)])
@pytest.mark.parametrize("where", ["cache", "host", "fleet"])
def test_no_more_bytes_come_than_may(where: str, count: int, size: int) -> None:
    rate = 1_500_000

    async def test() -> None:
        how = limits(
            bytes_per_s=rate if where == "cache" else 0,
            host_bytes_per_s=rate if where == "host" else 0,
            connections=1,
        )
        async with Scripted(serve(lambda request: answer(b"x" * size))) as server:
            with Told(server.address, how) as told:
                told.budget.set_rate(rate if where == "fleet" else 0, 0.0)
                began = asyncio.get_running_loop().time()
                told.put(*(target(number) for number in range(count)))
                await told.all(count)
                # The burst and what is read at once beyond it are free.
                least_s = (count * size - rate * BURST_S - BUFFER_BYTES) / rate
                assert asyncio.get_running_loop().time() - began >= least_s > 0.3
                assert all(errors == [None] for errors in told.errors.values())

    run(test())


def test_a_host_that_owes_holds_up_no_other() -> None:
    async def test() -> None:
        sizes = {b"big": 300_000, b"small": 10}

        def answer_to(request: bytes) -> bytes:
            return answer(b"x" * sizes[b"big" if b"Host: big" in request else b"small"])

        async with Scripted(serve(answer_to)) as server:
            with Told(server.address, limits(host_bytes_per_s=100_000, per_host=1)) as told:
                told.put(target(1, "big"), target(2, "big"))
                told.put(*(target(number, "small") for number in range(20)))
                await told.all(20)
                assert target(2, "big") not in told.ended

    run(test())


def test_a_huge_body_takes_no_memory() -> None:
    """300 MB through four connections: the process' peak does not move by more than their buffers."""
    piece = b"x" * 1_000_000

    async def huge(visit: Visit) -> None:
        while await visit.request():
            await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            for _ in range(100):
                await visit.send(piece)

    async def test() -> None:
        async with Scripted(huge) as server:
            await fetch(server.address, target(0))
            before = os_resource.getrusage(os_resource.RUSAGE_SELF).ru_maxrss
            told = await fetch(server.address, target(1), target(2))
            assert [evidence.size_bytes for evidence in told.evidence.values()] == [100_000_000] * 2
            # Another copy of one body would be 100 MB. (The server is in this process, too.)
            assert os_resource.getrusage(os_resource.RUSAGE_SELF).ru_maxrss - before < 20_000

    run(test())


# ── hits, variants, ranges ────────────────────────────────────────────────────────────────


def test_a_long_hit_is_not_waited_for() -> None:
    hit = b"HTTP/1.1 200 OK\r\nX-Varnish: 5 3\r\nContent-Length: %d\r\n\r\n" % (DRAIN_MAX_BYTES + 100)

    async def stuck(visit: Visit) -> None:
        request = await visit.request()
        if path_of(request) == b"/0":
            await visit.send(hit + b"the body never comes")
            await visit.forever()
        await visit.send(answer(b"short", b"X-Varnish: 7 6"))
        await visit.forever()

    async def test() -> None:
        async with Scripted(stuck) as server:
            told = await fetch(server.address, target(0), target(1))
            assert told.errors == {target(0): [None], target(1): [None]}
            assert all(evidence.hit for evidence in told.evidence.values())
            told = await fetch(server.address, target(0), how=limits(EAGER, skip_hits=False))
            assert told.errors[target(0)] == ["cache c: frozen: the cache gave no answer in time"]

    run(test())


def test_what_gives_no_mark_is_asked_first() -> None:
    def answer_to(request: bytes) -> bytes:
        if request.startswith(b"HEAD"):
            assert b"\r\nCache-Control: only-if-cached\r\n" in request
            there = path_of(request) == b"/1"
            # Of HEAD: the length of a body that does not come.
            return b"HTTP/1.1 %d Said\r\nContent-Length: 9\r\n\r\n" % (200 if there else 504)
        return answer(b"123")

    async def test() -> None:
        async with Scripted(serve(answer_to)) as server:
            told = await fetch(server.address, target(1), target(2), target(1, "i"), how=ONE, kind="ats")
            assert all(errors == [None] for errors in told.errors.values())
            assert [told.evidence[target(number)].hit for number in (1, 2)] == [True, False]
            assert told.evidence[target(1)].size_bytes == 0
            assert [request[:6] for request in server.requests].count(b"GET /2") == 1
            assert len(server.requests) == 4
            assert server.visits == 1

    run(test())


GZIP, BR, PHONE = (
    ((b"Accept-Encoding", b"gzip"),),
    ((b"Accept-Encoding", b"br"),),
    ((b"Accept-Encoding", b"gzip"), (b"User-Agent", b"Phone")),
)


@pytest.mark.parametrize(
    ("vary", "asked"),
    [
        (b"", [b"gzip"]),
        (b"Accept-Encoding", [b"gzip", b"br"]),
        (b"user-agent", [b"gzip", b"gzip Phone"]),
        (b"Accept-Encoding, User-Agent", [b"gzip", b"br", b"gzip Phone"]),
        (b"Cookie", [b"gzip"]),
        (b"*", [b"gzip"]),
    ],
)
def test_variants_that_make_a_difference_are_warmed(vary: bytes, asked: list[bytes]) -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer(b"ab", b"Vary: " + vary))) as server:
            told = await fetch(server.address, target(), how=limits(variants=(GZIP, BR, PHONE)))
            got = []
            for request in server.requests:
                encoding = request.partition(b"Accept-Encoding: ")[2].partition(b"\r\n")[0]
                got.append(encoding + (b" Phone" if b"User-Agent: Phone" in request else b""))
            assert got == asked
            evidence = told.evidence[target()]
            assert evidence.size_bytes == 2 * len(asked)
            if len(asked) > 1:
                more = {"requests": len(asked), "variants": len(asked), "variants_wanted": 3}
                assert evidence.more == more

    run(test())


def test_a_variant_that_fails_is_named() -> None:
    def answer_to(request: bytes) -> bytes:
        return answer(b"", b"Vary: Accept-Encoding", status=500 if b": br" in request else 200)

    async def test() -> None:
        async with Scripted(serve(answer_to)) as server:
            told = await fetch(server.address, target(), how=limits(variants=(GZIP, BR)))
            assert told.errors[target()] == [
                "cache c: origin: GET was answered 500, asked for variant 2 of 2"
            ]

    run(test())


def ranged(body: bytes) -> object:
    """Answers ranges as RFC 9110 has it."""

    def answer_to(request: bytes) -> bytes:
        first, last = map(int, request.partition(b"Range: bytes=")[2].split(b"\r\n")[0].split(b"-"))
        if first >= len(body):
            return answer(b"", b"Content-Range: bytes */%d" % len(body), status=416)
        part = body[first : last + 1]
        where = b"Content-Range: bytes %d-%d/%d" % (first, first + len(part) - 1, len(body))
        return answer(part, where, status=206)

    return answer_to


@pytest.mark.parametrize(("size", "requests"), [(1, 1), (10, 1), (11, 2), (95, 10)])
def test_an_object_is_warmed_in_ranges(size: int, requests: int) -> None:
    async def test() -> None:
        async with Scripted(serve(ranged(b"x" * size))) as server:  # type: ignore[arg-type]
            told = await fetch(server.address, target(), how=limits(range_bytes=10))
            assert told.errors[target()] == [None]
            assert len(server.requests) == requests
            assert told.evidence[target()].size_bytes == size
            assert b"Range: bytes=0-9\r\n" in server.requests[0]

    run(test())


def test_who_knows_no_ranges_is_taken_whole() -> None:
    async def test() -> None:
        async with Scripted(serve(lambda request: answer(b"x" * 95))) as server:
            told = await fetch(server.address, target(), how=limits(range_bytes=10))
            assert (told.errors[target()], told.evidence[target()].size_bytes) == ([None], 95)
            assert len(server.requests) == 1

    run(test())


def test_an_empty_object_has_no_range() -> None:
    def answer_to(request: bytes) -> bytes:
        return answer(status=416 if b"Range" in request else 200)

    async def test() -> None:
        async with Scripted(serve(answer_to)) as server:
            told = await fetch(server.address, target(), how=limits(range_bytes=10))
            assert (told.errors[target()], len(server.requests)) == ([None], 2)

    run(test())


@pytest.mark.parametrize(
    "content_range",
    [b"bytes 0-9/5", b"bytes 5-9/100", b"bytes 0-9/*", b"x", b"bytes 9-0/100", b"bytes 0-" + b"9" * 99],
)
def test_another_range_than_was_asked_for_fails(content_range: bytes) -> None:
    async def test() -> None:
        lying = serve(lambda request: answer(b"x", b"Content-Range: " + content_range, status=206))
        async with Scripted(lying) as server:
            told = await fetch(server.address, target(), how=limits(range_bytes=10))
            assert "206 with" in str(told.errors[target()][0])
            assert len(server.requests) == 1

    run(test())


# ── playlists ─────────────────────────────────────────────────────────────────────────────

HLS = b"Content-Type: application/vnd.apple.mpegurl"
MASTER = b"#EXTM3U\n" + b"".join(b"#EXT-X-STREAM-INF:BANDWIDTH=1\n%d/m.m3u8\n" % n for n in range(3))
MEDIA = b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="/key"\n' + b"".join(
    b"#EXTINF:4,\n%d.ts\n" % n for n in range(5)
)


def stream(request: bytes) -> bytes:
    """A master with three media playlists of five segments, and one key."""
    path = path_of(request)
    if path == b"/master.m3u8":
        return answer(MASTER, HLS)
    return answer(MEDIA, HLS) if path.endswith(b".m3u8") else answer(b"segment")


ROOT = b"http://h/master.m3u8"


def test_a_playlist_is_warmed_to_its_segments() -> None:
    async def test() -> None:
        async with Scripted(serve(stream)) as server:  # type: ignore[arg-type]
            told = await fetch(server.address, ROOT)
            assert told.errors[ROOT] == [None]
            paths = [path_of(request).decode() for request in server.requests]
            segments = [f"/{n}/{m}.ts" for n in range(3) for m in range(5)]
            assert sorted(paths) == sorted(
                ["/master.m3u8", "/key", *(f"/{n}/m.m3u8" for n in range(3)), *segments]
            )
            evidence = told.evidence[ROOT]
            assert evidence.more == {"requests": 1, "children": 19}
            assert evidence.size_bytes == len(MASTER) + 3 * len(MEDIA) + 16 * len(b"segment")
            told = await fetch(server.address, ROOT, how=limits(playlists=False))
            assert (told.errors[ROOT], len(server.requests)) == ([None], 21)

    run(test())


def test_what_is_beyond_the_bound_is_told() -> None:
    async def test() -> None:
        async with Scripted(serve(stream)) as server:  # type: ignore[arg-type]
            told = await fetch(server.address, ROOT, how=limits(playlist_max=10))
            assert len(server.requests) == 11
            left_out = told.evidence[ROOT].more["children_left_out"]
            assert told.errors[ROOT] == [f"cache c: {left_out} were left out: [slow] playlist_max = 10"]

    run(test())


def test_children_that_fail_are_told() -> None:
    def answer_to(request: bytes) -> bytes:
        return answer(status=404) if path_of(request).endswith(b"3.ts") else stream(request)

    async def test() -> None:
        async with Scripted(serve(answer_to)) as server:  # type: ignore[arg-type]
            told = await fetch(server.address, ROOT, how=limits(per_host=1))
            [error] = told.errors[ROOT]
            assert "cache c: 3 of 19 that its playlist names failed, first http://h/" in str(error)
            assert str(error).endswith("/3.ts: GET was answered 404")

    run(test())


def test_many_children_are_not_held_and_hold_up_nobody() -> None:
    """Of 5,000 segments only a few are in the queue; what has a higher priority passes them."""
    media = b"#EXTM3U\n" + b"".join(b"#EXTINF:4,\n%d.ts\n" % n for n in range(5000))
    most = 0

    async def test() -> None:
        nonlocal most
        async with Scripted(
            serve(lambda request: answer(media, HLS) if b"m3u8" in request else answer())
        ) as server:
            with Told(server.address) as told:
                lineup = told.client._lineup

                def answered_before(host: bytes) -> None:
                    nonlocal most
                    most = max(most, len(lineup.begun))
                    leave(host)

                leave = lineup.end
                lineup.end = answered_before  # type: ignore[method-assign]
                told.put(ROOT)
                await wait_until(lambda: len(server.requests) > 100)
                told.put(target(1), priority=9)
                await told.all(2)
                assert told.ended == [target(1), ROOT]
                assert told.errors[ROOT] == [None]
                assert len(server.requests) == 5002
                assert most <= 16

    run(test())


def test_trees_are_begun_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineup_module, "TREES_MAX", 2)

    async def test() -> None:
        async with Scripted(serve(stream)) as server:  # type: ignore[arg-type]
            roots = [b"http://h%d/master.m3u8" % number for number in range(20)]
            told = await fetch(server.address, *roots)
            assert all(errors == [None] for errors in told.errors.values())
            assert all(evidence.more["children"] == 19 for evidence in told.evidence.values())

    run(test())


def test_a_cancelled_playlist_goes_no_further() -> None:
    async def test() -> None:
        crowd = asyncio.Event()

        async def held(visit: Visit) -> None:
            while request := await visit.request():
                if path_of(request).endswith(b".ts"):
                    await crowd.wait()
                await visit.send(stream(request))

        async with Scripted(held) as server:
            with Told(server.address) as told:
                one = exchange(ROOT)
                told.client.put(one, 5)
                await wait_until(lambda: any(b".ts" in request for request in server.requests))
                one.task.expires_at = 0.0
                crowd.set()
                await told.all(1)
                assert "its ttl ended before all of it was begun" in str(told.errors[ROOT][0])
                assert len(server.requests) < 20

    run(test())


def test_what_is_configured_otherwise_is_sent_as_it_is() -> None:
    """Of kind http: a POST that has something warmed is no object with ranges and variants."""
    request = Request("POST", "/warm", (("X-Url", "{path:percent}"),), "{path:json}", (202,))
    deed = make_kind({"prefetch": request}).deeds["prefetch"]

    async def test() -> None:
        async with Scripted(serve(lambda request: answer(b"{}", HLS, status=202))) as server:
            how = limits(variants=(GZIP, BR), range_bytes=10)
            with Told(server.address, how, kind="http") as told:
                one = exchange(target())
                one.request, one.deed = deed.render(b"h", b"/0"), deed
                told.client.put(one, 5)
                await told.all(1)
                assert told.errors[target()] == [None]
                # (The script reads heads only, so the body stands before the next request.)
                assert server.requests == [
                    b"POST /warm HTTP/1.1\r\nHost: h\r\nX-Url: %2F0\r\nContent-Length: 2\r\n\r\n"
                ]

    run(test())


def test_a_playlist_that_was_cut_is_read_anew() -> None:
    whole = b"#EXTM3U\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n"

    async def cut_once(visit: Visit) -> None:
        while request := await visit.request():
            if request.startswith(b"GET /master") and visit.number == 1:
                await visit.send(answer(whole, HLS)[:-2])
                return
            await visit.send(answer(whole, HLS) if b"m3u8" in request else answer())

    async def test() -> None:
        async with Scripted(cut_once) as server:
            told = await fetch(server.address, ROOT, how=limits(connections=1))
            assert told.errors[ROOT] == [None]
            assert {path_of(request) for request in server.requests} == {b"/master.m3u8", b"/1.ts", b"/2.ts"}

    run(test())


def test_a_playlist_may_come_in_ranges() -> None:
    body = b"#EXTM3U\n#EXTINF:4,\n1.ts\n#EXTINF:4,\n2.ts\n"
    in_parts: Any = ranged(body)

    async def test() -> None:
        async with Scripted(serve(in_parts)) as server:
            told = await fetch(server.address, ROOT, how=limits(range_bytes=9))
            assert told.errors[ROOT] == [None]
            assert told.evidence[ROOT].more == {"requests": 5, "children": 2}

    run(test())


def test_a_playlist_that_is_too_large_says_so() -> None:
    async def test() -> None:
        body = b"#EXTM3U\n" + b"#" * PLAYLIST_MAX_BYTES
        async with Scripted(serve(lambda request: answer(body, HLS))) as server:
            told = await fetch(server.address, ROOT)
            assert "a playlist larger than 2097152 bytes is not expanded" in str(told.errors[ROOT][0])

    run(test())
