"""What the units forbid is nothing that engine and agent do. (That they forbid a lot is in test_units.)"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.driver import Engine
from tests.peer.raw import Reply
from tests.peer.waiting import wait_until
from tests.systemd.sandbox import allowed_calls
from tools.servers.agent import Agent

pytestmark = pytest.mark.needs("systemd-analyze")
SANDBOX = Path(__file__).with_name("sandbox.py")


def confined(unit: str) -> list[str]:
    """What stands before a command that is confined as the unit says."""
    return [sys.executable, str(SANDBOX), unit]


@pytest.mark.parametrize(
    ("deed", "ends"),
    [
        ("pass", 0),
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)", 0),
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", -signal.SIGSYS),
        ("import socket; socket.socket(socket.AF_UNIX)", 0),
        ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", -signal.SIGSYS),
        ("import os; os.sched_setaffinity(0, os.sched_getaffinity(0))", 0),
        ("import os; os.nice(1)", -signal.SIGSYS),
        ("import os; os.chroot('/')", -signal.SIGSYS),
    ],
)
def test_the_sandbox_is_one(deed: str, ends: int) -> None:
    ran = subprocess.run(
        [*confined("refreshd.service"), sys.executable, "-S", "-c", deed], capture_output=True
    )
    assert (ran.returncode, ran.stderr) == (ends, b"")


def test_the_filter_is_read_as_systemd_reads_it() -> None:
    calls = allowed_calls("refreshd.service")
    assert {"execve", "memfd_create", "sched_setaffinity", "prlimit64", "sendmsg"} < calls
    assert not {"setpriority", "chown", "mount", "ptrace", "bpf", "mlock", "keyctl"} & calls


def ended(operation: Reply) -> Reply | None:
    """The operation, once it is over."""
    return operation if operation["state"] in ("done", "failed") else None


def test_engine_and_agent_live_in_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(confined("proxyd.service"))} {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Engine(before=confined("refreshd.service")) as engine:
        host, port = engine.address()
        # Nothing listens at the cache's address: the task fails, after all that takes.
        caches = [("v1", "varnish", "127.0.0.1:1")]
        with Agent([f"{host}:{port}"], caches, more="[breaker]\nwait_s = 0", python=str(python)):
            with engine.peer() as peer:
                post = "post_task task_id=t1 type=url -- http://e.example/"
                wait_until(lambda: peer.ask(post).ok, "a proxy that serves it")
                wait_until(lambda: peer.ask("get_task task_id=t1")["state"] == "failed", "the task's end")
            engine.wait_for_worker(0, other_than=engine.kill_worker(0))
            # The master rehearses, executes itself, and hands all that a worker has to another.
            assert engine.admin("upgrade").ok
            over = wait_until(lambda: ended(engine.admin("operation")), "the upgrade's end")
            assert (over["state"], over["why"].split("; ")[-1]) == ("done", "2 workers rolled")
            assert all(int(row["mem"]) > 0 for row in engine.admin("list_workers").rows)
        assert engine.stop() == 0
