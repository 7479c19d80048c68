"""MariaDB on a disk that is full, or that does not keep what it is given."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.small_disk import fill, on_small_disk, seen_by
from tools.servers import MariaDb
from tools.servers.process import START_TIMEOUT_S, die_with_parent

# What a new MariaDB takes is 110 MiB; the rest is for tables.
DISK_MIB = 160


class OnSmallDisk(MariaDb):
    """Its data folder is a disk of its own, of DISK_MIB."""

    def __init__(self, template: Path) -> None:
        super().__init__()
        self._filled_from = template

    def _command(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir()
        return on_small_disk(data, DISK_MIB, super()._command(), filled_from=self._filled_from)

    @property
    def _ballast(self) -> Path:
        return seen_by(self.pid, self.folder / "data" / "ballast")

    def fill_disk(self) -> None:
        """Nothing is left of it."""
        fill(self._ballast)

    def free_disk(self) -> None:
        """The opposite of `fill_disk`."""
        self._ballast.unlink(missing_ok=True)


# ── syncs ─────────────────────────────────────────────────────────────────────────────────

_SYSCALLS = {"x86_64": (317, (74, 75)), "aarch64": (277, (82, 83))}
"""Machine → the number of seccomp(2), and those of fsync and fdatasync."""
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _FLAG_NEW_LISTENER = 38, 1, 1 << 3
_LOAD_NUMBER, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _USER_NOTIFY = 0x7FFF0000, 0x7FC00000
# struct seccomp_notif begins with the id; struct seccomp_notif_resp is id, value, error, flags.
_NOTE_BYTES, _ID, _ANSWER = 80, struct.Struct("=Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_LET_THROUGH = 1
_POLL_MS = 20
_libc = ctypes.CDLL(None, use_errno=True)


class WithSyncs(MariaDb):
    """Each fsync and fdatasync of it is let through, waits, or fails with EIO, as is said here.

    By a seccomp filter that asks this process: the database meets the error where a disk would give it.
    """

    def __init__(self, template: Path) -> None:
        if platform.machine() not in _SYSCALLS:
            pytest.skip("syscall numbers unknown here")
        super().__init__(template=template)
        self.waiting = 0
        """Syncs that are held just now."""
        self.failed = 0
        """Those that were told so."""
        self._hold = threading.Event()
        self._fail = threading.Event()

    def hold_syncs(self) -> None:
        """From now on they wait."""
        self._hold.set()

    def fail_syncs(self) -> None:
        """Those that wait fail, and so does each from now on."""
        self._fail.set()

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self.process is not None and self.process.poll() is not None

    def restart(self) -> None:
        """As `MariaDb.restart`, on a disk that is well."""
        self._be_well()
        super().restart()

    def stop(self) -> None:
        """See `Server.stop`."""
        self._be_well()
        super().stop()

    def _be_well(self) -> None:
        self._fail.clear()
        self._hold.clear()

    def run(self) -> None:
        """See `Server.run`."""
        here, there = socket.socketpair()

        def before_exec() -> None:
            die_with_parent()
            _ask_before_syncs(there)

        self.before_exec = before_exec
        here.settimeout(START_TIMEOUT_S)
        with here, there:
            super().run()
            _, (fd,), _, _ = socket.recv_fds(here, 1, 1)
        threading.Thread(target=self._answer_all, args=(fd,), daemon=True).start()

    def _answer_all(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        asking: list[int] = []
        while True:
            for _, what in poll.poll(_POLL_MS):
                if what & select.POLLHUP:
                    # Nobody is left who could ask.
                    os.close(fd)
                    return
                note = bytearray(_NOTE_BYTES)
                # Whoever was killed meanwhile asks no more.
                with suppress(OSError):
                    fcntl.ioctl(fd, _RECEIVE, note)
                    asking.append(_ID.unpack_from(note)[0])
            fails = self._fail.is_set()
            if not self._hold.is_set() or fails:
                for number in asking:
                    answer = (-errno.EIO, 0) if fails else (0, _LET_THROUGH)
                    self.failed += fails
                    with suppress(OSError):
                        fcntl.ioctl(fd, _SEND, bytearray(_ANSWER.pack(number, 0, *answer)))
                asking.clear()
            self.waiting = len(asking)


def _ask_before_syncs(to: socket.socket) -> None:
    """From now on each sync of this process waits for an answer; who holds the descriptor sent is asked."""
    seccomp, numbers = _SYSCALLS[platform.machine()]
    steps = [(_LOAD_NUMBER, 0, 0, 0)]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        steps.append((_JUMP_IF_EQUAL, left, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _USER_NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    fd = _libc.syscall(seccomp, _SET_MODE_FILTER, _FLAG_NEW_LISTENER, ctypes.c_char_p(header))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(to, [b"."], [fd])
    os.close(fd)
