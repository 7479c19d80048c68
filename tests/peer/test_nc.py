"""What one can do with `nc` and a shell (PROTOCOL.md: "You can speak it with `nc`")."""

from __future__ import annotations

import subprocess

import pytest

from tests.driver import PATIENCE_S, Engine
from tests.peer.raw import owned_by

pytestmark = pytest.mark.needs("nc")


def _nc(engine: Engine, text: str) -> list[str]:
    """What nc prints: it sends all, ends its side, and reads to the end."""
    host, port = engine.address()
    command = ["nc", "-N", host, str(port)]
    ran = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert ran.stdout == "" or ran.stdout.endswith("\n")
    return ran.stdout.splitlines()


def test_ping(engine: Engine) -> None:
    (line,) = _nc(engine, "ping\n")
    assert line.startswith("ok now=1")


@pytest.mark.parametrize("worker", ["", " worker=0", " worker=1"])
def test_a_greeting_and_more(engine: Engine, worker: str) -> None:
    hello, stats, *rows, pong = _nc(engine, f"hello v=1 role=client{worker}\nstats\nping\n")
    assert hello.startswith("ok v=1 engine=")
    assert stats == f"ok n={len(rows)}"
    assert pong.startswith("ok now=")


def test_mistakes_are_told(engine: Engine) -> None:
    assert [line.split(" ")[1] for line in _nc(engine, "help\n\nPING\nget_task\n")] == [
        "code=unknown_verb", "code=bad_line", "code=bad_line", "code=missing_field",
    ]  # fmt: skip


@pytest.mark.parametrize("owner", [0, 1])
def test_post_and_watch_to_the_end(engine: Engine, name: str, owner: int) -> None:
    """nc stays until the task is final, and no longer."""
    (task_id,) = owned_by(owner, name)
    with engine.proxy(name):
        post = f"post_task task_id={task_id} type=url scope={name} -- http://a.example/"
        lines = _nc(engine, f"{post}\nwatch_task task_id={task_id}\n")
    assert lines[0] == f"ok task_id={task_id} state=pending total=1"
    assert lines[1].startswith(f"ok task_id={task_id} type=url state=")
    assert lines[-1] == f"!state task_id={task_id} state=complete done=1 failed=0 total=1"
    assert len(_nc(engine, f"watch_task task_id={task_id}\n")) == 1
    assert len(_nc(engine, f"watch_task task_id=no-{task_id}\n")) == 1


def test_the_admin_socket(engine: Engine) -> None:
    path = str(engine.data / "admin.sock")
    ran = subprocess.run(
        ["nc", "-N", "-U", path],
        input="list_workers\nlist_proxies\nping\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.stdout.startswith("ok n=2\n+ worker=0 ")
    assert ran.stdout.splitlines()[-1].startswith("ok now=")
