"""One of the two dies in the middle of a hand-over: the other goes on with everything that was acknowledged.

docs/handover.md has the table; tests/faults goes through all steps with a master.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from refreshd import control
from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Line, Peer
from tests.peer.waiting import wait_until
from tests.refreshd.worker.handover.workers import Workers

TASKS = 300


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(proxies=("p1",)) as made:
        made.start_all()
        yield made


def half(pushes: list[Line]) -> str | None:
    """Reports every other task; the rest stays open until `rest_of` says so."""
    done = [push.fields["task_id"] for push in pushes if int(push.fields["task_id"].split("-")[1]) % 2]
    return "report state=done -- " + " ".join(done) if done else None


def post_all(peer: Peer, stem: str) -> list[str]:
    ids = [f"{stem}-{number}" for number in range(TASKS)]
    for task_id in ids:
        peer.post(task_id)
    return ids


def check_all(workers: Workers, ids: list[str], proxy: FakeProxy) -> None:
    """Every task is known, repeats are known as such, and what was open is pushed again."""
    with Peer(workers.address) as peer:
        for task_id in ids:
            assert peer.post(task_id)["dup"] == "1"
        wait_until(lambda: set(proxy.effects) >= set(ids), "every task is pushed")
        done = [task_id for task_id in ids if int(task_id.split("-")[1]) % 2]
        wait_until(lambda: all(peer.state(task_id) == "complete" for task_id in done), "reports count")
        peer.post("after-1")
        wait_until(lambda: peer.state("after-1") == "complete", "a new task is done")


def test_the_successor_dies_before_siblings_know_it(workers: Workers) -> None:
    with Peer(workers.address) as kept, FakeProxy("p1", lambda: workers.address, answer=half) as proxy:
        ids = post_all(kept, "a")
        new = workers.begin(0)
        workers.wait_for(workers.serving[0], control.Given)
        kept.write(*[f"post_task task_id=b-{n} type=url -- http://example.com/a" for n in range(TASKS)])
        assert all(reply.ok for reply in kept.replies(TASKS))
        workers.kill(new)
        kept.write(*[f"post_task task_id=c-{n} type=url -- http://example.com/a" for n in range(TASKS)])
        workers.resume(workers.serving[0], switched=False)
        assert all(reply.ok for reply in kept.replies(TASKS)), (
            "who waited is answered, on the same connection"
        )
        check_all(workers, ids + [f"{s}-{n}" for s in "bc" for n in range(TASKS)], proxy)
        workers.roll(0)
        check_all(workers, ids, proxy)


def test_the_successor_dies_when_siblings_send_to_it(workers: Workers) -> None:
    with FakeProxy("p1", lambda: workers.address, answer=half) as proxy:
        with Peer(workers.address) as peer:
            peer.ok("hello v=1 role=client worker=1")
            ids = post_all(peer, "a")
            old = workers.serving[0]
            new = workers.begin(0)
            workers.wait_for(old, control.Given)
            workers.switch(new)
            workers.wait_for(old, control.Moved)
            ids += post_all(peer, "b")
            workers.kill(new)
            peer.write(*[f"post_task task_id=c-{n} type=url -- http://example.com/a" for n in range(TASKS)])
            workers.resume(old, switched=True)
            assert all(reply.ok for reply in peer.replies(TASKS))
            ids += [f"c-{n}" for n in range(TASKS)]
        check_all(workers, ids, proxy)
        workers.roll(0)
        check_all(workers, ids, proxy)


def test_the_predecessor_dies_before_siblings_know_of_the_successor(workers: Workers) -> None:
    with FakeProxy("p1", lambda: workers.address, answer=half) as proxy, Peer(workers.address) as peer:
        peer.ok("hello v=1 role=client worker=1")
        ids = post_all(peer, "a")
        old = workers.serving[0]
        new = workers.begin(0)
        workers.wait_for(old, control.Given)
        workers.kill(old)
        peer.write(*[f"post_task task_id=b-{n} type=url -- http://example.com/a" for n in range(TASKS)])
        workers.inherit(new)
        assert all(reply.ok for reply in peer.replies(TASKS))
        check_all(workers, ids + [f"b-{n}" for n in range(TASKS)], proxy)
        workers.roll(0)
        check_all(workers, ids, proxy)


def test_the_predecessor_dies_with_its_first_words(workers: Workers) -> None:
    with FakeProxy("p1", lambda: workers.address, answer=half) as proxy:
        with Peer(workers.address) as peer:
            ids = post_all(peer, "a")
        new = workers.start(0, standby=True)
        workers.wait_for(new, control.Ready)
        workers.kill(workers.serving[0])
        workers.inherit(new)
        check_all(workers, ids, proxy)
