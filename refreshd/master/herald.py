"""What the service manager is told of the engine (sd_notify(3)), from what the master shows it once a turn.

    nothing ──phase UP──► READY=1 ◄──────over──┐
                             └──an operation──► RELOADING=1      any ──phase STOPPING──► STOPPING=1

`WATCHDOG=1` comes at half of what the manager waits, as long as the loop of every
worker turns. A worker that loads its tasks, or is due to be started again, does not
count: the master sees to it by its own time-outs, and to restart the whole engine
would only make all workers load.

After a re-exec the state is told once more, which changes nothing there.
"""

from __future__ import annotations

import math
from typing import Protocol

from refreshd.master.operations import Operation, Operations
from refreshd.master.processes import Timing
from refreshd.master.slots import Phase


class Engine(Protocol):
    """What is needed of `slots.Supervisor`."""

    phase: Phase
    timing: Timing
    silent_s: float


class Manager(Protocol):
    """What is needed of `notify.Notifier`."""

    watchdog_s: float | None

    def send(self, **state: str) -> None: ...

    def reloading(self, now_s: float) -> None: ...


class Herald:
    """Call `tick` once a turn, at least once a second. Times are monotonic seconds."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._told = ""
        self._status = ""
        self._outcome = ""
        self._operation = 0
        """The newest that was told of."""
        every_s = manager.watchdog_s
        self._feed_every_s = math.inf if every_s is None else every_s
        self._feed_at = math.inf if every_s is None else 0.0

    def __repr__(self) -> str:
        return f"<Herald told={self._told}>"

    def tick(self, now: float, engine: Engine, operations: Operations) -> None:
        """Tells what is new."""
        running, newest = operations.running, operations.newest()
        if newest is not None and newest.is_over:
            self._over(newest, now)
        if running is not None:
            self._operation = running.number
        self._tell(_state(engine.phase, running), now)
        self._show(running.step if running else "; ".join(filter(None, (engine.phase.value, self._outcome))))
        if now >= self._feed_at and engine.silent_s <= engine.timing.heartbeat_timeout_s / 2:
            self._feed_at = now + self._feed_every_s
            self._manager.send(WATCHDOG="1")

    def refused(self, now: float, why: str) -> None:
        """A reload that a signal asked for was refused. Who sent it through the manager waits for its end."""
        if self._told == "READY":
            self._manager.reloading(now)
            self._manager.send(READY="1", STATUS=why)

    def _over(self, operation: Operation, now: float) -> None:
        self._outcome = f"{operation.kind.value} {operation.number} {operation.state.value}: {operation.why}"
        if operation.number != self._operation and self._told == "READY":
            # It began and ended since the last turn: its beginning is told before its end.
            self._tell("RELOADING", now)
        self._operation = operation.number

    def _tell(self, state: str, now: float) -> None:
        if state == self._told:
            return
        self._told = state
        if state == "RELOADING":
            self._manager.reloading(now)
        else:
            self._manager.send(**{state: "1"})

    def _show(self, status: str) -> None:
        if status != self._status:
            self._status = status
            self._manager.send(STATUS=status)


def _state(phase: Phase, running: Operation | None) -> str:
    if phase in (Phase.STOPPING, Phase.ENDED):
        return "STOPPING"
    if phase is Phase.BOOTING:
        return ""
    return "READY" if running is None else "RELOADING"
