"""One lane, two clients: who does what, and that the order of a replay holds over both."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from proxyd.caches import Deed
from proxyd.caches.base import LocalDeed
from proxyd.hands import TAKE_ALONG, Pulse, TakeAlong, Work
from proxyd.local import LocalClient
from proxyd.outbox import Outbox
from proxyd.pipeline import CacheClient
from proxyd.replay import Replay
from proxyd.split import SplitClient
from proxyd.targets import split_pattern
from proxyd.tasks import Exchange, Task
from tests.proxyd.rig import SHORT, Scripted, Visit, make_exchange, run, wait_until
from wire.tasks import PushHead

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
PURGE = Deed(method=b"PURGE", good=frozenset({200}))
BY_HAND = LocalDeed(method=b"RULE", good=frozenset(), sweeps=True)
PATTERN = LocalDeed(method=b"RULE", good=frozenset(), sweeps=True, split=split_pattern)


class Hands:
    """Sweeps while `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.swept: list[Work] = []

    def act(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | TakeAlong | None]:
        return [TAKE_ALONG] * len(works)

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        self.swept += works
        self.gate.wait(20)
        return [None] * len(works)


@pytest.fixture
def hands() -> Iterator[Hands]:
    """Hands that let go at the end."""
    made = Hands()
    yield made
    made.gate.set()


class Lane:
    """A split client before a server that answers purges."""

    def __init__(self, address: tuple[str, int], hands: Hands) -> None:
        self.told: dict[Exchange, str | None] = {}
        self.by_hand = LocalClient("c", hands, SHORT, self._ended)
        self.requests = CacheClient("c", *address, SHORT, self._ended)
        self.client = SplitClient(self.requests, self.by_hand)

    def _ended(self, exchange: Exchange, error: str | None) -> None:
        assert exchange not in self.told
        self.told[exchange] = error
        for follower in exchange.part():
            self._ended(follower, error)
        if exchange.segment is not None:
            exchange.segment.end_one()


async def answer(visit: Visit) -> None:
    """A server that knows PURGE."""
    while await visit.request():
        await visit.send(OK)


def directory(path: str, task_type: str = "dir", deed: Deed = BY_HAND) -> Exchange:
    """What is done by hand."""
    task = Task(b"t", Outbox(lambda: None), 1, PushHead(task_type), 0.0, math.inf)
    return Exchange(task, f"http://h{path}".encode(), b"", deed, None)


def test_each_goes_to_whom_it_is_for(hands: Hands) -> None:
    async def test() -> None:
        async with Scripted(answer) as server:
            lane = Lane(server.address, hands)
            url, folder = make_exchange(b"http://h/a", PURGE), directory("/d/")
            pattern = directory("/a#.*", "regex", PATTERN)
            for exchange in (folder, pattern, url):
                lane.client.put(exchange, 5)
            assert (lane.client.waiting, lane.client.in_flight) == (3, 0)
            await wait_until(lambda: url in lane.told, "the purge does not wait for what is done by hand")
            assert (lane.client.waiting, lane.client.in_flight) == (0, 2)
            assert list(lane.client.unended()) == [folder, pattern]
            hands.gate.set()
            await wait_until(lambda: len(lane.told) == 3)
            assert hands.swept == [Work(b"RULE", b"h", b"/d/"), Work(b"RULE", b"h", b"/a#.*")]
            assert len(server.requests) == 1
            lane.client.close()

    run(test())


def test_a_prefetch_waits_for_the_refreshes_of_both(hands: Hands) -> None:
    async def test() -> None:
        async with Scripted(answer) as server:
            lane = Lane(server.address, hands)
            slow: Any = Slow()
            replay = Replay(lane.client, slow)
            before = directory("/before/")
            lane.client.put(before, 5)
            replay.begin()
            urls = [make_exchange(b"http://h/a", PURGE) for _ in range(2)]
            for exchange in (*urls, directory("/d/")):
                replay.put(exchange, 5)
            # The URL is there twice, and is asked for once.
            assert len(lane.requests.queue) == 2
            replay.put_prefetch(make_exchange(b"http://h/a", PURGE), 5)
            await wait_until(lambda: len(lane.told) == 2, "the purges")
            assert len(server.requests) == 1
            assert slow.taken == 0
            replay.end()
            hands.gate.set()
            await wait_until(lambda: slow.taken, "the prefetch is passed on")
            assert len(lane.told) == 4
            lane.client.close()

    run(test())


def test_a_prefetch_waits_for_what_a_hand_has_since_before(hands: Hands) -> None:
    async def test() -> None:
        lane = Lane(("127.0.0.1", 1), hands)
        slow: Any = Slow()
        replay = Replay(lane.client, slow)
        lane.client.put(directory("/before/"), 5)
        await wait_until(lambda: hands.swept, "it is begun")
        replay.begin()
        replay.put_prefetch(make_exchange(b"http://h/before/a", PURGE), 5)
        assert (replay.waiting, slow.taken) == (1, 0)
        hands.gate.set()
        await wait_until(lambda: slow.taken, "the prefetch is passed on")
        lane.client.close()

    run(test())


class Slow:
    """Counts what it is given."""

    taken = 0

    def put(self, exchange: Exchange, priority: int) -> None:
        self.taken += 1


def test_both_are_given_up_and_have_the_limits(hands: Hands) -> None:
    async def test() -> None:
        lane = Lane(("127.0.0.1", 1), hands)
        limits = msgspec.structs.replace(SHORT, depth=3)
        lane.client.set_limits(limits)
        assert lane.client.limits is lane.by_hand.limits is limits
        exchanges = [make_exchange(b"http://h/a", PURGE), directory("/d/")]
        for exchange in exchanges:
            lane.client.put(exchange, 5)
        lane.client.give_up("enough")
        assert lane.told == dict.fromkeys(exchanges, "cache c: enough")

    run(test())
