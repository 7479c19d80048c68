"""FAULTS 19: file descriptors used up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psutil
import pytest

from tests.driver import UNIT_S, Engine, Peer, wait_until
from tests.peer.raw import owned_by

# Enough for a start: a worker has about 30 open before anybody connects, and keeps 16.
_DESCRIPTORS = 80
_CONNECTIONS = 200
_LOOK_S = 1.0
_SHORT = "no descriptors left, accepting rests"


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine whose every process may have only a few descriptors."""
    limited = ["sh", "-c", f'ulimit -n {_DESCRIPTORS} && exec "$@"', "sh"]
    with Engine(proxies=["p1"], before=limited) as engine:
        yield engine


def _use_up(engine: Engine, stack: ExitStack) -> list[Peer]:
    """More connections than the workers have descriptors: the rest wait in the backlog.

    One worker may hand many on to the other before that one has a chance to see it, so more come if need be.
    """
    peers = [stack.enter_context(engine.peer()) for _ in range(_CONNECTIONS)]

    def all_short() -> bool:
        short = {line["slot"] for line in engine.logged(_SHORT)}
        if len(short) < engine.workers and len(peers) < 5 * _CONNECTIONS:
            peers.append(stack.enter_context(engine.peer()))
        return len(short) == engine.workers

    wait_until(all_short, "every worker has used up its descriptors")
    return peers


def _cpu_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


def test_accepting_pauses_without_spinning_and_goes_on(engine: Engine) -> None:
    with engine.peer() as old, ExitStack() as stack:
        old.ok("ping")
        peers = _use_up(engine, stack)
        pids = [engine.pid_of(slot) for slot in range(engine.workers)]
        assert engine.process is not None
        began, before = time.monotonic(), _cpu_s([*pids, engine.process.pid])
        wait_until(lambda: time.monotonic() > began + _LOOK_S * UNIT_S, "some time has passed")
        used, elapsed = _cpu_s([*pids, engine.process.pid]) - before, time.monotonic() - began
        assert used < elapsed / 4, f"{used:.2f} s of CPU in {elapsed:.2f} s; one that spins uses all"
        old.post("served", "type=url due=4000000000")
        for peer in peers[:-10]:
            peer.close()
        for number, peer in enumerate(peers[-10:]):
            peer.post(f"waited-{number}", "type=url due=4000000000")
        assert [engine.pid_of(slot) for slot in range(engine.workers)] == pids
    with engine.peer() as peer:
        peer.post("after", "type=url due=4000000000")


def test_the_admin_socket_still_answers(engine: Engine) -> None:
    with ExitStack() as stack:
        _use_up(engine, stack)
        assert engine.admin("ping").ok
        assert [row["state"] for row in engine.admin("list_workers").rows] == ["ready", "ready"]
        # Workers answer these, so they need a descriptor for them.
        for _ in range(10):
            assert engine.admin("stats").ok


def test_what_a_sibling_hands_on_leaves_some_for_operators(engine: Engine) -> None:
    """Who asks for a worker comes to it by its sibling, however many it has; nobody is lost."""
    with ExitStack() as stack:
        peers = [stack.enter_context(engine.peer()) for _ in range(_DESCRIPTORS + 20)]
        for peer in peers:
            peer.write("hello v=1 role=client worker=1")
        wait_until(lambda: {line["slot"] for line in engine.logged(_SHORT)} >= {1}, "worker 1 is short")
        for _ in range(10):
            assert engine.admin("stats").ok
        waiting = set(peers)
        while waiting:
            answered = {peer for peer in waiting if not peer.is_quiet(0.01)}
            for peer in answered:
                reply = peer.reply()
                # Who waited for long at the other worker is told to come again.
                assert reply.fields.get("worker", reply.fields.get("code")) in ("1", "unavailable")
                peer.close()
            waiting -= answered
    with engine.peer("worker=1") as peer:
        peer.ok("ping")


def test_a_killed_worker_comes_back_and_its_sibling_hears_of_it(engine: Engine) -> None:
    """The successor is introduced by descriptors too."""
    with engine.peer("worker=1") as peer, ExitStack() as stack:
        _use_up(engine, stack)
        pid = engine.kill_worker(0)
        engine.wait_for_worker(0, pid)
        for task_id in owned_by(0, "own", 5):
            peer.post(task_id, "type=url due=4000000000")
