"""The master process: it owns the listener and the workers, and has done what `slots` and `moves` decide.

One loop, no threads. What there is to do with worker processes is in `crew`, what
operators may ask for in `reloads`; what is held for life in `holdings`. Here all of it
meets: what happens is told to who decides, and what is decided is done (`deeds`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from setproctitle import setproctitle

from refreshd import control, descriptors, logs
from refreshd.config import Config
from refreshd.config_file import ConfigFile
from refreshd.errors import BootError, StateRefused
from refreshd.master import reexec
from refreshd.master.admin import AdminServer
from refreshd.master.briefing import Briefing
from refreshd.master.children import Child, by_others, check_module, describe_exit
from refreshd.master.console import Console
from refreshd.master.crew import Crew
from refreshd.master.deeds import Deeds, about
from refreshd.master.herald import Herald
from refreshd.master.holdings import Holdings, hold_on, take_hold
from refreshd.master.loop import READ, Loop, Signals
from refreshd.master.moves import Moves
from refreshd.master.notify import Notifier
from refreshd.master.operations import Operations
from refreshd.master.processes import IllegalTransition, Seat, State, Timing
from refreshd.master.reexec import Saved, adopt_fds, children_of, command_line, restore
from refreshd.master.rehearsal import Rehearsal
from refreshd.master.reloads import Reloads
from refreshd.master.slots import Phase, Supervisor
from refreshd.scoreboard import WORKERS_MAX, row_of
from wire.errors import Refused

_MEASURE_EVERY_S = 1.0

log = logs.get()


class WorkerBootFailed(BootError):
    """A worker could not start, so the engine did not come up."""


class Master:
    """The engine's first process. `run` is all there is to call.

    `file` is where `config` was read, and will be read again. `saved` is what this
    process was before it was re-executed; then `config` is what is in force. `worker_module`
    is what `python -m` starts as a worker; only tests say another one.

    Raises: StateRefused for a `saved` that this code cannot go on with.
    """

    def __init__(
        self,
        config: Config,
        file: ConfigFile,
        saved: Saved | None = None,
        *,
        worker_module: str = "refreshd.worker",
        timing: Timing | None = None,
    ) -> None:
        self._module = worker_module
        self._cpus = sorted(os.sched_getaffinity(0))
        # Those there are count: a reload may have failed to change their number.
        workers = self.workers_for(config) if saved is None else len(saved.slots)
        self._saved = saved
        self._command = command_line() if saved is None else saved.command
        if timing is None:
            timing = Timing(heartbeat_timeout_s=config.engine.heartbeat_timeout_s)
        self._supervisor = Supervisor(workers, timing)
        self._moves = Moves(self._supervisor)
        self._briefing = Briefing(config, workers)
        operations = None
        if saved is not None:
            restore(self._supervisor, saved)
            operations = Operations.from_plain(saved.operations)
            self._briefing.draining = saved.draining
        self._reloads = Reloads(file, self._briefing, self._supervisor, self, operations)
        self._rehearsal: Rehearsal | None = None
        self._measure_at = 0.0
        self._interrupted = False
        self._title = ""
        self._on_signal: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: lambda: self._crew.reap(),
            signal.SIGTERM: self._on_term,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR2: self._on_upgrade,
        }
        self._loop: Loop
        self._signals: Signals
        self._holdings: Holdings
        self._crew: Crew
        self._deeds: Deeds
        self._admin: AdminServer
        self._herald: Herald

    def __repr__(self) -> str:
        return f"<Master {self._supervisor}>"

    @property
    def _config(self) -> Config:
        """What is in force."""
        return self._briefing.config

    def run(self) -> None:
        """Serves until it is told to stop.

        Raises: BootError when the engine cannot start here; WorkerBootFailed when
        its workers cannot.
        """
        with ExitStack() as stack:
            self._open(stack)
            if self._saved is None:
                self._deeds.do([*self._supervisor.start()])
            else:
                self._adopt(self._saved)
            while self._supervisor.phase is not Phase.ENDED:
                self._loop.turn(self._supervisor.next_due_s(time.monotonic()))
                self._tick()
        if self._supervisor.boot_fault is not None:
            raise WorkerBootFailed(self._supervisor.boot_fault)
        log.info("stopped")

    def check(self) -> None:
        """What a rehearsal looks at: whether a master like this one could go on. It changes nothing.

        Raises: ConfigError for what the file says now; BootError for the workers' code;
        StateRefused for workers that cannot be rolled.
        """
        for process in self._supervisor.processes():
            if process.state is State.READY and process.version != control.VERSION:
                raise StateRefused(
                    f"the worker with pid {process.pid} speaks version {process.version} with the master, "
                    f"this code {control.VERSION}; restart the engine to change between the two"
                )
        self._reloads.check()
        check_module(self._module, self._supervisor.timing.rehearsal_timeout_s)

    # Opening, in the order in which it must be; `stack` closes in the reverse order

    def _open(self, stack: ExitStack) -> None:
        engine = self._config.engine
        self._show_title()
        notifier = Notifier(os.environ)
        stack.callback(notifier.close)
        self._herald = Herald(notifier)
        if self._saved is None:
            self._holdings = take_hold(self._config, self._briefing.workers)
        else:
            adopt_fds(self._saved)
            self._holdings = hold_on(engine, self._saved.holdings)
        stack.callback(self._holdings.close)
        self._briefing.lanes = self._holdings.lanes
        self._loop = Loop()
        stack.callback(self._loop.close)
        self._crew = Crew(self._loop, self, self._module, self._holdings.for_workers, self._cpus)
        self._deeds = Deeds(self._supervisor, self._moves, self._crew, self._briefing, self._reloads)
        console = Console(self._supervisor, self._crew.children, self._holdings.scoreboard, self._reloads)
        self._admin = AdminServer(self._loop, self._holdings.admin, console)
        stack.callback(self._admin.close)
        self._signals = Signals(self._on_signal)
        stack.callback(self._signals.close)
        self._loop.watch(self._signals.fd, READ, self._on_signals)
        stack.callback(self._crew.leave_nobody)
        stack.callback(self._cancel_rehearsal)
        self._make_room(engine.connections_max)
        log.info(
            "listening" if self._saved is None else "re-executed",
            address=self._holdings.address,
            admin=engine.admin,
            pid=os.getpid(),
            data=engine.data,
            workers=self._briefing.workers,
            lanes=self._holdings.lanes,
            auth=engine.auth,
        )
        self._compare_with_cpus(self._briefing.workers)
        if engine.http:
            log.info("http is not served yet in this version", address=engine.http)

    def _adopt(self, saved: Saved) -> None:
        """Goes on with the workers there are, and with what had come before the re-execution."""
        for child in children_of(saved):
            self._crew.take(child)
        log.info("workers adopted", pids=[child.pid for child in self._crew.children.values()])
        self._act_on(saved.signals)

    def _compare_with_cpus(self, workers: int) -> None:
        if workers > len(self._cpus):
            log.warning("more workers than CPUs", workers=workers, cpus=len(self._cpus))

    def _make_room(self, connections_max: int) -> None:
        """Workers that start later inherit the limit of descriptors; those that run raise their own."""
        limit, wanted = descriptors.make_room(connections_max)
        if limit < wanted:
            log.warning("few file descriptors", limit=limit, wanted=wanted)

    # What workers say, see crew.Ears

    def heard(self, child: Child, message: control.Message) -> None:
        """A worker said something. Raises: IllegalTransition when that makes no sense."""
        now, seat, who = time.monotonic(), child.seat, about(child)
        match message:
            case control.Ready(unfinished, load_ms, version, release):
                child.version, child.release = version, release
                log.info("worker ready", **who, unfinished=unfinished, load_ms=load_ms)
                self._deeds.do(self._moves.under_way.ready(seat, version, now))
            case control.Failed(why):
                log.error("worker failed to start", **who, why=why)
                self._supervisor.ending(seat, why, now)
            case control.Stopping(why):
                log.info("worker stopping", **who, why=why)
                deadline_s = self._config.engine.stop_deadline_s
                self._supervisor.ending(seat, why or "said that it stops", now, deadline_s)
            case control.Configured(number, why):
                self._reloads.configured(seat, number, why, now)
            case _:
                self._heard_of_move(child, message, now)

    def _heard_of_move(self, child: Child, message: control.Message, now: float) -> None:
        if self._supervisor.phase is Phase.STOPPING:
            # A stop has won over what was under way; it may have been said before the worker heard of that.
            return
        seat, who = child.seat, about(child)
        match message:
            case control.Given(tasks, took_ms, freeze_ms):
                log.info("tasks handed over", **who, tasks=tasks, ms=took_ms, longest_freeze_ms=freeze_ms)
                self._deeds.do(self._moves.rolls.given(seat, now))
            case control.Moved(connections, closed, took_ms):
                log.info("connections handed over", **who, moved=connections, closed=closed, ms=took_ms)
                self._deeds.do(self._moves.under_way.moved(seat, now))
            case control.Declined(why):
                log.warning("hand-over declined", **who, why=why)
                self._deeds.do(self._moves.under_way.declined(seat, why, now))
            case control.Resumed(tasks, took_ms):
                log.info("tasks taken from the store", **who, tasks=tasks, ms=took_ms)
                self._deeds.do(self._moves.rolls.resumed(seat, now))
            case control.Remapped(tasks, took_ms):
                log.info("tasks given to other workers", **who, tasks=tasks, ms=took_ms)
                self._deeds.do(self._moves.resizes.remapped(seat, now))
            case control.Routed():
                self._deeds.do(self._moves.resizes.routed(seat, now))
            case _:
                raise IllegalTransition(f"a {type(message).__name__}, which is not a worker's to send")

    def misbehaved(self, child: Child, why: str) -> None:
        """A worker makes no sense, or cannot be talked to."""
        self._deeds.do([*self._supervisor.kill(child.seat, why)])

    def lost(self, child: Child) -> None:
        """A worker closed its control socket."""
        self._supervisor.lost(child.seat, time.monotonic())

    def ended(self, child: Child, status: int) -> None:
        """A worker is gone and reaped."""
        now, how = time.monotonic(), describe_exit(status)
        self._holdings.scoreboard.clear(row_of(*child.seat))
        under_way = self._moves.under_way
        asked = self._supervisor.phase is Phase.STOPPING or under_way.expects_the_end_of(child.seat)
        (log.info if asked else log.warning)("worker ended", **about(child), how=how)
        self._deeds.do(under_way.exited(child.seat, how, by_others=by_others(status), now=now))
        self._reloads.gone(child.seat, now)

    # What a reload needs, see reloads.Hands

    def tell_all(self, message: control.Message) -> None:
        """Sends it to every worker process that lives."""
        self._crew.send_all(message)

    def roll(self, slots: list[int]) -> None:
        """Rolls these slots, one after the other."""
        self._deeds.do(self._moves.rolls.start(slots, time.monotonic()))

    def workers_for(self, config: Config) -> int:
        """How many workers a configuration means on this machine."""
        return config.engine.workers or min(len(self._cpus), WORKERS_MAX)

    def resize(self, workers: int) -> None:
        """Goes for so many slots."""
        self._compare_with_cpus(workers)
        self._deeds.do(self._moves.resizes.start(workers, time.monotonic()))

    def use(self, old: Config, new: Config) -> None:
        """Takes over what of a new configuration is the master's own."""
        if new.engine.connections_max != old.engine.connections_max:
            self._make_room(new.engine.connections_max)
        if new.engine.heartbeat_timeout_s != old.engine.heartbeat_timeout_s:
            timeout_s = new.engine.heartbeat_timeout_s
            self._supervisor.timing = self._supervisor.timing._replace(heartbeat_timeout_s=timeout_s)

    def start_rehearsal(self) -> None:
        """Runs the code on disk with what it would get, in a child process. Raises: OSError."""
        state_fd = reexec.write(self._save())
        try:
            timeout_s = self._supervisor.timing.rehearsal_timeout_s
            self._rehearsal = Rehearsal(self._loop, self._command, state_fd, timeout_s, self._rehearsed)
        finally:
            os.close(state_fd)
        log.info("rehearsal begins", pid=self._rehearsal.pid, command=self._command)

    def _rehearsed(self, why: str) -> None:
        self._rehearsal = None
        self._reloads.rehearsed(why, time.monotonic())

    def _cancel_rehearsal(self) -> None:
        if self._rehearsal is not None:
            self._rehearsal.cancel()
            self._rehearsal = None

    def _save(self, signals: Iterable[int] = ()) -> Saved:
        return reexec.save(
            self._command,
            self._briefing,
            self._supervisor,
            self._crew.children,
            self._holdings,
            self._reloads.operations,
            signals,
        )

    def re_execute(self) -> str:
        """Becomes the code on disk. What signals say meanwhile is heard by who comes up. Returns why not."""
        came = self._signals.hold()
        try:
            if not {signal.SIGTERM, signal.SIGINT} & {*came}:
                log.info("re-executing", command=self._command)
                reexec.become(self._save(came))
        except OSError as error:
            return f"the code on disk cannot be run: {error.strerror} ({error.filename or self._command[0]})"
        finally:
            self._signals.release()
            self._act_on(came)
        return "the engine stops"

    # Time

    def _tick(self) -> None:
        now = time.monotonic()
        self._deeds.do([*self._supervisor.tick(now, self._beat_of)])
        self._deeds.do(self._moves.tick(now))
        if self._rehearsal is not None:
            self._rehearsal.tick(now)
        self._admin.tick(now)
        self._herald.tick(now, self._supervisor, self._reloads.operations)
        self._show_title()
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY_S
            self._crew.measure()
            # Deaths are told by SIGCHLD; this is for the one that would slip through.
            self._crew.reap()
        # Last, as the code on disk may take over here.
        self._reloads.tick(now)

    def _beat_of(self, seat: Seat) -> float:
        return self._holdings.scoreboard.read(row_of(*seat)).heartbeat_ns / 1e9

    def _show_title(self) -> None:
        phase, generation = self._supervisor.phase.value, self._supervisor.generation
        title = f"refreshd: master {phase} gen {generation} [{self._config.engine.id}]"
        if title != self._title:
            self._title = title
            setproctitle(title)

    # Signals

    def _on_signals(self, _: int) -> None:
        self._act_on(self._signals.take())

    def _act_on(self, numbers: Iterable[int]) -> None:
        for number in dict.fromkeys(numbers):
            if handler := self._on_signal.get(signal.Signals(number)):
                handler()

    def _stop_all_else(self) -> float:
        """A stop wins over whatever operators asked for. Returns the time."""
        now = time.monotonic()
        self._cancel_rehearsal()
        self._moves.stop()
        self._reloads.stop(now)
        return now

    def _on_term(self) -> None:
        if self._supervisor.phase in (Phase.BOOTING, Phase.UP):
            deadline_s = self._config.engine.stop_deadline_s
            log.info("stopping", by="SIGTERM", deadline_s=deadline_s)
            self._deeds.do([*self._supervisor.stop(self._stop_all_else(), deadline_s)])

    def _on_interrupt(self) -> None:
        now = self._stop_all_else()
        if self._interrupted:
            log.info("stopping at once", by="a second SIGINT")
            self._deeds.do([*self._supervisor.stop_now(now)])
        else:
            log.info("stopping fast", by="SIGINT")
            self._deeds.do([*self._supervisor.stop_fast(now)])
        self._interrupted = True

    def _on_hangup(self) -> None:
        try:
            self._reloads.start_reload()
        except Refused as refused:
            log.error("reload refused", by="SIGHUP", why=refused.msg)
            self._herald.refused(time.monotonic(), refused.msg)

    def _on_upgrade(self) -> None:
        try:
            self._reloads.start_upgrade()
        except Refused as refused:
            log.error("upgrade refused", by="SIGUSR2", why=refused.msg)
