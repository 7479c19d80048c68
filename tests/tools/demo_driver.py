"""Drives the whole demo as a process, for the tests of the demo and of the README."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tools.servers.process import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0
UP = "Ctrl-C stops all of it."


class Demo:
    """`python -m tools.demo MODE`, its output read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.text, f"{text!r} in {self.text}")

    def end(self) -> int:
        """Its exit code, once it has ended and all is read."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def children(self) -> list[psutil.Process]:
        """All that it started and that runs, workers of the engine included."""
        return psutil.Process(self.process.pid).children(recursive=True)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s until {what}"
        time.sleep(0.02)


@contextmanager
def started(mode: str, *options: str) -> Iterator[Demo]:
    command = [sys.executable, "-m", "tools.demo", mode, *options]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent,
    )
    with process:
        demo = Demo(process)
        try:
            yield demo
        finally:
            process.kill()
            demo.end()


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
