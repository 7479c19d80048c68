"""Rolling a slot: its process hands over to a new one. Without I/O; the monotonic time is passed in.

docs/handover.md is the theory: what O (the old process), N (the new one) and their siblings say
to each other, who owns what, and the tables of crashes and bounds that are built here.

    WAITING ──begin──► BOOT ──ready──► MOVING ──given──► CONNECTING ──moved──► ENDING ──old gone──► DONE
       │                │  N is spawned  │  HandOver, TakeOver │  siblings meet N  │  Stop to O
    give up          new gone            │                     │                   │
       ▼                ▼                ├─ give up ───────────┤                new gone
     FAILED           FAILED             ▼                     ▼                   ▼
                                      UNDOING  (N is killed)                   BURYING  (O is killed)
     BOOT, give up or old gone:          │ new gone                                │ old gone
     CLEARING (N is killed)              ▼                                         ▼
         │ new gone                   RESUMING (Resume to O) ──resumed──► FAILED FAILED
         ▼
       FAILED     MOVING, CONNECTING, old gone: INHERITING (Inherit to N) ──resumed──► FAILED

Rule 1: whoever dies is reaped before the other is told, so that nobody writes for a shard that another owns.
Rule 2: O is in charge of the slot until it has given everything away, then N; after a death who is left.
        If nobody is left, that is an ordinary death (slots.py): the next process starts from the store.
Rule 3: what either says late, after its partner's death was seen, changes nothing.
Rule 4: a roll that failed has left nothing behind: one process is in the slot, or a new one is on its way.

Several slots are rolled in order, one at a time, so that no more than one process stands by. The
first failure ends it: who was rolled stays, the rest was not touched.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from refreshd import control
from refreshd.master import slots
from refreshd.master.processes import IllegalTransition, Process, Seat, State, Timing
from refreshd.master.slots import Supervisor


class Step(enum.Enum):
    """Where a roll stands."""

    WAITING = "waiting"
    BOOT = "boot"
    MOVING = "moving"
    CONNECTING = "connecting"
    ENDING = "ending"
    CLEARING = "clearing"
    UNDOING = "undoing"
    RESUMING = "resuming"
    INHERITING = "inheriting"
    BURYING = "burying"
    DONE = "done"
    FAILED = "failed"


_NEXT: dict[tuple[Step, str], Step] = {
    (Step.WAITING, "begin"): Step.BOOT,
    (Step.WAITING, "give up"): Step.FAILED,
    (Step.BOOT, "ready"): Step.MOVING,
    (Step.BOOT, "give up"): Step.CLEARING,
    (Step.BOOT, "new gone"): Step.FAILED,
    (Step.BOOT, "old gone"): Step.CLEARING,
    (Step.CLEARING, "new gone"): Step.FAILED,
    (Step.CLEARING, "old gone"): Step.CLEARING,
    (Step.MOVING, "given"): Step.CONNECTING,
    (Step.MOVING, "give up"): Step.UNDOING,
    (Step.MOVING, "declined"): Step.UNDOING,
    (Step.MOVING, "new gone"): Step.RESUMING,
    (Step.MOVING, "old gone"): Step.INHERITING,
    (Step.CONNECTING, "moved"): Step.ENDING,
    (Step.CONNECTING, "declined"): Step.UNDOING,
    (Step.CONNECTING, "new gone"): Step.RESUMING,
    (Step.CONNECTING, "old gone"): Step.INHERITING,
    (Step.UNDOING, "new gone"): Step.RESUMING,
    (Step.UNDOING, "old gone"): Step.CLEARING,
    (Step.RESUMING, "resumed"): Step.FAILED,
    (Step.RESUMING, "old gone"): Step.FAILED,
    (Step.INHERITING, "resumed"): Step.FAILED,
    (Step.INHERITING, "new gone"): Step.FAILED,
    (Step.ENDING, "old gone"): Step.DONE,
    (Step.ENDING, "new gone"): Step.BURYING,
    (Step.BURYING, "old gone"): Step.FAILED,
}
# What may come late (rule 3).
_SWALLOWED = {
    (step, word)
    for step in (Step.UNDOING, Step.CLEARING, Step.RESUMING, Step.INHERITING)
    for word in ("given", "moved", "declined")
}


class HandOver(NamedTuple):
    """Tell `old` HandOver and `new` TakeOver, each with its ends of a mesh stream and a packet socket."""

    old: Seat
    new: Seat


class Introduce(NamedTuple):
    """Introduce the process to who is in charge of each other slot.

    `succeeds`: its predecessor has handed over to it and still lives.
    """

    seat: Seat
    succeeds: bool


class TellResume(NamedTuple):
    """Tell O that N is gone."""

    seat: Seat


class TellInherit(NamedTuple):
    """Tell N that O is gone."""

    seat: Seat


class Pin(NamedTuple):
    """Let the process run on its slot's CPU only. Until then, copying does not compete with O for one."""

    seat: Seat


class Rolled(NamedTuple):
    """The slot is served by its new process."""

    seat: Seat
    ms: int


class Ended(NamedTuple):
    """No slot is being rolled any more. `why` is "" when all were; else `failed` is the slot that was not."""

    rolled: tuple[int, ...]
    failed: int | None
    why: str


Action = slots.Action | HandOver | Introduce | TellResume | TellInherit | Pin | Rolled | Ended


class Roll:
    """The roll of one slot. Methods tell what happened and return what to do, in order."""

    def __init__(self, supervisor: Supervisor, number: int, now: float) -> None:
        self.number = number
        self.step = Step.WAITING
        self.why = ""
        """What went wrong first, if anything did."""
        self.began_at = now
        self.old = supervisor.slots[number].seat
        self.new = self.old.other
        self._supervisor = supervisor
        self._timing = supervisor.timing
        self._due_at = now + self._timing.roll_wait_s
        self._siblings_know_new = False

    def __repr__(self) -> str:
        return f"<Roll of {self.number} {self.step.value} {self.why!r}>"

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.step in (Step.DONE, Step.FAILED)

    def _move(self, event: str) -> None:
        step = _NEXT.get((self.step, event))
        if step is None:
            raise IllegalTransition(f"{event} while the roll is {self.step.value}")
        self.step = step

    def _is_ready(self, seat: Seat) -> bool:
        return self._state_of(seat) is State.READY

    def _state_of(self, seat: Seat) -> State:
        process = self._supervisor.slots[seat.slot].processes.get(seat.side)
        return process.state if process else State.WAITING

    def _kill(self, seat: Seat, why: str) -> list[Action]:
        if self._state_of(seat) in (State.KILLED, State.WAITING):
            return []
        return [*self._supervisor.kill(seat, why)]

    def _give_up(self, why: str, event: str = "give up") -> list[Action]:
        """N goes, if it came; O goes on."""
        self.why = self.why or why
        self._move(event)
        return self._kill(self.new, f"the hand-over was given up: {why}")

    # What happened

    def begin(self, now: float) -> list[Action]:
        """Starts N, once O serves."""
        if self.step is not Step.WAITING or not self._is_ready(self.old):
            return []
        if fault := version_fault(self._supervisor.at(self.old)):
            return self._give_up(fault)
        self._move("begin")
        # N's boot is bounded by the supervisor.
        self._due_at, self.began_at = math.inf, now
        return [self._supervisor.spawn_beside(self.number)]

    def spawn_failed(self, why: str) -> list[Action]:
        """There could be no N."""
        self.why = why
        self._move("new gone")
        return []

    def ready(self, seat: Seat, now: float) -> list[Action]:
        """A process of the slot said that it is ready."""
        if self.step is Step.WAITING:
            return self.begin(now)
        if self.step is not Step.BOOT or not self._is_ready(self.new):
            return []
        if fault := version_fault(self._supervisor.at(self.new)):
            return self._give_up(fault)
        if not self._is_ready(self.old):
            return self._give_up("the old worker is on its way out")
        self._move("ready")
        self._due_at = now + self._timing.handover_timeout_s
        return [HandOver(self.old, self.new)]

    def given(self, seat: Seat, now: float) -> list[Action]:
        """O has given everything away. Raises: IllegalTransition if that makes no sense, as the rest here."""
        if not self._hears(seat, "given", of=self.old):
            return []
        self._move("given")
        self._due_at = now + self._timing.connect_timeout_s
        self._supervisor.put_in_charge(self.new)
        self._siblings_know_new = True
        return [Introduce(self.new, succeeds=True)]

    def moved(self, seat: Seat, now: float) -> list[Action]:
        """O has nothing left."""
        if not self._hears(seat, "moved", of=self.old):
            return []
        self._move("moved")
        self._due_at = math.inf
        kill_at = now + self._timing.end_timeout_s
        return [*self._supervisor.tell_stop(self.old, 0.0, kill_at, "did not end after it had handed over")]

    def declined(self, seat: Seat, why: str) -> list[Action]:
        """O or N cannot go on."""
        return self._give_up(why, "declined") if self._hears(seat, "declined", of=seat) else []

    def resumed(self, seat: Seat) -> list[Action]:
        """Who was left has taken what it needed from the store."""
        left = self.old if self.step is Step.RESUMING else self.new
        if self._hears(seat, "resumed", of=left):
            self._move("resumed")
        return []

    def _hears(self, seat: Seat, word: str, of: Seat) -> bool:
        """Whether the word counts. Raises: IllegalTransition for one that is not this process's to say."""
        if seat != of or (self.step, word) not in _SWALLOWED | _NEXT.keys():
            who = "old" if seat == self.old else "new"
            raise IllegalTransition(f"{word} from the {who} process while the roll is {self.step.value}")
        both = (self.old, self.new) if word in ("given", "moved") else (seat,)
        return (self.step, word) not in _SWALLOWED and all(self._is_ready(seat) for seat in both)

    def exited(self, seat: Seat, how: str, *, by_others: bool, now: float) -> list[Action]:
        """A process of the slot is gone and reaped."""
        if self.step is not Step.WAITING:
            self._gone(seat, how)
        actions: list[Action] = [*self._supervisor.exited(seat, how, by_others=by_others, now=now)]
        return actions + self._after(seat, now)

    def _gone(self, seat: Seat, how: str) -> None:
        process = self._supervisor.at(seat)
        is_new = seat == self.new
        if self.step is not Step.ENDING or is_new:
            who = "new" if is_new else "old"
            why = process.why_gone(how)
            self.why = (
                self.why or f"the {who} worker (pid {process.pid}) is gone while {_DOING[self.step]}: {why}"
            )
        self._move("new gone" if is_new else "old gone")
        # Before the supervisor hears of the death: it would start a process for who was in charge.
        if self.step is Step.RESUMING:
            self._supervisor.put_in_charge(self.old)
        elif self.step is Step.INHERITING:
            self._supervisor.put_in_charge(self.new)

    def _after(self, dead: Seat, now: float) -> list[Action]:
        """What the step that a death led to begins with."""
        self._due_at = math.inf if self.step is not Step.WAITING else self._due_at
        match self.step:
            case Step.CLEARING:
                return self._kill(self.new, "there is nobody to take over from")
            case Step.BURYING:
                return self._kill(self.old, "it had handed over, and its successor is gone")
            case Step.RESUMING:
                self._due_at = now + self._timing.takeback_timeout_s
                again = [Introduce(self.old, succeeds=False)] if self._siblings_know_new else []
                return [TellResume(self.old), *again]
            case Step.INHERITING:
                self._due_at = now + self._timing.takeback_timeout_s
                self._supervisor.slots[self.number].restarts += 1
                # Anew where they know it already, too: what O knew of them may not have come over.
                return [TellInherit(self.new), Introduce(self.new, succeeds=False), Pin(self.new)]
            case Step.DONE:
                return [Pin(self.new), Rolled(self.new, round((now - self.began_at) * 1000))]
        return []

    def tick(self, now: float) -> list[Action]:
        """What is overdue."""
        if now < self._due_at:
            return []
        self._due_at = math.inf
        timing = self._timing
        match self.step:
            case Step.WAITING:
                return self._give_up(f"no worker there was ready within {timing.roll_wait_s:g} s")
            case Step.MOVING:
                return self._give_up(f"not everything was given within {timing.handover_timeout_s:g} s")
            case Step.CONNECTING:
                late = f"its connections were not handed over within {timing.connect_timeout_s:g} s"
                return self._kill(self.old, late)
            case Step.RESUMING:
                return self._kill(self.old, _not_taken(timing))
            case Step.INHERITING:
                return self._kill(self.new, _not_taken(timing))
        return []


_DOING = {
    Step.BOOT: "the new one started",
    Step.MOVING: "tasks were handed over",
    Step.CONNECTING: "connections were handed over",
    Step.ENDING: "the old one ended",
    Step.CLEARING: "the hand-over was given up",
    Step.UNDOING: "the hand-over was undone",
    Step.RESUMING: "the old one took its tasks back",
    Step.INHERITING: "the new one took what was left",
    Step.BURYING: "the old one ended",
}


def _not_taken(timing: Timing) -> str:
    return f"it had not read its tasks from the store within {timing.takeback_timeout_s:g} s"


def version_fault(process: Process) -> str:
    """Why this worker, which is ready, cannot be told what a hand-over needs; "" if it can."""
    if process.version == control.VERSION:
        return ""
    return (
        f"the worker with pid {process.pid} speaks version {process.version} of the hand-over, the master "
        f"{control.VERSION}; restart the engine to change between the two"
    )


class Rolls:
    """Rolls slots in order. All that happens to processes is told to it, and passed on to the supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.roll: Roll | None = None
        """The one that is under way."""
        self._supervisor = supervisor
        self._left: list[int] = []
        self._rolled: list[int] = []

    def __repr__(self) -> str:
        return f"<Rolls {self.roll} rolled={self._rolled} left={self._left}>"

    def start(self, numbers: list[int], now: float) -> list[Action]:
        """Rolls these slots; nothing else may be under way."""
        if self.roll is not None:
            raise IllegalTransition(f"a roll begins while there is {self.roll}")
        self._left, self._rolled = list(numbers), []
        return self._next(now)

    def _next(self, now: float) -> list[Action]:
        if not self._left:
            self.roll = None
            return [Ended(tuple(self._rolled), None, "")]
        self.roll = Roll(self._supervisor, self._left.pop(0), now)
        return self._go_on(self.roll.begin(now), now)

    def _go_on(self, actions: list[Action], now: float) -> list[Action]:
        """The actions, and what follows if they were the roll's last ones."""
        roll = self.roll
        if roll is None or not roll.is_over:
            return actions
        if roll.step is Step.DONE:
            self._rolled.append(roll.number)
            return actions + self._next(now)
        self.roll = None
        return [*actions, Ended(tuple(self._rolled), roll.number, roll.why)]

    def stop(self) -> None:
        """The engine stops: what is under way is left to the supervisor, and `Ended` will not come."""
        self.roll = None

    def expects_the_end_of(self, seat: Seat) -> bool:
        """Whether the process was asked to end, as it has handed over."""
        return self.roll is not None and self.roll.step is Step.ENDING and self.roll.old == seat

    def _of(self, seat: Seat) -> Roll:
        if self.roll is None or self.roll.number != seat.slot:
            raise IllegalTransition(f"worker {seat.slot} is not handing over")
        return self.roll

    # What happened

    def spawn_failed(self, seat: Seat, why: str, now: float) -> list[Action]:
        """There could be no process in the seat."""
        roll = self.roll
        if roll is not None and roll.step is Step.BOOT and seat == roll.new:
            return self._go_on(roll.spawn_failed(why), now)
        return [*self._supervisor.spawn_failed(seat, why, now)]

    def ready(self, seat: Seat, version: int, now: float) -> list[Action]:
        """The worker serves, or stands by. Raises: IllegalTransition."""
        actions: list[Action] = [*self._supervisor.ready(seat, version, now)]
        if self.roll is not None and self.roll.number == seat.slot:
            actions += self.roll.ready(seat, now)
        return self._go_on(actions, now)

    def given(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Given. Raises: IllegalTransition, as do the others."""
        return self._go_on(self._of(seat).given(seat, now), now)

    def moved(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Moved."""
        return self._go_on(self._of(seat).moved(seat, now), now)

    def declined(self, seat: Seat, why: str, now: float) -> list[Action]:
        """The worker said Declined."""
        return self._go_on(self._of(seat).declined(seat, why), now)

    def resumed(self, seat: Seat, now: float) -> list[Action]:
        """The worker said Resumed."""
        return self._go_on(self._of(seat).resumed(seat), now)

    def exited(self, seat: Seat, how: str, *, by_others: bool, now: float) -> list[Action]:
        """The process is gone and reaped."""
        roll = self.roll
        if roll is None or roll.number != seat.slot:
            return [*self._supervisor.exited(seat, how, by_others=by_others, now=now)]
        return self._go_on(roll.exited(seat, how, by_others=by_others, now=now), now)

    def tick(self, now: float) -> list[Action]:
        """What is overdue."""
        return self._go_on(self.roll.tick(now), now) if self.roll else []
