"""Processes of the bench: started privately, looked at, ended."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tools.bench.errors import BenchError

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 15.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def wait_for(what: str, ready: Callable[[], bool], deadline_s: float = START_DEADLINE_S) -> None:
    """Waits until `ready()`. Raises: BenchError."""
    end = time.monotonic() + deadline_s
    while not ready():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.005)


class Tree:
    """A process, whoever started it, with its children."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid

    def pids(self) -> list[int]:
        """Its processes, itself first; none when it is gone."""
        try:
            root = psutil.Process(self.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> dict[int, float]:
        """CPU seconds, user and system, of each of its processes so far."""
        return {pid: _cpu_s(pid) for pid in self.pids()}


class Program(Tree):
    """A process of the bench, with its children; its output goes to `NAME.log` in its folder."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )
        super().__init__(name, self.process.pid)

    def check_alive(self) -> None:
        """Raises: BenchError with the end of its log."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-500:]
            raise BenchError(f"{self.name} ended with {self.process.returncode}: {tail}")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        processes = self._processes()
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        # Its children are nobody's to wait for, and they write to its folder until they are gone.
        psutil.wait_procs(processes, timeout=STOP_DEADLINE_S)

    def stop(self) -> None:
        """Ends it, gently first."""
        processes = self._processes()
        if self.process.poll() is None:
            self.process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOP_DEADLINE_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=STOP_DEADLINE_S)
        self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for pid in self.pids():
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                pass
        return found


def title(pid: int) -> str:
    """What a process calls itself; its number when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return str(pid)
    # A title that was set by the process is one word with spaces; a command is many words.
    return words[0].decode(errors="replace") if len(words) == 1 else Path(words[0].decode()).name


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S
