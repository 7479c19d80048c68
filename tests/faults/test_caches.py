"""FAULTS 15 with real servers: of two caches at one agent one is frozen, or killed, and slows no other."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.cache_fixtures import origin
from tests.driver import Engine, wait_until
from tools.servers import Agent, Origin, Varnish
from tools.servers.process import find_program

__all__ = ["origin"]

pytestmark = pytest.mark.needs("varnishd")
TARGETS_A_TASK = 1000
MEMORY_MAX_BYTES = 256 << 20
# So that a test need not wait for 10 s of silence.
HASTY = "[fast]\nanswer_timeout_s = 1\nconnect_timeout_s = 1"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(proxies=["pop1"]) as engine:
        yield engine


@pytest.fixture(scope="module")
def pair(origin: Origin) -> Iterator[tuple[Varnish, Varnish]]:
    with Varnish(origin.address) as first, Varnish(origin.address) as second:
        yield first, second


@contextmanager
def agent_of(engine: Engine, pair: tuple[Varnish, Varnish], more: str = HASTY) -> Iterator[Agent]:
    host, port = engine.address()
    caches = [(name, "varnish", each.address) for name, each in zip(("good", "bad"), pair, strict=True)]
    with Agent([f"{host}:{port}"], caches, more=more) as agent:
        wait_until(lambda: len(agent.logged("link up")) == 2, "both links")
        yield agent


def purges(varnish: Varnish) -> int:
    """How many it has done since it was started."""
    command = [find_program("varnishstat"), "-n", str(varnish.folder / "work"), "-1", "-f", "MAIN.n_purges"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1])


@contextmanager
def frozen(varnish: Varnish) -> Iterator[None]:
    """It accepts, for that is the kernel's work, and does nothing more."""
    [child] = psutil.Process(varnish.pid).children()
    os.kill(child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGCONT)


def post(engine: Engine, stem: str, tasks: int) -> list[str]:
    """Tasks of 1,000 targets each."""
    ids = [f"{stem}{number}" for number in range(tasks)]
    with engine.peer() as peer:
        for task_id in ids:
            targets = " ".join(f"http://www.example.com/{task_id}/{n}" for n in range(TARGETS_A_TASK))
            assert peer.ok(f"post_task task_id={task_id} type=url -- {targets}")
    return ids


def wait_complete(engine: Engine, ids: list[str]) -> None:
    with engine.peer() as peer:
        for task_id in ids:
            wait_until(lambda i=task_id: peer.state(i) == "complete", f"{task_id} is complete", 30)  # type: ignore[misc]


def test_a_frozen_cache_slows_no_other(engine: Engine, pair: tuple[Varnish, Varnish]) -> None:
    good, bad = pair
    with agent_of(engine, pair) as agent:
        with frozen(bad):
            before = purges(good)
            # More than the engine may have outstanding here: credit 16,384 on each of two links.
            ids = post(engine, "f", 50)
            wait_until(lambda: purges(good) - before >= 50 * TARGETS_A_TASK, "the other has done all", 30)
            with engine.peer() as peer:
                assert {peer.state(task_id) for task_id in ids} <= {"pending", "active"}
            wait_until(lambda: agent.logged("cache down"), "it is seen to be down")
            assert psutil.Process(agent.pid).memory_info().rss < MEMORY_MAX_BYTES
        wait_complete(engine, ids)
        assert purges(bad) >= 50 * TARGETS_A_TASK
        [down] = agent.logged("cache down")
        assert (down["cache"], down["why"][:8]) == ("bad", "frozen: ")
        assert [line["cache"] for line in agent.logged("cache up")] == ["bad"]


def test_a_cache_that_is_killed_has_all_done_once_it_is_back(
    engine: Engine, origin: Origin, pair: tuple[Varnish, Varnish]
) -> None:
    good, _ = pair
    with Varnish(origin.address) as bad, agent_of(engine, (good, bad)) as agent:
        ids = post(engine, "k", 1)
        wait_complete(engine, ids)
        bad.adm("stop")
        ids = post(engine, "l", 5)
        wait_until(lambda: agent.logged("cache down"), "it is seen to be down")
        [down] = agent.logged("cache down")
        assert (down["cache"], down["why"][:8]) == ("bad", "killed: ")
        with engine.peer() as peer:
            assert {peer.state(task_id) for task_id in ids} <= {"pending", "active"}
        bad.adm("start")
        wait_complete(engine, ids)
        assert purges(bad) >= 5 * TARGETS_A_TASK


def test_what_is_beyond_the_bound_fails_and_says_what_to_do(
    engine: Engine, pair: tuple[Varnish, Varnish]
) -> None:
    bad = pair[1]
    with agent_of(engine, pair, f"{HASTY}\n[breaker]\nqueue_max = 2500") as agent:
        with frozen(bad):
            first = post(engine, "m", 1)
            wait_until(lambda: agent.logged("cache down"), "it is seen to be down")
            more = post(engine, "n", 5)
            with engine.peer() as peer:

                def failed() -> list[str]:
                    return [task_id for task_id in more if peer.state(task_id) == "failed"]

                # 1,000 wait; of the others one has room, and half of another, which ends with that half.
                wait_until(lambda: len(failed()) == 3, "what has no room fails")
                [row] = peer.ok(f"task_detail task_id={failed()[-1]}").rows
            assert row["error"].startswith("cache bad: frozen: ")
            assert "2500 targets wait for it, as many as may: bring it back, or raise" in row["error"]
        wait_complete(engine, first)
