"""The master's event loop: a selector, a callback a descriptor, and signals as bytes in a pipe.

Nothing that is called from here may block: everything is non-blocking and does
a bounded amount of work a turn.
"""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterable

Callback = Callable[[int], None]
READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Loop:
    """Calls back what is ready. A callback may add and remove any descriptor."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Calls `callback(events)` whenever `fd` is ready; replaces what was said of it before."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        """Must be called before `fd` is closed. One that is not watched is no fault."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def turn(self, timeout_s: float) -> None:
        """Waits for at most `timeout_s`, and calls back what is ready."""
        for key, events in self._selector.select(timeout_s):
            # An earlier callback of this turn may have closed this one, and its number may be in use again.
            if self._selector.get_map().get(key.fd) is key:
                key.data(events)

    def close(self) -> None:
        """Watches nothing any more."""
        self._selector.close()


class Signals:
    """Notes signals as bytes in a pipe; `take` tells them, oldest first.

    Must be made in the main thread. The handlers do nothing: CPython's C handler
    writes the number into the pipe, and only for signals that have a handler.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self.fd, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        # Who started us may have blocked them, as `hold` did before a re-exec.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def take(self) -> list[int]:
        """The signals that came since the last call."""
        try:
            return list(os.read(self.fd, 4096))
        except BlockingIOError:
            return []

    def hold(self) -> list[int]:
        """Has what comes from now on wait in the kernel; returns what came before."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        return self.take()

    def release(self) -> None:
        """The end of `hold`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)

    def close(self) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)
        os.close(self.fd)
