"""docs/handover.md, "What a crash leads to": each side dies, or stops, at each step, with a real master.

A worker stops itself at a step (see inject/sitecustomize.py), so that either side can be
killed just there. One engine goes through all of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import psutil
import pytest

from refreshd.worker.handover.steps import GIVER_STEPS, TAKER_STEPS
from tests.driver import Engine, wait_until
from tests.faults.ledger import Ledger, Load
from tests.peer.raw import Gone, Peer, owned_by

PROXIES = ("p1", "p2")
LATE = frozenset({"connection", "ended", "listening", "adopting", "ending"})
"""Steps at which connections may have moved: the new worker's death costs some."""


class Stopped(NamedTuple):
    """A hand-over that stands still."""

    at: int
    """The process that stopped itself."""
    old: int
    new: int


class Site:
    """An engine, its fleet, and a way to stop its hand-overs at a step. A context manager."""

    def __init__(self, steps: Path, settings: str = "") -> None:
        self.steps = steps
        self.ledger = Ledger(PROXIES)
        self.engine = Engine(proxies=PROXIES, settings=settings, environment={"REFRESHD_STEPS": str(steps)})
        self._stack = ExitStack()
        self._loads = 0

    def __enter__(self) -> Self:
        self._stack.enter_context(self.engine)
        for name in PROXIES:
            self._stack.enter_context(self.engine.proxy(name, on_effect=self._effect))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _effect(self, proxy: str, task_id: str, targets: list[str]) -> None:
        self.ledger.effect(proxy, task_id, targets)

    @contextmanager
    def load(self) -> Iterator[Load]:
        """Load, with a ledger of its own; at the end that is settled."""
        self.ledger = Ledger(PROXIES)
        self._loads += 1
        address, stem = self.engine.address, f"{self._loads}."
        with Load(address, self.ledger, clients=2, batch=10, pause_s=0.01, stem=stem) as load:
            load.wait_for_all()
            yield load
            self.ledger.wait_for(40)
        self.ledger.settle(self.engine.address)

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


class Watchers:
    """A client at each worker that watches tasks of each worker."""

    def __init__(self, engine: Engine, stem: str) -> None:
        self.gone: set[int] = set()
        """Workers that lost their client."""
        self._engine = engine
        self._peers = [engine.peer(f"worker={slot}") for slot in range(engine.workers)]
        self._early, self.late = (
            [owned_by(slot, f"{stem}-{when}")[0] for slot in range(engine.workers)]
            for when in ("early", "late")
        )
        for task_id in self._early + self.late:
            self._peers[0].post(task_id, "type=url due=4000000000")
            for peer in self._peers:
                peer.ok(f"watch_task task_id={task_id}")

    def end_some(self) -> None:
        """Some tasks end while nobody may be there to tell of it."""
        self._peers[-1].write(*[f"cancel_task task_id={task_id}" for task_id in self._early])

    def finish(self) -> None:
        """Whoever kept the connection is told of the end of each."""
        with self._engine.peer() as peer:
            for task_id in self._early + self.late:
                peer.ok(f"cancel_task task_id={task_id}")
        untold = [self._untold(slot, peer) for slot, peer in enumerate(self._peers)]
        assert not any(untold), f"the clients of the workers were not told of {untold}"

    def _untold(self, slot: int, peer: Peer) -> set[str]:
        """Reads until the end of each task was told. What was not, unless the connection was lost."""
        left = {*self._early, *self.late}
        with peer:
            try:
                while left:
                    left -= ended(peer)
            except (Gone, ConnectionError):
                self.gone.add(slot)
                return set()
            except TimeoutError:
                return left
        return set()


def ended(peer: Peer) -> set[str]:
    """Of what task's end the next line tells. More than one push of a state may come."""
    line = peer.pushes.pop(0) if peer.pushes else peer.line()
    is_end = line.verb == "!state" and line.fields["state"] == "cancelled"
    return {line.fields["task_id"]} if is_end else set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("steps")) as site:
        site.post_later()
        yield site


def _is_dead(pid: int) -> bool:
    """Whether none of its threads is left: only then are its descriptors closed."""
    try:
        threads = len(os.listdir(f"/proc/{pid}/task"))
        return threads <= 1 and psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


@pytest.mark.parametrize("step", [*GIVER_STEPS, *TAKER_STEPS])
@pytest.mark.parametrize("victim", ["old", "new"])
def test_either_side_dies_at_each_step(site: Site, victim: str, step: str) -> None:
    engine = site.engine
    watchers = Watchers(engine, f"{step}-{victim}")
    with site.load() as load:
        number, stopped = site.stop_at(step)
        watchers.end_some()
        dead, left = (stopped.old, stopped.new) if victim == "old" else (stopped.new, stopped.old)
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: _is_dead(dead), "it is dead, and its sockets are closed")
        if stopped.at == left:
            os.kill(left, signal.SIGCONT)
        outcome = engine.outcome(number)
        engine.wait_whole()
        assert not psutil.pid_exists(dead)
        if victim == "new" and step not in LATE:
            assert outcome["state"] == "failed", outcome.fields
            assert outcome["why"]
            assert left in engine.pids(), "the old worker goes on"
            assert (load.gone, site.ledger.refused) == (0, {}), "nobody noticed"
    watchers.finish()
    assert watchers.gone <= {0}, "the sibling of a slot that is rolled loses nobody"


@pytest.mark.parametrize("step", ["frozen", "moving", "owning", "listening"])
@pytest.mark.parametrize("victim", ["old", "new"])
def test_a_side_that_stops_is_killed(tmp_path: Path, victim: str, step: str) -> None:
    """SIGSTOP: its heartbeat is late."""
    with Site(tmp_path, "heartbeat_timeout_s = 1") as site, site.load():
        engine = site.engine
        number, stopped = site.stop_at(step)
        silent = stopped.old if victim == "old" else stopped.new
        if stopped.at != silent:
            os.kill(silent, signal.SIGSTOP)
            os.kill(stopped.at, signal.SIGCONT)
        engine.outcome(number)
        engine.wait_whole()
        assert not psutil.pid_exists(silent)


@pytest.mark.parametrize("step", ["owned", "given", "switched", "moving"])
def test_a_sibling_dies_meanwhile(site: Site, step: str) -> None:
    """What the old worker asked it is answered by its successor, which only the new worker meets."""
    engine = site.engine
    before, after = (owned_by(1, f"{stem}-{step}", 20) for stem in ("before", "after"))
    watchers = Watchers(engine, f"{step}-sibling")
    with site.load(), engine.peer("worker=0") as peer:
        number, stopped = site.stop_at(step)
        sibling = engine.pid_of(1)
        # Nobody has read these when the sibling dies.
        peer.write(*[f"post_task task_id={i} type=url -- http://a.example/" for i in before])
        os.kill(sibling, signal.SIGKILL)
        wait_until(lambda: _is_dead(sibling), "it is dead")
        os.kill(stopped.at, signal.SIGCONT)
        watchers.end_some()
        peer.write(*[f"post_task task_id={i} type=url -- http://a.example/" for i in after])
        assert [reply.fields.get("task_id") for reply in peer.replies(40)] == before + after
        assert engine.outcome(number)["state"] == "done"
        engine.wait_whole()
    watchers.finish()
    assert watchers.gone <= {1}, "whoever is rolled loses nobody"


@pytest.mark.parametrize("step", ["owned", "given", "switched", "state", "moving", "connection"])
def test_a_sibling_is_replaced_before_the_old_worker_goes_on(site: Site, step: str) -> None:
    """Who watches at the old worker is told of what the new sibling owns, which never met the old worker."""
    engine = site.engine
    watchers = Watchers(engine, f"{step}-replaced")
    number, stopped = site.stop_at(step)
    sibling = engine.kill_worker(1)
    engine.wait_for_worker(1, sibling)
    watchers.end_some()
    with engine.peer("worker=1") as late:
        late.write(*[f"watch_task task_id={task_id}" for task_id in watchers.late])
        if step in ("state", "moving", "connection"):
            # The new worker answers; the old one has not told it of the death.
            assert all(reply.ok for reply in late.replies(2))
        os.kill(stopped.at, signal.SIGCONT)
        assert engine.outcome(number)["state"] == "done"
        engine.wait_whole()
        watchers.finish()
        told: set[str] = set()
        while told != set(watchers.late):
            told |= ended(late)
    assert watchers.gone <= {1}, "whoever is rolled loses nobody"


def test_after_a_failed_hand_over_the_next_one_gets_through(site: Site) -> None:
    engine = site.engine
    with site.load() as load:
        number, stopped = site.stop_at("owned")
        os.kill(stopped.new, signal.SIGKILL)
        os.kill(stopped.at, signal.SIGCONT)
        assert engine.outcome(number)["state"] == "failed"
        before = engine.pids()
        engine.roll()
        engine.wait_whole()
        assert not before & engine.pids()
        assert (load.gone, site.ledger.refused) == (0, {})
