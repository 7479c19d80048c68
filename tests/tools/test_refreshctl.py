"""refreshctl against a fake engine on a Unix socket: in this process, and as a program."""

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.wire.fake_engine import Connection, FakeEngine, accept_then_cut, cut
from tools.refreshctl.__main__ import main
from tools.servers.waiting import wait_until
from wire.lines import Line

ROOT = Path(__file__).resolve().parents[2]
BUSY = b"err code=busy retry_ms=1 msg=full\n"


class Bench:
    """A fake engine in a thread, and refreshctl pointed at it."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine(2, path=folder / "admin.sock")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def socket(self) -> str:
        return str(self.engine.path)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.engine.start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.engine.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def do(self, work: Callable[[], Any]) -> Any:
        """Runs something in the engine's thread."""
        done: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: done.set_result(work()))
        return done.result(10)

    def state(self, task_id: str, *how: Any) -> None:
        self.do(lambda: self.engine.set_state(task_id, *how))

    def start_program(self, *args: str, **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tools.refreshctl", "--socket", self.socket, *args],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.stop()


Ctl = Callable[..., SimpleNamespace]


@pytest.fixture
def ctl(bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Runs refreshctl here: exit code, stdout, stderr, and the document under --json."""
    monkeypatch.setenv("REFRESHCTL_SOCKET", bench.socket)

    def run(*args: str, stdin: str | bytes = "") -> SimpleNamespace:
        data = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main(args)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(
            code=code, out=out, err=err, json=json.loads(out) if "--json" in args and out else None
        )

    return run


def ending(*how: Any) -> Callable[[Connection, Line], bytes]:
    """A script for `watch_task`: the task is final by the time it is asked for."""

    def script(connection: Connection, line: Line) -> bytes:
        connection.engine.set_state(line.fields["task_id"], *how)
        return connection.engine.do_watch_task(connection, line)

    return script


# -- submit


def test_submit_makes_an_id_up_and_prints_it(ctl: Ctl, bench: Bench) -> None:
    ran = ctl("submit", "http://a/1", "http://a/2")
    assert ran.code == 0
    assert ran.err == ""
    (task_id,) = bench.engine.tasks
    assert ran.out.splitlines()[0].split() == ["TASK", "ID", "STATE", "TOTAL"]
    assert ran.out.splitlines()[1].split() == [task_id, "pending", "2"]


def test_submit_says_all_of_it_on_the_wire(ctl: Ctl, bench: Bench) -> None:
    ctl(
        "submit", "--type", "dir", "--scope", "us,eu", "--due", "1795250000", "--ttl", "1h", "--priority",
        "9",
        "--callback", "http://c/", "--force", "--id", "x", "http://a/b/",
    )  # fmt: skip
    (line,) = bench.engine.requests("post_task")
    assert line.fields == {
        "task_id": "x", "type": "dir", "scope": "eu,us", "due": "1795250000", "ttl": "3600", "priority": "9",
        "callback": "http://c/", "force": "1",
    }  # fmt: skip
    assert line.items == ("http://a/b/",)


@pytest.mark.parametrize("args", [("-",), ("-f", "-")])
def test_submit_reads_stdin_and_parts_it(ctl: Ctl, bench: Bench, args: tuple[str, ...]) -> None:
    urls = "".join(f"http://a/{number}\n" for number in range(25))
    ran = ctl("submit", "--json", "--per-task", "10", "--id", "x", *args, stdin="# all\n\n" + urls)
    assert ran.code == 0
    assert ran.json == {
        "accepted": 3,
        "refused": 0,
        "tasks": [
            {"task_id": "x-1", "state": "pending", "total": 10, "dup": False},
            {"task_id": "x-2", "state": "pending", "total": 10, "dup": False},
            {"task_id": "x-3", "state": "pending", "total": 5, "dup": False},
        ],
    }
    again = ctl("submit", "--json", "--per-task", "10", "--id", "x", *args, stdin=urls)
    assert again.code == 0
    assert all(task["dup"] for task in again.json["tasks"])


def test_many_tasks_are_summed_up(ctl: Ctl) -> None:
    ran = ctl(
        "submit", "--per-task", "1", "--id", "x", "-", stdin="".join(f"http://a/{n}\n" for n in range(500))
    )
    assert ran.code == 0
    assert ran.out == "500 tasks, x-1 to x-500: 500 pending\n"


def test_rubbish_posts_nothing(ctl: Ctl, bench: Bench) -> None:
    ran = ctl("submit", "-", stdin="http://a/1\n\nwww.example.com\n")
    assert ran.code == 2
    assert ran.err.startswith("refreshctl: stdin line 3: 'www.example.com': not an absolute")
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert bench.engine.seen == []


def test_a_refused_task_fails(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("post_task", b"err code=bad_field field=scope msg=no\\ssuch\\sgroup\n")
    ran = ctl("submit", "http://a/1", "--json")
    assert ran.code == 1
    assert ran.err == "refreshctl: bad_field: no such group\n"
    error = {"code": "bad_field", "msg": "no such group", "field": "scope"}
    assert ran.json["tasks"][0]["error"] == error
    assert ran.json["refused"] == 1


def test_a_denied_task_is_denied(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("post_task", b"err code=denied msg=not\\syours\n")
    assert ctl("submit", "http://a/1").code == 5


def test_some_submitted_is_partly(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("post_task", bench.engine.do_post_task, b"err code=bad_field msg=x\n")
    ran = ctl("submit", "--per-task", "1", "http://a/1", "http://a/2", "http://a/3")
    assert ran.code == 4
    assert ran.err == "refreshctl: 1 of 3 tasks not accepted; the first: bad_field: x\n"
    assert len(ran.out.splitlines()) == 3


def test_what_may_be_retried_is(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("post_task", BUSY, cut, accept_then_cut)
    ran = ctl("submit", "http://a/1", "--id", "x")
    assert ran.code == 0
    assert len(bench.engine.requests("post_task")) == 4
    assert list(bench.engine.tasks) == ["x"]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([("complete", 1, 0)] * 2, 0), ([("failed", 0, 1)] * 2, 1), ([("expired", 0, 1)] * 2, 1),
        ([("cancelled",)] * 2, 1), ([("complete", 1, 0), ("failed", 0, 1)], 4),
    ],
)  # fmt: skip
def test_wait_tells_how_they_ended(ctl: Ctl, bench: Bench, ends: list[tuple[Any, ...]], code: int) -> None:
    bench.engine.script("watch_task", *(ending(*end) for end in ends))
    ran = ctl("submit", "--wait", "--per-task", "1", "http://a/1", "http://a/2", "--json")
    assert ran.code == code
    assert sorted(task["state"] for task in ran.json["tasks"]) == sorted(end[0] for end in ends)
    assert ran.err.count("\n") == (0 if code == 0 else 1)


def test_some_targets_failed_is_partly(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("watch_task", ending("failed", 1, 1))
    ran = ctl("submit", "--wait", "--id", "x", "http://a/1", "http://a/2")
    assert ran.code == 4
    assert ran.err == "refreshctl: x ended failed; see `refreshctl show x`\n"
    assert ran.out.splitlines()[1].split() == ["x", "failed", "2", "1", "1"]


def test_waiting_has_a_deadline(ctl: Ctl) -> None:
    ran = ctl("submit", "--wait", "--timeout", "0s", "--id", "x", "http://a/1")
    assert ran.code == 1
    assert "not final after 0 s; it goes on" in ran.err
    assert ctl("wait", "x", "--timeout", "0").code == 1


# -- the other verbs


def test_show(ctl: Ctl, bench: Bench) -> None:
    ctl("submit", "--id", "x", "http://a/1")
    ran = ctl("show", "x")
    assert ran.code == 0
    assert "state    pending" in ran.out
    assert "no route" in ran.out
    document = ctl("show", "x", "--json").json
    assert document["task"]["task_id"] == "x"
    assert document["proxies"][1] == {
        "proxy": "pop2", "layer": 1, "state": "pending", "done": 0, "failed": 0, "ms": 3, "error": "no route",
    }  # fmt: skip


def test_a_task_that_is_not_there(ctl: Ctl) -> None:
    for verb in ("show", "wait", "cancel"):
        ran = ctl(verb, "nix")
        assert ran.code == 1
        assert "not_found" in ran.err
        assert ran.err.count("\n") == 1
        assert ran.out == ""


def test_wait_for_several(ctl: Ctl, bench: Bench) -> None:
    ctl("submit", "--id", "x", "--per-task", "1", "http://a/1", "http://a/2")
    bench.state("x-1", "complete", 1)
    bench.state("x-2", "complete", 1)
    assert ctl("wait", "x-1", "x-2", "x-1").code == 0
    ran = ctl("wait", "x-1", "nix", "--json")
    assert ran.code == 4
    assert [task.get("state") for task in ran.json["tasks"]] == ["complete", None]


def test_list(ctl: Ctl, bench: Bench) -> None:
    assert ctl("list").out == "no tasks\n"
    ctl("submit", "--per-task", "1", "--id", "x", *(f"http://a/{number}" for number in range(5)))
    bench.state("x-2", "complete", 1)
    ran = ctl("list", "--limit", "2")
    assert [line.split()[0] for line in ran.out.splitlines()[1:3]] == ["x-5", "x-4"]
    assert "refreshctl list --after x-4" in ran.out
    after = ctl("list", "--after", "x-4", "--json").json["tasks"]
    assert [task["task_id"] for task in after] == ["x-3", "x-2", "x-1"]
    assert after[1].keys() == {"task_id", "type", "state", "total", "done", "failed", "created", "updated"}
    assert [task["task_id"] for task in ctl("list", "--state", "complete", "--json").json["tasks"]] == ["x-2"]


def test_cancel(ctl: Ctl, bench: Bench) -> None:
    ctl("submit", "--per-task", "1", "--id", "x", "http://a/1", "http://a/2")
    bench.state("x-2", "complete", 1)
    ran = ctl("cancel", "x-1", "x-2", "nix", "--json")
    assert ran.code == 4
    assert [task.get("state") for task in ran.json["tasks"]] == ["cancelled", "complete", None]
    assert ctl("cancel", "x-1").code == 0


def test_cluster(ctl: Ctl) -> None:
    first, second = ctl("cluster", "--json").json["engines"]
    assert (first["engine"], first["lease"], first["release"]) == ("e1", 8_000, "1.0")
    assert second == {"engine": "e2", "number": 2, "epoch": 1, "self": 0, "alive": 0}
    shown = ctl("cluster").out.splitlines()
    assert shown[1].split()[:6] == ["e1", "1", "3", "yes", "yes", "yes"]
    assert "8s" in shown[1]
    assert "Redis is away" in shown[1]


def test_stats_workers_proxies_and_ping(ctl: Ctl) -> None:
    assert ctl("stats", "--json").json == {"tasks": 0, "accept_rate_1m": 12.5, "engine": "e1"}
    assert "accept_rate_1m  12.5" in ctl("stats").out
    workers = ctl("workers", "--json").json["workers"]
    assert [row["worker"] for row in workers] == [0, 1]
    assert workers[0]["mem"] == 31457280
    assert "30.0 MiB" in ctl("workers").out
    assert ctl("proxies", "--json").json["proxies"][0]["proxy"] == "pop1"
    assert "1s ago" in ctl("proxies").out
    keys = ctl("quotas", "--json").json["quotas"]
    assert [(key["key"], key["spare"], key["url_max"]) for key in keys[:1]] == [("acme", -30, 1000000)]
    assert keys[1]["key"] == "0x10"
    assert "spare" not in keys[1]
    assert ctl("quotas").out.splitlines() == [
        "KEY   RATE  BURST  SPARE  TAKEN  REFUSED  IN FLIGHT  URL            DIR",
        "acme   100    500    -30  20120       12  31/1000    20100/1000000   20",
        "0x10     -      -      -      5        0  31/1000    20100/1000000   20",
    ]
    assert ctl("proxies", "--forget", "pop1").code == 0
    assert ctl("proxies", "--forget", "nix").code == 1
    assert "answered in" in ctl("ping").out
    assert ctl("ping", "--json").json["now"] == 1795250000123


def test_json_and_socket_stand_before_or_after_the_verb(
    ctl: Ctl, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REFRESHCTL_SOCKET")
    for args in (["--json", "--socket", bench.socket, "ping"], ["ping", "--socket", bench.socket, "--json"]):
        assert ctl(*args).json["now"] == 1795250000123
    assert ctl("--socket", bench.socket, "--json", "ping").code == 0


# -- what goes wrong


@pytest.mark.parametrize(
    "args",
    [
        (), ("frob",), ("submit",), ("show",), ("show", "a", "b"), ("show", "a/b"), ("list", "--limit", "0"),
        ("list", "--state", "odd"), ("submit", "--type", "odd", "x"), ("wait", "x", "--timeout", "soon"),
        ("submit", "--priority", "x", "http://a/"), ("--frob", "ping"),
        ("submit", "-f", "/nowhere", "-f", "/no"),
        ("submit", "--per-task", "0", "http://a/"), ("cancel",),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(ctl: Ctl, bench: Bench, args: tuple[str, ...]) -> None:
    ran = ctl(*args)
    assert ran.code == 2
    assert ran.err.startswith("refreshctl: ")
    assert ran.err.count("\n") == 1
    assert bench.engine.seen == []


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in (
        "submit",
        "show",
        "wait",
        "list",
        "cancel",
        "stats",
        "workers",
        "proxies",
        "quotas",
        "cluster",
        "status",
        "reload",
        "upgrade",
        "drain",
        "undrain",
        "ping",
        "exit codes",
    ):
        assert word in out


@pytest.mark.parametrize(
    "verb", [("ping",), ("submit", "http://a/1"), ("list",), ("wait", "x"), ("cancel", "x", "y")]
)
def test_nobody_there(ctl: Ctl, tmp_path: Path, verb: tuple[str, ...]) -> None:
    for socket in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").touch()
        ran = ctl("--socket", str(socket), *verb)
        assert ran.code == 3
        assert "start refreshd" in ran.err
        assert str(socket) in ran.err


def test_something_else_listens_there(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("ping", b"HTTP/1.1 400 Bad Request\r\n\r\n")
    ran = ctl("ping")
    assert ran.code == 1
    assert "does refreshd listen on" in ran.err


# -- as a program


def test_interrupted(bench: Bench) -> None:
    process = bench.start_program("submit", "--wait", "http://a/1")
    wait_until(lambda: bench.engine.requests("watch_task"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "Traceback" not in out


def test_a_broken_pipe_is_quiet(bench: Bench) -> None:
    bench.engine.script(
        "stats", lambda connection, line: b"ok n=20000\n" + b"+ name=abcdefghij value=123456789\n" * 20000
    )
    process = bench.start_program("stats", "--json")
    assert process.stdout is not None
    process.stdout.close()
    wait_until(lambda: process.poll() is not None)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.returncode in (0, 141)


def test_stdin_of_a_program(bench: Bench) -> None:
    process = bench.start_program("submit", "--json", "-", stdin=subprocess.PIPE)
    out, err = process.communicate("http://a/1\n", timeout=30)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["accepted"] == 1


def test_ping_loads_little() -> None:
    """Start-up is most of what a short command costs; the heavy libraries are not for it."""
    heavy = ("rich", "snappy", "cramjam", "uvloop", "structlog")
    code = (
        "import sys; from tools.refreshctl.__main__ import main\n"
        "main(['--socket', '/nonexistent', 'ping'])\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.strip() == "[]"
