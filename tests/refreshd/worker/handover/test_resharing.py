"""Another number of workers while clients and proxies go on (docs/handover.md, last section)."""

from __future__ import annotations

import pytest

from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Peer
from tests.peer.waiting import wait_until
from tests.refreshd.worker.handover.test_handover import Pipeliner
from tests.refreshd.worker.handover.workers import Workers


@pytest.mark.parametrize("steps", [(1, 3, 2), (2, 4, 1)], ids=str)
def test_shards_move_live(steps: tuple[int, ...]) -> None:
    first, *following = steps
    with Workers(first, proxies=("p1",)) as workers:
        workers.start_all()
        with Peer(workers.address) as peer, FakeProxy("p1", lambda: workers.address, workers=[0]) as proxy:
            for number in range(200):
                peer.post(f"old-{number}")
                peer.post(f"later-{number}", "type=url due=4000000000")
            for number in following:
                clients = [Pipeliner(workers.address, f"to-{number}-{n}") for n in range(6)]
                for client in clients:
                    client.start()
                wait_until(lambda c=clients: all(client.posted > 100 for client in c), "load")
                workers.resize(number)
                more = [client.posted + 100 for client in clients]
                wait_until(
                    lambda c=clients, m=more: all(x.posted > y for x, y in zip(c, m, strict=True)),
                    "more load",
                )
                for client in clients:
                    client.finish()
                assert peer.ok("ping")
                with Peer(workers.address) as fresh:
                    assert fresh.ok("hello v=1 role=client")["workers"] == str(number)
                wait_until(lambda c=clients: all(peer.state(x.last) == "complete" for x in c), "all complete")
            assert all(peer.state(f"later-{number}") == "pending" for number in range(200))
            assert all(peer.post(f"old-{number}")["dup"] == "1" for number in range(200))
            wait_until(lambda: all(peer.state(f"old-{n}") == "complete" for n in range(200)), "all complete")
            assert len(peer.ask("list_tasks limit=1000").rows) == 1000
            assert not proxy.faults
            workers.roll(0)
            assert peer.state("later-7") == "pending"


def test_a_watcher_at_a_worker_that_goes_is_told() -> None:
    with Workers(3, proxies=("p1",)) as workers:
        workers.start_all()
        with Peer(workers.address) as peer, Peer(workers.address) as watcher, Peer(workers.address) as proxy:
            watcher.ok("hello v=1 role=client worker=2")
            ids = [f"t-{number}" for number in range(12)]
            for task_id in ids:
                peer.post(task_id)
                watcher.ok(f"watch_task task_id={task_id}")
            proxy.ok("hello v=1 role=proxy name=p1 worker=2")
            workers.resize(1)
            assert proxy.push().verb == "!drain"
            assert proxy.rest() == b""
            for task_id in ids:
                peer.ok(f"cancel_task task_id={task_id}")
            told = {}
            while len(told) < 12:
                push = watcher.push()
                if push.fields["state"] == "cancelled":
                    told[push.fields["task_id"]] = push
            assert watcher.ok("ping")
