"""One child process with a folder of its own: started, watched, stopped, cleared away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tools.servers.errors import ServerFailed
from tools.servers.waiting import wait_until

# A cache needs 0.5 s here to compile its VCL or open its disk; a loaded CI machine is slower.
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOG_TAIL_CHARS = 2000
# Daemons live in sbin, which is not on the PATH of every user.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

PR_SET_PDEATHSIG = 1
# Looked up before there are threads: a child between fork and exec must not wait for the lock of one.
_prctl = ctypes.CDLL(None).prctl


def die_with_parent() -> None:
    """In the child, before exec: get SIGTERM when the parent dies, even if that was killed (prctl(2)).

    The parent is the thread that starts it, so that must be one that stays.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def find_program(name: str) -> str:
    """The path of a program. Raises: ServerFailed if it is not installed."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise ServerFailed(f"{name} is not installed")
    return path


class Server:
    """Base of the caches. A subclass says what to run and when it is ready.

    `address` ("127.0.0.1:PORT") is good once `start` has returned. It does not outlive who started it.
    """

    name = "server"
    tries = 1
    """How often it is started. 3 where the kernel cannot pick its port: somebody may take ours meanwhile."""

    def __init__(self) -> None:
        self.folder = Path()
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.before_exec: Callable[[], None] = die_with_parent
        """Runs in the child, before it becomes the program."""

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that was started; 0 if none runs."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> Self:
        """Runs the server and waits until it serves. Raises: ServerFailed."""
        for tries_left in reversed(range(self.tries)):
            try:
                self._start()
            except ServerFailed:
                if not tries_left:
                    raise
            else:
                break
        return self

    def _start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"refreshd-{self.name}-"))
        try:
            self._prepare()
            self.run()
            self._wait_ready()
        except BaseException:
            self.stop()
            raise

    def _prepare(self) -> None:
        """What is to be done once before each try."""

    def stop(self) -> None:
        """Ends the server and removes its folder; harmless when repeated."""
        if self.process is not None:
            _end(self.process)
            self.process = None
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()

    def log(self) -> str:
        """What the server wrote to its output, the tail of it."""
        path = self.folder / "log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return text[-LOG_TAIL_CHARS:]

    def run(self) -> None:
        """Runs the program in its folder, for the first time or again; returns at once."""
        environment = {**os.environ, "PATH": SEARCH_PATH, **self._environment()}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self.folder,
                # A group of its own: helpers are ended with it, and Ctrl-C reaches us first.
                start_new_session=True,
                preexec_fn=self.before_exec,
            )

    def _wait_ready(self) -> None:
        def ready_or_dead() -> bool:
            dead = self.process is not None and self.process.poll() is not None
            return dead or self._is_ready()

        try:
            wait_until(ready_or_dead, START_TIMEOUT_S, f"{self.name} is ready")
        except TimeoutError as error:
            raise ServerFailed(f"{error}\n{self.log()}") from None
        if self.process is None or self.process.poll() is not None:
            raise ServerFailed(f"{self.name} ended before it was ready:\n{self.log()}")

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {}

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.address} pid={self.pid}>"


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM to the group, KILL to what is left of it after a while."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            if sent == signal.SIGTERM:
                continue
    process.wait(STOP_TIMEOUT_S)
