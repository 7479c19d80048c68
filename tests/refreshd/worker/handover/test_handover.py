"""A whole hand-over between two real workers, as peers see it: not at all (docs/handover.md)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count

import pytest

from refreshd import control
from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Line, Peer, owned_by
from tests.peer.snappy_frames import SnappyPeer, frame
from tests.peer.waiting import wait_until
from tests.refreshd.worker.handover.workers import Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(proxies=("p1",)) as made:
        made.start_all()
        yield made


@pytest.fixture
def single() -> Iterator[Workers]:
    with Workers(1, proxies=("p1",)) as made:
        made.start_all()
        yield made


def test_a_worker_with_nothing_is_replaced(single: Workers) -> None:
    old, new = single.roll(0)
    with Peer(single.address) as peer:
        peer.post("t1")
    assert old.pid != new.pid


def test_a_connection_goes_on_where_it_was(single: Workers) -> None:
    with Peer(single.address) as plain, Peer(single.address) as greeted, Peer(single.address) as fresh:
        plain.post("t1")
        assert greeted.ok("hello v=1 role=client worker=0")["worker"] == "0"
        plain.write_bytes(b"get_task task")
        fresh.write_bytes(b"hello v=1 role=cl")
        greeted.write_bytes("get_task task_id=t1 note=ä".encode()[:-1])
        single.roll(0)
        plain.write_bytes(b"_id=t1\n")
        assert plain.reply()["state"] == "pending"
        fresh.write_bytes(b"ient\n")
        assert fresh.reply()["workers"] == "1"
        greeted.write_bytes("ä".encode()[-1:] + b"\n")
        assert greeted.reply()["state"] == "pending"


def test_all_kinds_of_tasks_move_with_their_state(workers: Workers) -> None:
    def report(pushes: list[Line]) -> str | None:
        done = [push.fields["task_id"] for push in pushes if push.fields["task_id"].startswith("done")]
        return "report state=done -- " + " ".join(done) if done else None

    with Peer(workers.address) as peer, FakeProxy("p1", lambda: workers.address, answer=report) as proxy:
        for number in range(200):
            peer.post(f"done-{number}")
            peer.post(f"open-{number}", "type=url priority=7")
        peer.post("later", "type=url due=4000000000")
        peer.post("odd", "type=url", "http://example.com/a http://example.com/b")
        wait_until(lambda: len(proxy.effects) == 401, "every push")
        wait_until(lambda: all(peer.state(f"done-{n}") == "complete" for n in (0, 100, 199)), "the reports")
        for slot in (0, 1):
            workers.roll(slot)
        states = [
            peer.state(task_id) for task_id in ("later", "odd", "open-0", "open-199", "done-0", "done-199")
        ]
        assert states == ["pending", "active", "active", "active", "complete", "complete"]
        assert peer.post("open-5", "type=url priority=7")["dup"] == "1"
        assert peer.post("done-5")["dup"] == "1"
        assert peer.code("post_task task_id=done-5 type=dir -- http://example.com/d/") == "conflict"
        assert set(proxy.effects.values()) == {1}, "nothing is pushed again"
        assert peer.ok("cancel_task task_id=later")["state"] == "cancelled"
        listed = peer.ask("list_tasks limit=1000").rows
        assert len(listed) == 402


def test_a_proxy_keeps_its_connection_its_credit_and_what_it_is_at(workers: Workers) -> None:
    at: list[Line] = []
    with Peer(workers.address) as peer, Peer(workers.address) as proxy:
        assert proxy.ok("hello v=1 role=proxy name=p1 worker=0")["worker"] == "0"
        proxy.ok("ready credit=3")
        ids = owned_by(0, "a", 5)
        for task_id in ids:
            peer.post(task_id)
        at += proxy.pushed(3)
        for _ in range(3):
            workers.roll(0)
        assert proxy.is_quiet(), "no credit is left"
        proxy.write(f"report state=done -- {at[0].fields['task_id']}")
        assert proxy.reply()["n"] == "1"
        assert proxy.push().fields["task_id"] == ids[3]
        workers.roll(0)
        proxy.write("report state=done -- " + " ".join([*ids[1:4]]))
        assert proxy.reply()["n"] == "3"
        assert proxy.push().fields["task_id"] == ids[4]
        proxy.ok(f"report state=done -- {ids[4]}")
        wait_until(lambda: all(peer.state(task_id) == "complete" for task_id in ids), "all complete")


def test_a_proxy_that_is_reached_through_a_sibling(workers: Workers) -> None:
    ids = [*owned_by(0, "a", 3), *owned_by(1, "b", 3)]
    with Peer(workers.address) as peer, Peer(workers.address) as proxy:
        proxy.ok("hello v=1 role=proxy name=p1 worker=0")
        proxy.ok("ready credit=100")
        for task_id in ids:
            peer.post(task_id)
        pushed = [push.fields["task_id"] for push in proxy.pushed(6)]
        assert sorted(pushed) == sorted(ids)
        for slot in (1, 0, 1, 0):
            workers.roll(slot)
        more = [*owned_by(0, "c", 3), *owned_by(1, "d", 3)]
        for task_id in more:
            peer.post(task_id)
        assert sorted(push.fields["task_id"] for push in proxy.pushed(6)) == sorted(more)
        proxy.ok("report state=done -- " + " ".join(ids + more))
        wait_until(lambda: all(peer.state(task_id) == "complete" for task_id in ids + more), "all complete")
        assert proxy.is_quiet()


def test_watchers_are_told_wherever_task_and_watcher_are(workers: Workers) -> None:
    ids = [*owned_by(0, "a"), *owned_by(1, "b")]
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(workers.address)) for _ in range(2)]
        for slot, peer in enumerate(peers):
            peer.ok(f"hello v=1 role=client worker={slot}")
        for task_id in ids:
            peers[0].post(task_id)
        for peer in peers:
            for task_id in ids:
                assert peer.ok(f"watch_task task_id={task_id}")["state"] == "pending"
        workers.roll(0)
        proxy = stack.enter_context(Peer(workers.address))
        proxy.ok("hello v=1 role=proxy name=p1 worker=0")
        proxy.ok("ready credit=100")
        proxy.pushed(2)
        for slot in (1, 0):
            workers.roll(slot)
        proxy.ok("report state=done -- " + " ".join(ids))
        for peer in peers:
            # Counts that change show, too, before the end is saved.
            told = [(push.fields["task_id"], push.fields["state"]) for push in peer.pushed(6)]
            for task_id in ids:
                assert [state for known, state in told if known == task_id] == [
                    "active",
                    "active",
                    "complete",
                ]


def test_a_compressed_connection_in_the_middle_of_a_chunk(single: Workers) -> None:
    with SnappyPeer(single.address) as peer:
        peer.post("t1")
        single.roll(0)
        data = frame(b"get_task task_id=t1\nget_ta") + frame(b"sk task_id=t1\n")
        for at in range(0, len(data), 16):
            peer.write_raw(data[at : at + 16])
            single.roll(0)
        assert [reply["state"] for reply in peer.replies(2)] == ["pending", "pending"]


def test_a_connection_that_was_half_closed_is_told_of_what_it_watches(single: Workers) -> None:
    with Peer(single.address) as peer, Peer(single.address) as watcher:
        peer.post("t1")
        watcher.ok("watch_task task_id=t1")
        watcher.end()
        single.roll(0)
        peer.ok("cancel_task task_id=t1")
        assert watcher.push().fields["state"] == "cancelled"
        assert watcher.rest() == b""


def test_nothing_fails_while_requests_never_stop(workers: Workers) -> None:
    """Clients that pipeline through six hand-overs; every reply is `ok`, in order, on one connection."""
    with FakeProxy("p1", lambda: workers.address) as proxy:
        clients = [Pipeliner(workers.address, f"c{number}") for number in range(8)]
        for client in clients:
            client.start()
        for slot in (0, 1, 0, 1, 0, 1):
            workers.roll(slot)
        for client in clients:
            client.finish()
        posted = sum(client.posted for client in clients)
        wait_until(lambda: len(proxy.effects) == posted, "every task is pushed")
        assert posted > 1000
        repeats = [task_id for task_id, times in proxy.effects.items() if times > 1]
        assert not repeats, f"{len(repeats)} of {posted} were pushed again"
        with Peer(workers.address) as peer:
            for client in clients:
                wait_until(lambda c=client: peer.state(c.last) == "complete", "all complete")
            stats = {row["name"]: float(row["value"]) for row in peer.ask("stats").rows}
            assert stats["tasks_accepted"] == posted
            wait_until(
                lambda: (
                    {r["name"]: float(r["value"]) for r in peer.ask("stats").rows}["tasks_complete"] == posted
                ),
                "every task is complete",
            )


class Pipeliner(threading.Thread):
    """Posts tasks, 50 at a time, on one connection, and asks for each right behind it."""

    def __init__(self, address: tuple[str, int], stem: str) -> None:
        super().__init__()
        self._peer = Peer(address)
        self._stem = stem
        self._end = threading.Event()
        self.posted = 0
        self.last = ""
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            for number in count():
                if self._end.is_set():
                    return
                self._burst([f"{self._stem}-{number}-{part}" for part in range(50)])
        except BaseException as error:
            self.fault = error

    def _burst(self, ids: list[str]) -> None:
        lines = []
        for task_id in ids:
            lines.append(f"post_task task_id={task_id} type=url -- http://example.com/{task_id}")
            lines.append(f"get_task task_id={task_id}")
        self._peer.write(*lines)
        for task_id in ids:
            posted, shown = self._peer.replies(2)
            assert (posted.ok, posted.fields.get("task_id"), "dup" in posted.fields) == (True, task_id, False)
            assert (shown.ok, shown.fields.get("task_id")) == (True, task_id)
            self.posted += 1
            self.last = task_id

    def finish(self) -> None:
        self._end.set()
        self.join()
        self._peer.close()
        assert self.fault is None, repr(self.fault)


def test_a_watcher_at_a_sibling_is_told_while_shards_move(workers: Workers) -> None:
    """The new worker owns the task, and no sibling knows it yet."""
    (task_id,) = owned_by(0, "a")
    with Peer(workers.address) as peer:
        peer.ok("hello v=1 role=client worker=1")
        peer.post(task_id)
        peer.ok(f"watch_task task_id={task_id}")
        old = workers.serving[0]
        new = workers.begin(0)
        workers.wait_for(old, control.Given)
        peer.ok(f"cancel_task task_id={task_id}")
        assert peer.push().fields["state"] == "cancelled"
        workers.switch(new)
        workers.wait_for(old, control.Moved)
        workers.end(old)
        assert peer.ok("ping")
