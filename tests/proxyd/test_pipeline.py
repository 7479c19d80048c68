"""The client against servers that behave, and against servers that do not."""

import asyncio

import msgspec
import pytest

from proxyd.breaker import BreakerSettings, Outcome, State
from proxyd.caches import KINDS
from proxyd.pipeline import CacheClient
from tests.proxyd.rig import (
    HASTY,
    SHORT,
    Scripted,
    Visit,
    make_exchange,
    perform,
    run,
    split_address,
    wait_until,
)
from tools.servers import Origin, Varnish

PURGE = KINDS["varnish"].deeds["url"]
GET = KINDS["varnish"].deeds["prefetch"]
OK = b"HTTP/1.1 200 Purged\r\nContent-Length: 2\r\n\r\nok"


def some(count: int, host: str = "h") -> list[bytes]:
    return [f"http://{host}/{number}".encode() for number in range(count)]


async def answer_all(visit: Visit) -> None:
    while await visit.request():
        await visit.send(OK)


def test_each_exchange_is_told_once() -> None:
    async def test() -> None:
        async with Scripted(answer_all) as server:
            told = await perform(server.address, PURGE, some(500))
            assert set(map(tuple, told.values())) == {(None,)}
            assert server.visits <= SHORT.connections
            assert len(server.requests) == 500

    run(test())


def test_the_request_is_what_it_should_be() -> None:
    async def test() -> None:
        async with Scripted(answer_all) as server:
            await perform(server.address, PURGE, [b"https://Ex.com:8443/a%2Fb/../c;d?x=%2f&&y=[1]"])
            assert server.requests == [
                b"PURGE /a%2Fb/../c;d?x=%2f&&y=[1] HTTP/1.1\r\nHost: Ex.com:8443\r\n\r\n"
            ]

    run(test())


def test_depth_and_connections_are_bounded() -> None:
    async def test() -> None:
        async with Scripted(lambda visit: visit.forever()) as server:
            client = CacheClient("c", *server.address, SHORT, lambda *_: None)
            for target in some(100):
                client.put(make_exchange(target, PURGE), 5)
            await wait_until(lambda: client.in_flight == SHORT.connections * SHORT.depth)
            assert client.waiting == 100 - client.in_flight
            client.close()

    run(test())


def test_higher_priority_goes_first() -> None:
    async def test() -> None:
        async with Scripted(answer_all) as server:
            ended: list[bytes] = []
            limits = msgspec.structs.replace(SHORT, connections=1, depth=1)
            client = CacheClient("c", *server.address, limits, lambda e, _: ended.append(e.target))
            for number, priority in enumerate([1, 9, 5, 9, 0]):
                client.put(make_exchange(b"http://h/%d" % number, PURGE), priority)
            await wait_until(lambda: len(ended) == 5)
            assert ended == [b"http://h/%d" % number for number in (1, 3, 2, 0, 4)]
            client.close()

    run(test())


def test_a_stale_connection_costs_nobody_a_failure() -> None:
    """A keep-alive connection that the server closes between requests, again and again."""

    async def five_then_close(visit: Visit) -> None:
        for _ in range(5):
            if await visit.request():
                await visit.send(OK)

    async def test() -> None:
        async with Scripted(five_then_close) as server:
            told = await perform(server.address, PURGE, some(60))
            assert set(map(tuple, told.values())) == {(None,)}
            assert server.visits >= 12

    run(test())


def test_all_connections_may_be_stale_at_once() -> None:
    """What is tried again goes to a fresh connection, not to another that is as old."""

    async def once(visit: Visit) -> None:
        await visit.request()
        await visit.send(OK)
        await visit.request()

    async def test() -> None:
        async with Scripted(once) as server:
            for _ in range(3):
                limits = msgspec.structs.replace(SHORT, connections=4, depth=1)
                told = await perform(server.address, PURGE, some(40), limits)
                assert set(map(tuple, told.values())) == {(None,)}

    run(test())


def test_connection_close_is_respected() -> None:
    async def one_then_close(visit: Visit) -> None:
        await visit.request()
        await visit.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async def test() -> None:
        async with Scripted(one_then_close) as server:
            told = await perform(server.address, PURGE, some(20))
            assert set(map(tuple, told.values())) == {(None,)}

    run(test())


def test_a_reset_amid_an_answer_is_done_again() -> None:
    async def first_resets(visit: Visit) -> None:
        await visit.request()
        if visit.number == 1:
            await visit.send(OK[:-1])
            visit.reset()
            return
        await visit.send(OK)
        await answer_all(visit)

    async def test() -> None:
        async with Scripted(first_resets) as server:
            told = await perform(server.address, PURGE, some(1))
            assert list(told.values()) == [[None]]
            assert server.requests[0] == server.requests[1]

    run(test())


def test_only_the_one_that_spoils_it_fails() -> None:
    """A request that makes the server reset every time: those beside it succeed."""

    async def poisoned(visit: Visit) -> None:
        while request := await visit.request():
            if b"/7 " in request:
                visit.reset()
                return
            await visit.send(OK)

    async def test() -> None:
        async with Scripted(poisoned) as server:
            told = await perform(server.address, PURGE, some(30))
            bad = {target: errors for target, errors in told.items() if errors != [None]}
            assert list(bad) == [b"http://h/7"]
            assert "cache c: killed: the c" in str(bad[b"http://h/7"][0])

    run(test())


async def never(visit: Visit) -> None:
    await visit.forever()


async def garbage(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"220 mail.example ESMTP\r\n" * 10)
    await visit.forever()


async def unasked(visit: Visit) -> None:
    await visit.request()
    await visit.send(OK * 20)
    await visit.forever()


async def giant_headers(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\n")
    for _ in range(1000):
        await visit.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")
    await visit.forever()


async def giant_body(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    for _ in range(1000):
        await visit.send(b"x" * 10_000)
    await visit.forever()


async def drip(visit: Visit) -> None:
    """Never silent for long, and never done in time."""
    await visit.request()
    for byte in OK * 100:
        await visit.send(bytes([byte]))
        await asyncio.sleep(0.1)


async def nul(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 O\0K\r\nX\0: \0\r\nContent-Length: 0\r\n\r\n")
    await visit.forever()


async def endless_line(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    for _ in range(100):
        await visit.send(b"x" * 100_000)
    await visit.forever()


async def bad_chunk_size(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nok\r\n0\r\n\r\n")
    await visit.forever()


async def giant_chunk_size(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nok\r\n")
    await visit.forever()


async def endless_chunks(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100_000):
        await visit.send(b"1\r\nx\r\n" * 100)
    await visit.forever()


async def two_lengths(visit: Visit) -> None:
    """What two readers of an answer would end in two places."""
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n" + OK)
    await visit.forever()


async def no_length(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 200 OK\r\n\r\ncut?")


async def switch(visit: Visit) -> None:
    await visit.request()
    await visit.send(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\0\0\0")
    await visit.forever()


async def hang_up(visit: Visit) -> None:
    """Its end closes the connection."""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (never, "no answer in time"),
        (garbage, "not HTTP"),
        (unasked, "not HTTP"),
        (nul, "garbled: what the cache answered is not HTTP"),
        (endless_line, "garbled: the cache's answer is too large"),
        (bad_chunk_size, "not HTTP"),
        (giant_chunk_size, "not HTTP"),
        (endless_chunks, "too large"),
        (two_lengths, "not HTTP"),
        (giant_headers, "too large"),
        (giant_body, "too large"),
        (drip, "frozen: the cache gave no answer in time"),
        (no_length, "killed: the cache closed the connection"),
        (switch, "not HTTP"),
        (hang_up, ""),
    ],
)
def test_hostile_answers_fail_with_a_reason(script: object, reason: str) -> None:
    async def test() -> None:
        async with Scripted(script) as server:  # type: ignore[arg-type]
            told = await perform(server.address, PURGE, some(3), HASTY)
            for errors in told.values():
                assert len(errors) == 1
                assert errors[0] is not None
                assert errors[0].startswith("cache c: ")
            assert reason in str(next(iter(told.values()))[0])

    run(test())


def test_nobody_there() -> None:
    async def test() -> None:
        async with Scripted(never) as server:
            address = server.address
        told = await perform(address, PURGE, some(5), HASTY)
        for errors in told.values():
            assert errors == ["cache c: killed: cannot connect: Connection refused; out of reach for 0.3 s"]

    run(test())


def test_a_cache_that_comes_back_in_time() -> None:
    async def test() -> None:
        async with Scripted(never) as server:
            address = server.address
        told: list[str | None] = []
        client = CacheClient("c", *address, SHORT, lambda _, error: told.append(error))
        client.put(make_exchange(b"http://h/", PURGE), 5)
        await wait_until(lambda: not client.breaker.closed)
        async with Scripted(answer_all, address):
            await wait_until(lambda: told)
            assert told == [None]
            client.close()

    run(test())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (b"200", None),
        (b"204", None),
        (b"403", "cache c: PURGE was answered 403 (add this agent's address to the acl refreshd_purgers)"),
        (b"503", "cache c: full: PURGE was answered 503"),
        (b"501", "cache c: PURGE was answered 501 (include refreshd.vcl in the VCL, see docs/agent.md)"),
    ],
)
def test_answers_are_judged(status: bytes, error: str | None) -> None:
    async def answer(visit: Visit) -> None:
        while await visit.request():
            await visit.send(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n" % status
            )

    async def test() -> None:
        async with Scripted(answer) as server:
            assert list((await perform(server.address, PURGE, some(3))).values()) == [[error]] * 3

    run(test())


def test_what_expired_is_not_begun() -> None:
    async def test() -> None:
        async with Scripted(answer_all) as server:
            told: list[tuple[bytes, str | None]] = []
            client = CacheClient("c", *server.address, SHORT, lambda e, error: told.append((e.target, error)))
            client.put(make_exchange(b"http://h/late", PURGE, expires_at=0.0), 9)
            client.put(make_exchange(b"http://h/fine", PURGE), 1)
            await wait_until(lambda: len(told) == 2)
            assert told == [
                (b"http://h/late", "its ttl ended before it was begun"),
                (b"http://h/fine", None),
            ]
            assert len(server.requests) == 1
            client.close()

    run(test())


def test_a_slow_body_is_no_silence_where_answers_are_streamed() -> None:
    async def trickle(visit: Visit) -> None:
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        # Each byte comes well within the time for an answer, all of them do not.
        for _ in range(10):
            await asyncio.sleep(0.1)
            await visit.send(b"x")
        await visit.forever()

    async def test() -> None:
        async with Scripted(trickle) as server:
            limits = msgspec.structs.replace(HASTY, depth=1, streaming=True, answer_max_bytes=None)
            assert (await perform(server.address, GET, some(1), limits))[b"http://h/0"] == [None]
            capped = msgspec.structs.replace(limits, whole_timeout_s=0.3)
            assert "slow: " in str((await perform(server.address, GET, some(1), capped))[b"http://h/0"][0])

    run(test())


UNTIL_CLOSED = msgspec.structs.replace(
    HASTY, depth=1, streaming=True, answer_max_bytes=None, until_closed=True
)
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def test_an_answer_counts_once_the_connection_is_closed() -> None:
    told: list[str | None] = []
    close = asyncio.Event()

    async def answer_one(visit: Visit) -> None:
        await visit.request()
        await visit.send(LAST[:20])
        await visit.send(LAST[20:])
        await close.wait()

    async def test() -> None:
        async with Scripted(answer_one) as server:
            limits = msgspec.structs.replace(UNTIL_CLOSED, answer_timeout_s=10, connections=1)
            client = CacheClient("c", *server.address, limits, lambda _, error: told.append(error))
            for target in some(3):
                client.put(make_exchange(target, GET), 5)
            await wait_until(lambda: client.in_flight == 1 and len(server.requests) == 1)
            [connection] = client._open
            await wait_until(lambda: connection._statuses, "the answer is here")
            assert told == []
            assert client.in_flight == 1
            close.set()
            await wait_until(lambda: len(told) == 3)
            client.close()
            assert server.visits == 3

    run(test())
    assert told == [None] * 3


@pytest.mark.parametrize("reset", [True, False])
def test_where_the_connection_is_not_closed_well_the_answer_does_not_count(reset: bool) -> None:
    async def answer_badly(visit: Visit) -> None:
        await visit.request()
        await visit.send(LAST)
        if visit.number > 1:
            return
        if reset:
            # What is answered must have come before it.
            await asyncio.sleep(0.1)
            visit.reset()
        else:
            await visit.forever()

    async def test() -> None:
        async with Scripted(answer_badly) as server:
            limits = msgspec.structs.replace(UNTIL_CLOSED, connections=1)
            told = await perform(server.address, GET, some(1), limits)
            assert told == {b"http://h/0": [None]}
            assert server.visits == 2

    run(test())


def test_close_tells_nothing_more() -> None:
    async def test() -> None:
        told: list[object] = []
        async with Scripted(never) as server:
            client = CacheClient("c", *server.address, SHORT, lambda *what: told.append(what))
            client.put(make_exchange(b"http://h/", PURGE), 5)
            await wait_until(lambda: client.in_flight)
            client.close()
            # A turn of the loop, in which it might tell of what it had in flight.
            await asyncio.sleep(0)
        assert told == []

    run(test())


@pytest.mark.needs("varnishd")
def test_a_real_varnish_takes_a_pipeline(varnish: Varnish, origin: Origin, host: str) -> None:
    fetching = msgspec.structs.replace(SHORT, connections=4, depth=1, streaming=True, answer_max_bytes=None)
    targets = some(300, host)
    address = split_address(varnish.address)

    def asked() -> set[int]:
        return {origin.asked[host.encode(), b"/%d" % number] for number in range(300)}

    async def test() -> None:
        good = {target: [None] for target in targets}
        assert await perform(address, GET, targets, fetching) == good
        assert await perform(address, GET, targets, fetching) == good
        assert asked() == {1}
        assert await perform(address, PURGE, targets) == good
        assert await perform(address, PURGE, targets) == good
        assert await perform(address, GET, targets, fetching) == good
        assert asked() == {2}

    run(test())


def test_fewer_connections_end_when_their_answers_are_in() -> None:
    answered = asyncio.Event()

    async def late(visit: Visit) -> None:
        while await visit.request():
            await answered.wait()
            await visit.send(OK)

    async def test() -> None:
        async with Scripted(late) as server:
            told: list[str | None] = []
            limits = msgspec.structs.replace(SHORT, connections=4, depth=1)
            client = CacheClient("c", *server.address, limits, lambda _, error: told.append(error))
            for target in some(20):
                client.put(make_exchange(target, PURGE), 5)
            await wait_until(lambda: client.in_flight == 4)
            client.set_limits(msgspec.structs.replace(limits, connections=1))
            answered.set()
            await wait_until(lambda: len(told) == 20, f"an end of all of {client}")
            assert set(told) == {None}
            assert server.visits == 4
            await wait_until(lambda: server.open == 1, "the others are closed")
            client.close()

    run(test())


def test_more_connections_are_used_at_once() -> None:
    async def test() -> None:
        async with Scripted(lambda visit: visit.forever()) as server:
            limits = msgspec.structs.replace(SHORT, connections=1, depth=1)
            client = CacheClient("c", *server.address, limits, lambda *_: None)
            for target in some(20):
                client.put(make_exchange(target, PURGE), 5)
            await wait_until(lambda: client.in_flight == 1)
            client.set_limits(msgspec.structs.replace(limits, depth=4))
            await wait_until(lambda: client.in_flight == 4)
            client.set_limits(msgspec.structs.replace(limits, connections=3, depth=4))
            await wait_until(lambda: client.in_flight == 12)
            client.close()

    run(test())


def test_what_is_given_up_is_told() -> None:
    async def test() -> None:
        async with Scripted(lambda visit: visit.forever()) as server:
            told: list[str | None] = []
            client = CacheClient("c", *server.address, SHORT, lambda _, error: told.append(error))
            for target in some(30):
                client.put(make_exchange(target, PURGE), 5)
            await wait_until(lambda: client.in_flight == SHORT.connections * SHORT.depth)
            assert len(list(client.unended())) == 30
            client.give_up("no more")
            assert told == ["cache c: no more"] * 30
            await wait_until(lambda: server.open == 0, "the connections are closed")

    run(test())


def test_a_refusal_opens_no_breaker_and_a_breakdown_does() -> None:
    async def test(status: bytes) -> tuple[State, int]:
        async def answer(visit: Visit) -> None:
            while await visit.request():
                await visit.send(OK.replace(b"200", status))

        async with Scripted(answer) as server:
            told: list[str | None] = []
            client = CacheClient("c", *server.address, SHORT, lambda _, error: told.append(error))
            for target in some(8):
                client.put(make_exchange(target, PURGE), 5)
            await wait_until(lambda: len(told) == 8)
            state, failures = client.breaker.state, client.breaker.row(0.0, 0).failures
            client.close()
            return state, failures

    assert run(test(b"403")) == run(test(b"501")) == (State.CLOSED, 0)
    assert run(test(b"503")) == (State.OPEN, 8)


def test_who_is_blamed_while_the_cache_is_down_has_another_try_when_it_is_back() -> None:
    """Three connections fall silent one after the other, with what was tried alone on two of them."""
    awake = asyncio.Event()

    async def asleep(visit: Visit) -> None:
        await visit.request()
        await awake.wait()
        await visit.send(OK)
        await answer_all(visit)

    async def test() -> None:
        async with Scripted(asleep) as server:
            told: list[str | None] = []
            limits = msgspec.structs.replace(SHORT, connections=1, depth=1, answer_timeout_s=0.3)
            client = CacheClient("c", *server.address, limits, lambda _, error: told.append(error))
            client.breaker.settings = BreakerSettings(errors=1, retry_first_s=0.05, retry_max_s=0.05)
            for target in some(2):
                client.put(make_exchange(target, PURGE), 5)
            # Each of the two has had its two tries by then.
            await wait_until(lambda: server.visits >= 6)
            assert told == []
            awake.set()
            await wait_until(lambda: told == [None, None], f"an end of {client}")
            assert client.breaker.closed
            client.close()

    run(test())


def test_while_the_breaker_is_open_one_is_sent_at_a_time_and_the_rest_waits_in_order() -> None:
    awake = asyncio.Event()

    async def asleep(visit: Visit) -> None:
        await visit.request()
        await awake.wait()
        await visit.send(OK)
        await answer_all(visit)

    async def test() -> None:
        async with Scripted(asleep) as server:
            ended: list[bytes] = []
            client = CacheClient("c", *server.address, SHORT, lambda e, _: ended.append(e.target))
            client.breaker.settings = BreakerSettings(queue_max=30)
            for _ in range(3):
                client.breaker.note(Outcome.FAILED, 0.0, why="killed: gone")
            refused = []
            client._ended = lambda e, error: refused.append((e.target, error))
            targets = some(32)
            for target in targets:
                client.put(make_exchange(target, PURGE), 5)
            assert [target for target, _ in refused] == targets[30:]
            assert refused[0][1] == (
                "cache c: killed: gone; 30 targets wait for it, as many as may: bring it back, or raise"
                " [breaker] queue_max, then post again"
            )
            client._ended = lambda e, _: ended.append(e.target)
            await wait_until(lambda: client.in_flight == 1)
            assert client.waiting == 29
            assert client.is_stalled(0.0)
            awake.set()
            await wait_until(lambda: len(ended) == 30)
            assert ended == targets[:30]
            client.close()

    run(test())


def test_what_waits_for_a_cache_that_is_down_fails_each_at_its_time() -> None:
    async def test() -> None:
        async with Scripted(never) as server:
            address = server.address
        told: dict[bytes, str | None] = {}
        limits = msgspec.structs.replace(SHORT, patience_s=0.5)
        client = CacheClient("c", *address, limits, lambda e, error: told.__setitem__(e.target, error))
        early, late = make_exchange(b"http://h/early", PURGE), make_exchange(b"http://h/late", PURGE)
        now = asyncio.get_running_loop().time()
        early.task.received_at, late.task.received_at = now, now + 3600
        client.put(late, 9)
        client.put(early, 5)
        await wait_until(lambda: told)
        assert told == {
            b"http://h/early": "cache c: killed: cannot connect: Connection refused; out of reach for 0.5 s"
        }
        assert client.waiting == 1
        client.close()

    run(test())
