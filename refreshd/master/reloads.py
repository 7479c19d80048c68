"""What the master does for its operators: reload, upgrade, drain (`operations.Operator`).

A reload reads and checks the whole configuration before it touches anything:

    CHECKING ──► CONFIGURING ──► ROLLING ──► RESIZING ──► done
                 what takes      one slot    another number of
                 effect in       at a time   workers: shards move
                 place

What needs new workers rolls them, and so does a reload when nothing at all has
changed: then new workers are what was asked for.

An upgrade is checked by the code that is on disk, in a rehearsal, as only that knows
what its configuration may say. Then the master re-executes itself, and the code that
it became rolls all workers, with the configuration as it is then:

    REHEARSING ──► REHEARSED ──► (re-execution) ──► RESUMED ──► ROLLING ──► RESIZING ──► done

A step is left out when there is nothing for it to do. What fails before ROLLING has
changed nothing; if a slot cannot be rolled, those before it stay, those behind it are
not touched, and the reason is the operation's outcome.

The number comes last: a configuration with which no worker starts is found out by the
roll, which costs nothing then, and workers that come start with what others have begun to
serve with. What is in force says the number that there is, so a reload of the same file tries again.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from refreshd import __version__, control, logs
from refreshd.changes import Changes, compare
from refreshd.config import Config, to_plain
from refreshd.config_file import ConfigFile
from refreshd.errors import ConfigError
from refreshd.master.briefing import Briefing, only_in_place, with_number_of
from refreshd.master.operations import Kind, Operation, Operations, config_refused
from refreshd.master.processes import Seat, State
from refreshd.master.resizes import Over
from refreshd.master.rolls import Ended
from refreshd.master.slots import Phase, Supervisor
from wire.errors import Refused

_RETRY_MS = 1000
# It is the master's: no worker has to be replaced for it.
_NUMBER = "engine.workers"

log = logs.get()


class Hands(Protocol):
    """What the master does for a reload."""

    def tell_all(self, message: control.Message) -> None:
        """Sends it to every process that lives."""

    def roll(self, slots: list[int]) -> None:
        """Rolls them; `Reloads.rolled` and `Reloads.rolls_ended` will be told."""

    def workers_for(self, config: Config) -> int:
        """How many workers a configuration means on this machine."""

    def resize(self, workers: int) -> None:
        """Goes for so many; `Reloads.settled` and `Reloads.resize_over` will be told."""

    def use(self, old: Config, new: Config) -> None:
        """The master's own settings may have changed."""

    def start_rehearsal(self) -> None:
        """Has the code on disk rehearse; `Reloads.rehearsed` will be told. Raises: OSError."""

    def re_execute(self) -> str:
        """Becomes the code on disk. Returns only if that cannot be, and why."""


class _Stage(enum.Enum):
    IDLE = "idle"
    REHEARSING = "rehearsing"
    REHEARSED = "rehearsed"
    RESUMED = "resumed"
    CONFIGURING = "configuring"
    ROLLING = "rolling"
    RESIZING = "resizing"


class _Plan(NamedTuple):
    """What the running operation is to bring about."""

    config: Config
    changes: Changes
    workers: int
    """How many there will be."""
    was: int
    """How many there are."""

    @property
    def needs_new_workers(self) -> bool:
        """Whether a reload must roll: a setting wants it, or new workers are all that it can be about."""
        of_settings = set(self.changes.workers) - {_NUMBER}
        return bool(of_settings) or (self.changes.is_empty and self.workers == self.was)


class Reloads:
    """Reloads and upgrades, one at a time. The master tells it what happens.

    `tick` must be called at least once a second, and not while something of the loop's
    is half done: it may re-execute the master. `operations` is what a master that was
    re-executed had; the upgrade that runs there goes on.
    """

    def __init__(
        self,
        file: ConfigFile,
        briefing: Briefing,
        supervisor: Supervisor,
        hands: Hands,
        operations: Operations | None = None,
    ) -> None:
        self.operations = operations or Operations()
        self._file = file
        self._briefing = briefing
        self._supervisor = supervisor
        self._hands = hands
        self._stage = _Stage.RESUMED if self.operations.running else _Stage.IDLE
        self._plan: _Plan
        self._before: Config
        """The configuration that is gone back to if a worker does not take the new one."""
        self._number = 0
        """Of the last `Configure`."""
        self._unanswered: set[Seat] = set()
        self._due_at = math.inf
        self._n_rolled = 0

    def __repr__(self) -> str:
        return f"<Reloads {self._stage.value} {self.operations}>"

    # What an operator may ask for

    @property
    def draining(self) -> bool:
        """Whether the engine was told to take no new tasks."""
        return self._briefing.draining

    def start_reload(self) -> Operation:
        """See `operations.Operator`."""
        self._refuse_by_phase()
        try:
            self.check()
        except ConfigError as error:
            raise config_refused(self._file.path, error) from None
        return self.operations.ask(Kind.RELOAD)

    def start_upgrade(self) -> Operation:
        """See `operations.Operator`. The configuration is checked by the code that is on disk."""
        self._refuse_by_phase()
        return self.operations.ask(Kind.UPGRADE)

    def set_draining(self, on: bool) -> None:
        """See `operations.Operator`."""
        self._refuse_stopping()
        if on != self._briefing.draining:
            log.info("draining" if on else "no longer draining")
        self._briefing.draining = on
        self._hands.tell_all(control.Drain(on))

    def _refuse_by_phase(self) -> None:
        self._refuse_stopping()
        if self._supervisor.phase is Phase.BOOTING:
            raise Refused("unavailable", "the engine is still starting", retry_ms=_RETRY_MS)

    def _refuse_stopping(self) -> None:
        if self._supervisor.phase in (Phase.STOPPING, Phase.ENDED):
            raise Refused("draining", "the engine is stopping", retry_ms=_RETRY_MS)

    def check(self) -> None:
        """Raises: ConfigError when what the file says now cannot be brought about while the engine runs."""
        self._read()

    # The steps

    def _read(self) -> _Plan:
        """What the file says now. Raises: ConfigError when a reload cannot bring it about."""
        text, config = self._file.read()
        changes = compare(self._briefing.config, config)
        faults = changes.restart_faults(text)
        if faults:
            raise ConfigError(faults)
        return _Plan(config, changes, self._hands.workers_for(config), len(self._supervisor.slots))

    def _begin(self, now: float) -> None:
        operation = self.operations.begin(now, _unix_ms())
        if operation is None:
            return
        log.info("operation begins", operation=operation.number, kind=operation.kind.value)
        if operation.kind is Kind.UPGRADE:
            self._rehearse(now)
        elif self._has_plan(now):
            if self._plan.changes.in_place:
                self._configure(now)
            else:
                self._roll_if_needed(now)

    def _has_plan(self, now: float) -> bool:
        """Reads the configuration for the running operation, which fails if that cannot be used."""
        self.operations.step("checking the configuration")
        try:
            self._plan = self._read()
        except ConfigError as error:
            # It was right when it was asked for; by now somebody may have changed the file again.
            self._fail(config_refused(self._file.path, error).msg, now)
            return False
        log.info("configuration read", changes=self._plan.changes.summary())
        self._n_rolled = 0
        return True

    def _rehearse(self, now: float) -> None:
        self.operations.step("rehearsing with the code on disk")
        self._stage = _Stage.REHEARSING
        try:
            self._hands.start_rehearsal()
        except OSError as error:
            self._fail(f"the code on disk cannot be run: {error.strerror} ({error.filename})", now)

    def _re_execute(self, now: float) -> None:
        self.operations.step("the master re-executes itself")
        why = self._hands.re_execute()
        if self._stage is _Stage.REHEARSED:
            self._fail(why, now)

    def _resume(self, now: float) -> None:
        """The new code has come up as the master, in the middle of an upgrade."""
        if self._has_plan(now):
            self._roll()

    def _configure(self, now: float) -> None:
        self.operations.step("telling the workers what has changed")
        self._before = self._briefing.config
        self._put_in_force(only_in_place(self._before, self._plan.config))
        self._stage = _Stage.CONFIGURING
        self._due_at = now + self._supervisor.timing.configure_timeout_s
        # Who still starts reads it after its start, and need not be waited for.
        ready = (process for process in self._supervisor.processes() if process.state is State.READY)
        self._unanswered = {process.seat for process in ready}
        self._tell_config()
        self._if_configured(now)

    def _put_in_force(self, config: Config) -> None:
        self._hands.use(self._briefing.config, config)
        self._briefing.config = config

    def _tell_config(self) -> None:
        self._number += 1
        self._hands.tell_all(control.Configure(self._number, to_plain(self._briefing.config)))

    def _if_configured(self, now: float) -> None:
        if self._stage is not _Stage.CONFIGURING or self._unanswered:
            return
        self._due_at = math.inf
        log.info("in place", settings=self._plan.changes.in_place)
        self._roll_if_needed(now)

    def _undo(self, why: str, now: float) -> None:
        """Not every worker took it: all shall have what they had."""
        self._put_in_force(self._before)
        self._tell_config()
        self._fail(why, now)

    def _roll_if_needed(self, now: float) -> None:
        if self._plan.needs_new_workers:
            self._roll()
        else:
            self._resize_if_needed(now)

    def _roll(self) -> None:
        self._stage = _Stage.ROLLING
        self._briefing.wanted = with_number_of(self._briefing.config, self._plan.config)
        self._hands.roll([slot.number for slot in self._supervisor.slots])

    def _resize_if_needed(self, now: float) -> None:
        if self._plan.workers == self._plan.was:
            self.settled()
            self._done(now)
        else:
            self._stage = _Stage.RESIZING
            self._hands.resize(self._plan.workers)

    def _done(self, now: float, losses: tuple[str, ...] = ()) -> None:
        parts = [self._plan.changes.summary()]
        if self._n_rolled:
            parts.append(f"{self._n_rolled} workers rolled")
        if self._plan.workers != self._plan.was:
            parts.append(f"{self._plan.was} → {self._plan.workers} workers")
        parts += losses
        running = self.operations.running
        if running is not None and running.kind is Kind.UPGRADE:
            parts.insert(0, f"release {__version__}")
        operation = self.operations.done("; ".join(parts), now, _unix_ms())
        self._rest()
        log.info("operation done", **_shown(operation, now))

    def _fail(self, why: str, now: float) -> None:
        operation = self.operations.fail(why, now, _unix_ms())
        self._rest()
        log.error("operation failed", **_shown(operation, now))

    def _rest(self) -> None:
        self._stage = _Stage.IDLE
        self._due_at = math.inf
        self._briefing.wanted = None

    # What happened

    def rehearsed(self, why: str, now: float) -> None:
        """The code on disk has shown that it would come up, or `why` says why not."""
        if why:
            self._fail(why, now)
        else:
            self._stage = _Stage.REHEARSED

    def configured(self, seat: Seat, number: int, why: str, now: float) -> None:
        """A worker took the settings, or says why not."""
        if number != self._number or seat not in self._unanswered or self._stage is not _Stage.CONFIGURING:
            return
        self._unanswered.discard(seat)
        if why:
            self._undo(f"worker {seat.slot} cannot use the new settings: {why}", now)
        else:
            self._if_configured(now)

    def gone(self, seat: Seat, now: float) -> None:
        """A process has ended; the next one starts with what is in force."""
        self._unanswered.discard(seat)
        self._if_configured(now)

    def rolling(self, slot: int, what: str) -> None:
        """Notes how far the roll of a slot has come, for who asks."""
        if self._stage is _Stage.ROLLING:
            number, total = self._n_rolled + 1, len(self._supervisor.slots)
            self.operations.step(f"rolling worker {slot} ({number} of {total}): {what}")

    def step(self, text: str) -> None:
        """Says what is being done, if it is done for an operation."""
        if self.operations.running is not None:
            self.operations.step(text)

    def rolled(self) -> None:
        """A slot was rolled: workers can start with the configuration, so that all may have it."""
        self._n_rolled += 1
        self._put_in_force(with_number_of(self._briefing.config, self._plan.config))

    def rolls_ended(self, ended: Ended, now: float) -> None:
        """All slots were rolled, or one could not be."""
        if ended.failed is None:
            self._resize_if_needed(now)
            return
        total = len(self._supervisor.slots)
        self._fail(f"worker {ended.failed}: {ended.why} ({len(ended.rolled)} of {total} rolled)", now)

    def settled(self) -> None:
        """There are as many workers as the configuration says, which is in force as a whole by that."""
        self._put_in_force(self._plan.config)

    def resize_over(self, over: Over, now: float) -> None:
        """The number of workers was changed, or could not be."""
        if over.failed:
            self._fail("; ".join((over.failed, *over.losses)), now)
        else:
            self._done(now, over.losses)

    def tick(self, now: float) -> None:
        """Begins what waits, and ends what takes too long."""
        if now >= self._due_at:
            slots = ", ".join(str(seat.slot) for seat in sorted(self._unanswered))
            timeout_s = self._supervisor.timing.configure_timeout_s
            self._undo(f"workers {slots} did not take the new settings within {timeout_s:g} s", now)
        if self._stage is _Stage.REHEARSED:
            self._re_execute(now)
        elif self._stage is _Stage.RESUMED:
            self._resume(now)
        elif self.operations.waiting is not None and self._supervisor.phase is Phase.UP:
            self._begin(now)

    def stop(self, now: float) -> None:
        """The engine stops: nothing that is under way or waits will be done."""
        self.operations.fail_all("the engine stops", now, _unix_ms())
        self._rest()


def _shown(operation: Operation, now: float) -> Mapping[str, object]:
    return {
        "operation": operation.number,
        "kind": operation.kind.value,
        "why": operation.why,
        "ms": operation.took_ms(now),
    }


def _unix_ms() -> int:
    return time.time_ns() // 1_000_000
