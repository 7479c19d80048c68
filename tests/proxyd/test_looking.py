"""The client for what is looked at: HEADs without bodies, what is done later, canaries in turn."""

from __future__ import annotations

import asyncio
from typing import Any

from proxyd.caches import KINDS
from proxyd.caches.base import LOOK_ONLY_IF_CACHED
from proxyd.course import Course, Plan
from proxyd.evidence import Evidence
from proxyd.looking import LookClient
from proxyd.prefetch.buckets import Bucket
from proxyd.tasks import Exchange
from tests.proxyd.rig import SHORT, Scripted, Visit, make_exchange, run, wait_until

NOBODY: Any = None
CANARY = KINDS["varnish"].canary or LOOK_ONLY_IF_CACHED


def with_course(exchange: Exchange) -> Exchange:
    """As the dispatcher makes it, so that the answer is kept."""
    plan = Plan(exchange.deed, None, None, None)
    exchange.course = Course(NOBODY, plan, b"h", b"/", Evidence("c", "t"))
    return exchange


async def answer_heads(visit: Visit) -> None:
    """Announces bodies that never come, as answers to HEADs do."""
    number = 0
    while await visit.request():
        number += 1
        await visit.send(b'HTTP/1.1 200 Ok\r\nContent-Length: 99999\r\nETag: "%d"\r\nX: y\r\n\r\n' % number)


def test_the_answer_to_a_head_ends_with_its_headers() -> None:
    ended: list[Exchange] = []

    async def act() -> int:
        async with Scripted(answer_heads) as server:
            limits = SHORT
            client = LookClient("c", *server.address[:2], limits, lambda each, error: ended.append(each))
            for number in range(20):
                client.put(with_course(make_exchange(b"http://h/%d" % number, LOOK_ONLY_IF_CACHED)), 5)
            await wait_until(lambda: len(ended) == 20)
            client.close()
            return server.visits

    assert run(act()) <= SHORT.connections
    answers = [exchange.course.answer for exchange in ended if exchange.course is not None]
    assert all(answer is not None and answer.headers.keys() == {b"etag"} for answer in answers)


def test_what_is_put_for_later_waits_and_is_known() -> None:
    ended: list[bytes] = []

    async def act() -> None:
        async with Scripted(answer_heads) as server:
            client = LookClient(
                "c", *server.address[:2], SHORT, lambda each, error: ended.append(each.target)
            )
            for number, delay_s in enumerate((0.3, 0.1, 3600.0, 0.2)):
                target = b"http://h/%d" % number
                client.put_later(with_course(make_exchange(target, LOOK_ONLY_IF_CACHED)), 5, delay_s)
            assert client.delayed == 4
            assert len(list(client.unended())) == 4
            await wait_until(lambda: len(ended) == 3)
            assert ended == [b"http://h/1", b"http://h/3", b"http://h/0"]
            assert client.delayed == 1
            client.give_up("it goes")
            assert ended[3:] == [b"http://h/2"]
            assert client.delayed == 0

    run(act())


def test_canaries_take_turns_over_all_caches() -> None:
    ended: list[bytes] = []

    async def plant(visit: Visit) -> None:
        while await visit.request():
            await visit.send(b"HTTP/1.1 299 Canary\r\nContent-Length: 0\r\n\r\n")

    async def act() -> None:
        async with Scripted(plant) as server:
            turns = Bucket()
            turns.set_rate(10, asyncio.get_running_loop().time())
            clients = [
                LookClient(
                    f"c{number}", *server.address[:2], SHORT, lambda each, error: ended.append(each.target),
                    canaries=turns,
                )
                for number in range(2)
            ]  # fmt: skip
            for number in range(6):
                exchange = with_course(make_exchange(b"http://h/%d" % number, CANARY))
                clients[number % 2].put_later(exchange, 5, 0.0)
            delayed = sum(client.delayed for client in clients)
            assert 3 <= delayed <= 5
            await wait_until(lambda: len(ended) == 6)
            for client in clients:
                client.close()

    run(act())
