"""The client whose work is done by hand: bounds, deadlines, and that each exchange ends once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from proxyd.caches.base import LocalDeed
from proxyd.hands import TAKE_ALONG, Pulse, TakeAlong, Work
from proxyd.local import BATCH_MAX, SWEPT_MAX, LocalClient
from proxyd.replay import Replay
from proxyd.tasks import Exchange
from tests.proxyd.rig import HASTY, SHORT, make_refresh, run, wait_until

QUICK = LocalDeed(method=b"Q", good=frozenset())
SWEEPS = LocalDeed(method=b"S", good=frozenset(), sweeps=True)


class FakeHands:
    """Does nothing, quickly; `gate` holds it up. A path says what the result is: /later, /bad or anything."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.acted: list[list[Work]] = []
        self.swept: list[list[Work]] = []
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def act(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | TakeAlong | None]:
        self.acted.append(list(works))
        self._work(pulse)
        results: dict[bytes, str | TakeAlong | None] = {b"/later": TAKE_ALONG, b"/bad": "it is bad"}
        return [results.get(work.path) for work in works]

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        self.swept.append(list(works))
        self._work(pulse)
        if any(work.path == b"/fault/" for work in works):
            raise ValueError("a fault of ours")
        return [None] * len(works)

    def _work(self, pulse: Pulse) -> None:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        while not self.gate.wait(0.01) and not pulse.stop.is_set():
            pass
        with self._lock:
            self.running -= 1


class Deaf(FakeHands):
    """Does not hear that it is told to stop."""

    def _work(self, pulse: Pulse) -> None:
        self.gate.wait(20)


def make(path: str, deed: LocalDeed = QUICK) -> Exchange:
    """An exchange for one path."""
    return make_refresh("dir" if deed.sweeps else "url", f"http://h{path}", deed=deed)


class Told(dict[Exchange, str | None]):
    """What was told of each; twice is a fault."""

    def __setitem__(self, exchange: Exchange, error: str | None) -> None:
        assert exchange not in self
        super().__setitem__(exchange, error)


@pytest.fixture
def hands() -> Iterator[FakeHands]:
    """Hands that let go at the end."""
    made = FakeHands()
    yield made
    made.gate.set()


def test_each_ends_once_by_whom_it_asks_for(hands: FakeHands) -> None:
    told = Told()
    exchanges = [make("/a"), make("/later"), make("/bad"), make("/d/", SWEEPS)]

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        for exchange in exchanges:
            client.put(exchange, 5)
        assert client.waiting == 4
        await wait_until(lambda: len(told) == 4)
        assert (client.waiting, client.in_flight) == (0, 0)
        client.close()

    run(test())
    assert [told[exchange] for exchange in exchanges] == [None, None, "cache c: it is bad", None]
    assert sorted(work.path for works in hands.swept for work in works) == [b"/d/", b"/later"]


def test_two_threads_whatever_waits_and_one_sweep_for_all(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        hands.gate.clear()
        for number in range(SWEPT_MAX):
            client.put(make(f"/{number}/", SWEEPS), 5)
        for number in range(1000):
            client.put(make(f"/{number}"), 5)
        await wait_until(lambda: hands.running == 2, "both threads are at work")
        assert client.in_flight == SWEPT_MAX + BATCH_MAX
        assert client.in_flight + client.waiting == SWEPT_MAX + 1000
        assert len(list(client.unended())) == SWEPT_MAX + 1000
        hands.gate.set()
        await wait_until(lambda: len(told) == SWEPT_MAX + 1000)
        client.close()

    run(test())
    assert set(told.values()) == {None}
    assert hands.most == 2
    assert len(hands.swept) == 1
    assert max(len(works) for works in hands.acted) <= BATCH_MAX


def test_quick_work_does_not_wait_for_a_sweep(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        hands.gate.clear()
        client.put(make("/d/", SWEEPS), 5)
        await wait_until(lambda: hands.running == 1)
        # Only the sweep is held up.
        hands._work = lambda pulse: None  # type: ignore[method-assign]
        client.put(make("/a"), 5)
        await wait_until(lambda: len(told) == 1)
        assert client.in_flight == 1
        client.close()

    run(test())


def test_what_shows_no_progress_is_given_up_and_goes_on_when_it_is_back() -> None:
    told = Told()
    hands = Deaf()

    async def test() -> None:
        client = LocalClient("c", hands, HASTY, told.__setitem__)
        hands.gate.clear()
        first, second = make("/a"), make("/b")
        client.put(first, 5)
        await wait_until(lambda: client.in_flight == 1)
        client.put(second, 5)
        await wait_until(lambda: first in told)
        assert told[first] == "cache c: no progress for 0.5 s; is the disk all right?"
        # No second thread is begun beside one that hangs; what waits fails when its patience is at an end.
        assert len(hands.acted) == 1
        await wait_until(lambda: second in told)
        assert len(hands.acted) == 1
        hands.gate.set()
        third = make("/c")
        client.put(third, 5)
        await wait_until(lambda: third in told)
        assert told[third] is None
        client.close()

    run(test())


def test_what_takes_too_long_in_all_is_given_up(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        client = LocalClient(
            "c", hands, msgspec.structs.replace(SHORT, whole_timeout_s=0.3), told.__setitem__
        )
        hands.gate.clear()
        exchange = make("/a")
        client.put(exchange, 5)
        await wait_until(lambda: exchange in told)
        assert told[exchange] == "cache c: not through after 0.3 s"
        # It heard that, and the lane is free.
        await wait_until(lambda: hands.running == 0)
        client.close()

    run(test())


def test_a_fault_of_ours_ends_what_it_was_about(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        exchange = make("/fault/", SWEEPS)
        client.put(exchange, 5)
        await wait_until(lambda: exchange in told)
        assert told[exchange] == "cache c: ValueError: a fault of ours"
        client.close()

    run(test())


def test_what_is_out_of_time_is_not_begun_but_what_follows_it_is(hands: FakeHands) -> None:
    told = Told()
    late, follower, later = make("/d/", SWEEPS), make("/d/a"), make("/e/", SWEEPS)
    late.task.expires_at = 0.0
    late.followers = [follower]

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        for exchange in (late, later):
            client.put(exchange, 5)
        await wait_until(lambda: len(told) == 3)
        client.close()

    run(test())
    assert told == {late: "its ttl ended before it was begun", follower: None, later: None}
    assert [work.path for works in hands.swept for work in works] == [b"/e/"]


def test_to_give_up_ends_all_and_to_close_tells_nothing(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        hands.gate.clear()
        clients = [LocalClient("c", hands, SHORT, told.__setitem__) for _ in range(2)]
        for client in clients:
            for path in ("/a/", "/b/"):
                client.put(make(path, SWEEPS), 5)
            await wait_until(lambda client=client: client.in_flight == 2)  # type: ignore[misc]
            client.put(make("/c"), 5)
        clients[0].give_up("taken out")
        clients[1].close()
        await wait_until(lambda: hands.running == 0)

    run(test())
    assert list(told.values()) == ["cache c: taken out"] * 3


def test_while_the_agent_catches_up_it_is_merged(hands: FakeHands) -> None:
    told = Told()

    async def test() -> None:
        client = LocalClient("c", hands, SHORT, told.__setitem__)
        replay = Replay(client, client)
        replay.begin()
        for path in ("/d/1", "/d/2", "/e"):
            replay.put(make(path), 5)
        replay.put(make("/d/", SWEEPS), 5)
        assert client.waiting == 4
        await wait_until(lambda: len(told) == 2)
        client.close()

    run(test())
    [one] = [exchange for exchange in told if exchange.deed is SWEEPS]
    assert one.followers is not None
    assert len(one.followers) == 2
    assert math.isinf(one.task.expires_at)
