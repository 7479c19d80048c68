"""The state document: what is written is what is read, and what cannot be read is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from refreshd import config, control
from refreshd.errors import StateRefused
from refreshd.master import reexec
from refreshd.master.holdings import SavedHoldings
from refreshd.master.operations import Kind, Operations
from refreshd.master.processes import Seat, State, Timing
from refreshd.master.reexec import Saved, SavedProcess, SavedSlot
from refreshd.master.slots import Phase, Supervisor

ROOT = Path(__file__).resolve().parents[3]


def process(side: int = 0, **values: Any) -> SavedProcess:
    usual: dict[str, Any] = {
        "side": side, "pid": 100 + side, "generation": 3, "state": "ready", "spawned_at": 1.5,
        "ready_at": 2.5, "kill_at": None, "kill_why": "", "why": "", "version": control.VERSION,
        "release": "1.0", "control_fd": None,
    }  # fmt: skip
    return SavedProcess(**(usual | values))


def saved(*slots: list[SavedProcess]) -> Saved:
    keys = '[[key]]\nname = "k"\nsecret_file = "f"\n'
    book = Operations()
    book.ask(Kind.UPGRADE)
    return Saved(
        release="1.0",
        command=["/opt/refreshd/current/bin/refreshd"],
        config=config.to_plain(config.parse(keys, {}, lambda _: b"\xff")),
        draining=True,
        generation=9,
        slots=[
            SavedSlot(side=1, start_at=None, restarts=2, failures=1, ever_ready=True, processes=processes)
            for processes in slots
        ],
        holdings=SavedHoldings(lanes=2, listener_fd=3, admin_fd=4, scoreboard_fd=5, lock_fd=6, pid_fd=7),
        operations=book.to_plain(),
        signals=[1],
    )


def test_what_is_written_is_read() -> None:
    written = saved([process()], [process(side=1, control_fd=8)], [])
    read = reexec.read(reexec.write(written))
    assert msgspec.json.encode(read) == msgspec.json.encode(written)
    assert read.fds() == [8, 3, 4, 5, 6, 7]
    assert reexec.config_of(read).keys[0].secret == b"\xff"


def test_slots_and_processes_are_as_they_were() -> None:
    supervisor = Supervisor(2, Timing())
    reexec.restore(
        supervisor,
        saved(
            [process(), process(1, state="killed", ready_at=None, kill_at=7.0, kill_why="silent", why="x")],
            [],
        ),
    )
    assert (supervisor.phase, supervisor.generation) == (Phase.UP, 9)
    first, second = supervisor.slots
    assert (first.seat, first.restarts, first.failures, first.ever_ready) == (Seat(0, 1), 2, 1, True)
    assert second.state is State.WAITING
    ready, killed = first.processes[0], first.processes[1]
    assert (ready.state, ready.ready_at, ready.kill_at) == (State.READY, 2.5, math.inf)
    assert (killed.state, killed.ready_at, killed.kill_at) == (State.KILLED, math.inf, 7.0)
    assert (killed.kill_why, killed.why, killed.version) == ("silent", "x", control.VERSION)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'{"version": 2}', "leaves a state of version 2, this code"),
        (b'{"version": 1}', "cannot be read: Object missing required field"),
        (b"\xff", "cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_refused(document: bytes, why: str) -> None:
    fd = os.memfd_create("test")
    os.write(fd, document)
    with pytest.raises(StateRefused, match=why):
        reexec.read(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_state_of_a_process_that_is_not_known_is_refused() -> None:
    with pytest.raises(StateRefused, match="the worker with pid 100 is dancing"):
        reexec.restore(Supervisor(1, Timing()), saved([process(state="dancing")]))


def test_fields_of_a_newer_master_are_no_fault_and_settings_it_lacked_have_their_default() -> None:
    plain = json.loads(os.pread(reexec.write(saved([])), 1 << 20, 0))
    plain["moon"] = "full"
    plain["config"]["engine"]["phase_of_the_moon"] = 3
    del plain["config"]["engine"]["tasks_max"]
    fd = os.memfd_create("test")
    os.write(fd, json.dumps(plain).encode())
    assert reexec.config_of(reexec.read(fd)).engine.tasks_max == 5_000_000


def test_a_configuration_that_cannot_be_read_is_refused() -> None:
    wrong = saved([])
    wrong.config["engine"]["tasks_max"] = "many"
    with pytest.raises(StateRefused, match="the configuration in force cannot be read by this code"):
        reexec.config_of(wrong)


def test_what_cannot_be_run_leaves_all_as_it_was() -> None:
    reader, writer = os.pipe()
    try:
        document = saved([process(control_fd=reader)])
        document.command = ["/nonexistent/refreshd"]
        document.holdings = SavedHoldings(
            lanes=1, listener_fd=writer, admin_fd=writer, scoreboard_fd=writer, lock_fd=writer, pid_fd=writer
        )
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(FileNotFoundError):
            reexec.become(document)
        assert not os.get_inheritable(reader)
        assert not os.get_inheritable(writer)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(reader)
        os.close(writer)


CODE = "import json; from refreshd.master.reexec import command_line; print(json.dumps(command_line()))"


def test_the_command_is_that_of_the_start(tmp_path: Path) -> None:
    def told(*command: str) -> list[str]:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        words: list[str] = json.loads(ran.stdout)
        return words

    with_options = [sys.executable, "-W", "error", "-c", CODE, "-x"]
    assert told(*with_options) == with_options
    script = tmp_path / "run"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n{CODE}\n")
    assert told(sys.executable, str(script), "-x") == [sys.executable, str(script), "-x"]
    script.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to("run")
    assert told(str(link), "-x") == [str(link), "-x"]
