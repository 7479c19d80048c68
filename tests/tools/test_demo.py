"""The whole demo, as `make demo` and `make run` start it: real engine, agent and cache."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tools.demo import __main__, caches

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 90.0
STEPS = 8  # the start, and the seven of the story

CACHES = [
    pytest.param("varnish", "Varnish", marks=pytest.mark.needs("varnishd")),
    pytest.param("ats", "Apache Traffic Server", marks=pytest.mark.needs("traffic_server")),
    ("little", "the demo's own little one"),
]


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


@pytest.mark.parametrize(("cache", "title"), CACHES)
def test_every_step_is_seen_to_work(cache: str, title: str) -> None:
    with started("demo", "--cache", cache) as demo:
        assert demo.end() == 0, demo.text
    assert f"the cache is {title}" in demo.text
    assert demo.text.count("✓") == STEPS
    assert "✗" not in demo.text
    assert "edition 2, from the origin" in demo.text
    assert "half price, from the cache" in demo.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_stays_up_until_asked_to_stop_and_leaves_nothing(number: signal.Signals) -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for("Ctrl-C stops all of it.")
        children = demo.children()
        assert len(children) >= 4  # master, two workers, agent
        demo.process.send_signal(number)
        assert demo.end() == 0, demo.text
        assert are_gone(children)
    assert "Stopping." in demo.text


def test_what_run_says_to_try_works() -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for("Ctrl-C stops all of it.")
        commands = [line.strip() for line in demo.lines if line.startswith(("  .venv", "  " + sys.prefix))]
        assert len(commands) == 4
        for command in commands:
            done = subprocess.run(
                command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), command
            assert done.stdout, command


def test_a_part_that_dies_ends_run_with_its_name_and_log() -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for("Ctrl-C stops all of it.")
        children = demo.children()
        agent = next(child for child in children if "proxyd" in " ".join(child.cmdline()))
        agent.kill()
        assert demo.end() == 1
        assert are_gone(children)
    assert "proxyd ended with -9" in demo.text
    assert "The logs: .run/" in demo.text


def test_children_die_with_a_demo_that_is_killed() -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for("Ctrl-C stops all of it.")
        children = demo.children()
        demo.process.kill()
        demo.end()
        wait_until(lambda: are_gone(children), "all of its processes are gone")


def test_a_cache_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(caches, "SEARCH_PATH", "")
    assert caches.choose(None).name == "little"
    assert __main__.main(["demo", "--cache", "varnish"]) == 1
    assert "Varnish is not installed (no varnishd)" in capsys.readouterr().out
