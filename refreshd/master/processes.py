"""One worker process as the master sees it, without I/O; the monotonic time is passed in.

    STARTING ──ready──► READY ──stopping──► STOPPING
        │                 │                    │
        └──────kill───────┴────────kill────────┴───► KILLED        (exited: from any)

A process that failed at its start, that says it stops, or whose control socket
is closed is STOPPING: it gets a moment to end by itself, then it is killed. What
a process said before its death was seen is read after it, so STOPPING and KILLED
swallow late words.

A slot has two *seats*, so that its next process can start while the last one still
serves. At any time at most one process sits in a seat.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple


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
    # A slot whose worker has just died is rolled once its successor serves.
    roll_wait_s: float = 30.0
    # Copying a few million tasks while they are being served.
    handover_timeout_s: float = 300.0
    # Passing 10,000 connections takes a second; one that does not become quiet holds the rest up for seconds.
    connect_timeout_s: float = 60.0
    # As loading at a start, but clients wait meanwhile.
    takeback_timeout_s: float = 120.0
    # A new worker has nothing to load; one that has just died there may have.
    grow_timeout_s: float = 60.0
    # As a hand-over: half of all tasks and more change their owner.
    remap_timeout_s: float = 300.0
    # Until requests that are on their way have arrived; clients wait meanwhile.
    route_timeout_s: float = 30.0
    # Proxies get a moment to finish, then connections move as in a hand-over.
    retire_timeout_s: float = 60.0
    configure_timeout_s: float = 10.0
    # Importing everything, twice, on a busy machine.
    rehearsal_timeout_s: float = 30.0


class Seat(NamedTuple):
    """Where a process sits: its slot, and one of the two sides of it (control.Start)."""

    slot: int
    side: int = 0

    @property
    def other(self) -> Seat:
        """The slot's other seat."""
        return Seat(self.slot, 1 - self.side)


class State(enum.Enum):
    """Where a process stands; WAITING: where a slot stands that has none."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    KILLED = "killed"


_NEXT: dict[tuple[State, str], State] = {
    (State.STARTING, "ready"): State.READY,
    (State.STARTING, "stopping"): State.STOPPING,
    (State.STARTING, "kill"): State.KILLED,
    (State.READY, "stopping"): State.STOPPING,
    (State.READY, "kill"): State.KILLED,
    (State.STOPPING, "ready"): State.STOPPING,
    (State.STOPPING, "stopping"): State.STOPPING,
    (State.STOPPING, "kill"): State.KILLED,
    (State.KILLED, "ready"): State.KILLED,
    (State.KILLED, "stopping"): State.KILLED,
    (State.KILLED, "kill"): State.KILLED,
}


class IllegalTransition(Exception):
    """A worker said, or the master did, what makes no sense in the state it is in."""


class Process:
    """A process that lives. Times are monotonic seconds."""

    def __init__(self, seat: Seat, pid: int, generation: int, now: float) -> None:
        self.seat = seat
        self.pid = pid
        self.generation = generation
        self.state = State.STARTING
        self.spawned_at = now
        self.ready_at = math.inf
        self.kill_at = math.inf
        self.kill_why = ""
        self.why = ""
        """What it said of its end, if it did."""
        self.version = 0
        """The control.VERSION that it speaks, once it has said so."""

    def __repr__(self) -> str:
        return f"<Process {self.seat.slot}.{self.seat.side} {self.state.value} pid={self.pid}>"

    @property
    def was_ready(self) -> bool:
        """Whether it ever said that it is."""
        return self.ready_at != math.inf

    def move(self, event: str) -> None:
        """Raises: IllegalTransition."""
        state = _NEXT.get((self.state, event))
        if state is None:
            raise IllegalTransition(f"{event} while {self.state.value}")
        self.state = state

    def kill_by(self, at: float, why: str) -> None:
        """It must be gone at `at`; the earliest such time counts, and who was killed already stays so."""
        if at < self.kill_at and self.state is not State.KILLED:
            self.kill_at, self.kill_why = at, why

    def why_gone(self, how: str) -> str:
        """Why it ended, as its exit status says `how`: its own words before ours before that."""
        return self.why or (self.kill_why if self.state is State.KILLED else how)
