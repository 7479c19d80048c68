"""A rehearsal: the code on disk does, in a child process, all that the next master will do, without effect.

It says `ok` in its last line, or it has failed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from refreshd.master.children import describe_exit
from refreshd.master.loop import READ, Loop

_READ_BYTES = 16 * 1024
# Of what it prints the end is kept: a traceback says there what is wrong.
_OUTPUT_MAX_BYTES = 8 * 1024
_SHOWN_MAX_CHARS = 1500
# Far more than a traceback; a program that floods is no master.
_PRINTED_MAX_BYTES = 1024 * 1024


class Rehearsal:
    """One rehearsal, of `command --rehearse FD`.

    `over(why)` is called once, from the loop or from `tick`: "" when all is well.
    Raises: OSError when there can be no such process.
    """

    def __init__(
        self, loop: Loop, command: list[str], state_fd: int, timeout_s: float, over: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._over = over
        self._due_at = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._output = bytearray()
        self._printed = 0
        self._fault = ""
        self._out, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(theirs, True)
            process = subprocess.Popen(
                [*command, "--rehearse", str(state_fd)],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                pass_fds=(state_fd,),
                # It starts processes of its own, which must end with it.
                start_new_session=True,
            )
        except BaseException:
            os.close(self._out)
            raise
        finally:
            os.close(theirs)
        # Reaped here: Popen leaves alone what it takes to be over.
        process.returncode = 0
        self.pid = process.pid
        loop.watch(self._out, READ, self._on_output)

    def __repr__(self) -> str:
        return f"<Rehearsal pid={self.pid} {self._printed} bytes>"

    def _on_output(self, _: int) -> None:
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.forget(self._out)
            return
        self._printed += len(data)
        self._output += data
        del self._output[:-_OUTPUT_MAX_BYTES]
        if self._printed > _PRINTED_MAX_BYTES:
            self._give_up("it printed without end")

    def tick(self, now: float) -> None:
        """Looks whether it is over; must be called at least once a second, and at each SIGCHLD."""
        if now >= self._due_at:
            self._give_up(f"it was not done within {self._timeout_s:g} s")
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            self._end()

    def _give_up(self, why: str) -> None:
        self._fault = self._fault or why
        self._kill()

    def _kill(self) -> None:
        # With what it started. It is not reaped yet, so the group's number is nobody else's.
        os.killpg(self.pid, signal.SIGKILL)

    def _end(self) -> None:
        status = self._close()
        self._over(self._why(status))

    def _why(self, status: int) -> str:
        lines = self._output.decode(errors="replace").strip().splitlines()
        if status == 0 and not self._fault and lines and lines[-1] == "ok":
            return ""
        how = self._fault or describe_exit(status)
        said = "\n".join(lines)[-_SHOWN_MAX_CHARS:]
        return f"the code on disk would not come up: {how}" + (f"; it printed:\n{said}" if said else "")

    def _close(self) -> int:
        """The exit status, once it is reaped and all that it printed is read."""
        self._kill()
        _, status = os.waitpid(self.pid, 0)
        printed = -1
        while printed < self._printed <= _PRINTED_MAX_BYTES:
            printed = self._printed
            self._on_output(READ)
        self._loop.forget(self._out)
        os.close(self._out)
        return os.waitstatus_to_exitcode(status)

    def cancel(self) -> None:
        """Ends it; `over` will not be called."""
        self._close()
