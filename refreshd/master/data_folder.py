"""The data folder: one engine at a time, and the files that tell who it is.

    data/lock            locked while any process of an engine lives
    data/refreshd.pid    the master's pid; locked by the master alone
    data/refreshd.addr   where the text RPC is served, HOST:PORT
    data/admin.sock      unless engine.admin says otherwise
    data/store/          see refreshd/store/layout.py

The lock is a flock, which belongs to the open file and not to a process: every
worker inherits it. So after a kill of the master the next engine cannot touch the
store before the last worker has ended, and a pid that was used again misleads nobody.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from refreshd.errors import BootError

# Workers end within 5 s of their master (FAULTS.md 2).
LEFTOVERS_WAIT_S = 10.0
_POLL_S = 0.05
_PID_MAX_BYTES = 32


class DataFolder:
    """The folder, made and locked.

    `lock_fd` is for workers to inherit. `held` are `lock_fd` and `pid_fd` of this same
    process before it was re-executed: then all is as it should be already. Raises: BootError.
    """

    def __init__(
        self, path: str, wait_s: float = LEFTOVERS_WAIT_S, held: tuple[int, int] | None = None
    ) -> None:
        self.path = Path(path)
        self._pid_path = self.path / "refreshd.pid"
        self._address_path = self.path / "refreshd.addr"
        self.pid_fd = -1
        if held is not None:
            self.lock_fd, self.pid_fd = held
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BootError(
                f"cannot use the data folder {path}: {error.strerror} ({error.filename})"
            ) from None
        try:
            self._lock(wait_s)
            self._write_pid()
        except BaseException:
            self._close_fds()
            raise

    def _lock(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while not _try_lock(self.lock_fd):
            pid, lives = self._other_master()
            if lives:
                raise BootError(f"the data folder {self.path} is in use by the engine with pid {pid}")
            if time.monotonic() >= deadline:
                raise BootError(
                    f"the data folder {self.path} is still held by workers of the engine with pid {pid}, "
                    "which is gone; end them (ps -ef | grep refreshd)"
                )
            time.sleep(_POLL_S)

    def _other_master(self) -> tuple[str, bool]:
        """The pid that the other engine wrote, and whether its master lives."""
        try:
            fd = os.open(self._pid_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return "unknown", False
        try:
            pid = os.read(fd, _PID_MAX_BYTES).decode("ascii", "replace").strip()
            return pid or "unknown", not _try_lock(fd)
        finally:
            os.close(fd)

    def _write_pid(self) -> None:
        try:
            self.pid_fd = os.open(self._pid_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # Held against nobody (data/lock is ours): it only shows others that the master lives.
            fcntl.flock(self.pid_fd, fcntl.LOCK_EX)
            os.ftruncate(self.pid_fd, 0)
            os.write(self.pid_fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise BootError(f"cannot write {self._pid_path}: {error.strerror}") from None

    def write_address(self, address: str) -> None:
        """Shows where the engine listens. Raises: BootError."""
        draft = self._address_path.with_suffix(".new")
        try:
            draft.write_text(address + "\n")
            # By a rename, so that who waits for the file never reads half of it.
            draft.rename(self._address_path)
        except OSError as error:
            raise BootError(f"cannot write {self._address_path}: {error.strerror}") from None

    def close(self) -> None:
        """Takes the files away that tell of a running engine, and unlocks."""
        for path in (self._address_path, self._pid_path):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass
        self._close_fds()

    def _close_fds(self) -> None:
        for fd in (self.pid_fd, self.lock_fd):
            if fd >= 0:
                os.close(fd)
        self.pid_fd = self.lock_fd = -1


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
