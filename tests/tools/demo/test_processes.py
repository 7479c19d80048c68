"""Children never outlive the demo, however it ends."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.demo import processes
from tools.demo.processes import Child, ChildDied

DEADLINE_S = 10.0
ROOT = Path(__file__).resolve().parents[3]


async def start(folder: Path, *command: str) -> Child:
    return await Child.start("it", command, log=folder / "it.log", cwd=folder)


async def wait_for_line(child: Child, line: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while line not in child.log.read_text().splitlines():
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether PID runs; a zombie that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while is_running(pid):
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.01)


def test_a_child_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    async def run() -> None:
        child = await start(tmp_path, "sh", "-c", "echo what went wrong; exit 3")
        await child.wait()
        with pytest.raises(ChildDied, match=r"it ended with 3(?s:.*)what went wrong"):
            child.check()
        await child.stop()

    asyncio.run(run())


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    async def run() -> None:
        with pytest.raises(ChildDied, match="it does not start"):
            await start(tmp_path, "no-such-program")

    asyncio.run(run())


def test_stop_takes_what_the_child_started_and_left(tmp_path: Path) -> None:
    async def run() -> int:
        child = await start(tmp_path, "sh", "-c", "sleep 60 & echo $!; echo up; wait")
        await wait_for_line(child, "up")
        child.check()
        await child.stop()
        return int(child.log.read_text().split()[0])

    wait_until_gone(asyncio.run(run()))


def test_a_child_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.1)

    async def run() -> None:
        child = await start(tmp_path, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
        await wait_for_line(child, "up")
        async with asyncio.timeout(DEADLINE_S):
            await child.stop()
        with pytest.raises(ChildDied, match="-9"):
            child.check()

    asyncio.run(run())


PARENT = """
import asyncio, sys
from pathlib import Path
from tools.demo.processes import Child

async def main():
    folder = Path(sys.argv[1])
    child = await Child.start("it", ["sh", "-c", "echo $$; exec sleep 60"], log=folder / "it.log", cwd=folder)
    await child.wait()

asyncio.run(main())
"""


def test_children_die_even_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT) as parent:
        log = tmp_path / "it.log"
        deadline = time.monotonic() + DEADLINE_S
        while not (log.exists() and log.read_text().endswith("\n")):
            assert time.monotonic() < deadline, "the child did not start"
            time.sleep(0.01)
        pid = int(log.read_text())
        assert is_running(pid)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until_gone(pid)
