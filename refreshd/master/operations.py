"""Reloads and upgrades as operators see them, without I/O; the time is passed in.

    ask ──► WAITING ──begin──► RUNNING ──done──► DONE
               │                  └──────fail──► FAILED
               └──fail (the engine stops)──────────▲

One operation runs, at most one waits, the last few are remembered, so that whoever
asked can ask again what became of it, also over a new connection and of a master
that was re-executed meanwhile. A request that comes while one waits joins it: the
one that waits reads the configuration (and the code) when it begins, so it does
what both wanted. An upgrade does all that a reload does, so a waiting reload
becomes an upgrade when one is asked for. What runs is never joined: it has read
the files already.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from refreshd.errors import ConfigError
from wire.errors import Refused

# A pipeline that reloads every few seconds still finds what became of its own.
REMEMBERED_MAX = 16
# Of a wrong configuration's faults; a file of another kind has one a line.
FAULTS_MAX = 20
# Of what an operation does and of its outcome, in characters: both travel in one line of the admin socket.
TEXT_MAX = 2000


class Kind(enum.Enum):
    """What was asked for."""

    RELOAD = "reload"
    UPGRADE = "upgrade"


class State(enum.Enum):
    """Where an operation stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class OutOfTurn(Exception):
    """The master did what makes no sense in the operation's state."""


_NEXT: dict[tuple[State, str], State] = {
    (State.WAITING, "begin"): State.RUNNING,
    (State.WAITING, "fail"): State.FAILED,
    (State.RUNNING, "done"): State.DONE,
    (State.RUNNING, "fail"): State.FAILED,
}


class Operation(msgspec.Struct, kw_only=True):
    """One reload or upgrade. Change it through `Operations` only.

    Times are None until they are known; `…_at` is the monotonic clock in seconds
    (good across a re-exec), `…_ms` is Unix milliseconds.
    """

    number: int
    kind: Kind
    state: State = State.WAITING
    step: str = ""
    """What is being done now, for people."""
    why: str = ""
    """The outcome: what a done operation changed, why a failed one failed."""
    started_at: float | None = None
    started_ms: int | None = None
    ended_at: float | None = None
    ended_ms: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.state in (State.DONE, State.FAILED)

    def took_ms(self, now: float) -> int:
        """How long it ran, or has run until `now` (monotonic); 0 before it began."""
        if self.started_at is None:
            return 0
        ended_at = now if self.ended_at is None else self.ended_at
        return max(0, round((ended_at - self.started_at) * 1000))

    def move(self, event: str) -> None:
        """Raises: OutOfTurn."""
        state = _NEXT.get((self.state, event))
        if state is None:
            raise OutOfTurn(f"{event} of {self.kind.value} {self.number}, which is {self.state.value}")
        self.state = state


class _Plain(msgspec.Struct, frozen=True):
    """What of an `Operations` survives a re-exec."""

    next_number: int
    operations: list[Operation]


class Operations:
    """The book of all operations. `number`s start at 1 and are never used again while the master lives."""

    def __init__(self) -> None:
        self._next_number = 1
        self._all: dict[int, Operation] = {}

    def __repr__(self) -> str:
        return f"<Operations running={self.running} waiting={self.waiting}>"

    @property
    def running(self) -> Operation | None:
        """The one that runs."""
        return self._in(State.RUNNING)

    @property
    def waiting(self) -> Operation | None:
        """The one that waits for its turn."""
        return self._in(State.WAITING)

    def _in(self, state: State) -> Operation | None:
        return next((operation for operation in self._all.values() if operation.state is state), None)

    def get(self, number: int) -> Operation | None:
        """The operation of that number, if it is not over for so long that it was forgotten."""
        return self._all.get(number)

    def newest(self) -> Operation | None:
        """The one that was asked for last."""
        return self._all[max(self._all)] if self._all else None

    def ask(self, kind: Kind) -> Operation:
        """The operation that will do this: a new one that waits, or the one that waits already."""
        waiting = self.waiting
        if waiting is not None:
            if kind is Kind.UPGRADE:
                waiting.kind = kind
            return waiting
        operation = Operation(number=self._next_number, kind=kind)
        self._next_number += 1
        self._all[operation.number] = operation
        self._forget()
        return operation

    def _forget(self) -> None:
        over = [number for number, operation in self._all.items() if operation.is_over]
        for number in over[: max(0, len(self._all) - REMEMBERED_MAX)]:
            del self._all[number]

    def begin(self, now: float, now_ms: int) -> Operation | None:
        """Begins the one that waits and returns it; None when none waits or one still runs."""
        operation = self.waiting
        if operation is None or self.running is not None:
            return None
        operation.move("begin")
        operation.started_at, operation.started_ms = now, now_ms
        return operation

    def step(self, text: str) -> None:
        """Says what the running operation does now. Raises: OutOfTurn when none runs."""
        self._running_or_raise("step").step = text[:TEXT_MAX]

    def done(self, why: str, now: float, now_ms: int) -> Operation:
        """The running operation did all; `why` says what changed. Raises: OutOfTurn when none runs."""
        return self._end(self._running_or_raise("done"), "done", why, now, now_ms)

    def fail(self, why: str, now: float, now_ms: int) -> Operation:
        """The running operation failed; `why` says at what. Raises: OutOfTurn when none runs."""
        return self._end(self._running_or_raise("fail"), "fail", why, now, now_ms)

    def fail_all(self, why: str, now: float, now_ms: int) -> None:
        """The engine stops: neither the running nor the waiting operation will get further."""
        for operation in (self.running, self.waiting):
            if operation is not None:
                self._end(operation, "fail", why, now, now_ms)

    def _running_or_raise(self, event: str) -> Operation:
        operation = self.running
        if operation is None:
            raise OutOfTurn(f"{event}, but no operation runs")
        return operation

    def _end(self, operation: Operation, event: str, why: str, now: float, now_ms: int) -> Operation:
        operation.move(event)
        operation.why = why[:TEXT_MAX]
        operation.ended_at, operation.ended_ms = now, now_ms
        return operation

    def to_plain(self) -> dict[str, Any]:
        """The book as values that JSON can carry; `from_plain` is the inverse."""
        plain: dict[str, Any] = msgspec.to_builtins(_Plain(self._next_number, list(self._all.values())))
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Operations:
        """The inverse of `to_plain`. Raises: msgspec.ValidationError for what another version sent."""
        read = msgspec.convert(plain, _Plain)
        operations = cls()
        operations._next_number = read.next_number
        operations._all = {operation.number: operation for operation in read.operations}
        return operations


class Operator(Protocol):
    """What the admin socket and the signals need of the master."""

    @property
    def operations(self) -> Operations:
        """The book."""

    @property
    def draining(self) -> bool:
        """Whether the engine was told to take no new tasks."""

    def start_reload(self) -> Operation:
        """Checks the configuration file as a whole, then starts a reload (or joins the one that waits).

        Raises: Refused, and nothing has changed: `bad_field` (see `config_refused`) for a
        file that is wrong or changes what needs a restart, `unavailable` while the
        engine boots, `draining` while it stops.
        """

    def start_upgrade(self) -> Operation:
        """As `start_reload`, but the master too runs the code that is on disk."""

    def set_draining(self, on: bool) -> None:
        """Takes this engine out of service, or back: every worker, and every later one, is told.

        Raises: Refused, `draining` while the engine stops.
        """


def config_refused(path: str | None, error: ConfigError) -> Refused:
    """The refusal of a configuration that cannot be used: a line of `msg` for each fault."""
    faults = error.faults[:FAULTS_MAX]
    if len(error.faults) > len(faults):
        faults.append(f"and {len(error.faults) - len(faults)} more")
    where = f"{path}: " if path else ""
    return Refused("bad_field", "\n".join(f"{where}{fault}" for fault in faults), field="config")
