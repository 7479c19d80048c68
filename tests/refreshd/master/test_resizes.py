"""What the master decides while the number of workers changes, at made-up times, without a process."""

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd import control
from refreshd.control import Left, Remap, Retire, Route
from refreshd.master.processes import IllegalTransition, Seat, State, Timing
from refreshd.master.resizes import Action, Doing, Over, Resizes, Settled, Step, Tell
from refreshd.master.rolls import Pin
from refreshd.master.slots import Kill, Part, Phase, Spawn, Supervisor, TellStop

TIMING = Timing()
FIRST, SECOND, THIRD, FOURTH = (Seat(number) for number in range(4))


class World:
    """Does what is decided in the simplest way, and moves its clock. All workers serve at first."""

    def __init__(self, workers: int = 2) -> None:
        self.supervisor = Supervisor(workers, TIMING)
        self.resizes = Resizes(self.supervisor)
        self.now = 1000.0
        self.pid = 100
        self.said: list[Action] = []
        self.silent: set[Seat] = set()
        self.settled = workers
        self.owners: set[int] = set()
        """Pids of those between whom shards are, if they are."""
        self.do([*self.supervisor.start()])
        for slot in range(workers):
            self.supervisor.ready(Seat(slot), control.VERSION, self.now)
        self.said.clear()

    def do(self, actions: list[Action]) -> list[Action]:
        """Returns what is more than words for people."""
        actions = [action for action in actions if not isinstance(action, Doing)]
        self.said += actions
        for action in actions:
            match action:
                case Spawn(seat, generation, standby):
                    assert not standby
                    assert not self.owners & {process.pid for process in self.supervisor.processes()}
                    self.owners.clear()
                    if self.supervisor.wants(seat):
                        self.pid += 1
                        self.silent.discard(seat)
                        self.supervisor.spawned(seat, self.pid, generation, self.now)
                case Tell(seat, message):
                    assert self.supervisor.at(seat)
                    if isinstance(message, Remap | Route):
                        self.owners = {process.pid for process in self.supervisor.processes()}
                case Settled(workers):
                    self.settled = workers
                    self.owners.clear()
        return actions

    def resize(self, workers: int) -> "World":
        self.do(self.resizes.start(workers, self.now))
        return self

    def say(self, word: str, *seats: Seat) -> list[Action]:
        """The workers in these seats say it, one after the other."""
        more = {"ready": [control.VERSION], "declined": ["the store does not answer"]}.get(word, [])
        said: list[Action] = []
        for seat in seats:
            heard: list[Action]
            if self.resizes.resize is None and word == "ready":
                heard = [*self.supervisor.ready(seat, control.VERSION, self.now)]
            else:
                heard = getattr(self.resizes, word)(seat, *more, self.now)
            said += self.do(heard)
        return said

    def die(self, seat: Seat, how: str = "killed by SIGKILL") -> list[Action]:
        told = self.supervisor if self.resizes.resize is None else self.resizes
        return self.do([*told.exited(seat, how, by_others=True, now=self.now)])

    def wait(self, seconds: float) -> list[Action]:
        actions: list[Action] = []
        end = self.now + seconds
        while True:
            actions += self.do([*self.supervisor.tick(self.now, self.beat_of)])
            actions += self.do(self.resizes.tick(self.now))
            if self.now >= end:
                return actions
            self.now = min(end, self.now + max(0.01, self.supervisor.next_due_s(self.now)))

    def beat_of(self, seat: Seat) -> float:
        return 0.0 if seat in self.silent else self.now

    @property
    def step(self) -> Step | None:
        return self.resizes.resize.step if self.resizes.resize else None

    @property
    def over(self) -> Over:
        (over,) = (action for action in self.said if isinstance(action, Over))
        return over

    @property
    def parts(self) -> list[Part]:
        return [slot.part for slot in self.supervisor.slots]

    def tellings(self, message: control.Message, *seats: Seat) -> list[Action]:
        return [Tell(seat, message) for seat in seats]

    # On the way

    def growing(self) -> "World":
        """Two become four."""
        return self.resize(4)

    def remapping(self) -> "World":
        self.growing().say("ready", THIRD, FOURTH)
        return self

    def routing(self) -> "World":
        self.remapping().say("remapped", FIRST, SECOND, THIRD, FOURTH)
        return self

    def retiring(self) -> "World":
        """Of these one serves on."""
        all_of_them = [slot.seat for slot in self.supervisor.slots]
        self.resize(1).say("remapped", *all_of_them)
        self.say("routed", *all_of_them)
        return self


# As it should be


def test_more_workers_step_by_step() -> None:
    world = World()
    assert world.do(world.resizes.start(4, world.now)) == [Spawn(THIRD, 2), Spawn(FOURTH, 3)]
    assert world.parts == [Part.STAYS, Part.STAYS, Part.COMES, Part.COMES]
    assert world.say("ready", THIRD) == []
    everybody = (FIRST, SECOND, THIRD, FOURTH)
    assert world.say("ready", FOURTH) == [Pin(THIRD), Pin(FOURTH), *world.tellings(Remap(4), *everybody)]
    assert world.parts == [Part.STAYS] * 4
    assert world.say("remapped", FOURTH, SECOND, THIRD) == []
    assert world.say("remapped", FIRST) == world.tellings(Route(4), *everybody)
    assert world.settled == 2
    assert world.say("routed", SECOND, FOURTH, THIRD) == []
    assert world.say("routed", FIRST) == [Settled(4), Over(2, 4, "", ())]
    assert world.resizes.resize is None
    assert [slot.restarts for slot in world.supervisor.slots] == [0] * 4


def test_fewer_workers_step_by_step() -> None:
    world = World(3)
    everybody = (FIRST, SECOND, THIRD)
    assert world.do(world.resizes.start(1, world.now))[1:] == world.tellings(Remap(1), *everybody)[1:]
    assert world.say("remapped", *everybody) == world.tellings(Route(1), *everybody)
    told = world.say("routed", *everybody)
    assert told == [Settled(1), *world.tellings(Retire(1), SECOND, THIRD)]
    assert world.parts == [Part.STAYS, Part.GOES, Part.GOES]
    assert world.say("moved", SECOND) == [TellStop(SECOND, 0.0)]
    assert world.die(SECOND, "exit status 0") == world.tellings(Left(1), FIRST, THIRD)
    assert world.say("moved", THIRD) == [TellStop(THIRD, 0.0)]
    assert world.die(THIRD, "exit status 0") == [*world.tellings(Left(2), FIRST), Over(3, 1, "", ())]
    assert len(world.supervisor.slots) == 1
    assert world.die(FIRST) == [Spawn(FIRST, 2)]


def test_people_are_told_what_is_done() -> None:
    world = World(1)
    said = world.resizes.start(2, world.now)
    assert said[0] == Doing("1 → 2 workers: growing")
    world.do(said)
    assert world.resizes.ready(SECOND, control.VERSION, world.now)[0] == Doing("1 → 2 workers: remapping")


def test_the_number_can_change_again_and_again() -> None:
    world = World(1)
    for number in (3, 1, 2):
        before = {slot.seat for slot in world.supervisor.slots}
        world.resize(number)
        seats = [slot.seat for slot in world.supervisor.slots]
        world.say("ready", *(seat for seat in seats if seat not in before))
        for word in ("remapped", "routed"):
            world.say(word, *seats)
        for seat in seats[number:]:
            world.say("moved", seat)
            world.die(seat, "exit status 0")
        assert (len(world.supervisor.slots), world.settled, world.step) == (number, number, None)
    assert not [action for action in world.said if isinstance(action, Over) and action.failed]


def test_a_second_change_meanwhile_makes_no_sense() -> None:
    world = World().resize(3)
    with pytest.raises(IllegalTransition, match="while there is <Resize 2 → 3 growing"):
        world.resizes.start(4, world.now)


# GROWING


def test_who_is_just_being_replaced_is_waited_for() -> None:
    world = World()
    world.die(FIRST)
    assert world.do(world.resizes.start(3, world.now)) == [Spawn(THIRD, 3)]
    assert world.say("ready", THIRD) == []
    assert world.say("ready", FIRST) == [Pin(THIRD), *world.tellings(Remap(3), FIRST, SECOND, THIRD)]


def test_who_serves_and_dies_while_new_ones_start_is_replaced_as_always() -> None:
    world = World().growing()
    world.say("ready", THIRD)
    assert world.die(SECOND) == [Spawn(SECOND, 4)]
    assert world.say("ready", FOURTH) == []
    assert world.say("ready", SECOND)[2] == Tell(FIRST, Remap(4))


def test_a_new_one_that_does_not_start_takes_the_others_with_it() -> None:
    world = World().growing()
    world.say("ready", THIRD)
    world.supervisor.ending(FOURTH, "the store is damaged", world.now)
    assert world.die(FOURTH, "exit status 1") == [
        Tell(THIRD, Retire(2)),
        *world.tellings(Left(3), FIRST, SECOND, THIRD),
    ]
    assert world.step is Step.RETREATING
    assert world.say("moved", THIRD) == [TellStop(THIRD, 0.0)]
    left, left_too, over = world.die(THIRD, "exit status 0")
    assert [left, left_too] == world.tellings(Left(2), FIRST, SECOND)
    why = "worker 3 (pid 104) is gone while the new workers started: the store is damaged"
    assert over == Over(2, 4, why, ())
    assert (len(world.supervisor.slots), world.settled) == (2, 2)


def test_a_new_one_that_dies_as_the_first_takes_those_that_only_start_with_it() -> None:
    world = World().growing()
    kill, *left = world.die(FOURTH, "exit status 5")
    assert kill == Kill(THIRD, "there are to be 2 workers only")
    assert left == world.tellings(Left(3), FIRST, SECOND, THIRD)
    world.die(THIRD)
    assert world.over.failed.endswith("exit status 5")
    assert world.over.losses == ()


def test_no_process_for_a_new_one_means_none_for_those_behind_it() -> None:
    world = World()
    world.resizes.start(4, world.now)
    assert world.do(world.resizes.spawn_failed(THIRD, "no memory", world.now)) == [
        Over(2, 4, "worker 2 could not be started: no memory", ())
    ]
    assert not world.supervisor.wants(FOURTH)
    world = World().growing()
    assert world.say("ready", THIRD) == []


def test_no_process_for_a_slot_that_stays_is_tried_again() -> None:
    world = World().growing()
    world.die(FIRST)
    del world.supervisor.slots[0].processes[0]
    assert world.do(world.resizes.spawn_failed(FIRST, "no memory", world.now)) == []
    assert world.step is Step.GROWING
    assert world.supervisor.slots[0].start_at < math.inf


def test_new_ones_have_only_so_long() -> None:
    world = World().growing()
    world.say("ready", THIRD)
    kill = Kill(FOURTH, "there are to be 2 workers only")
    assert world.wait(TIMING.grow_timeout_s) == [Tell(THIRD, Retire(2)), kill]
    assert world.resizes.resize is not None
    assert world.resizes.resize.why == "not ready within 60 s: worker 3"


def test_fewer_workers_wait_for_who_is_not_ready_only_so_long() -> None:
    world = World()
    world.die(SECOND)
    assert world.do(world.resizes.start(1, world.now)) == []
    (over,) = world.wait(TIMING.grow_timeout_s)
    assert over == Over(2, 1, "not ready within 60 s: worker 1", ())
    assert world.parts == [Part.STAYS, Part.STAYS]


def test_a_worker_of_another_version_is_not_told() -> None:
    world = World()
    world.supervisor.at(SECOND).version = 1
    world.resize(1)
    assert world.over.failed.startswith("the worker with pid 102 speaks version 1 of the hand-over")
    assert world.parts == [Part.STAYS, Part.STAYS]


def test_who_came_and_cannot_go_gently_is_killed() -> None:
    world = World().growing()
    world.say("ready", THIRD)
    world.die(FOURTH)
    assert world.wait(TIMING.retire_timeout_s) == [
        Kill(THIRD, "its connections were not handed over within 60 s")
    ]
    world.die(THIRD)
    (loss,) = world.over.losses
    assert loss.startswith("worker 2 (pid 103) is gone while its connections moved: its connections were not")


# REMAPPING and ROUTING

ANEW = "; all workers were started anew, 4 by now, and connections were lost"


def check_started_anew(world: World, why: str) -> None:
    """All are killed; when the last is gone all start."""
    killed = [process.seat for process in world.supervisor.processes() if process.state is State.KILLED]
    assert killed == [process.seat for process in world.supervisor.processes()]
    assert world.wait(10) == [], "nobody starts as long as one is there"
    for seat in killed[:-1]:
        assert world.die(seat) == []
    settled, *spawned, over = world.die(killed[-1])
    assert settled == Settled(4)
    assert [spawn.seat for spawn in spawned if isinstance(spawn, Spawn)] == [FIRST, SECOND, THIRD, FOURTH]
    assert over == Over(2, 4, why + ANEW, ())
    assert world.resizes.resize is None
    world.say("ready", FIRST, SECOND, THIRD, FOURTH)
    world.wait(TIMING.healthy_s)
    assert world.die(SECOND) == [Spawn(SECOND, 8)], "an ordinary death is answered again"


@pytest.mark.parametrize(
    ("step", "doing"), [("remapping", "shards moved"), ("routing", "requests were routed anew")]
)
@pytest.mark.parametrize("dead", [FIRST, FOURTH])
def test_a_death_while_shards_are_between_owners_is_one_of_all(step: str, doing: str, dead: Seat) -> None:
    world: World = getattr(World(), step)()
    assert all(isinstance(action, Kill) for action in world.die(dead))
    check_started_anew(
        world, f"worker {dead.slot} (pid {101 + dead.slot}) is gone while {doing}: killed by SIGKILL"
    )


@pytest.mark.parametrize("step", ["remapping", "routing"])
def test_who_cannot_go_on_ends_it_for_all(step: str) -> None:
    world: World = getattr(World(), step)()
    world.say("declined", THIRD)
    check_started_anew(world, "worker 2 cannot go on: the store does not answer")


@pytest.mark.parametrize(
    ("step", "answer", "why"),
    [
        ("remapping", "remapped", "not all shards were given within 300 s: worker 1, 3"),
        ("routing", "routed", "requests were not routed anew within 30 s: worker 1, 3"),
    ],
)
def test_who_is_not_done_in_time_ends_it_for_all(step: str, answer: str, why: str) -> None:
    world: World = getattr(World(), step)()
    world.say(answer, FIRST, THIRD)
    world.wait(TIMING.remap_timeout_s if step == "remapping" else TIMING.route_timeout_s)
    check_started_anew(world, why)


def test_who_is_silent_is_killed_and_all_with_it() -> None:
    world = World().remapping()
    world.silent.add(THIRD)
    (kill,) = world.wait(TIMING.heartbeat_timeout_s + 1.1)
    assert isinstance(kill, Kill)
    assert world.step is Step.REMAPPING
    world.die(THIRD)
    assert world.step is Step.CLEARING


def test_a_death_among_fewer_leaves_the_fewer() -> None:
    world = World(3).resize(1)
    world.die(THIRD)
    world.die(FIRST)
    settled, spawn, over = world.die(SECOND)
    assert (settled, spawn) == (Settled(1), Spawn(FIRST, 2))
    assert isinstance(over, Over)
    assert len(world.supervisor.slots) == 1


def test_late_words_of_who_was_killed_change_nothing() -> None:
    world = World().remapping()
    world.die(FOURTH)
    assert world.say("remapped", FIRST) == world.say("declined", FIRST) == world.say("routed", FIRST) == []


# RETIRING


def test_who_dies_before_it_has_nothing_left_is_told_of() -> None:
    world = World(3).retiring()
    assert world.die(THIRD) == world.tellings(Left(2), FIRST, SECOND)
    world.say("moved", SECOND)
    world.die(SECOND, "exit status 0")
    why = "worker 2 (pid 103) is gone while its connections moved: killed by SIGKILL"
    assert world.over == Over(3, 1, "", (why,))


def test_who_stays_and_dies_meanwhile_is_replaced_as_always() -> None:
    world = World(2).retiring()
    assert world.die(FIRST) == [Spawn(FIRST, 2)]
    world.say("ready", FIRST)
    world.say("moved", SECOND)
    world.die(SECOND, "exit status 0")
    assert world.over == Over(2, 1, "", ())


def test_who_is_slow_to_go_is_killed() -> None:
    world = World(2).retiring()
    assert world.wait(TIMING.retire_timeout_s) == [
        Kill(SECOND, "its connections were not handed over within 60 s")
    ]
    assert world.say("moved", SECOND) == []
    world.die(SECOND)
    assert len(world.over.losses) == 1
    world = World(2).retiring()
    world.say("moved", SECOND)
    assert world.wait(TIMING.end_timeout_s) == [Kill(SECOND, "did not end after it had handed over")]
    world.die(SECOND)
    assert world.over.losses == ()


def test_only_who_was_asked_to_end_is_expected_to() -> None:
    world = World(3).retiring()
    assert not any(world.resizes.expects_the_end_of(seat) for seat in (FIRST, SECOND, THIRD))
    world.say("moved", THIRD)
    assert [world.resizes.expects_the_end_of(seat) for seat in (FIRST, SECOND, THIRD)] == [False, False, True]
    world = World().remapping()
    assert not world.resizes.expects_the_end_of(FIRST)
    world.die(SECOND)
    assert world.resizes.expects_the_end_of(FIRST)


# Words out of turn


def test_words_out_of_turn_make_no_sense() -> None:
    world = World()
    for word in ("remapped", "routed", "moved", "declined"):
        with pytest.raises(IllegalTransition, match="the number of workers is not being changed"):
            world.say(word, FIRST)
    world.growing()
    for word in ("remapped", "routed", "moved", "declined"):
        with pytest.raises(IllegalTransition, match=f"{word} while the number of workers is growing"):
            world.say(word, FIRST)
    world.say("ready", THIRD, FOURTH)
    world.say("remapped", FIRST)
    with pytest.raises(IllegalTransition, match="remapped while"):
        world.say("remapped", FIRST)
    world = World(2).retiring()
    with pytest.raises(IllegalTransition, match="moved while the number of workers is retiring"):
        world.say("moved", FIRST)


# Stopping


@pytest.mark.parametrize("step", ["growing", "remapping", "routing"])
def test_a_stop_wins(step: str) -> None:
    world: World = getattr(World(), step)()
    world.resizes.stop()
    world.do([*world.supervisor.stop(world.now, 10.0)])
    for process in list(world.supervisor.processes()):
        assert world.die(process.seat, "exit status 0") == []
    assert world.supervisor.phase is Phase.ENDED


def test_a_stop_wins_over_the_death_of_all() -> None:
    world = World().routing()
    world.die(FIRST)
    world.resizes.stop()
    world.do([*world.supervisor.stop(world.now, 10.0)])
    for seat in (SECOND, THIRD, FOURTH):
        assert world.die(seat) == []
    assert world.supervisor.phase is Phase.ENDED


# Whatever happens, in any order


class AnyOrder(RuleBasedStateMachine):
    """Workers speak, fall silent and die in any order while their number changes again and again."""

    seats = st.builds(Seat, st.integers(0, 4))
    words = ("ready", "remapped", "routed", "moved", "declined")

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    def lives(self, seat: Seat) -> bool:
        slots = self.world.supervisor.slots
        return seat.slot < len(slots) and seat.side in slots[seat.slot].processes

    @rule(number=st.integers(1, 5))
    @precondition(lambda self: self.world.resizes.resize is None)
    def start(self, number: int) -> None:
        if number != len(self.world.supervisor.slots):
            self.world.resize(number)

    @rule(seat=seats, word=st.sampled_from(words))
    def speak(self, seat: Seat, word: str) -> None:
        if not self.lives(seat):
            return
        try:
            self.world.say(word, seat)
        except IllegalTransition:
            self.world.do([*self.world.supervisor.kill(seat, "spoke out of turn")])

    @rule()
    def go_on(self) -> None:
        """What workers would say next; words at random hardly ever get far."""
        word = {
            Step.REMAPPING: "remapped",
            Step.ROUTING: "routed",
            Step.RETIRING: "moved",
            Step.RETREATING: "moved",
        }.get(self.world.step or Step.GROWING, "ready")
        for slot in list(self.world.supervisor.slots):
            says = State.STARTING if word == "ready" else State.READY
            if slot.state is says and (word != "moved" or slot.part is Part.GOES):
                self.speak(slot.seat, word)

    @rule(seat=seats)
    def die(self, seat: Seat) -> None:
        if self.lives(seat):
            self.world.die(seat)

    @rule()
    def bury(self) -> None:
        for process in list(self.world.supervisor.processes()):
            if process.state is State.KILLED:
                self.world.die(process.seat)

    @rule(seat=seats)
    def say_it_ends(self, seat: Seat) -> None:
        if self.lives(seat):
            self.world.supervisor.ending(seat, "it ends", self.world.now)

    @rule(seat=seats)
    def fall_silent(self, seat: Seat) -> None:
        self.world.silent.add(seat)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def every_slot_that_stays_is_served_or_will_be(self) -> None:
        if self.world.step is Step.CLEARING:
            return
        for slot in self.world.supervisor.slots:
            if slot.part is Part.STAYS and not slot.processes:
                assert slot.start_at <= self.world.now + TIMING.backoff_max_s

    @invariant()
    def who_starts_is_told_the_number_of_slots(self) -> None:
        if self.world.resizes.resize is None:
            slots = self.world.supervisor.slots
            assert self.world.settled == len(slots)
            assert all(slot.part is Part.STAYS for slot in slots)

    def teardown(self) -> None:
        """Whatever state it is in: the killed die, nobody says a word, and it comes to an end."""
        for _ in range(20):
            self.bury()
            self.world.wait(100)
        assert self.world.resizes.resize is None


TestAnyOrder = AnyOrder.TestCase
