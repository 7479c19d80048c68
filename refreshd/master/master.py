"""The master process: it owns the listener and the workers, and does what `slots` decides.

One loop, no threads. A worker is spawned with the listener, the scoreboard and one
end of a control socket; its first message is `Start`, then it is introduced to each
sibling with a mesh stream and a hand-over socket (control.py has the messages).
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
from setproctitle import setproctitle

from refreshd import control, descriptors, logs
from refreshd.config import Config, to_plain
from refreshd.errors import BootError, StoreError
from refreshd.master.activation import Activation
from refreshd.master.admin import AdminServer
from refreshd.master.children import Child, Inherited, by_others, describe_exit, spawn
from refreshd.master.console import Console
from refreshd.master.data_folder import DataFolder
from refreshd.master.listeners import address_of, listen_tcp, listen_unix
from refreshd.master.loop import READ, Loop, Signals
from refreshd.master.operations import Operation, Operations
from refreshd.master.slots import (
    Action,
    IllegalTransition,
    Kill,
    Phase,
    Spawn,
    Supervisor,
    TellStop,
    Timing,
    Up,
)
from refreshd.scoreboard import Scoreboard
from refreshd.store import layout
from wire.errors import Refused

# What a worker says is a few messages in its life; one that floods must not keep the loop.
_MESSAGES_A_TURN = 64
_MEASURE_EVERY_S = 1.0

log = logs.get()


class WorkerBootFailed(BootError):
    """A worker could not start, so the engine did not come up."""


class Master:
    """The engine's first process. `run` is all there is to call.

    `worker_module` is what `python -m` starts as a worker; only tests say another one.
    """

    def __init__(
        self, config: Config, *, worker_module: str = "refreshd.worker", timing: Timing | None = None
    ) -> None:
        self._config = config
        self._module = worker_module
        self._cpus = sorted(os.sched_getaffinity(0))
        self._workers = config.engine.workers or min(len(self._cpus), 64)
        if timing is None:
            timing = Timing(heartbeat_timeout_s=config.engine.heartbeat_timeout_s)
        self._supervisor = Supervisor(self._workers, timing)
        self._children: dict[int, Child] = {}
        self._measure_at = 0.0
        self._started_at = time.monotonic()
        self._lanes = 0
        self._interrupted = False
        self.operations = Operations()
        self.draining = False
        self._on_signal: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._reap,
            signal.SIGTERM: self._on_term,
            signal.SIGINT: self._on_interrupt,
            signal.SIGHUP: self._on_hangup,
            signal.SIGUSR2: self._on_upgrade,
        }
        self._loop: Loop
        self._signals: Signals
        self._scoreboard: Scoreboard
        self._inherited: Inherited
        self._admin: AdminServer

    def __repr__(self) -> str:
        return f"<Master {self._supervisor}>"

    def run(self) -> None:
        """Serves until it is told to stop.

        Raises: BootError when the engine cannot start here; WorkerBootFailed when
        its workers cannot.
        """
        with ExitStack() as stack:
            self._open(stack)
            self._do(self._supervisor.start())
            while self._supervisor.phase is not Phase.ENDED:
                self._loop.turn(self._supervisor.next_due_s(time.monotonic()))
                self._tick()
        if self._supervisor.boot_fault is not None:
            raise WorkerBootFailed(self._supervisor.boot_fault)
        log.info("stopped")

    # Opening, in the order in which it must be; `stack` closes in the reverse order

    def _open(self, stack: ExitStack) -> None:
        engine = self._config.engine
        setproctitle(f"refreshd: master [{engine.id}]")
        folder = DataFolder(engine.data)
        stack.callback(folder.close)
        self._lanes = self._read_lanes(folder)
        given = stack.enter_context(Activation(os.environ))
        listener = stack.enter_context(given.tcp(engine.listen) or listen_tcp(engine.listen))
        folder.write_address(address_of(listener))
        self._loop = Loop()
        stack.callback(self._loop.close)
        scoreboard_fd = Scoreboard.create()
        stack.callback(os.close, scoreboard_fd)
        # Workers get it by name, as they do the other descriptors.
        os.set_inheritable(scoreboard_fd, False)
        self._scoreboard = Scoreboard(scoreboard_fd)
        stack.callback(self._scoreboard.close)
        console = Console(self._supervisor, self._children, self._scoreboard, self)
        admin = given.admin(engine.admin) or listen_unix(engine.admin)
        self._admin = AdminServer(self._loop, admin, console)
        stack.callback(self._admin.close)
        self._inherited = Inherited(listener.fileno(), scoreboard_fd, folder.lock_fd)
        self._signals = Signals(self._on_signal)
        stack.callback(self._signals.close)
        self._loop.watch(self._signals.fd, READ, self._on_signals)
        stack.callback(self._leave_nobody)
        self._raise_fd_limit()
        log.info(
            "listening",
            address=address_of(listener),
            admin=engine.admin,
            pid=os.getpid(),
            data=engine.data,
            workers=self._workers,
            lanes=self._lanes,
            auth=engine.auth,
        )
        if self._workers > len(self._cpus):
            log.warning("more workers than CPUs", workers=self._workers, cpus=len(self._cpus))
        if engine.http:
            log.info("http is not served yet in this version", address=engine.http)

    def _read_lanes(self, folder: DataFolder) -> int:
        try:
            return layout.read_or_create(folder.path, self._workers)
        except StoreError as error:
            raise BootError(str(error)) from None
        except OSError as error:
            raise BootError(f"cannot use the data folder {folder.path}: {error.strerror}") from None

    def _raise_fd_limit(self) -> None:
        """Workers inherit the limit."""
        limit, wanted = descriptors.make_room(self._config.engine.connections_max)
        if limit < wanted:
            log.warning("few file descriptors", limit=limit, wanted=wanted)

    # Doing what was decided

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(slot, generation):
                    self._spawn(slot, generation)
                case TellStop(slot, deadline_s):
                    self._send(self._children[slot], control.Stop(deadline_s))
                case Kill(slot, why):
                    child = self._children[slot]
                    log.warning("worker killed", slot=slot, pid=child.pid, why=why)
                    child.kill()
                case Up():
                    took_ms = round((time.monotonic() - self._started_at) * 1000)
                    log.info("up", workers=self._workers, took_ms=took_ms)

    def _spawn(self, slot: int, generation: int) -> None:
        if self._supervisor.phase in (Phase.STOPPING, Phase.ENDED):
            # An earlier spawn of the same round failed for good.
            return
        try:
            child = spawn(slot, generation, self._module, self._inherited)
        except OSError as error:
            log.error("worker not started", slot=slot, why=str(error))
            self._do(self._supervisor.spawn_failed(slot, str(error), time.monotonic()))
            return
        self._children[slot] = child
        self._supervisor.spawned(slot, child.pid, generation, time.monotonic())
        cpu = self._pin(child)
        log.info("worker started", slot=slot, pid=child.pid, generation=generation, cpu=cpu)
        assert child.control is not None  # noqa: S101 - it was just made
        self._loop.watch(child.control.fileno(), READ, lambda _: self._on_control(child))
        self._send(
            child,
            control.Start(slot, self._workers, generation, self._lanes, to_plain(self._config)),
        )
        for sibling in list(self._children.values()):
            if sibling is not child:
                self._introduce(child, sibling)

    def _pin(self, child: Child) -> int | None:
        cpu = self._cpus[child.slot % len(self._cpus)]
        try:
            child.pin(cpu)
        except OSError as error:
            log.warning("worker not pinned", slot=child.slot, cpu=cpu, why=error.strerror)
            return None
        return cpu

    def _introduce(self, newcomer: Child, sibling: Child) -> None:
        """Gives each of the two a mesh stream and a hand-over socket to the other."""
        with ExitStack() as pairs:
            ends: list[tuple[int, int]] = []
            try:
                for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                    one, other = socket.socketpair(socket.AF_UNIX, kind)
                    pairs.enter_context(one)
                    pairs.enter_context(other)
                    ends.append((one.fileno(), other.fileno()))
            except OSError as error:
                self._misbehaved(newcomer, f"no sockets for it: {error.strerror}")
                return
            (mesh, mesh_too), (hands, hands_too) = ends
            self._send(newcomer, control.Peer(sibling.slot, sibling.generation), (mesh, hands))
            self._send(sibling, control.Peer(newcomer.slot, newcomer.generation), (mesh_too, hands_too))

    def _send(self, child: Child, message: control.Message, fds: tuple[int, ...] = ()) -> None:
        try:
            child.send(message, fds)
        except (BrokenPipeError, ConnectionResetError):
            # It is ending; that it has ended is told elsewhere.
            pass
        except (OSError, ValueError) as error:
            self._misbehaved(child, f"cannot be talked to: {error}")

    def _misbehaved(self, child: Child, why: str) -> None:
        self._do(self._supervisor.misbehaved(child.slot, why))

    # What workers say

    def _on_control(self, child: Child) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if child.control is None:
                return
            try:
                received = control.receive(child.control)
            except BlockingIOError:
                return
            except msgspec.DecodeError as error:
                self._misbehaved(child, f"said what is no message: {error}")
                return
            except ConnectionResetError:
                # It ended before it had read all of ours. The kernel says so once, ahead of its last words.
                continue
            except OSError:
                received = None
            if received is None:
                self._lost(child)
                return
            message, fds, _rest = received
            for fd in fds:
                os.close(fd)
            try:
                self._hear(child, message)
            except IllegalTransition as error:
                self._misbehaved(child, f"spoke out of turn: {error}")

    def _hear(self, child: Child, message: control.Message) -> None:
        now = time.monotonic()
        about = {"slot": child.slot, "pid": child.pid}
        match message:
            case control.Ready(unfinished, load_ms, _, release):
                child.release = release
                log.info("worker ready", **about, unfinished=unfinished, load_ms=load_ms)
                self._do(self._supervisor.ready(child.slot, now))
            case control.Failed(why):
                log.error("worker failed to start", **about, why=why)
                self._supervisor.ending(child.slot, why, now)
            case control.Stopping(why):
                log.info("worker stopping", **about, why=why)
                deadline_s = self._config.engine.stop_deadline_s
                self._supervisor.ending(child.slot, why or "said that it stops", now, deadline_s)
            case _:
                raise IllegalTransition(f"a {type(message).__name__}, which is not a worker's to send")

    def _lost(self, child: Child) -> None:
        self._forget_control(child)
        self._supervisor.lost(child.slot, time.monotonic())

    def _forget_control(self, child: Child) -> None:
        if child.control is not None:
            self._loop.forget(child.control.fileno())
            child.close_control()

    # Deaths

    def _reap(self) -> None:
        for child in list(self._children.values()):
            status = child.poll()
            if status is not None:
                self._bury(child, status)

    def _bury(self, child: Child, status: int) -> None:
        # Its last words may not have been read yet.
        self._on_control(child)
        self._forget_control(child)
        del self._children[child.slot]
        self._scoreboard.clear(child.slot)
        how = describe_exit(status)
        asked = self._supervisor.phase is Phase.STOPPING
        (log.info if asked else log.warning)("worker ended", slot=child.slot, pid=child.pid, how=how)
        self._do(self._supervisor.exited(child.slot, how, by_others=by_others(status), now=time.monotonic()))

    def _leave_nobody(self) -> None:
        """Whatever ended the loop: no worker outlives it. (Those of a killed master end by themselves.)"""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
            self._forget_control(child)
        self._children.clear()

    # Time

    def _tick(self) -> None:
        now = time.monotonic()
        beats = [self._scoreboard.read(number).heartbeat_ns / 1e9 for number in range(self._workers)]
        self._do(self._supervisor.tick(now, beats))
        self._admin.tick(now)
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_EVERY_S
            for child in self._children.values():
                child.measure()
            # Deaths are told by SIGCHLD; this is for the one that would slip through.
            self._reap()

    # What an operator may ask for, see operations.Operator

    def start_reload(self) -> Operation:
        raise Refused("unavailable", "this version has no reload yet")

    def start_upgrade(self) -> Operation:
        raise Refused("unavailable", "this version has no upgrade yet")

    def set_draining(self, on: bool) -> None:
        raise Refused("unavailable", "this version cannot drain yet")

    # Signals

    def _on_signals(self, _: int) -> None:
        for number in dict.fromkeys(self._signals.take()):
            if handler := self._on_signal.get(signal.Signals(number)):
                handler()

    def _on_term(self) -> None:
        if self._supervisor.phase in (Phase.BOOTING, Phase.UP):
            deadline_s = self._config.engine.stop_deadline_s
            log.info("stopping", by="SIGTERM", deadline_s=deadline_s)
            self._do(self._supervisor.stop(time.monotonic(), deadline_s))

    def _on_interrupt(self) -> None:
        now = time.monotonic()
        if self._interrupted:
            log.info("stopping at once", by="a second SIGINT")
            self._do(self._supervisor.stop_now(now))
        else:
            log.info("stopping fast", by="SIGINT")
            self._do(self._supervisor.stop_fast(now))
        self._interrupted = True

    def _on_hangup(self) -> None:
        log.warning("SIGHUP: this version has no reload yet; restart the engine for a new configuration")

    def _on_upgrade(self) -> None:
        log.warning("SIGUSR2: this version has no upgrade yet; restart the engine for new code")
