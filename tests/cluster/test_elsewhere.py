"""Any engine answers for any task, whoever has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.site import LEASE_S, Ledger, Peer, Site
from tests.driver import wait_until
from tests.peer.raw import owned_by


@pytest.fixture
def peers(site: Site) -> Iterator[tuple[Peer, Peer]]:
    """A client at e1, which is to have the tasks, and one at e2, who is asked."""
    with site["e1"].peer() as e1, site["e2"].peer() as e2:
        yield e1, e2


def test_get_and_detail_are_those_of_the_owner(site: Site, peers: tuple[Peer, Peer]) -> None:
    """Of either of its workers; what only the owner knows (active, the counts so far) shows."""
    here, there = peers
    with site["e1"].proxy_peer("p1", 0) as p1, site["e1"].proxy_peer("p1", 1) as p1b:
        for worker, proxy in ((0, p1), (1, p1b)):
            proxy.ok("ready credit=100")
            (task_id,) = owned_by(worker, "asked")
            here.post(task_id, target="http://example.com/a http://example.com/b http://example.com/c")
            assert proxy.push().fields["task_id"] == task_id
            proxy.ok(f"report state=active task_id={task_id} done=1 failed=1")
            mine = here.ok(f"get_task task_id={task_id}")
            assert (mine["state"], mine["done"], mine["failed"]) == ("active", "1", "1")
            assert there.ok(f"get_task task_id={task_id}") == mine
            assert there.ok(f"task_detail task_id={task_id}") == here.ok(f"task_detail task_id={task_id}")


def test_a_listing_has_the_tasks_of_all_engines(peers: tuple[Peer, Peer]) -> None:
    for number in range(20):
        peers[number % 2].post(f"listed{number}", "type=url due=4000000000")
    wanted = {f"listed{number}" for number in range(20)}
    for peer in peers:
        for state in ("", "state=pending "):
            rows = peer.ok(f"list_tasks {state}limit=20").rows
            assert {row["task_id"] for row in rows} == wanted
            # Newest first; of two engines' tasks of one millisecond either may be.
            created = [int(row["created"]) for row in rows]
            assert created == sorted(created, reverse=True)
        ids = [row["task_id"] for row in rows]
        after = peer.ok(f"list_tasks limit=5 after={ids[9]}").rows
        assert [row["task_id"] for row in after] == ids[10:15]
        assert not [row for row in peer.ok("list_tasks state=active").rows if "listed" in row["task_id"]]


def test_a_listing_by_state_asks_the_owner(site: Site, peers: tuple[Peer, Peer]) -> None:
    here, there = peers
    here.post("soon", "type=url scope=p2")
    with site["e1"].proxy_peer("p2", 0) as one, site["e1"].proxy_peer("p2", 1) as two:
        for proxy in (one, two):
            proxy.ok("ready credit=100")
        wait_until(lambda: here.state("soon") == "active", "it is pushed")
        assert "soon" in {row["task_id"] for row in there.ok("list_tasks state=active").rows}
        assert "soon" not in {row["task_id"] for row in there.ok("list_tasks state=pending limit=10000").rows}


def test_a_cancel_ends_it_where_it_is(site: Site, peers: tuple[Peer, Peer]) -> None:
    here, there = peers
    here.post("unwanted", "type=url due=4000000000")
    here.ok("watch_task task_id=unwanted")
    assert there.ok("cancel_task task_id=unwanted")["state"] == "cancelled"
    assert here.push().fields["state"] == "cancelled"
    for peer in peers:
        assert peer.state("unwanted") == "cancelled"
        assert peer.ok("cancel_task task_id=unwanted")["state"] == "cancelled"
    assert site.ask("SELECT owner, state<>0 FROM task WHERE id='unwanted'") == [(0, 1)]


def test_nobody_knows_an_id_that_nobody_has(peers: tuple[Peer, Peer]) -> None:
    for peer in peers:
        for verb in ("get_task", "task_detail", "cancel_task", "watch_task"):
            assert peer.code(f"{verb} task_id=never-posted") == "not_found"


def test_a_watch_tells_what_happens_at_the_owner(site: Site, peers: tuple[Peer, Peer]) -> None:
    """By two connections, at either worker of the other engine."""
    here, _ = peers
    here.post("seen", "type=url scope=p1")
    with site["e2"].peer("worker=0") as one, site["e2"].peer("worker=1") as two:
        for watcher in (one, two):
            assert watcher.ok("watch_task task_id=seen")["task_id"] == "seen"
        with site["e1"].proxy("p1"):
            for watcher in (one, two):
                while (push := watcher.push()).fields["state"] != "complete":
                    assert push.fields["state"] in ("pending", "active")
                assert (push.fields["done"], push.fields["total"]) == ("1", "1")


def test_a_watch_goes_with_its_connection_and_its_shard_when_workers_are_replaced(site: Site) -> None:
    """Of a task that another engine has: both workers of the watchers' engine give it on."""
    ids = [owned_by(worker, "rolled")[0] for worker in (0, 1)]
    with site["e1"].peer() as here, site["e2"].peer("worker=0") as one, site["e2"].peer("worker=1") as two:
        for task_id in ids:
            here.post(task_id, "type=url due=4000000000")
            for watcher in (one, two):
                assert watcher.ok(f"watch_task task_id={task_id}")["state"] == "pending"
        site["e2"].roll()
        site["e2"].wait_whole()
        for task_id in ids:
            here.ok(f"cancel_task task_id={task_id}")
        for watcher in (one, two):
            left = set(ids)
            while left:
                push = watcher.push().fields
                if push["state"] == "cancelled":
                    left.discard(push["task_id"])


@pytest.mark.parametrize("fault", ["kill", "pause"])
def test_a_watch_follows_its_task_through_a_take_over(site: Site, ledger: Ledger, fault: str) -> None:
    """The watcher is at the engine that takes the task, and at a worker that does not own its shard."""
    moved = [f"{fault}-{number}" for number in range(3)]
    with site["e1"].peer() as peer:
        for task_id in moved:
            peer.post(task_id)
    with site["e2"].peer("worker=0") as one, site["e2"].peer("worker=1") as two:
        for watcher in (one, two):
            for task_id in moved:
                assert watcher.ok(f"watch_task task_id={task_id}")["state"] in ("pending", "active")
        getattr(site, fault)("e1")
        wait_until(lambda: site.unfinished("e2") == 3, "e2 has them", 10 * LEASE_S)
        if fault == "pause":
            site.resume("e1")
        with site["e2"].proxy("p1", on_effect=ledger.effect), site["e2"].proxy("p2", on_effect=ledger.effect):
            for watcher in (one, two):
                ended: set[str] = set()
                while len(ended) < 3:
                    push = watcher.push().fields
                    if push["state"] == "complete":
                        ended.add(push["task_id"])
