"""Another number of workers: slots come or go, and shards move live. Without I/O; the time is passed in.

docs/handover.md, "Another number of workers", is the theory: what each worker does when it is told
Remap, Route or Retire, and the tables of crashes and bounds that are built here.

    GROWING ──all ready──► REMAPPING ──all remapped──► ROUTING ──all routed──► RETIRING ──all gone──► DONE
       │  new slots COME        │  Remap to all           │  Route to all        │  Retire to who GOES,
    give up                   break                     break                    │  on its Moved Stop,
       ▼                        └──────────┬──────────────┘                      │  at its end Left to all
    RETREATING ──all gone──► FAILED        ▼
       who came GOES, as in RETIRING    CLEARING ──all gone──► FAILED
                                           all are killed, then started from the store

Rule 1: GROWING and RETIRING change nothing about who owns what. A death in a slot that STAYS is an ordinary
        one (slots.py); in one that COMES it ends the attempt, in one that GOES it is the end that was wanted.
Rule 2: in REMAPPING and ROUTING shards are between owners: whoever dies takes shards along that only the
        others could name, and none of them can say where all are. So nobody can be replaced alone: all go,
        and once the last is reaped all start from the store, in the new number. What was acknowledged is
        there; connections are lost, and so the operation has failed, whatever number it leaves.
Rule 3: the old number counts for who is started until all have routed, or are gone; from then on the new one.
Rule 4: what a worker says late, once it was given up, changes nothing.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from refreshd import control
from refreshd.master import slots
from refreshd.master.processes import IllegalTransition, Seat, State
from refreshd.master.rolls import Pin, version_fault
from refreshd.master.slots import Supervisor


class Step(enum.Enum):
    """Where a change of the number stands."""

    GROWING = "growing"
    REMAPPING = "remapping"
    ROUTING = "routing"
    RETIRING = "retiring"
    RETREATING = "retreating"
    CLEARING = "clearing"
    DONE = "done"
    FAILED = "failed"


_NEXT: dict[tuple[Step, str], Step] = {
    (Step.GROWING, "all ready"): Step.REMAPPING,
    (Step.GROWING, "give up"): Step.RETREATING,
    (Step.REMAPPING, "all remapped"): Step.ROUTING,
    (Step.REMAPPING, "break"): Step.CLEARING,
    (Step.ROUTING, "all routed"): Step.RETIRING,
    (Step.ROUTING, "break"): Step.CLEARING,
    (Step.RETIRING, "all gone"): Step.DONE,
    (Step.RETREATING, "all gone"): Step.FAILED,
    (Step.CLEARING, "all gone"): Step.FAILED,
}
# What a worker may say, and when.
_WORDS = {
    (Step.REMAPPING, "remapped"),
    (Step.REMAPPING, "declined"),
    (Step.ROUTING, "routed"),
    (Step.ROUTING, "declined"),
    (Step.RETIRING, "moved"),
    (Step.RETREATING, "moved"),
}
# What may come late (rule 4).
_SWALLOWED = {(Step.CLEARING, word) for word in ("remapped", "routed", "declined")}
_BETWEEN_OWNERS = (Step.REMAPPING, Step.ROUTING)
_LETTING_GO = (Step.RETIRING, Step.RETREATING)
_DOING = {
    Step.GROWING: "the new workers started",
    Step.REMAPPING: "shards moved",
    Step.ROUTING: "requests were routed anew",
    Step.RETIRING: "its connections moved",
    Step.RETREATING: "its connections moved",
    Step.CLEARING: "all workers were ended",
}


class Doing(NamedTuple):
    """What is done now, for people."""

    what: str


class Tell(NamedTuple):
    """Send this to the worker."""

    seat: Seat
    message: control.Message


class Settled(NamedTuple):
    """From now on there are so many workers: who is started is told this number."""

    workers: int


class Over(NamedTuple):
    """The number is not being changed any more.

    `failed` is "" when it was, else why not. `losses` say who died before it had
    handed its connections over.
    """

    old: int
    new: int
    failed: str
    losses: tuple[str, ...]


Action = slots.Action | Pin | Doing | Tell | Settled | Over


class Resize:
    """One change of the number. Methods tell what happened and return what to do, in order."""

    def __init__(self, supervisor: Supervisor, workers: int) -> None:
        self.step = Step.GROWING
        self.old = len(supervisor.slots)
        self.new = workers
        self.why = ""
        """What went wrong first, if anything did."""
        self._supervisor = supervisor
        self._timing = supervisor.timing
        self._unheard: set[int] = set()
        """Slots whose workers have not done yet what they were told."""
        self._losses: list[str] = []
        self._due_at = math.inf

    def __repr__(self) -> str:
        return f"<Resize {self.old} → {self.new} {self.step.value} {self.why!r}>"

    def _move(self, event: str) -> list[Action]:
        step = _NEXT.get((self.step, event))
        if step is None:
            raise IllegalTransition(f"{event} while the number of workers is {self.step.value}")
        self.step = step
        return [Doing(f"{self.old} → {self.new} workers: {step.value}")]

    def _keeps(self, seat: Seat) -> bool:
        """Whether the slot is there afterwards too, as things stand."""
        return seat.slot < (self.old if self.step is Step.RETREATING else self.new)

    def expects_the_end_of(self, seat: Seat) -> bool:
        """Whether the process was asked to end, or had to."""
        told = self.step in _LETTING_GO and not self._keeps(seat) and seat.slot not in self._unheard
        return told or self.step is Step.CLEARING

    # GROWING

    def begin(self, now: float) -> list[Action]:
        """Starts who is to come."""
        self._due_at = now + self._timing.grow_timeout_s
        actions: list[Action] = [Doing(f"{self.old} → {self.new} workers: {self.step.value}")]
        return [*actions, *self._supervisor.grow(self.new), *self.ready(now)]

    def spawn_failed(self, seat: Seat, why: str, now: float) -> list[Action]:
        """There could be no process in the seat."""
        actions: list[Action] = [*self._supervisor.spawn_failed(seat, why, now)]
        if self.step is Step.GROWING and seat.slot >= self.old:
            actions += self._retreat(f"worker {seat.slot} could not be started: {why}", now)
        return actions

    def ready(self, now: float) -> list[Action]:
        """A worker serves: if all do, they are told to give their shards to whom these belong then."""
        if self.step is not Step.GROWING or self._not_ready():
            return []
        for process in self._supervisor.processes():
            if fault := version_fault(process):
                return self._retreat(fault, now)
        new = [Pin(slot.seat) for slot in self._supervisor.slots[self.old :]]
        actions = [*self._move("all ready"), *new]
        self._supervisor.hold()
        return actions + self._tell_all(control.Remap(self.new), self._timing.remap_timeout_s, now)

    def _not_ready(self) -> list[int]:
        return [slot.number for slot in self._supervisor.slots if slot.state is not State.READY]

    def _retreat(self, why: str, now: float) -> list[Action]:
        """Who came goes; nobody else has been touched."""
        self.why = why
        return self._move("give up") + self._let_go(self.old, now)

    # REMAPPING and ROUTING

    def _tell_all(self, message: control.Message, within_s: float, now: float) -> list[Action]:
        self._due_at = now + within_s
        self._unheard = {slot.number for slot in self._supervisor.slots}
        return [Tell(slot.seat, message) for slot in self._supervisor.slots]

    def remapped(self, seat: Seat, now: float) -> list[Action]:
        """The worker has given what it had to. Raises: IllegalTransition for nonsense, as the rest here."""
        if not self._hears(seat, "remapped") or self._unheard:
            return []
        actions = self._move("all remapped")
        return actions + self._tell_all(control.Route(self.new), self._timing.route_timeout_s, now)

    def routed(self, seat: Seat, now: float) -> list[Action]:
        """The worker asks the new owners."""
        if not self._hears(seat, "routed") or self._unheard:
            return []
        actions = [*self._move("all routed"), Settled(self.new), *self._supervisor.release(self.new, now)]
        return actions + self._let_go(self.new, now)

    def declined(self, seat: Seat, why: str) -> list[Action]:
        """The worker cannot go on."""
        if not self._hears(seat, "declined"):
            return []
        return self._break(f"worker {seat.slot} cannot go on: {why}")

    def _hears(self, seat: Seat, word: str) -> bool:
        """Whether the word counts. Raises: IllegalTransition for one that is not this worker's to say now."""
        if (self.step, word) in _SWALLOWED:
            return False
        if (self.step, word) not in _WORDS or seat.slot not in self._unheard:
            raise IllegalTransition(f"{word} while the number of workers is {self.step.value}")
        if self._supervisor.at(seat).state is not State.READY:
            return False
        self._unheard.discard(seat.slot)
        return True

    def _break(self, why: str) -> list[Action]:
        """Shards are between owners, and somebody who has some of them is lost: nobody can go on."""
        self.why = why
        actions = self._move("break")
        self._due_at = math.inf
        return actions + self._kill(self._seats(), f"shards are between owners: {why}")

    # Letting go

    def _let_go(self, keep: int, now: float) -> list[Action]:
        """Who is one too many gives its connections to the others; who does not serve yet has none."""
        self._supervisor.let_go(keep)
        self._due_at = now + self._timing.retire_timeout_s
        leaving = [process for process in self._supervisor.processes() if not self._keeps(process.seat)]
        serving = [process.seat for process in leaving if process.state is State.READY]
        starting = [process.seat for process in leaving if process.state is State.STARTING]
        self._unheard = {seat.slot for seat in serving}
        actions: list[Action] = [Tell(seat, control.Retire(keep)) for seat in serving]
        return actions + self._kill(starting, f"there are to be {keep} workers only")

    def moved(self, seat: Seat, now: float) -> list[Action]:
        """The worker has nothing left."""
        if not self._hears(seat, "moved"):
            return []
        kill_at = now + self._timing.end_timeout_s
        return [*self._supervisor.tell_stop(seat, 0.0, kill_at, "did not end after it had handed over")]

    # At any time

    def exited(self, seat: Seat, how: str, *, by_others: bool, now: float) -> list[Action]:
        """A process is gone and reaped."""
        process = self._supervisor.at(seat)
        who = f"worker {seat.slot} (pid {process.pid})"
        why = f"{who} is gone while {_DOING[self.step]}: {process.why_gone(how)}"
        actions: list[Action] = [*self._supervisor.exited(seat, how, by_others=by_others, now=now)]
        if self.step is Step.GROWING and seat.slot >= self.old:
            actions += self._retreat(why, now)
        elif self.step in _BETWEEN_OWNERS:
            actions += self._break(why)
        elif self.step in _LETTING_GO and seat.slot in self._unheard and not self._keeps(seat):
            self._losses.append(why)
        if self.step in _LETTING_GO and not self._keeps(seat):
            actions += self._left(seat.slot)
        return actions

    def _left(self, number: int) -> list[Action]:
        """Nobody comes in the place of who was there: the others need not wait for a successor."""
        return [Tell(seat, control.Left(number)) for seat in self._seats()]

    def settle(self, now: float) -> list[Action]:
        """What follows once nobody is left who has to go; call it after everything else."""
        slots = self._supervisor.slots
        if self.step in _LETTING_GO:
            if all(self._keeps(slot.seat) for slot in slots):
                self._move("all gone")
        elif self.step is Step.CLEARING and not self._seats():
            self._move("all gone")
            self.why += f"; all workers were started anew, {self.new} by now, and connections were lost"
            return [Settled(self.new), *self._supervisor.release(self.new, now), self._over()]
        return [self._over()] if self.step in (Step.DONE, Step.FAILED) else []

    def _over(self) -> Over:
        return Over(self.old, self.new, self.why, tuple(self._losses))

    def tick(self, now: float) -> list[Action]:
        """What is overdue."""
        if now < self._due_at:
            return []
        self._due_at = math.inf
        timing, unheard = self._timing, ", ".join(map(str, sorted(self._unheard)))
        match self.step:
            case Step.GROWING:
                late = ", ".join(map(str, self._not_ready()))
                return self._retreat(f"not ready within {timing.grow_timeout_s:g} s: worker {late}", now)
            case Step.REMAPPING:
                within = f"within {timing.remap_timeout_s:g} s"
                return self._break(f"not all shards were given {within}: worker {unheard}")
            case Step.ROUTING:
                within = f"within {timing.route_timeout_s:g} s"
                return self._break(f"requests were not routed anew {within}: worker {unheard}")
        why = f"its connections were not handed over within {timing.retire_timeout_s:g} s"
        return self._kill([seat for seat in self._seats() if not self._keeps(seat)], why)

    def _seats(self) -> list[Seat]:
        return [process.seat for process in self._supervisor.processes()]

    def _kill(self, seats: list[Seat], why: str) -> list[Action]:
        actions: list[Action] = []
        for seat in seats:
            if self._supervisor.at(seat).state is not State.KILLED:
                actions += self._supervisor.kill(seat, why)
        return actions


class Resizes:
    """Changes the number of slots, while no slot is rolled.

    While it does, all that happens to processes is told to it, and passed on to the supervisor.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.resize: Resize | None = None
        """The one that is under way."""
        self._supervisor = supervisor

    def __repr__(self) -> str:
        return f"<Resizes {self.resize}>"

    def start(self, workers: int, now: float) -> list[Action]:
        """Goes for so many workers; nothing else may be under way."""
        if self.resize is not None:
            raise IllegalTransition(f"another change of the number begins while there is {self.resize}")
        self.resize = Resize(self._supervisor, workers)
        return self._go_on(self.resize.begin(now), now)

    def stop(self) -> None:
        """The engine stops: what is under way is left to the supervisor, and `Over` will not come."""
        self.resize = None

    def expects_the_end_of(self, seat: Seat) -> bool:
        """Whether the process was asked to end, or had to."""
        return self.resize is not None and self.resize.expects_the_end_of(seat)

    def _running(self) -> Resize:
        if self.resize is None:
            raise IllegalTransition("the number of workers is not being changed")
        return self.resize

    def _go_on(self, actions: list[Action], now: float) -> list[Action]:
        """The actions, and what follows if they were the last ones."""
        if self.resize is not None:
            actions = actions + self.resize.settle(now)
            if self.resize.step in (Step.DONE, Step.FAILED):
                self.resize = None
        return actions

    # What happened

    def spawn_failed(self, seat: Seat, why: str, now: float) -> list[Action]:
        """There could be no process in the seat."""
        return self._go_on(self._running().spawn_failed(seat, why, now), now)

    def ready(self, seat: Seat, version: int, now: float) -> list[Action]:
        """The worker serves. Raises: IllegalTransition, as do the others."""
        actions: list[Action] = [*self._supervisor.ready(seat, version, now)]
        return self._go_on(actions + self._running().ready(now), now)

    def remapped(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Remapped."""
        return self._go_on(self._running().remapped(seat, now), now)

    def routed(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Routed."""
        return self._go_on(self._running().routed(seat, now), now)

    def moved(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Moved."""
        return self._go_on(self._running().moved(seat, now), now)

    def declined(self, seat: Seat, why: str, now: float) -> list[Action]:
        """The worker said Declined."""
        return self._go_on(self._running().declined(seat, why), now)

    def exited(self, seat: Seat, how: str, *, by_others: bool, now: float) -> list[Action]:
        """The process is gone and reaped."""
        return self._go_on(self._running().exited(seat, how, by_others=by_others, now=now), now)

    def tick(self, now: float) -> list[Action]:
        """What is overdue."""
        return self._go_on(self.resize.tick(now), now) if self.resize else []
