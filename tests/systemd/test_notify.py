"""What a real engine tells systemd, which a socket of this process stands for."""

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.driver import Engine
from tests.peer.waiting import PATIENCE_S, wait_until
from tests.systemd.manager import Manager

WATCHDOG_S = 0.5
# A worker is silent for half of it before the watchdog hungers, and for all of it before it is killed.
HEARTBEAT_S = 4


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path, WATCHDOG_S) as manager:
        yield manager


def test_ready_comes_when_it_serves_and_stopping_when_it_no_longer_does(manager: Manager) -> None:
    engine = Engine(environment=manager.environment)
    try:
        process = engine.run()
        # One worker is held at its start: as long as it is not there, the engine is not.
        late = wait_until(lambda: psutil.Process(process.pid).children()[1:], "the second worker")[0]
        late.suspend()
        wait_until(lambda: engine.logged("worker ready"), "the first worker")
        assert manager.states() == []
        late.resume()
        manager.wait_for("READY")
        with engine.peer() as peer:
            assert peer.ask("ping").ok
        assert engine.stop() == 0
        manager.wait_for("STOPPING")
        assert manager.states() == ["READY=1", "STOPPING=1"]
    finally:
        engine.__exit__()


def test_an_engine_that_cannot_start_is_never_ready(manager: Manager) -> None:
    with Engine(environment=manager.environment) as engine:
        other = Engine(environment=manager.environment, listen=":".join(map(str, engine.address())))
        assert other.run().wait(PATIENCE_S) == 71
        other.__exit__()
        assert manager.states() == ["READY=1"]


def test_the_watchdog_hungers_while_a_worker_hangs(manager: Manager) -> None:
    settings = f"heartbeat_timeout_s = {HEARTBEAT_S}"
    with Engine(settings=settings, environment=manager.environment) as engine:
        # READY, and more than one meal after it.
        fed = len(manager.wait_for("WATCHDOG", 4))
        hung = psutil.Process(engine.pid_of(0))
        hung.suspend()
        engine.wait_for_worker(0, other_than=hung.pid)
        manager.wait_for("WATCHDOG", fed + 4)
        meals = [told.at for told in manager.told("WATCHDOG")]
        longest_s = max(later - earlier for earlier, later in itertools.pairwise(meals))
        # It was not fed for the second half of the time-out, of which a slow reader may miss a part.
        assert longest_s > HEARTBEAT_S * 0.3
        assert manager.states() == ["READY=1"]


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(manager: Manager) -> None:
    with Engine(environment={**manager.environment, "WATCHDOG_PID": "1"}) as engine:
        engine.stop()
        manager.wait_for("STOPPING")
        assert not manager.told("WATCHDOG")


def test_a_manager_that_is_gone_is_nobodys_trouble(tmp_path: Path) -> None:
    with Manager(tmp_path, WATCHDOG_S) as manager:
        engine = Engine(environment=manager.environment)
        engine.run()
        manager.wait_for("READY")
    try:
        engine.wait_for_worker(0, other_than=engine.kill_worker(0))
        assert engine.stop(signal.SIGINT) == 0
    finally:
        engine.__exit__()


def test_a_reload_is_told_from_its_beginning_to_its_end(manager: Manager) -> None:
    with Engine(environment=manager.environment) as engine:
        manager.wait_for("READY")
        engine.settings = "tasks_max = 1000"
        engine.configure()
        assert engine.process is not None
        engine.process.send_signal(signal.SIGHUP)
        manager.wait_for("READY", 2)
        assert manager.states() == ["READY=1", "RELOADING=1", "READY=1"]
        wait_until(
            lambda: any("reload 1 done" in told.text for told in manager.told("STATUS")), "its outcome"
        )
        # As Type=notify-reload wants it: by the clock that it compares with.
        assert int(manager.told("MONOTONIC_USEC")[0].text.partition("=")[2]) <= time.monotonic() * 1e6


def test_a_reload_that_is_refused_has_an_end_too(manager: Manager) -> None:
    with Engine(environment=manager.environment) as engine:
        manager.wait_for("READY")
        engine.settings = "no_such_setting = 1"
        engine.configure()
        assert engine.process is not None
        engine.process.send_signal(signal.SIGHUP)
        manager.wait_for("READY", 2)
        assert manager.states() == ["READY=1", "RELOADING=1", "READY=1"]
        assert any("no_such_setting" in told.text for told in manager.told("STATUS"))


def test_an_upgrade_is_a_reload_to_systemd_and_the_watchdog_is_fed_by_the_new_code(manager: Manager) -> None:
    with Engine(environment=manager.environment) as engine:
        manager.wait_for("READY")
        assert engine.process is not None
        engine.process.send_signal(signal.SIGUSR2)
        wait_until(lambda: "STATUS=up; upgrade 1 done" in manager.told("STATUS")[-1].text, "its outcome")
        # The new code says once more that a reload runs, as it does not know what the old one said.
        assert [state for state, _ in itertools.groupby(manager.states())] == [
            "READY=1",
            "RELOADING=1",
            "READY=1",
        ]
        manager.wait_for("WATCHDOG", len(manager.told("WATCHDOG")) + 2)
        assert engine.stop() == 0
