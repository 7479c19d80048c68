"""Another number of workers under load (docs/handover.md, last section), with real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.driver import Engine, Peer, wait_until
from tests.faults.ledger import Ledger, Load
from tests.peer.raw import owned_by

PROXIES = ("p1", "p2")


def resize(engine: Engine, workers: int) -> str:
    """Asks for so many workers, by HUP; the number of the reload."""
    newest = engine.admin("operation").fields.get("operation", "0")
    engine.workers = workers
    engine.configure()
    assert engine.process is not None
    engine.process.send_signal(signal.SIGHUP)

    def begun() -> str:
        number = engine.admin("operation").fields.get("operation", "0")
        return number if number != newest else ""

    return wait_until(begun, "the reload has begun")


class Watcher:
    """A client at a worker that goes; it watches a task of each of three workers."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._ids = [owned_by(worker, "watched", workers=3)[0] for worker in range(3)]
        for task_id in self._ids:
            peer.post(task_id, "type=url due=4000000000")
            peer.ok(f"watch_task task_id={task_id}")

    def finish(self, peer: Peer) -> None:
        """It is told of the end of each, on its connection."""
        for task_id in self._ids:
            peer.ok(f"cancel_task task_id={task_id}")
        # More than one push of the same state may come: it watches anew at a new owner.
        left = set(self._ids)
        while left:
            push = self._peer.push()
            if push.fields["state"] == "cancelled":
                left.discard(push.fields["task_id"])
        self._peer.ok("ping")


def test_more_and_fewer_workers_under_load_are_noticed_by_nobody() -> None:
    ledger = Ledger(PROXIES)
    with (
        Engine(proxies=PROXIES) as engine,
        engine.proxy("p1", on_effect=ledger.effect, workers=[0]) as p1,
        engine.proxy("p2", on_effect=ledger.effect, workers=[0]) as p2,
        engine.peer("worker=1") as at_one,
        engine.peer("worker=0") as peer,
    ):
        at_one.post("dup", "type=url due=4000000000")
        watchers = [Watcher(at_one)]
        with Load(engine.address, ledger, clients=3, batch=3) as load:
            ledger.wait_for(20)
            assert engine.outcome(resize(engine, 3))["why"].endswith("; 2 → 3 workers")
            engine.wait_whole()
            ledger.wait_for(50)
            with engine.peer("worker=2") as at_two:
                watchers.append(Watcher(at_two))
                assert engine.outcome(resize(engine, 1))["why"].endswith("; 3 → 1 workers")
                engine.wait_whole()
                ledger.wait_for(50)
                for watcher in watchers:
                    watcher.finish(peer)
            engine.roll("upgrade")
            engine.wait_whole()
            ledger.wait_for(50)
            assert (load.gone, ledger.refused) == (0, {})
        ledger.settle(engine.address)
        assert [p1.gone, p2.gone] == [0, 0]
        assert at_one.post("dup", "type=url due=4000000000")["dup"] == "1"
    assert "Traceback" not in engine.log()
    assert not engine.logged("worker killed")


def test_a_kill_while_shards_move_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A worker stops where it has just given shards away, and is killed there."""
    ledger = Ledger(PROXIES)
    steps = tmp_path
    with (
        Engine(proxies=PROXIES, environment={"REFRESHD_STEPS": str(steps)}) as engine,
        engine.proxy("p1", on_effect=ledger.effect, workers=[0]),
        engine.proxy("p2", on_effect=ledger.effect, workers=[0]),
    ):
        with Load(engine.address, ledger, clients=2, batch=10):
            ledger.wait_for(20)
            (steps / "owned").touch()
            number = resize(engine, 3)
            (mark,) = wait_until(lambda: list(steps.glob("owned.*")), "shards were given")
            pid = int(mark.suffix[1:])
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "it has stopped")
            before = engine.pids()
            os.kill(pid, signal.SIGKILL)
            outcome = engine.outcome(number)
            assert outcome["state"] == "failed"
            assert "all workers were started anew, 3 by now" in outcome["why"]
            engine.wait_whole()
            assert not before & engine.pids()
            ledger.wait_for(50)
        ledger.settle(engine.address)
