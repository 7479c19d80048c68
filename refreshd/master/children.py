"""Worker processes: starting one, talking to it, seeing how it is, ending it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil

import refreshd
from refreshd import control
from refreshd.errors import BootError
from refreshd.master.processes import Seat

# Room for a start message and a peer message for each of 63 siblings while the worker is still importing.
# The kernel takes what it allows (net.core.wmem_max) and doubles it.
_CONTROL_BUFFER_BYTES = 1 << 20


class Inherited(NamedTuple):
    """The descriptors every worker gets. The lock is only held (see data_folder.py), so nothing names it."""

    listen_fd: int
    scoreboard_fd: int
    lock_fd: int


class Child:
    """One worker process, which this one started, and the master's end of its control socket, non-blocking.

    All it needs is the pid, so that a master that was re-executed goes on with the children it has.
    """

    def __init__(self, seat: Seat, generation: int, pid: int, sock: socket.socket | None) -> None:
        self.seat = seat
        self.generation = generation
        self.pid = pid
        self.control = sock
        self.version = control.VERSION
        """The control.VERSION that it speaks; until it has said so, that of the code it was started with."""
        self.release = ""
        """The version of the code that it runs, once it has said so."""
        self.cpu_pct = 0.0
        self.mem_bytes = 0
        self._status: int | None = None
        self._usage: psutil.Process | None = None
        self.measure()

    def __repr__(self) -> str:
        return f"<Child {self.seat.slot}.{self.seat.side} pid={self.pid} generation={self.generation}>"

    def send(self, message: control.Message, fds: tuple[int, ...] = (), rest: bytes = b"") -> None:
        """Raises: OSError when the worker is gone or does not read; ValueError for too much."""
        if self.control is None:
            raise BrokenPipeError
        control.send(self.control, message, fds, rest)

    def pin(self, cpu: int) -> None:
        """Lets the process, with the threads it has by now, run on this CPU only. Raises: OSError."""
        os.sched_setaffinity(self.pid, {cpu})
        # What starts from here on inherits it from the thread that starts it.
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            try:
                os.sched_setaffinity(int(thread), {cpu})
            except ProcessLookupError:
                pass

    def measure(self) -> None:
        """Notes memory now, and CPU since the last call."""
        try:
            self._usage = self._usage or psutil.Process(self.pid)
            with self._usage.oneshot():
                self.cpu_pct = self._usage.cpu_percent(None)
                self.mem_bytes = self._usage.memory_info().rss
        except (psutil.Error, OSError):
            # It has just ended, or /proc cannot be opened for lack of descriptors; the old figures stand.
            pass

    def kill(self) -> None:
        """Ends the process; `poll` tells when it is gone."""
        # Until it is reaped, here, its pid cannot be somebody else's.
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit status (negative: the signal), or None while it runs. Reaps."""
        return self._reap(os.WNOHANG)

    def wait(self) -> None:
        """Waits for the end; only after `kill`."""
        self._reap(0)

    def _reap(self, options: int) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close_control(self) -> None:
        """Closes the control socket; the loop must have forgotten it."""
        if self.control is not None:
            self.control.close()
            self.control = None


def spawn(seat: Seat, generation: int, module: str, inherited: Inherited) -> Child:
    """Starts `python -m MODULE` for a seat, by fork and exec: it runs the code that is on disk now.

    It inherits stderr, `inherited` and its control socket; stdin and stdout are
    /dev/null. Raises: OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CONTROL_BUFFER_BYTES)
        process = subprocess.Popen(
            _command(seat.slot, module, theirs.fileno(), inherited),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), *inherited),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    # It is ours to reap from here on: Popen leaves alone what it takes to be over.
    process.returncode = 0
    return Child(seat, generation, process.pid, ours)


def _command(slot: int, module: str, control_fd: int, inherited: Inherited) -> list[str]:
    options = {
        "slot": slot,
        "control-fd": control_fd,
        "listen-fd": inherited.listen_fd,
        "scoreboard-fd": inherited.scoreboard_fd,
    }
    return [
        *_python(module),
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]


def _python(module: str) -> list[str]:
    # `-m` would import from the current folder first, so an engine started in a folder that happens to have a
    # `wire` or `http` in it would run that: -P, unless the engine itself is there.
    here = Path(refreshd.__file__).parent.parent == Path.cwd()
    return [sys.executable, *(() if here else ("-P",)), "-m", module]


def check_module(module: str, timeout_s: float) -> None:
    """Imports what a worker runs, in a process of its own, whose stderr is ours. Raises: BootError."""
    try:
        status = subprocess.run(
            [*_python(module), "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=timeout_s,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BootError(f"the workers' code cannot be run: {error}") from None
    if status:
        raise BootError(f"the workers' code cannot be imported: {describe_exit(status)}")


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def by_others(status: int) -> bool:
    """Whether the status looks like somebody's `kill`, rather than the process's own fault."""
    return status in (-signal.SIGKILL, -signal.SIGTERM)
