"""What the master decides while slots are rolled, at made-up times, without a process."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd import control
from refreshd.master.processes import IllegalTransition, Seat, State, Timing
from refreshd.master.rolls import (
    Action,
    Ended,
    HandOver,
    Introduce,
    Pin,
    Rolled,
    Rolls,
    Step,
    TellInherit,
    TellResume,
)
from refreshd.master.slots import Kill, Phase, Spawn, Supervisor, TellStop

TIMING = Timing()
OLD, NEW = Seat(0, 0), Seat(0, 1)
OTHER = Seat(1, 0)
# What a process may be told once its partner has been reaped.
AFTER_A_DEATH = (TellResume, TellInherit)


class World:
    """Does what is decided in the simplest way, and moves its clock. All workers serve at first."""

    def __init__(self, workers: int = 2) -> None:
        self.supervisor = Supervisor(workers, TIMING)
        self.rolls = Rolls(self.supervisor)
        self.now = 1000.0
        self.pid = 100
        self.said: list[Action] = []
        self.silent: set[Seat] = set()
        self.do([*self.supervisor.start()])
        for slot in range(workers):
            self.ready(Seat(slot))
        self.said.clear()

    def do(self, actions: list[Action]) -> list[Action]:
        self.said += actions
        for action in actions:
            match action:
                case Spawn(seat, generation, standby):
                    beside = self.supervisor.slots[seat.slot].processes
                    assert len(beside) == (1 if standby else 0), "nobody writes for a shard of another"
                    self.pid += 1
                    self.silent.discard(seat)
                    self.supervisor.spawned(seat, self.pid, generation, self.now)
                case TellResume(seat) | TellInherit(seat):
                    assert seat.other.side not in self.supervisor.slots[seat.slot].processes
                    assert self.supervisor.slots[seat.slot].seat == seat
                case Introduce(seat):
                    assert self.supervisor.slots[seat.slot].seat == seat
        return actions

    def roll(self, *slots: int) -> "World":
        self.do(self.rolls.start(list(slots), self.now))
        return self

    def ready(self, seat: Seat, version: int = control.VERSION) -> list[Action]:
        return self.do(self.rolls.ready(seat, version, self.now))

    def given(self, seat: Seat = OLD) -> list[Action]:
        return self.do(self.rolls.given(seat, self.now))

    def moved(self, seat: Seat = OLD) -> list[Action]:
        return self.do(self.rolls.moved(seat, self.now))

    def declined(self, seat: Seat = OLD, why: str = "the store does not answer") -> list[Action]:
        return self.do(self.rolls.declined(seat, why, self.now))

    def resumed(self, seat: Seat) -> list[Action]:
        return self.do(self.rolls.resumed(seat, self.now))

    def die(self, seat: Seat, how: str = "killed by SIGKILL") -> list[Action]:
        return self.do(self.rolls.exited(seat, how, by_others=True, now=self.now))

    def wait(self, seconds: float) -> list[Action]:
        actions: list[Action] = []
        end = self.now + seconds
        while True:
            actions += self.do([*self.supervisor.tick(self.now, self.beat_of)])
            actions += self.do(self.rolls.tick(self.now))
            if self.now >= end:
                return actions
            self.now = min(end, self.now + max(0.01, self.supervisor.next_due_s(self.now)))

    def beat_of(self, seat: Seat) -> float:
        return 0.0 if seat in self.silent else self.now

    def moving(self) -> "World":
        self.roll(0).ready(NEW)
        return self

    def connecting(self) -> "World":
        self.moving().given()
        return self

    def ending(self) -> "World":
        self.connecting().moved()
        return self

    @property
    def step(self) -> Step | None:
        return self.rolls.roll.step if self.rolls.roll else None

    @property
    def outcome(self) -> Ended:
        (ended,) = (action for action in self.said if isinstance(action, Ended))
        return ended

    def in_charge(self, slot: int = 0) -> tuple[Seat, State]:
        return self.supervisor.slots[slot].seat, self.supervisor.slots[slot].state


# As it should be


def test_a_slot_is_rolled_step_by_step() -> None:
    world = World()
    assert world.do(world.rolls.start([0], world.now)) == [Spawn(NEW, 2, standby=True)]
    assert world.in_charge() == (OLD, State.READY)
    assert world.ready(NEW) == [HandOver(OLD, NEW)]
    assert world.in_charge() == (OLD, State.READY)
    assert world.given() == [Introduce(NEW, succeeds=True)]
    assert world.in_charge() == (NEW, State.READY)
    assert world.moved() == [TellStop(OLD, 0.0)]
    world.now += 0.25
    assert world.die(OLD, "exit status 0") == [Pin(NEW), Rolled(NEW, 250), Ended((0,), None, "")]
    assert world.supervisor.slots[0].restarts == 0
    assert world.rolls.roll is None


def test_slots_are_rolled_in_order_and_again_from_the_other_side() -> None:
    world = World()
    world.roll(0, 1).ready(NEW)
    world.given()
    world.moved()
    assert world.die(OLD, "exit status 0")[-1] == Spawn(Seat(1, 1), 3, standby=True)
    world.ready(Seat(1, 1))
    world.given(OTHER)
    world.moved(OTHER)
    assert world.die(OTHER, "exit status 0")[-1] == Ended((0, 1), None, "")
    world.roll(0)
    assert world.said[-1] == Spawn(OLD, 4, standby=True)


def test_a_second_roll_meanwhile_makes_no_sense() -> None:
    world = World().roll(0)
    with pytest.raises(IllegalTransition, match="a roll begins while there is <Roll of 0 boot"):
        world.rolls.start([1], world.now)


def test_a_slot_whose_worker_has_just_died_is_rolled_once_the_next_one_serves() -> None:
    world = World()
    world.die(OLD)
    assert world.rolls.start([0], world.now) == []
    world.wait(5)
    assert world.ready(OLD) == [Spawn(NEW, 3, standby=True)]


def test_a_slot_that_does_not_serve_is_not_waited_for_forever() -> None:
    world = World()
    world.die(OLD)
    world.roll(0).wait(TIMING.roll_wait_s)
    assert world.outcome == Ended((), 0, "no worker there was ready within 30 s")


def test_a_death_in_another_slot_is_answered_as_always() -> None:
    world = World().connecting()
    assert world.die(OTHER) == [Spawn(OTHER, 3)]
    world.ready(OTHER)
    world.moved()
    world.die(OLD, "exit status 0")
    assert world.outcome.why == ""


# Versions


@pytest.mark.parametrize("version", [1, 3])
def test_a_worker_of_another_version_is_not_touched(version: int) -> None:
    world = World()
    world.supervisor.at(OLD).version = version
    world.roll(0, 1)
    assert world.said == [
        Ended(
            (),
            0,
            f"the worker with pid 101 speaks version {version} of the hand-over, the master 2; "
            "restart the engine to change between the two",
        )
    ]


def test_a_new_worker_of_another_version_goes_again() -> None:
    world = World().roll(0)
    (kill,) = world.ready(NEW, version=1)
    assert isinstance(kill, Kill)
    assert kill.seat == NEW
    world.die(NEW)
    assert world.outcome.failed == 0
    assert world.outcome.why.startswith("the worker with pid 103 speaks version 1 ")
    assert world.in_charge() == (OLD, State.READY)


# What a crash leads to: the table in docs/handover.md


def test_the_new_one_dies_in_boot() -> None:
    world = World().roll(0, 1)
    world.supervisor.ending(NEW, "the store is damaged", world.now)
    ended = Ended((), 0, "the new worker (pid 103) is gone while the new one started: the store is damaged")
    assert world.die(NEW, "exit status 1") == [ended]
    assert world.in_charge() == (OLD, State.READY)
    assert world.supervisor.slots[0].restarts == 0


def test_the_new_one_cannot_be_spawned() -> None:
    world = World()
    world.rolls.start([0, 1], world.now)
    assert world.rolls.spawn_failed(NEW, "out of memory", world.now) == [Ended((), 0, "out of memory")]
    assert world.in_charge() == (OLD, State.READY)


def test_the_new_one_never_becomes_ready() -> None:
    world = World().roll(0)
    assert world.wait(TIMING.start_timeout_s) == [Kill(NEW, "not ready 600 s after its start")]
    world.die(NEW)
    assert world.outcome.why.endswith("not ready 600 s after its start")


@pytest.mark.parametrize("given", [False, True])
def test_the_new_one_dies_in_moving_or_later(given: bool) -> None:
    world = World().connecting() if given else World().moving()
    again = [Introduce(OLD, succeeds=False)] if given else []
    assert world.die(NEW) == [TellResume(OLD), *again]
    assert world.in_charge() == (OLD, State.READY)
    assert world.resumed(OLD) == [world.outcome]
    doing = "connections" if given else "tasks"
    assert world.outcome.why == (
        f"the new worker (pid 103) is gone while {doing} were handed over: killed by SIGKILL"
    )
    assert world.supervisor.slots[0].restarts == 0


def test_the_new_one_dies_after_the_old_one_was_told_to_stop() -> None:
    world = World().ending()
    assert world.die(NEW) == [Kill(OLD, "it had handed over, and its successor is gone")]
    assert world.die(OLD) == [Spawn(NEW, 3), world.outcome]
    assert world.outcome.failed == 0
    assert world.supervisor.slots[0].restarts == 1


def test_the_old_one_dies_in_boot() -> None:
    world = World().roll(0)
    assert world.die(OLD) == [Kill(NEW, "there is nobody to take over from")]
    assert world.in_charge()[1] is State.WAITING
    assert world.wait(0.5) == []
    assert world.die(NEW) == [Spawn(OLD, 3), world.outcome]
    assert world.outcome.why.startswith("the old worker (pid 101) is gone while the new one started")


def test_the_old_one_leaves_in_boot() -> None:
    world = World().roll(0)
    world.supervisor.ending(OLD, "a sync failed", world.now)
    (kill,) = world.ready(NEW)
    assert isinstance(kill, Kill)
    assert kill.seat == NEW
    world.die(NEW)
    assert world.outcome.why == "the old worker is on its way out"
    assert world.die(OLD) == [Spawn(OLD, 3)]


@pytest.mark.parametrize("given", [False, True])
def test_the_old_one_dies_in_moving_or_later(given: bool) -> None:
    world = World().connecting() if given else World().moving()
    assert world.die(OLD) == [TellInherit(NEW), Introduce(NEW, succeeds=False), Pin(NEW)]
    assert world.in_charge() == (NEW, State.READY)
    assert world.resumed(NEW) == [world.outcome]
    assert world.outcome.why.startswith("the old worker (pid 101) is gone while ")
    assert world.supervisor.slots[0].restarts == 1
    world.roll(0)
    assert world.said[-1] == Spawn(OLD, 3, standby=True)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("who", [OLD, NEW])
def test_a_hand_over_that_is_declined_is_undone_once_the_new_one_is_reaped(given: bool, who: Seat) -> None:
    world = World().connecting() if given else World().moving()
    assert world.declined(who) == [
        Kill(NEW, "the hand-over was given up: the store does not answer"),
    ]
    assert world.wait(0.5) == []
    again = [Introduce(OLD, succeeds=False)] if given else []
    assert world.die(NEW) == [TellResume(OLD), *again]
    world.resumed(OLD)
    assert world.outcome == Ended((), 0, "the store does not answer")


def test_both_die() -> None:
    for first, second in ((OLD, NEW), (NEW, OLD)):
        for world in (World().moving(), World().connecting()):
            world.die(first)
            world.die(second)
            spawned = world.said[-2]
            assert isinstance(spawned, Spawn)
            assert not spawned.standby
            assert world.said[-1] == world.outcome
            world.ready(spawned.seat)
            assert world.in_charge() == (spawned.seat, State.READY)


def test_both_die_while_it_is_undone() -> None:
    for world in (World().moving(), World().connecting()):
        world.declined()
        assert world.die(OLD) == []
        spawned, ended = world.die(NEW)
        assert isinstance(spawned, Spawn)
        assert ended == world.outcome


# Silence and lateness


@pytest.mark.parametrize("who", [OLD, NEW])
def test_who_is_silent_is_killed_whatever_side_it_is_on(who: Seat) -> None:
    world = World().moving()
    world.silent.add(who)
    (kill,) = world.wait(TIMING.heartbeat_timeout_s + 1.1)
    assert isinstance(kill, Kill)
    assert kill.seat == who
    world.die(who)
    assert world.step is (Step.INHERITING if who == OLD else Step.RESUMING)


def test_a_hand_over_of_tasks_that_takes_too_long_is_undone() -> None:
    world = World().moving()
    (kill,) = world.wait(TIMING.handover_timeout_s)
    assert kill == Kill(NEW, "the hand-over was given up: not everything was given within 300 s")
    assert world.die(NEW) == [TellResume(OLD)]


def test_a_hand_over_of_connections_that_takes_too_long_is_cut_short() -> None:
    world = World().connecting()
    (kill,) = world.wait(TIMING.connect_timeout_s)
    assert kill == Kill(OLD, "its connections were not handed over within 60 s")
    assert world.die(OLD) == [TellInherit(NEW), Introduce(NEW, succeeds=False), Pin(NEW)]
    world.resumed(NEW)
    assert "its connections were not handed over within 60 s" in world.outcome.why


@pytest.mark.parametrize("dead", [OLD, NEW])
def test_who_takes_too_long_to_take_what_is_left_is_killed(dead: Seat) -> None:
    world = World().moving()
    world.die(dead)
    left = dead.other
    assert world.wait(TIMING.takeback_timeout_s) == [
        Kill(left, "it had not read its tasks from the store within 120 s")
    ]
    spawned, _ = world.die(left)
    assert isinstance(spawned, Spawn)


def test_an_old_one_that_does_not_end_is_killed() -> None:
    world = World().ending()
    assert world.wait(TIMING.end_timeout_s) == [Kill(OLD, "did not end after it had handed over")]
    world.die(OLD)
    assert world.outcome.why == ""


# Words out of turn


def test_late_words_change_nothing() -> None:
    world = World().moving()
    world.die(NEW)
    assert world.given() == world.moved() == world.declined() == []
    assert world.step is Step.RESUMING
    world = World().moving()
    world.supervisor.kill(NEW, "silent")
    assert world.given() == []
    assert world.in_charge() == (OLD, State.READY)


@pytest.mark.parametrize("word", ["given", "moved", "resumed", "declined"])
def test_words_without_a_roll_make_no_sense(word: str) -> None:
    world = World()
    with pytest.raises(IllegalTransition, match="worker 0 is not handing over"):
        getattr(world, word)(OLD)
    world.roll(0)
    with pytest.raises(IllegalTransition, match="from the old process while the roll is boot"):
        getattr(world, word)(OLD)
    world.ready(NEW)
    for wrong in ("given", "moved", "resumed"):
        with pytest.raises(IllegalTransition, match=f"{wrong} from the new process"):
            getattr(world, wrong)(NEW)


# Stopping


def test_a_stop_wins() -> None:
    world = World().moving()
    world.rolls.stop()
    assert world.do([*world.supervisor.stop(world.now, 10.0)]) == [
        TellStop(OLD, 8.0),
        TellStop(NEW, 8.0),
        TellStop(OTHER, 8.0),
    ]
    for seat in (OLD, NEW, OTHER):
        assert world.die(seat, "exit status 0") == []
    assert world.supervisor.phase is Phase.ENDED


def test_a_stop_kills_who_only_starts() -> None:
    world = World().roll(0)
    world.rolls.stop()
    assert Kill(NEW, "stopped while it started") in world.supervisor.stop(world.now, 10.0)


# Whatever happens, in any order


class AnyOrder(RuleBasedStateMachine):
    """Processes speak, fall silent and die in any order while slots are rolled again and again."""

    seats = st.builds(Seat, st.integers(0, 1), st.integers(0, 1))

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def lives(self, seat: Seat) -> bool:
        return seat.side in self.world.supervisor.slots[seat.slot].processes

    @rule(numbers=st.permutations([0, 1]))
    @precondition(lambda self: self.world.rolls.roll is None)
    def start(self, numbers: list[int]) -> None:
        self.world.roll(*numbers)

    @rule(seat=seats, word=st.sampled_from(["ready", "given", "moved", "declined", "resumed"]))
    def speak(self, seat: Seat, word: str) -> None:
        if not self.lives(seat):
            return
        try:
            getattr(self.world, word)(seat)
        except IllegalTransition:
            self.world.do([*self.world.supervisor.kill(seat, "spoke out of turn")])

    @rule()
    @precondition(lambda self: self.world.rolls.roll is not None)
    def go_on(self) -> None:
        """What a worker would say next; words at random hardly ever get far."""
        roll = self.world.rolls.roll
        assert roll is not None
        words = {Step.BOOT: ("ready", roll.new), Step.MOVING: ("given", roll.old)}
        words[Step.CONNECTING] = ("moved", roll.old)
        word, seat = words.get(roll.step, ("", roll.old))
        if word and self.lives(seat):
            self.speak(seat, word)

    @rule(seat=seats)
    def die(self, seat: Seat) -> None:
        if self.lives(seat):
            self.world.die(seat)

    @rule(seat=seats)
    def say_it_ends(self, seat: Seat) -> None:
        if self.lives(seat):
            self.world.supervisor.ending(seat, "it ends", self.world.now)

    @rule(seat=seats)
    def fall_silent(self, seat: Seat) -> None:
        self.world.silent.add(seat)

    @rule(seconds=st.floats(0, 200))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def two_only_during_a_roll(self) -> None:
        roll = self.world.rolls.roll
        for slot in self.world.supervisor.slots:
            most = 2 if roll is not None and roll.number == slot.number else 1
            assert len(slot.processes) <= most

    @invariant()
    def every_slot_is_served_or_will_be(self) -> None:
        for slot in self.world.supervisor.slots:
            if not slot.processes:
                assert slot.start_at <= self.world.now + TIMING.backoff_max_s

    def teardown(self) -> None:
        """Whatever state it is in: the killed die, nobody says a word, and it comes to an end."""
        world = self.world
        for _ in range(20):
            for process in list(world.supervisor.processes()):
                if process.state is State.KILLED:
                    world.die(process.seat)
            world.wait(100)
        assert world.rolls.roll is None


TestAnyOrder = AnyOrder.TestCase
