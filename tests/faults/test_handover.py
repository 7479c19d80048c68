"""docs/handover.md, "What a crash leads to": each side dies, or stops, at each step, with a real master.

A worker stops itself at a step (see inject/sitecustomize.py), so that either side can be
killed just there. One engine goes through all of it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from refreshd.worker.handover.steps import GIVER_STEPS, TAKER_STEPS
from tests.driver import Engine, wait_until
from tests.faults.ledger import Ledger, Load
from tests.peer.raw import owned_by

PROXIES = ("p1", "p2")
LATE = frozenset({"moving", "listening", "connection", "adopting", "ended", "ending"})
"""Steps at which connections may have moved: the new worker's death costs some."""


class Stopped(NamedTuple):
    """A hand-over that stands still."""

    at: int
    """The process that stopped itself."""
    old: int
    new: int


class Site:
    """An engine with load, and a way to stop its hand-overs at a step."""

    def __init__(self, settings: str = "") -> None:
        self.steps = Path(tempfile.mkdtemp(prefix="refreshd-steps-"))
        self.ledger = Ledger(PROXIES)
        self.engine = Engine(
            proxies=PROXIES, settings=settings, environment={"REFRESHD_STEPS": str(self.steps)}
        )

    def post_later(self) -> None:
        """Unfinished tasks, for something to be copied."""
        with self.engine.peer() as peer:
            for slot in range(self.engine.workers):
                for task_id in owned_by(slot, "later", 20):
                    peer.post(task_id, "type=url due=4000000000")

    def stop_at(self, step: str) -> tuple[str, Stopped]:
        """Begins a reload, and waits until a worker has stopped there. The number of the reload, and who."""
        before = self.engine.pids()
        (self.steps / step).touch()
        number = self.engine.begin("reload")
        (mark,) = wait_until(lambda: list(self.steps.glob(f"{step}.*")), f"a worker has come to {step}")
        at = int(mark.suffix[1:])
        mark.unlink()
        wait_until(lambda: psutil.Process(at).status() == psutil.STATUS_STOPPED, "it has stopped")
        slots = {line["pid"]: line["slot"] for line in self.engine.logged("worker started")}
        (new,) = self.engine.pids() - before
        (old,) = (pid for pid in before if slots[pid] == slots[new])
        return number, Stopped(at, old, new)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    with (
        site.engine as engine,
        engine.proxy("p1", on_effect=site.ledger.effect),
        engine.proxy("p2", on_effect=site.ledger.effect),
    ):
        site.post_later()
        yield site


@pytest.mark.parametrize("step", [*GIVER_STEPS, *TAKER_STEPS])
@pytest.mark.parametrize("victim", ["old", "new"])
def test_either_side_dies_at_each_step(site: Site, victim: str, step: str) -> None:
    engine, ledger = site.engine, site.ledger
    with Load(engine.address, ledger, clients=2, batch=10) as load:
        ledger.wait_for(20)
        number, stopped = site.stop_at(step)
        dead, left = (stopped.old, stopped.new) if victim == "old" else (stopped.new, stopped.old)
        os.kill(dead, signal.SIGKILL)
        if stopped.at == left:
            os.kill(left, signal.SIGCONT)
        outcome = engine.outcome(number)
        engine.wait_whole()
        assert not psutil.pid_exists(dead)
        if victim == "new" and step not in LATE:
            assert outcome["state"] == "failed", outcome.fields
            assert outcome["why"]
            assert left in engine.pids(), "the old worker goes on"
            assert (load.gone, ledger.refused) == (0, {}), "nobody noticed"
        ledger.wait_for(100)
    ledger.settle(engine.address)


@pytest.mark.parametrize("step", ["frozen", "moving", "owning", "listening"])
@pytest.mark.parametrize("victim", ["old", "new"])
def test_a_side_that_stops_is_killed(victim: str, step: str) -> None:
    """SIGSTOP: its heartbeat is late."""
    site = Site("heartbeat_timeout_s = 1")
    ledger = site.ledger
    with (
        site.engine as engine,
        engine.proxy("p1", on_effect=ledger.effect),
        engine.proxy("p2", on_effect=ledger.effect),
        Load(engine.address, ledger, clients=2, batch=10),
    ):
        ledger.wait_for(20)
        number, stopped = site.stop_at(step)
        silent = stopped.old if victim == "old" else stopped.new
        if stopped.at != silent:
            os.kill(silent, signal.SIGSTOP)
            os.kill(stopped.at, signal.SIGCONT)
        engine.outcome(number)
        engine.wait_whole()
        assert not psutil.pid_exists(silent)
        ledger.wait_for(100)
        ledger.settle(engine.address)


def test_after_a_failed_hand_over_the_next_one_gets_through(site: Site) -> None:
    engine, ledger = site.engine, site.ledger
    with Load(engine.address, ledger, clients=2, batch=10) as load:
        ledger.wait_for(20)
        number, stopped = site.stop_at("owned")
        os.kill(stopped.new, signal.SIGKILL)
        os.kill(stopped.at, signal.SIGCONT)
        assert engine.outcome(number)["state"] == "failed"
        before = engine.pids()
        engine.roll()
        engine.wait_whole()
        assert not before & engine.pids()
        ledger.wait_for(20)
    assert (load.gone, load.faults) == (0, [])
    ledger.settle(engine.address)
