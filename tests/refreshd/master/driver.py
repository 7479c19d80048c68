"""One object that drives a master with fake workers from outside, as an operator would."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tools.servers.process import die_with_parent
from wire.errors import BadLine
from wire.lines import parse

ROOT = Path(__file__).resolve().parents[3]
# Far above what anything here takes, on a machine that is busy with something else.
PATIENCE_S = 30.0
Value = TypeVar("Value")


def wait_until(condition: Callable[[], Value | None], what: str) -> Value:
    """The first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")


class Engine:
    """A master process. Use as a context manager: nothing of it survives.

    `tree` is where its code is; `command` runs it, if not the one of `run_master`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        settings: str = "",
        tree: Path = ROOT,
        command: tuple[str | Path, ...] = (sys.executable, "-m", "tests.refreshd.master.run_master"),
        **timing: float,
    ) -> None:
        self.folder = folder
        self.tree = tree
        self.command = command
        self.data = folder / "data"
        self.fakes = folder / "fakes"
        self.fakes.mkdir(parents=True, exist_ok=True)
        self.config = folder / "refreshd.toml"
        self.configure(settings, workers=workers)
        # Who does as it is told is never killed because the machine is busy.
        self.timing = {
            "heartbeat_timeout_s": PATIENCE_S,
            "end_timeout_s": PATIENCE_S,
            "fast_stop_s": PATIENCE_S,
            **timing,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._started = 0
        self._known: dict[int, psutil.Process] = {}

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self._known.values(), *self.worker_processes()]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()

    # Before and at the start

    def configure(self, settings: str, *, workers: int = 2) -> None:
        """What the configuration says from now on; `settings` are lines of [engine] and what follows."""
        self.config.write_text(
            f'[engine]\nlisten = "127.0.0.1:0"\nhttp = ""\ndata = "{self.data}"\n'
            f"workers = {workers}\n{settings}"
        )

    def behave(self, slot: int, behaviour: str) -> None:
        """What the next process of the slot shall do."""
        draft = self.fakes / f"draft-{slot}"
        draft.write_text(behaviour)
        draft.rename(self.fakes / f"slot-{slot}")

    def start(self) -> "Engine":
        """Starts the master; returns at once."""
        self._started += 1
        self.log_path = self.folder / f"log-{self._started}"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.command, "--config", self.config],
                cwd=self.tree,
                env={
                    **os.environ,
                    "FAKE_WORKERS": str(self.fakes),
                    "FAKE_TIMING": json.dumps(self.timing),
                },
                stdin=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        return self

    def start_up(self) -> "Engine":
        """Starts the master and waits until it is up."""
        self.start()
        self.wait_for("up")
        self.remember_workers()
        return self

    # What it shows

    def log(self, event: str = "") -> list[dict[str, Any]]:
        """The log lines of this start, or those of one event."""
        lines = [json.loads(line) for line in self.log_path.read_bytes().split(b"\n")[:-1]]
        return [line for line in lines if not event or line["event"] == event]

    def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """Waits for that many log lines of an event."""

        def enough() -> list[dict[str, Any]] | None:
            lines = self.log(event)
            if len(lines) < count and self.process is not None and self.process.poll() is not None:
                lines = self.log(event)
                assert len(lines) >= count, f"it ended without {count} × {event!r}: {self.log()}"
            return lines if len(lines) >= count else None

        return wait_until(enough, f"{count} × {event!r} in the log")

    def notes(self, slot: int) -> list[dict[str, Any]]:
        """What the fake workers of a slot wrote down."""
        path = self.fakes / f"slot-{slot}.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def worker_processes(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        try:
            return psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def remember_workers(self) -> list[psutil.Process]:
        """Workers to be killed at the end even if the master is gone by then."""
        processes = self.worker_processes()
        self._known.update({process.pid: process for process in processes})
        return processes

    def address(self) -> tuple[str, int]:
        host, _, port = (self.data / "refreshd.addr").read_text().strip().rpartition(":")
        return host, int(port)

    @property
    def admin_path(self) -> str:
        return str(self.data / "admin.sock")

    def admin(self) -> socket.socket:
        """A connection to the admin socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_S)
        sock.connect(self.admin_path)
        return sock

    def ask(self, request: bytes) -> bytes:
        """Sends bytes to the admin socket, ends the sending side, returns all that comes."""
        with self.admin() as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def workers(self) -> list[dict[str, str]]:
        """The rows of list_workers."""
        first, *rows = self.ask(b"list_workers\n").split(b"\n")[:-1]
        assert first == f"ok n={len(rows)}".encode()
        return [parse(row).fields for row in rows]

    def row_of(self, slot: int) -> dict[str, str]:
        """The row of who is in charge of a slot."""
        return next(row for row in self.workers() if row["worker"] == str(slot))

    def pid_of(self, slot: int) -> int:
        return int(self.row_of(slot)["pid"])

    def request(self, line: str) -> dict[str, str]:
        """The fields of the first line that the master answers; `code` is among them if it refused."""
        return parse(self.ask(line.encode() + b"\n").split(b"\n")[0]).fields

    def outcome(self, number: str) -> dict[str, str]:
        """How an operation ended, once it has."""

        def over() -> dict[str, str] | None:
            try:
                answer = self.request(f"operation operation={number}")
            except (OSError, BadLine):
                # An upgrade may cut a connection to the master.
                return None
            return answer if answer["state"] in ("done", "failed") else None

        outcome = wait_until(over, f"operation {number} is over")
        self.remember_workers()
        return outcome

    def wait_for_worker(self, slot: int, other_than: int = 0) -> int:
        """The pid of the ready worker in a slot, once it is another process than that."""

        def replaced() -> int | None:
            row = self.row_of(slot)
            return int(row["pid"]) if row["state"] == "ready" and int(row["pid"]) != other_than else None

        pid = wait_until(replaced, f"a new ready worker in slot {slot}")
        self.remember_workers()
        return pid

    def fds(self) -> int:
        """How many descriptors the master has open."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # What is done to it

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(PATIENCE_S)


MakeEngine = Callable[..., Engine]


def starts(engine: Engine, slot: int) -> list[dict[str, Any]]:
    return [note for note in engine.notes(slot) if "start" in note]


def notes(engine: Engine, slot: int, key: str) -> list[dict[str, Any]]:
    """What the processes of a slot wrote down of one kind."""
    return [note for note in engine.notes(slot) if key in note]


def reload(engine: Engine) -> dict[str, str]:
    """Reloads; what became of it."""
    return engine.outcome(engine.request("reload")["operation"])
