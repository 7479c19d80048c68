"""What the master decides, at made-up times, without a process."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd.master import slots
from refreshd.master.processes import IllegalTransition, Seat, State, Timing
from refreshd.master.slots import Action, Kill, Phase, Spawn, Supervisor, TellStop, Up

TIMING = Timing()
VERSION = 2


class Drive:
    """Does what a Supervisor decides in the simplest way, and moves its clock."""

    def __init__(self, workers: int = 2, timing: Timing = TIMING) -> None:
        self.supervisor = Supervisor(workers, timing)
        self.now = 1000.0
        self.pid = 100
        self.beats = {Seat(number): 0.0 for number in range(workers)}
        self.said: list[Action] = []
        self.do(self.supervisor.start())

    def do(self, actions: list[Action]) -> list[Action]:
        self.said += actions
        for action in actions:
            if isinstance(action, Spawn):
                self.pid += 1
                self.supervisor.spawned(action.seat, self.pid, action.generation, self.now)
        return actions

    def ready(self, *numbers: int) -> "Drive":
        for number in numbers:
            self.beats[Seat(number)] = self.now
            self.do(self.supervisor.ready(Seat(number), VERSION, self.now))
        return self

    def die(self, number: int, how: str = "exit status 1", *, by_others: bool = False) -> list[Action]:
        return self.do(self.supervisor.exited(Seat(number), how, by_others=by_others, now=self.now))

    def wait(self, seconds: float, *, beating: bool = True) -> list[Action]:
        """Lets time pass as the master's loop does: never more than is due, nor than a second."""
        actions: list[Action] = []
        end = self.now + seconds
        while True:
            actions += self.do(self.supervisor.tick(self.now, self.beats.__getitem__))
            if self.now >= end:
                return actions
            self.now = min(end, self.now + max(0.01, self.supervisor.next_due_s(self.now)))
            if beating:
                self.beats = dict.fromkeys(self.beats, self.now)

    def states(self) -> list[State]:
        return [slot.state for slot in self.supervisor.slots]

    def respawn_after_s(self, number: int) -> float:
        """How long it takes from now to the next process of the slot; passes that time."""
        slot = self.supervisor.slots[number]
        if slot.state is not State.WAITING:
            return 0.0
        delay_s = slot.start_at - self.now
        self.now += delay_s
        self.do(self.supervisor.tick(self.now, self.beats.__getitem__))
        assert slot.processes
        return round(delay_s, 6)


# Boot


def test_all_slots_are_started_and_up_is_told_once() -> None:
    drive = Drive(3)
    assert drive.said == [Spawn(Seat(0), 1), Spawn(Seat(1), 1), Spawn(Seat(2), 1)]
    drive.ready(2, 0)
    assert drive.supervisor.phase is Phase.BOOTING
    drive.ready(1)
    assert drive.said[3:] == [Up()]
    drive.die(1)
    drive.ready(1)
    assert drive.said.count(Up()) == 1


def test_who_fails_to_boot_ends_the_engine_and_the_reason_is_kept() -> None:
    drive = Drive(3).ready(0)
    drive.supervisor.ending(Seat(1), "the store is damaged", drive.now)
    actions = drive.die(1)
    assert drive.supervisor.boot_fault == "worker 1 could not start: the store is damaged"
    # Who serves is asked, who starts is not.
    assert actions == [TellStop(Seat(0), 0.0), Kill(Seat(2), "stopped while it started")]
    drive.die(0)
    assert drive.supervisor.phase is Phase.STOPPING
    drive.die(2)
    assert drive.supervisor.phase is Phase.ENDED


def test_an_exit_before_ready_is_a_boot_failure() -> None:
    drive = Drive(1)
    assert drive.die(0, "exit status 5") == []
    assert drive.supervisor.boot_fault == "worker 0 could not start: exit status 5"
    assert drive.supervisor.phase is Phase.ENDED


def test_no_process_at_boot_is_a_boot_failure() -> None:
    supervisor = Supervisor(1, TIMING)
    supervisor.start()
    assert supervisor.spawn_failed(Seat(0), "out of memory", 0.0) == []
    assert supervisor.boot_fault == "worker 0 could not start: out of memory"
    assert supervisor.phase is Phase.ENDED


def test_somebody_who_kills_at_boot_says_nothing_about_the_code() -> None:
    drive = Drive(1)
    for _ in range(slots.BOOT_KILLS_MAX):
        drive.die(0, "killed by SIGKILL", by_others=True)
        drive.respawn_after_s(0)
    assert drive.supervisor.boot_fault is None
    drive.die(0, "killed by SIGKILL", by_others=True)
    assert drive.supervisor.boot_fault == "worker 0 could not start: killed by SIGKILL"


def test_a_worker_that_was_ready_is_replaced_even_before_the_engine_is_up() -> None:
    drive = Drive(2).ready(0)
    assert drive.die(0) == [Spawn(Seat(0), 2)]
    drive.supervisor.ending(Seat(0), "now it fails", drive.now)
    drive.die(0)
    assert drive.supervisor.boot_fault is None
    drive.respawn_after_s(0)
    drive.ready(0, 1)
    assert drive.said[-1] == Up()


def test_who_never_becomes_ready_is_killed_and_that_is_a_boot_failure() -> None:
    drive = Drive(1)
    assert drive.wait(TIMING.start_timeout_s - 1) == []
    (kill,) = drive.wait(1)
    assert kill == Kill(Seat(0), "not ready 600 s after its start")
    drive.die(0, "killed by SIGKILL", by_others=True)
    assert drive.supervisor.boot_fault == "worker 0 could not start: not ready 600 s after its start"


# Deaths


def test_the_first_death_is_answered_at_once_with_a_generation_of_its_own() -> None:
    drive = Drive(2).ready(0, 1)
    assert drive.die(1, by_others=True) == [Spawn(Seat(1), 2)]
    assert drive.die(0, by_others=True) == [Spawn(Seat(0), 3)]
    assert [slot.restarts for slot in drive.supervisor.slots] == [1, 1]


def test_what_cannot_even_start_backs_off_to_the_longest() -> None:
    drive = Drive(1).ready(0)
    delays = []
    for _ in range(9):
        drive.die(0)
        delays.append(drive.respawn_after_s(0))
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    for _ in range(2000):
        drive.die(0)
        drive.respawn_after_s(0)
    assert drive.supervisor.slots[0].restarts == 2009


def test_what_dies_after_it_was_ready_is_back_within_a_second_however_often() -> None:
    drive = Drive(1).ready(0)
    delays = []
    for _ in range(8):
        drive.die(0)
        delays.append(drive.respawn_after_s(0))
        drive.ready(0)
    assert delays == [0, 0.1, 0.2, 0.4, 0.4, 0.4, 0.4, 0.4]


def test_health_ends_the_backoff() -> None:
    drive = Drive(1).ready(0)
    for _ in range(5):
        drive.die(0)
        drive.respawn_after_s(0)
    drive.ready(0).wait(TIMING.healthy_s)
    assert drive.die(0) != []


def test_no_process_for_a_slot_that_served_is_tried_again() -> None:
    drive = Drive(1).ready(0)
    drive.supervisor.exited(Seat(0), "", by_others=True, now=drive.now)
    assert drive.supervisor.spawn_failed(Seat(0), "out of memory", drive.now) == []
    assert drive.supervisor.boot_fault is None
    assert drive.respawn_after_s(0) > 0
    assert drive.states() == [State.STARTING]


# Silence


def test_the_silent_are_killed_and_replaced() -> None:
    drive = Drive(2).ready(0, 1)
    assert drive.wait(100) == []
    drive.wait(TIMING.heartbeat_timeout_s, beating=False)
    assert Kill(Seat(0), "silent for 10.0 s") not in drive.said
    actions = drive.wait(1.1, beating=False)
    assert [type(action) for action in actions] == [Kill, Kill]
    assert drive.states() == [State.KILLED, State.KILLED]
    assert drive.die(0, "killed by SIGKILL", by_others=True) == [Spawn(Seat(0), 2)]


def test_the_longest_silence_of_who_serves_is_known() -> None:
    drive = Drive().ready(0, 1)
    drive.wait(3.0, beating=False)
    drive.beats[Seat(0)] = drive.now
    drive.supervisor.tick(drive.now, drive.beats.__getitem__)
    assert drive.supervisor.silent_s == 3.0
    drive.die(1)
    drive.supervisor.tick(drive.now, drive.beats.__getitem__)
    assert drive.supervisor.silent_s == 0.0


def test_who_starts_need_not_beat() -> None:
    drive = Drive(1)
    assert drive.wait(TIMING.start_timeout_s / 2, beating=False) == []


def test_a_pause_of_the_master_itself_is_nobodys_silence() -> None:
    drive = Drive(1).ready(0)
    drive.wait(5)
    drive.now += 3600
    assert drive.wait(TIMING.heartbeat_timeout_s - 1, beating=False) == []
    assert drive.wait(2, beating=False) != []


def test_a_kill_is_sent_once() -> None:
    drive = Drive(1).ready(0)
    drive.wait(100, beating=False)
    assert len([action for action in drive.said if isinstance(action, Kill)]) == 1


# The end of a process


@pytest.mark.parametrize("was_ready", [True, False])
def test_who_says_it_ends_and_does_not_is_killed(was_ready: bool) -> None:
    drive = Drive(1)
    if was_ready:
        drive.ready(0)
    drive.supervisor.ending(Seat(0), "a sync failed", drive.now)
    assert drive.wait(TIMING.end_timeout_s - 0.1) == []
    assert drive.wait(0.2) == [Kill(Seat(0), "did not end: a sync failed")]


def test_the_first_reason_and_the_earliest_deadline_count() -> None:
    drive = Drive(1).ready(0)
    drive.supervisor.ending(Seat(0), "a sync failed", drive.now, 9.0)
    drive.supervisor.ending(Seat(0), "and so on", drive.now, 99.0)
    drive.supervisor.lost(Seat(0), drive.now)
    assert drive.supervisor.at(Seat(0)).why == "a sync failed"
    assert drive.wait(TIMING.end_timeout_s) == [Kill(Seat(0), "its control socket is closed")]


def test_a_closed_control_socket_does_not_hide_how_a_process_ended() -> None:
    drive = Drive(1)
    drive.supervisor.lost(Seat(0), drive.now)
    drive.die(0, "exit status 5")
    assert drive.supervisor.boot_fault == "worker 0 could not start: exit status 5"


def test_late_words_of_the_dying_change_nothing() -> None:
    drive = Drive(2).ready(0, 1)
    drive.supervisor.kill(Seat(0), "does not read")
    drive.supervisor.ending(Seat(1), "leaves", drive.now)
    for number in (0, 1):
        assert drive.supervisor.ready(Seat(number), VERSION, drive.now) == []
        drive.supervisor.ending(Seat(number), "late", drive.now)
    assert drive.states() == [State.KILLED, State.STOPPING]


def test_what_makes_no_sense_raises() -> None:
    drive = Drive(2).ready(0)
    with pytest.raises(IllegalTransition, match="ready while ready"):
        drive.supervisor.ready(Seat(0), VERSION, drive.now)
    with pytest.raises(IllegalTransition, match="spawned while starting"):
        drive.supervisor.spawned(Seat(1), 1, 1, drive.now)
    drive.die(0)
    drive.die(0)
    with pytest.raises(IllegalTransition, match="nobody is at"):
        drive.die(0)


# Stopping


def test_a_graceful_stop_asks_and_kills_who_is_left_at_the_deadline() -> None:
    drive = Drive(3).ready(0, 1)
    assert drive.do(drive.supervisor.stop(drive.now, 5.0)) == [
        TellStop(Seat(0), 4.0),
        TellStop(Seat(1), 4.0),
        Kill(Seat(2), "stopped while it started"),
    ]
    assert drive.die(2) == []
    assert drive.die(0) == []
    assert drive.wait(4.9) == []
    assert drive.wait(0.1) == [Kill(Seat(1), "not gone at the deadline")]
    assert drive.supervisor.phase is Phase.STOPPING
    drive.die(1)
    assert drive.supervisor.phase is Phase.ENDED


def test_a_fast_stop_shortens_a_graceful_one_and_a_second_one_kills() -> None:
    drive = Drive(1).ready(0)
    drive.do(drive.supervisor.stop(drive.now, 60.0))
    assert drive.do(drive.supervisor.stop_fast(drive.now)) == [TellStop(Seat(0), 0.0)]
    assert drive.do(drive.supervisor.stop_now(drive.now)) == [Kill(Seat(0), "told to be gone")]
    assert drive.wait(100) == []


def test_nothing_is_started_once_it_stops() -> None:
    drive = Drive(2).ready(0, 1)
    drive.die(0)
    drive.die(0)
    assert drive.states()[0] is State.WAITING
    drive.do(drive.supervisor.stop(drive.now, 5.0))
    drive.die(1)
    assert drive.supervisor.phase is Phase.ENDED
    assert drive.wait(20) == []
    assert drive.supervisor.stop(drive.now, 5.0) == []


def test_a_stop_with_nobody_there_is_the_end() -> None:
    drive = Drive(1).ready(0)
    drive.die(0)
    drive.die(0)
    assert drive.supervisor.stop(drive.now, 5.0) == []
    assert drive.supervisor.phase is Phase.ENDED


def test_the_loop_sleeps_until_something_is_due_but_looks_around() -> None:
    drive = Drive(1, Timing(heartbeat_timeout_s=2.0)).ready(0)
    assert drive.supervisor.next_due_s(drive.now) == 0.5
    drive.supervisor.ending(Seat(0), "", drive.now, 0.25)
    assert drive.supervisor.next_due_s(drive.now) == 0.25
    assert drive.supervisor.next_due_s(drive.now + 9) == 0


# Whatever happens, in any order


class AnyOrder(RuleBasedStateMachine):
    """Processes live, speak and die in any order; the world follows the actions to the letter."""

    def __init__(self) -> None:
        super().__init__()
        self.drive = Drive(3)

    @property
    def slots(self) -> list[slots.Slot]:
        return self.drive.supervisor.slots

    @rule(number=st.integers(0, 2))
    def become_ready(self, number: int) -> None:
        if self.slots[number].state is State.STARTING:
            self.drive.ready(number)

    @rule(number=st.integers(0, 2), by_others=st.booleans())
    def die(self, number: int, by_others: bool) -> None:
        if self.slots[number].processes:
            self.drive.die(number, by_others=by_others)

    @rule(number=st.integers(0, 2))
    def say_it_ends(self, number: int) -> None:
        if self.slots[number].processes:
            self.drive.supervisor.ending(Seat(number), "it ends", self.drive.now)

    @rule(number=st.integers(0, 2))
    def close_control(self, number: int) -> None:
        if self.slots[number].processes:
            self.drive.supervisor.lost(Seat(number), self.drive.now)

    @rule(number=st.integers(0, 2))
    def misbehave(self, number: int) -> None:
        if self.slots[number].processes:
            self.drive.do(self.drive.supervisor.kill(Seat(number), "it babbles"))

    @rule(seconds=st.floats(0, 30), beating=st.booleans())
    def wait(self, seconds: float, beating: bool) -> None:
        self.drive.wait(seconds, beating=beating)

    @rule(deadline_s=st.floats(0, 20))
    @precondition(lambda self: self.drive.supervisor.phase is Phase.UP)
    def stop(self, deadline_s: float) -> None:
        self.drive.do(self.drive.supervisor.stop(self.drive.now, deadline_s))

    @rule()
    @precondition(lambda self: self.drive.supervisor.phase is Phase.STOPPING)
    def stop_more(self) -> None:
        self.drive.do(self.drive.supervisor.stop_fast(self.drive.now))

    @invariant()
    def who_waits_will_be_started_and_who_must_go_will_be_killed(self) -> None:
        supervisor = self.drive.supervisor
        for slot in self.slots:
            if slot.state is State.WAITING and supervisor.phase in (Phase.BOOTING, Phase.UP):
                assert slot.start_at <= self.drive.now + TIMING.backoff_max_s
            if slot.process is not None and slot.state in (State.STARTING, State.STOPPING):
                assert slot.process.kill_at < math.inf
            assert bool(slot.processes) == (slot.pid != 0)

    @invariant()
    def it_ends_exactly_when_nobody_is_left(self) -> None:
        supervisor = self.drive.supervisor
        nobody = not any(slot.processes for slot in self.slots)
        if supervisor.phase in (Phase.STOPPING, Phase.ENDED):
            assert (supervisor.phase is Phase.ENDED) == nobody
        if supervisor.phase is Phase.UP:
            assert supervisor.boot_fault is None


TestAnyOrder = AnyOrder.TestCase
