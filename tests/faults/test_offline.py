"""FAULTS 21: a proxy is away while tasks come. They leave memory, and go to it in order when it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import pytest

from tests.driver import PATIENCE_S, Engine, wait_until
from tests.faults.ledger import Ledger
from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Line, Peer, Reply, owned_by

PROXIES = ("p1", "p2")
IN_MEMORY = 20
"""As many unfinished tasks as a worker is to keep in memory; the tests post many more."""


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(PROXIES)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(proxies=PROXIES, settings=f"park_above = {IN_MEMORY}") as engine:
        yield engine


@pytest.fixture
def p2(engine: Engine, ledger: Ledger) -> Iterator[FakeProxy]:
    """The proxy that is there; p1 is away."""
    with engine.proxy("p2", on_effect=ledger.effect) as proxy:
        yield proxy


def figure(engine: Engine, name: str) -> int:
    with engine.peer() as peer:
        reply = peer.ask("stats")
        return int(float(next(row["value"] for row in reply.rows if row["name"] == name)))


def post_many(peer: Peer, ledger: Ledger, ids: list[str], more: str = "type=url") -> None:
    for at in range(0, len(ids), 200):
        some = ids[at : at + 200]
        peer.write(
            *[f"post_task task_id={task_id} {more} -- http://example.com/{task_id}" for task_id in some]
        )
        for task_id, reply in zip(some, peer.replies(len(some)), strict=True):
            ledger.reply(task_id, reply)


def park(engine: Engine, ledger: Ledger, count: int = 240, more: str = "type=url") -> list[str]:
    """Posts tasks and waits until all but what memory may hold are parked."""
    ids = [f"t{number}" for number in range(count)]
    with engine.peer() as peer:
        post_many(peer, ledger, ids, more)
    wait_until(lambda: figure(engine, "tasks_in_cache") <= 2 * IN_MEMORY, "tasks are parked", 30)
    assert figure(engine, "tasks_parked") >= count - 2 * IN_MEMORY
    return ids


def test_what_waits_for_an_absent_proxy_leaves_memory_and_comes_back_in_order(ledger: Ledger) -> None:
    """With one worker: with two, one reaches a proxy through the other until its own connection is there,
    and then pushes anew on that."""
    order: list[str] = []

    def note(name: str, task_id: str, targets: list[str]) -> None:
        order.append(task_id)
        ledger.effect(name, task_id, targets)

    with Engine(workers=1, proxies=PROXIES, settings=f"park_above = {IN_MEMORY}") as engine:
        with engine.proxy("p2", workers=(0,), on_effect=ledger.effect):
            ids = park(engine, ledger)
            with engine.proxy("p1", workers=(0,), on_effect=note, credit=50):
                ledger.settle(engine.address)
        assert figure(engine, "tasks_parked") == 0
    assert order == ids


def owned_by_worker(task_id: str) -> int:
    return crc32(task_id.encode()) % 64 % 2


def test_a_parked_task_answers_as_any_other(engine: Engine, ledger: Ledger, p2: FakeProxy) -> None:
    ids = park(engine, ledger)
    with engine.peer() as peer:
        # p2 has done it, p1 has not.
        assert peer.ok("get_task task_id=t0").fields | {"created": "", "updated": ""} == {
            "task_id": "t0", "type": "url", "state": "active", "total": "2", "done": "1", "failed": "0",
            "created": "", "updated": "",
        }  # fmt: skip
        rows = peer.ok("task_detail task_id=t0").rows
        assert [(row["proxy"], row["state"]) for row in rows] == [("p1", "pending"), ("p2", "complete")]
        again = peer.ask("post_task task_id=t0 type=url -- http://example.com/t0")
        assert (again.ok, again["dup"], again["state"]) == (True, "1", "active")
        assert peer.code("post_task task_id=t0 type=url -- http://example.com/other") == "conflict"
        listed = peer.ok("list_tasks state=active limit=1000").rows
        assert {row["task_id"] for row in listed} == set(ids)
        paged: list[str] = []
        while page := peer.ok("list_tasks limit=50" + (f" after={paged[-1]}" if paged else "")).rows:
            paged += [row["task_id"] for row in page]
        assert sorted(paged) == sorted(ids)


def test_a_parked_task_can_be_cancelled_and_watched(engine: Engine, ledger: Ledger, p2: FakeProxy) -> None:
    park(engine, ledger)
    with engine.peer() as peer, engine.peer() as watcher:
        assert peer.ok("cancel_task task_id=t1")["state"] == "cancelled"
        assert peer.ok("cancel_task task_id=t1")["state"] == "cancelled"
        assert peer.state("t1") == "cancelled"
        assert watcher.ok("watch_task task_id=t2")["state"] == "active"
        with engine.proxy("p1", on_effect=ledger.effect) as p1:
            while (state := watcher.push().fields["state"]) == "active":
                pass
            assert state == "complete"
            ledger.settle(engine.address)
            assert "t1" not in p1.effects


def test_a_parked_task_expires(engine: Engine, ledger: Ledger, p2: FakeProxy) -> None:
    park(engine, ledger, more="type=url ttl=4")
    with engine.peer() as peer:
        wait_until(lambda: peer.state("t0") == "expired", "the oldest task has expired", 30)
        wait_until(lambda: peer.state("t239") == "expired", "the newest task has expired", 30)
        assert peer.ok("get_task task_id=t3")["failed"] == "1"
    wait_until(lambda: figure(engine, "tasks_parked") == 0, "nothing is parked")
    ledger.settle(engine.address)


@pytest.mark.parametrize("how", ["kill", "stop", "roll", "worker"])
def test_what_is_parked_outlives_processes(engine: Engine, ledger: Ledger, p2: FakeProxy, how: str) -> None:
    park(engine, ledger)
    match how:
        case "kill":
            engine.kill_all()
            engine.start()
        case "stop":
            assert engine.stop() == 0
            engine.start()
        case "roll":
            assert engine.roll()["state"] == "done"
        case _:
            pid = engine.kill_worker(0)
            engine.wait_for_worker(0, pid)
    assert figure(engine, "tasks_parked") >= 240 - 4 * IN_MEMORY
    with engine.proxy("p1", on_effect=ledger.effect):
        ledger.settle(engine.address)


def test_a_proxy_that_goes_away_amid_its_replay_gets_the_rest_later(
    engine: Engine, ledger: Ledger, p2: FakeProxy
) -> None:
    park(engine, ledger)
    with engine.proxy("p1", credit=40, answer=lambda _: None) as p1:
        wait_until(lambda: len(p1.effects) >= 40, "p1 has been given its credit")
    wait_until(lambda: figure(engine, "tasks_in_cache") <= 2 * IN_MEMORY, "tasks are parked again", 30)
    with engine.proxy("p1", on_effect=ledger.effect):
        ledger.settle(engine.address)


def test_what_is_posted_during_a_replay_comes_behind_it(
    engine: Engine, ledger: Ledger, p2: FakeProxy
) -> None:
    park(engine, ledger)
    (late,) = owned_by(0, "late")
    (urgent,) = owned_by(0, "urgent")
    order: list[str] = []
    posted = threading.Event()

    def answer(pushes: list[Line]) -> str:
        """Nothing is reported, so nothing more is pushed, before the two were posted."""
        assert posted.wait(PATIENCE_S)
        return "report state=done -- " + " ".join(push.fields["task_id"] for push in pushes)

    def note(_: str, task_id: str, __: list[str]) -> None:
        order.append(task_id)

    with engine.peer() as peer, engine.proxy("p1", credit=1, answer=answer, on_effect=note):
        wait_until(lambda: order, "the replay has begun")
        post_many(peer, ledger, [late])
        post_many(peer, ledger, [urgent], "type=url priority=9")
        posted.set()
        wait_until(lambda: late in order, "the last one was pushed", 40)
    own = [task_id for task_id in order if owned_by_worker(task_id) == 0]
    assert own[-1] == late
    assert own.index(urgent) < len(own) - 2


# ── told that it has caught up, or to drop its cache ──────────────────────────────────────


def test_a_proxy_is_told_when_it_has_been_given_all_that_it_missed(ledger: Ledger) -> None:
    with Engine(workers=1, proxies=PROXIES, settings=f"park_above = {IN_MEMORY}") as engine:
        park(engine, ledger, 100)
        with engine.proxy_peer("p1", 0, "catch_up=1") as p1:
            assert p1.ok("ready credit=70")
            assert [push.verb for push in p1.pushed(70)] == ["!task"] * 70
            assert p1.is_quiet()
            assert p1.ok("ready credit=1000")
            assert [push.verb for push in p1.pushed(31)] == ["!task"] * 30 + ["!caught_up"]
        with engine.proxy_peer("p2", 0, "catch_up=0") as p2:
            assert p2.ok("ready credit=1000")
            assert [push.verb for push in p2.pushed(100)] == ["!task"] * 100
            assert p2.is_quiet()


def test_a_proxy_that_has_missed_nothing_is_told_so_at_once(engine: Engine) -> None:
    with engine.peer() as p1:
        assert p1.ok("hello v=1 role=proxy name=p1 worker=1 catch_up=1")["catch_up"] == "1"
        assert p1.push().verb == "!caught_up"
        assert p1.ok("ready credit=5")
        assert p1.is_quiet()


def away_for(engine: Engine, ledger: Ledger, seconds: int) -> None:
    """Parks refreshes and prefetches, and lets them get old."""
    ids = [f"t{number}" for number in range(100)]
    with engine.peer() as peer:
        post_many(peer, ledger, ids[:50])
        post_many(peer, ledger, ids[50:60], "type=prefetch")
        post_many(peer, ledger, ids[60:])
        began_ms = int(peer.ok("ping")["now"])
        wait_until(lambda: figure(engine, "tasks_parked") == 100, "all are parked", 30)
        wait_until(lambda: int(peer.ok("ping")["now"]) - began_ms > seconds * 1000, "time passes")


def test_a_proxy_that_was_away_for_long_drops_its_cache_instead(ledger: Ledger) -> None:
    with Engine(workers=1, proxies=["p1"], settings="park_above = 0") as engine:
        away_for(engine, ledger, 2)
        with engine.peer() as peer, engine.proxy_peer("p1", 0, "catch_up=1 drop_after=1") as p1:
            assert p1.ok("ready credit=1000")
            drop = p1.push()
            assert drop.verb == "!drop"
            assert p1.is_quiet()
            assert p1.ok(f"report state=done -- {drop.fields['task_id']}")
            pushes = p1.pushed(11)
            assert [push.verb for push in pushes] == ["!task"] * 10 + ["!caught_up"]
            ids = [push.fields["task_id"] for push in pushes[:-1]]
            assert ids == [f"t{number}" for number in range(50, 60)]
            done = " ".join(ids)
            assert p1.ok(f"report state=done -- {done}")
            for task_id in ledger.acknowledged:
                wait_until(lambda: peer.state(task_id) == "complete", f"{task_id} is complete")  # noqa: B023


@pytest.mark.parametrize("greeting", ["drop_after=1000", "", "drop_after=1"])
def test_a_proxy_is_given_all_where_it_may_or_can_not_drop(ledger: Ledger, greeting: str) -> None:
    with Engine(workers=1, proxies=["p1"], settings="park_above = 0") as engine:
        away_for(engine, ledger, 2)
        with engine.proxy_peer("p1", 0, greeting) as p1:
            assert p1.ok("ready credit=1000")
            if greeting == "drop_after=1":
                drop = p1.push().fields["task_id"]
                assert p1.ok(f"report state=failed task_id={drop} done=0 failed=1 error=no")
            pushed = [push.fields["task_id"] for push in p1.pushed(100)]
            assert pushed == list(ledger.acknowledged)


def test_parked_tasks_are_cancelled_and_watched_during_rolls(
    engine: Engine, ledger: Ledger, p2: FakeProxy
) -> None:
    """Whichever process has them just then; whoever is told to ask again does so."""
    ids = park(engine, ledger, 2000)
    watched: set[str] = set()
    with engine.peer() as peer, engine.peer() as watcher, ThreadPoolExecutor(1) as pool:
        roll = pool.submit(engine.roll)
        while not roll.done():
            watched.add(ids[-1])
            until_ok(watcher, f"watch_task task_id={ids.pop()}")
            assert until_ok(peer, f"cancel_task task_id={ids.pop()}")["state"] == "cancelled"
        roll.result()
        assert len(watched) > 10
        with engine.proxy("p1", on_effect=ledger.effect):
            while watched:
                push = watcher.push()
                assert push.fields["state"] in ("active", "complete")
                if push.fields["state"] == "complete":
                    watched.remove(push.fields["task_id"])
            ledger.settle(engine.address)


def until_ok(peer: Peer, request: str) -> Reply:
    """As a client does that is told to ask again."""
    while not (reply := peer.ask(request)).ok:
        assert reply.code == "busy", reply
        time.sleep(int(reply["retry_ms"]) / 1000)
    return reply
