"""Another number of workers while clients and proxies go on (docs/handover.md, last section)."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from refreshd import control
from refreshd.worker.handover import frames
from refreshd.worker.hub import Hub
from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Peer
from tests.peer.waiting import wait_until
from tests.refreshd.worker.handover.test_handover import Pipeliner
from tests.refreshd.worker.handover.workers import Workers
from tests.refreshd.worker.test_configuring import Bench, until
from wire.errors import Refused


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


def test_what_comes_late_begins_no_other_change(tmp_path: Path) -> None:
    async def work(hub: Hub) -> None:
        now_s = time.monotonic()
        hub.mesh_hand(1, frames.encode(frames.Nonces([(now_s, "acme", "n1")])))
        assert (hub.moves.resharing, hub.engine.moving) == (None, False)
        with pytest.raises(Refused, match="nonce"):
            hub.nonces.use("acme", "n1", now_s)

    bench = Bench(tmp_path)
    bench.run(bench.config(), work)


def test_a_report_that_comes_to_the_old_owner_goes_on_to_the_new_one(tmp_path: Path) -> None:
    """From a sibling that still asks the old one."""
    reports = (
        b"report proxy=p1 state=done ms=7 -- t1 t2",
        b"report proxy=p1 state=failed task_id=t1 done=0 failed=1 error=",
    )

    async def work(hub: Hub) -> None:
        told: list[tuple[bytes, int | None]] = []
        hub.mesh.tell = lambda line, slot=None: told.append((line, slot))  # type: ignore[method-assign]
        hub.moves.begin()
        hub.shards.give(range(64), 3)
        for report in reports:
            hub.siblings.told(2, report)
        assert told == [(report, 3) for report in reports]

    bench = Bench(tmp_path)
    bench.run(bench.config(), work)


def test_who_has_left_before_it_was_met_is_not_waited_for(tmp_path: Path) -> None:
    async def work(hub: Hub) -> None:
        pairs = [
            socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        ]
        (stream, theirs), (packets, theirs_too) = pairs
        hub.sibling(control.Peer(1, 7), stream, packets)
        hub.sibling_retired(1)
        await until(lambda: not hub._background)
        assert hub.mesh.others == []
        await asyncio.wait_for(hub.siblings.stats(), 30)
        for sock in (theirs, theirs_too):
            sock.close()

    bench = Bench(tmp_path)
    bench.run(bench.config(), work)
