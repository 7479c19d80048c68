"""What the master decides about its workers, without I/O; the monotonic time is passed in.

Each slot is served by one process at a time:

    WAITING ──spawned──► STARTING ──ready──► READY ──stopping──► STOPPING
       ▲                    │                  │                    │
       │                    └───────kill───────┴────────kill────────┤
       │                                                            ▼
       └──────────────────────exited (from any)────────────────  KILLED

A process that failed at its start, that says it stops, or whose control socket
is closed is STOPPING: it gets a moment to end by itself, then it is killed. What
a process said before its death was seen is read after it, so STOPPING and KILLED
swallow late words.

The engine as a whole is BOOTING until every slot was READY at one time, then UP,
then STOPPING (asked to, or a slot could not boot), and ENDED with the last process.

Two rules say what a death leads to:
  1. Until a slot was ever ready, an engine that is BOOTING takes its end for a
     *boot failure*: trying again would not help, so all stop. (Killed by somebody
     with KILL or TERM it says nothing about the code, and is tried a few times.)
  2. Any other death is answered with a new process: the first at once, those that
     follow without 10 s of health between after a backoff that doubles. What dies
     after it was ready is back within a second whatever happened before
     (FAULTS.md 1); what cannot even start may take its time.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# How often a slot that was never ready may be killed by somebody before the boot is given up.
BOOT_KILLS_MAX = 3
# The master's loop turns at least every second. After a longer pause (SIGSTOP, a frozen VM) workers
# that were paused with it get the time to beat again.
PAUSE_S = 2.5


class Timing(NamedTuple):
    """How long things may take, in seconds."""

    heartbeat_timeout_s: float = 10.0
    # Loading a store of a few million unfinished tasks takes a minute; a worker that hangs must end some day.
    start_timeout_s: float = 600.0
    # From its word that it ends (or the loss of its control socket) to its end.
    end_timeout_s: float = 2.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    backoff_ready_max_s: float = 0.4
    healthy_s: float = 10.0
    fast_stop_s: float = 1.0


class State(enum.Enum):
    """Where a slot stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    KILLED = "killed"


class Phase(enum.Enum):
    """Where the engine stands."""

    BOOTING = "booting"
    UP = "up"
    STOPPING = "stopping"
    ENDED = "ended"


_NEXT: dict[tuple[State, str], State] = {
    (State.WAITING, "spawned"): State.STARTING,
    (State.STARTING, "ready"): State.READY,
    (State.STARTING, "stopping"): State.STOPPING,
    (State.STARTING, "kill"): State.KILLED,
    (State.STARTING, "exited"): State.WAITING,
    (State.READY, "stopping"): State.STOPPING,
    (State.READY, "kill"): State.KILLED,
    (State.READY, "exited"): State.WAITING,
    (State.STOPPING, "ready"): State.STOPPING,
    (State.STOPPING, "stopping"): State.STOPPING,
    (State.STOPPING, "kill"): State.KILLED,
    (State.STOPPING, "exited"): State.WAITING,
    (State.KILLED, "ready"): State.KILLED,
    (State.KILLED, "stopping"): State.KILLED,
    (State.KILLED, "kill"): State.KILLED,
    (State.KILLED, "exited"): State.WAITING,
}


class IllegalTransition(Exception):
    """A worker said, or the master did, what makes no sense in the slot's state."""


class Spawn(NamedTuple):
    """Start a process for the slot, then tell `spawned` or `spawn_failed`."""

    slot: int
    generation: int


class TellStop(NamedTuple):
    """Ask the worker to stop within `deadline_s`."""

    slot: int
    deadline_s: float


class Kill(NamedTuple):
    """Send SIGKILL to the slot's process."""

    slot: int
    why: str


class Up(NamedTuple):
    """All slots are ready, for the first time."""


Action = Spawn | TellStop | Kill | Up


class Slot:
    """One slot. `pid` is 0 while WAITING; times are monotonic seconds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = State.WAITING
        self.pid = 0
        self.generation = 0
        self.spawned_at = 0.0
        self.ready_at = math.inf
        self.kill_at = math.inf
        self.kill_why = ""
        self.start_at = math.inf
        self.restarts = 0
        self.failures = 0
        """Deaths without 10 s of health between them."""
        self.ever_ready = False
        self.why = ""
        """What the process said of its end, if it did."""

    def __repr__(self) -> str:
        return f"<Slot {self.number} {self.state.value} pid={self.pid} restarts={self.restarts}>"

    @property
    def is_running(self) -> bool:
        """Whether there is a process to be waited for."""
        return self.state is not State.WAITING

    @property
    def was_ready(self) -> bool:
        """Whether the process in it (or the last one) served."""
        return self.ready_at != math.inf

    def move(self, event: str) -> None:
        """Raises: IllegalTransition."""
        state = _NEXT.get((self.state, event))
        if state is None:
            raise IllegalTransition(f"{event} while {self.state.value}")
        self.state = state

    def kill_by(self, at: float, why: str) -> None:
        """The process must be gone at `at`; the earliest such time counts."""
        if at < self.kill_at:
            self.kill_at, self.kill_why = at, why


class Supervisor:
    """All slots. Methods tell what happened and return what to do, in order."""

    def __init__(self, slots: int, timing: Timing) -> None:
        self.slots = [Slot(number) for number in range(slots)]
        self.phase = Phase.BOOTING
        self.timing = timing
        self.boot_fault: str | None = None
        """Why the engine could not boot, once that is so."""
        self._generation = 1
        self._ticked_at = math.inf
        self._resumed_at = -math.inf

    def __repr__(self) -> str:
        return f"<Supervisor {self.phase.value} {self.slots}>"

    def start(self) -> list[Action]:
        """The first process of every slot. They share generation 1; each later process has one of its own."""
        return [Spawn(slot.number, self._generation) for slot in self.slots]

    # What happened to a process

    def spawned(self, number: int, pid: int, generation: int, now: float) -> None:
        """There is a process for the slot."""
        slot = self.slots[number]
        slot.move("spawned")
        slot.pid, slot.generation, slot.why = pid, generation, ""
        slot.spawned_at, slot.ready_at, slot.start_at = now, math.inf, math.inf
        slot.kill_at = math.inf
        timeout_s = self.timing.start_timeout_s
        slot.kill_by(now + timeout_s, f"not ready {timeout_s:g} s after its start")

    def spawn_failed(self, number: int, why: str, now: float) -> list[Action]:
        """There could be no process for the slot (memory, process limit, no interpreter)."""
        slot = self.slots[number]
        slot.ready_at, slot.why = math.inf, why
        return self._died(slot, why, by_others=False, now=now)

    def ready(self, number: int, now: float) -> list[Action]:
        """The worker serves. Raises: IllegalTransition if it said so before."""
        slot = self.slots[number]
        slot.move("ready")
        if slot.state is not State.READY:
            return []
        slot.ready_at, slot.kill_at, slot.ever_ready = now, math.inf, True
        if self.phase is Phase.BOOTING and all(slot.state is State.READY for slot in self.slots):
            self.phase = Phase.UP
            return [Up()]
        return []

    def ending(self, number: int, why: str, now: float, timeout_s: float | None = None) -> None:
        """The worker said that it ends, and why."""
        slot = self.slots[number]
        slot.move("stopping")
        slot.why = slot.why or why
        timeout_s = self.timing.end_timeout_s if timeout_s is None else timeout_s
        slot.kill_by(now + timeout_s, f"did not end: {why}")

    def lost(self, number: int, now: float) -> None:
        """The worker closed its control socket, as it does when it ends."""
        slot = self.slots[number]
        slot.move("stopping")
        slot.kill_by(now + self.timing.end_timeout_s, "its control socket is closed")

    def misbehaved(self, number: int, why: str) -> list[Action]:
        """The worker cannot be talked to."""
        return self._kill(self.slots[number], why)

    def exited(self, number: int, how: str, *, by_others: bool, now: float) -> list[Action]:
        """The process is gone. `by_others`: SIGKILL or SIGTERM ended it, whoever sent it."""
        slot = self.slots[number]
        by_others = by_others and slot.state is not State.KILLED
        how = slot.kill_why if slot.state is State.KILLED else how
        slot.move("exited")
        slot.pid, slot.kill_at = 0, math.inf
        return self._died(slot, slot.why or how, by_others=by_others, now=now)

    def _died(self, slot: Slot, why: str, *, by_others: bool, now: float) -> list[Action]:
        if self.phase is Phase.STOPPING:
            return self._maybe_ended()
        booting = self.phase is Phase.BOOTING and not slot.ever_ready
        if booting and not (by_others and slot.failures < BOOT_KILLS_MAX):
            self.boot_fault = f"worker {slot.number} could not start: {why}"
            return self.stop_fast(now)
        slot.restarts += 1
        slot.start_at = now + self._backoff_s(slot, now)
        return self._due_spawns(now)

    def _backoff_s(self, slot: Slot, now: float) -> float:
        timing = self.timing
        if slot.was_ready and now - slot.ready_at >= timing.healthy_s:
            slot.failures = 0
        slot.failures += 1
        if slot.failures == 1:
            return 0.0
        longest_s = timing.backoff_ready_max_s if slot.was_ready else timing.backoff_max_s
        # The exponent is bounded as 2.0 ** 1100 would raise.
        return min(longest_s, timing.backoff_first_s * 2.0 ** min(slot.failures - 2, 32))

    # Time

    def tick(self, now: float, beats: Sequence[float]) -> list[Action]:
        """What is due at `now`; `beats` has each slot's last heartbeat, 0 for none."""
        if now - self._ticked_at > PAUSE_S:
            self._resumed_at = now
        self._ticked_at = now
        actions: list[Action] = []
        for slot, beat in zip(self.slots, beats, strict=True):
            if slot.state is State.READY:
                self._check_beat(slot, beat, now)
            if now >= slot.kill_at:
                actions += self._kill(slot, slot.kill_why)
        return actions + self._due_spawns(now)

    def _check_beat(self, slot: Slot, beat: float, now: float) -> None:
        silent_s = now - max(beat, slot.ready_at, self._resumed_at)
        if silent_s > self.timing.heartbeat_timeout_s:
            slot.kill_by(now, f"silent for {silent_s:.1f} s")

    def _due_spawns(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.phase in (Phase.STOPPING, Phase.ENDED):
            return actions
        for slot in self.slots:
            if slot.state is State.WAITING and now >= slot.start_at:
                slot.start_at = math.inf
                self._generation += 1
                actions.append(Spawn(slot.number, self._generation))
        return actions

    def _kill(self, slot: Slot, why: str) -> list[Action]:
        slot.move("kill")
        slot.kill_at, slot.kill_why = math.inf, why
        return [Kill(slot.number, why)]

    def next_due_s(self, now: float) -> float:
        """How long the loop may sleep."""
        due = min(min(slot.kill_at, slot.start_at) for slot in self.slots)
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
        return [action for slot in self._running() for action in self._kill(slot, "told to be gone")]

    def _stop(self, now: float, told_s: float, kill_after_s: float) -> list[Action]:
        if self.phase is Phase.ENDED:
            return []
        self.phase = Phase.STOPPING
        actions: list[Action] = []
        for slot in list(self._running()):
            if slot.state is State.STARTING:
                # It serves nobody yet and may be busy loading for long.
                actions += self._kill(slot, "stopped while it started")
            elif slot.state is not State.KILLED:
                slot.move("stopping")
                slot.kill_by(now + kill_after_s, "not gone at the deadline")
                actions.append(TellStop(slot.number, told_s))
        return actions or self._maybe_ended()

    def _running(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.is_running)

    def _maybe_ended(self) -> list[Action]:
        if not any(self._running()):
            self.phase = Phase.ENDED
        return []
