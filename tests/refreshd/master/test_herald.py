"""What systemd is told, and when: by what the master shows turn by turn."""

import pytest

from refreshd.master.herald import Herald
from refreshd.master.operations import Kind, Operations
from refreshd.master.processes import Timing
from refreshd.master.slots import Phase


class Manager:
    """Notes what it is told."""

    def __init__(self, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self.told: list[str] = []

    def send(self, **state: str) -> None:
        self.told += [f"{name}={value}" for name, value in state.items()]

    def reloading(self, now_s: float) -> None:
        self.told.append(f"RELOADING at {now_s:g}")

    def take(self) -> list[str]:
        told, self.told = self.told, []
        return told


class Engine:
    phase = Phase.BOOTING
    timing = Timing(heartbeat_timeout_s=10.0)
    silent_s = 0.0


class Drive:
    """A herald, and what is shown to it."""

    def __init__(self, watchdog_s: float | None = None, phase: Phase = Phase.UP) -> None:
        self.manager = Manager(watchdog_s)
        self.engine = Engine()
        self.operations = Operations()
        self.herald = Herald(self.manager)
        self.tick(0)
        self.engine.phase = phase
        if phase is Phase.UP:
            self.tick(0)
            self.manager.take()

    def tick(self, now: float) -> list[str]:
        """What one turn tells."""
        self.herald.tick(now, self.engine, self.operations)
        return self.manager.take()

    def begin(self) -> None:
        self.operations.ask(Kind.RELOAD)
        self.operations.begin(0, 0)


def test_ready_is_told_once_when_it_serves() -> None:
    drive = Drive(phase=Phase.BOOTING)
    assert drive.tick(1) == []
    drive.engine.phase = Phase.UP
    assert drive.tick(2) == ["READY=1", "STATUS=up"]
    assert drive.tick(3) == []


def test_a_reload_has_a_beginning_steps_an_end_and_an_outcome() -> None:
    drive = Drive()
    drive.begin()
    drive.operations.step("rolling worker 0")
    assert drive.tick(2) == ["RELOADING at 2", "STATUS=rolling worker 0"]
    drive.operations.step("rolling worker 1")
    assert drive.tick(3) == ["STATUS=rolling worker 1"]
    assert drive.tick(4) == []
    drive.operations.fail("no room", 0, 0)
    assert drive.tick(5) == ["READY=1", "STATUS=up; reload 1 failed: no room"]
    assert drive.tick(6) == []


def test_a_reload_within_one_turn_has_a_beginning_too() -> None:
    drive = Drive()
    drive.begin()
    drive.operations.done("in place: nothing", 0, 0)
    assert drive.tick(2) == ["RELOADING at 2", "READY=1", "STATUS=up; reload 1 done: in place: nothing"]
    assert drive.tick(3) == []


def test_one_after_the_other_is_one_reload_to_who_waits() -> None:
    drive = Drive()
    drive.begin()
    drive.tick(2)
    drive.operations.done("", 0, 0)
    drive.begin()
    drive.operations.step("again")
    assert drive.tick(3) == ["STATUS=again"]


def test_who_asked_by_a_signal_in_vain_is_answered() -> None:
    drive = Drive()
    drive.herald.refused(3, "line 2: not a setting")
    assert drive.manager.take() == ["RELOADING at 3", "READY=1", "STATUS=line 2: not a setting"]
    drive.begin()
    drive.tick(4)
    # The running one's end is the end for both.
    drive.herald.refused(5, "line 2: not a setting")
    assert drive.manager.take() == []


def test_before_it_is_ready_nobody_waits_for_a_reload() -> None:
    drive = Drive(phase=Phase.BOOTING)
    drive.manager.take()
    drive.herald.refused(1, "still starting")
    assert drive.manager.take() == []


@pytest.mark.parametrize("running", [False, True])
def test_stopping_is_told_once_whatever_runs(running: bool) -> None:
    drive = Drive()
    if running:
        drive.begin()
        drive.tick(1)
    drive.engine.phase = Phase.STOPPING
    told = drive.tick(2)
    drive.operations.fail_all("the engine stops", 0, 0)
    drive.engine.phase = Phase.ENDED
    told += drive.tick(3)
    assert [line for line in told if not line.startswith("STATUS=")] == ["STOPPING=1"]


def test_the_watchdog_is_fed_in_time_while_all_loops_turn() -> None:
    drive = Drive(watchdog_s=15)
    assert [now for now in range(60) if "WATCHDOG=1" in drive.tick(now)] == [15, 30, 45]


def test_the_watchdog_is_not_fed_while_a_worker_is_silent() -> None:
    drive = Drive(watchdog_s=1)
    drive.engine.silent_s = 5.1
    assert not [now for now in range(1, 10) if drive.tick(now)]
    drive.engine.silent_s = 0.2
    assert drive.tick(10) == ["WATCHDOG=1"]


def test_nobody_is_fed_who_does_not_wait() -> None:
    drive = Drive()
    assert not [now for now in range(100) if drive.tick(now)]
