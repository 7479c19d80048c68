"""What the master decides about its slots, without I/O; the monotonic time is passed in.

A slot is served by one process at a time, which is *in charge*; while it hands over
to its successor there are two (`rolls.py` has what happens then). `processes.py` has
the states of a process.

The engine as a whole is BOOTING until every slot was READY at one time, then UP,
then STOPPING (asked to, or a slot could not boot), and ENDED with the last process.
While it is UP slots come and go (`resizes.py`): one that GOES does so with its last process.

Four rules say what a death leads to:
  1. Until a slot was ever ready, an engine that is BOOTING takes its end for a
     *boot failure*: trying again would not help, so all stop. (Killed by somebody
     with KILL or TERM it says nothing about the code, and is tried a few times.)
  2. Any other death of who is in charge is answered with a new process: the first at
     once, those that follow without 10 s of health between after a backoff that
     doubles. What dies after it was ready is back within a second whatever happened
     before (FAULTS.md 1); what cannot even start may take its time.
  3. The new process starts when nobody is left in the slot, as nobody may write for a
     shard that another owns.
  4. In a slot that COMES or GOES no death is answered, and nowhere while shards are
     between owners (`hold`): who decided so says what happens then.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from refreshd.master.processes import IllegalTransition, Process, Seat, State, Timing

# How often a slot that was never ready may be killed by somebody before the boot is given up.
BOOT_KILLS_MAX = 3
# The master's loop turns at least every second. After a longer pause (SIGSTOP, a frozen VM) workers
# that were paused with it get the time to beat again.
PAUSE_S = 2.5


class Phase(enum.Enum):
    """Where the engine stands."""

    BOOTING = "booting"
    UP = "up"
    STOPPING = "stopping"
    ENDED = "ended"


class Part(enum.Enum):
    """What a slot is to the engine, whose number of slots may be about to change."""

    COMES = "comes"
    STAYS = "stays"
    GOES = "goes"


class Spawn(NamedTuple):
    """Start a process for the seat, then tell `spawned` or `spawn_failed`.

    `standby`: it shall take over from the slot's other process.
    """

    seat: Seat
    generation: int
    standby: bool = False


class TellStop(NamedTuple):
    """Ask the worker to stop within `deadline_s`."""

    seat: Seat
    deadline_s: float


class Kill(NamedTuple):
    """Send SIGKILL to the process."""

    seat: Seat
    why: str


class Up(NamedTuple):
    """All slots are ready, for the first time."""


Action = Spawn | TellStop | Kill | Up


class Slot:
    """One slot; what it shows is of the process in charge."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.part = Part.STAYS
        self.side = 0
        """The side of who is in charge, or was last."""
        self.processes: dict[int, Process] = {}
        """By side."""
        self.start_at = math.inf
        self.restarts = 0
        self.failures = 0
        """Deaths without 10 s of health between them."""
        self.ever_ready = False

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.process} restarts={self.restarts}>"

    @property
    def seat(self) -> Seat:
        """The seat of who is in charge."""
        return Seat(self.number, self.side)

    @property
    def process(self) -> Process | None:
        """Who is in charge."""
        return self.processes.get(self.side)

    @property
    def state(self) -> State:
        """WAITING while nobody is in charge."""
        return self.process.state if self.process else State.WAITING

    @property
    def pid(self) -> int:
        """0 while nobody is in charge."""
        return self.process.pid if self.process else 0


class Supervisor:
    """All slots. Methods tell what happened and return what to do, in order."""

    def __init__(self, slots: int, timing: Timing) -> None:
        self.slots = [Slot(number) for number in range(slots)]
        self.phase = Phase.BOOTING
        self.timing = timing
        self.boot_fault: str | None = None
        """Why the engine could not boot, once that is so."""
        self.generation = 1
        """Of the newest process."""
        self.silent_s = 0.0
        """The longest that the loop of a ready worker has not turned, at the last tick."""
        self._holds = False
        """Whether nobody is started, as shards are between owners."""
        self._ticked_at = math.inf
        self._resumed_at = -math.inf

    def __repr__(self) -> str:
        return f"<Supervisor {self.phase.value} {self.slots}>"

    def start(self) -> list[Action]:
        """The first process of every slot. They share generation 1; each later process has one of its own."""
        return [Spawn(slot.seat, self.generation) for slot in self.slots]

    def processes(self) -> Iterator[Process]:
        """All that live, by slot."""
        return (process for slot in self.slots for process in list(slot.processes.values()))

    def at(self, seat: Seat) -> Process:
        """Who sits there. Raises: IllegalTransition for nobody."""
        process = self.slots[seat.slot].processes.get(seat.side)
        if process is None:
            raise IllegalTransition(f"nobody is at {seat}")
        return process

    # What happened to a process

    def wants(self, seat: Seat) -> bool:
        """Whether a process that was to be started still shall be: one of the same round may have failed."""
        is_there = seat.slot < len(self.slots) and self.slots[seat.slot].part is not Part.GOES
        return is_there and self.phase not in (Phase.STOPPING, Phase.ENDED)

    def spawned(self, seat: Seat, pid: int, generation: int, now: float) -> None:
        """There is a process in the seat."""
        slot = self.slots[seat.slot]
        if seat.side in slot.processes:
            raise IllegalTransition(f"spawned while {slot.processes[seat.side].state.value}")
        process = slot.processes[seat.side] = Process(seat, pid, generation, now)
        if seat == slot.seat:
            slot.start_at = math.inf
        timeout_s = self.timing.start_timeout_s
        process.kill_by(now + timeout_s, f"not ready {timeout_s:g} s after its start")

    def spawn_failed(self, seat: Seat, why: str, now: float) -> list[Action]:
        """There could be no process in the seat (memory, process limit, no interpreter)."""
        slot = self.slots[seat.slot]
        return self._died(slot, None, why, by_others=False, now=now) if seat == slot.seat else []

    def ready(self, seat: Seat, version: int, now: float) -> list[Action]:
        """The worker serves, or stands by. Raises: IllegalTransition if it said so before."""
        slot, process = self.slots[seat.slot], self.at(seat)
        process.move("ready")
        if process.state is not State.READY:
            return []
        process.ready_at, process.kill_at, process.version = now, math.inf, version
        slot.ever_ready = True
        if self.phase is Phase.BOOTING and all(slot.state is State.READY for slot in self.slots):
            self.phase = Phase.UP
            return [Up()]
        return []

    def ending(self, seat: Seat, why: str, now: float, timeout_s: float | None = None) -> None:
        """The worker said that it ends, and why."""
        process = self.at(seat)
        process.move("stopping")
        process.why = process.why or why
        timeout_s = self.timing.end_timeout_s if timeout_s is None else timeout_s
        process.kill_by(now + timeout_s, f"did not end: {why}")

    def lost(self, seat: Seat, now: float) -> None:
        """The worker closed its control socket, as it does when it ends."""
        process = self.at(seat)
        process.move("stopping")
        process.kill_by(now + self.timing.end_timeout_s, "its control socket is closed")

    def kill(self, seat: Seat, why: str) -> list[Action]:
        """The worker must go at once: it cannot be talked to, or is of no use."""
        process = self.at(seat)
        process.move("kill")
        process.kill_at, process.kill_why = math.inf, why
        return [Kill(seat, why)]

    def exited(self, seat: Seat, how: str, *, by_others: bool, now: float) -> list[Action]:
        """The process is gone. `by_others`: SIGKILL or SIGTERM ended it, whoever sent it."""
        slot, process = self.slots[seat.slot], self.at(seat)
        del slot.processes[seat.side]
        if self.phase is Phase.STOPPING:
            return self._maybe_ended()
        if seat != slot.seat:
            return self._due_spawns(now)
        by_others = by_others and process.state is not State.KILLED
        return self._died(slot, process, process.why_gone(how), by_others=by_others, now=now)

    def _died(
        self, slot: Slot, process: Process | None, why: str, *, by_others: bool, now: float
    ) -> list[Action]:
        """Nobody is in charge of the slot any more."""
        if self.phase is Phase.STOPPING:
            return self._maybe_ended()
        if slot.part is not Part.STAYS:
            self._drop_who_is_gone()
            return []
        booting = self.phase is Phase.BOOTING and not slot.ever_ready
        if booting and not (by_others and slot.failures < BOOT_KILLS_MAX):
            self.boot_fault = f"worker {slot.number} could not start: {why}"
            return self.stop_fast(now)
        slot.restarts += 1
        slot.start_at = now + self._backoff_s(slot, process, now)
        return self._due_spawns(now)

    def _backoff_s(self, slot: Slot, process: Process | None, now: float) -> float:
        timing = self.timing
        was_ready = process is not None and process.was_ready
        if process is not None and now - process.ready_at >= timing.healthy_s:
            slot.failures = 0
        slot.failures += 1
        if slot.failures == 1:
            return 0.0
        longest_s = timing.backoff_ready_max_s if was_ready else timing.backoff_max_s
        # The exponent is bounded as 2.0 ** 1100 would raise.
        return min(longest_s, timing.backoff_first_s * 2.0 ** min(slot.failures - 2, 32))

    # Two processes in a slot

    def spawn_beside(self, number: int) -> Spawn:
        """A second process for the slot, in the seat that is free."""
        return Spawn(self.slots[number].seat.other, self._next_generation(), standby=True)

    def put_in_charge(self, seat: Seat) -> None:
        """From now on this process is the slot's. Raises: IllegalTransition if nobody sits there."""
        self.slots[seat.slot].side = self.at(seat).seat.side

    def tell_stop(self, seat: Seat, told_s: float, kill_at: float, why: str) -> list[Action]:
        """Asks the worker to stop; it is killed at `kill_at`."""
        process = self.at(seat)
        process.move("stopping")
        process.kill_by(kill_at, why)
        return [TellStop(seat, told_s)]

    # Another number of slots

    def grow(self, slots: int) -> list[Action]:
        """There will be so many slots: those that are not there yet COME, each with its first process."""
        new = [Slot(number) for number in range(len(self.slots), slots)]
        for slot in new:
            slot.part = Part.COMES
        self.slots += new
        return [Spawn(slot.seat, self._next_generation()) for slot in new]

    def hold(self) -> None:
        """Every slot STAYS, but shards are between owners: nobody is started until `release`."""
        self._holds = True
        for slot in self.slots:
            slot.part = Part.STAYS

    def release(self, slots: int, now: float) -> list[Action]:
        """Shards have their owners again, in so many slots: the others go, and deaths are answered."""
        self._holds = False
        self.let_go(slots)
        return self._due_spawns(now)

    def let_go(self, slots: int) -> None:
        """All but the first so many slots GO."""
        for slot in self.slots[slots:]:
            slot.part = Part.GOES
        self._drop_who_is_gone()

    def _drop_who_is_gone(self) -> None:
        # From the end, as a slot's number is its place.
        while self.slots[-1].part is Part.GOES and not self.slots[-1].processes:
            self.slots.pop()

    # Time

    def tick(self, now: float, beat_of: Callable[[Seat], float]) -> list[Action]:
        """What is due at `now`; `beat_of` tells a seat's last heartbeat, 0 for none."""
        if now - self._ticked_at > PAUSE_S:
            self._resumed_at = now
        self._ticked_at = now
        self.silent_s = 0.0
        actions: list[Action] = []
        for process in self.processes():
            if process.state is State.READY:
                self._check_beat(process, beat_of(process.seat), now)
            if now >= process.kill_at:
                actions += self.kill(process.seat, process.kill_why)
        return actions + self._due_spawns(now)

    def _check_beat(self, process: Process, beat: float, now: float) -> None:
        silent_s = now - max(beat, process.ready_at, self._resumed_at)
        self.silent_s = max(self.silent_s, silent_s)
        if silent_s > self.timing.heartbeat_timeout_s:
            process.kill_by(now, f"silent for {silent_s:.1f} s")

    def _due_spawns(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self._holds or self.phase in (Phase.STOPPING, Phase.ENDED):
            return actions
        for slot in self.slots:
            if not slot.processes and now >= slot.start_at:
                slot.start_at = math.inf
                actions.append(Spawn(slot.seat, self._next_generation()))
        return actions

    def _next_generation(self) -> int:
        self.generation += 1
        return self.generation

    def next_due_s(self, now: float) -> float:
        """How long the loop may sleep."""
        starts = (slot.start_at for slot in self.slots if not slot.processes)
        due = min((*(process.kill_at for process in self.processes()), *starts), default=math.inf)
        look_s = min(1.0, self.timing.heartbeat_timeout_s / 4)
        return max(0.0, min(due - now, look_s))

    # Stopping

    def stop(self, now: float, deadline_s: float) -> list[Action]:
        """Gracefully: who is still there after `deadline_s` is killed."""
        # The workers' own deadline comes first, so that they can end well before ours.
        return self._stop(now, deadline_s * 0.8, deadline_s)

    def stop_fast(self, now: float) -> list[Action]:
        """At once. What was acknowledged is on stable storage, so a kill loses none of it."""
        return self._stop(now, 0.0, self.timing.fast_stop_s)

    def stop_now(self, now: float) -> list[Action]:
        """By SIGKILL."""
        self._stop(now, 0.0, 0.0)
        return [
            action for process in self.processes() for action in self.kill(process.seat, "told to be gone")
        ]

    def _stop(self, now: float, told_s: float, kill_after_s: float) -> list[Action]:
        if self.phase is Phase.ENDED:
            return []
        self.phase = Phase.STOPPING
        actions: list[Action] = []
        for process in self.processes():
            if process.state is State.STARTING:
                # It serves nobody yet and may be busy loading for long.
                actions += self.kill(process.seat, "stopped while it started")
            elif process.state is not State.KILLED:
                kill_at = now + kill_after_s
                actions += self.tell_stop(process.seat, told_s, kill_at, "not gone at the deadline")
        return actions or self._maybe_ended()

    def _maybe_ended(self) -> list[Action]:
        if not any(True for _ in self.processes()):
            self.phase = Phase.ENDED
        return []
