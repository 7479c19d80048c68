"""The real master becomes the code that is on disk, with fake workers: same process, same children."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.refreshd.master.driver import ROOT, Engine, MakeEngine, notes, starts, wait_until

# It holds the code that comes up until the test lets it go on.
GATE = """
import os, sys, time
if "--adopt" in sys.orig_argv and os.path.exists(FOLDER + "/shut"):
    open(FOLDER + "/held", "w").close()
    while os.path.exists(FOLDER + "/shut"):
        time.sleep(0.01)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, which a test may break."""
    return copy_code(tmp_path / "tree")


def copy_code(to: Path) -> Path:
    for name in ("refreshd", "wire", "tests/refreshd/master"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    return to


def upgrade(engine: Engine) -> dict[str, str]:
    return engine.outcome(engine.request("upgrade")["operation"])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# As it should be


def test_it_is_the_same_process_with_the_same_children(make_engine: MakeEngine) -> None:
    engine = make_engine(backoff_first_s=0.0)
    engine.start_up()
    assert engine.process is not None
    first = engine.pid_of(1)
    os.kill(first, signal.SIGKILL)
    engine.wait_for_worker(1, first)
    engine.request("drain")
    old = [engine.pid_of(slot) for slot in (0, 1)]
    files = {path.name: path.stat().st_ino for path in engine.data.iterdir()}
    address = engine.address()
    outcome = upgrade(engine)
    assert outcome["state"] == "done", outcome
    assert outcome["why"].startswith("release ")
    assert outcome["why"].endswith("; no setting changed; 2 workers rolled")
    (adopted,) = engine.log("workers adopted")
    assert adopted["pids"] == old
    (again,) = engine.log("re-executed")
    assert again["pid"] == engine.process.pid
    assert {path.name: path.stat().st_ino for path in engine.data.iterdir()} == files
    assert engine.address() == address
    new = [engine.pid_of(slot) for slot in (0, 1)]
    assert not {*old} & {*new}
    assert {parent_of(pid) for pid in new} == {engine.process.pid}
    assert [row["restarts"] for row in engine.workers()] == ["0", "1"]
    assert engine.request("engine_status")["phase"] == "draining"
    assert [start["draining"] for start in starts(engine, 0)] == [False, True]
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]


def test_five_upgrades_leave_nothing_behind(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=1).start_up()
    assert upgrade(engine)["state"] == "done"
    before = engine.fds()
    for _ in range(4):
        assert upgrade(engine)["state"] == "done"
    wait_until(lambda: engine.fds() <= before, f"{before} descriptors, as before")
    first, last = starts(engine, 0)[0], starts(engine, 0)[-1]
    assert last["generation"] == 6
    assert len(last["fds"]) == len(first["fds"])
    assert {parent_of(process.pid) for process in engine.worker_processes()} == {
        int(engine.request("engine_status")["pid"])
    }


def test_a_release_is_found_anew_where_a_link_leads(tmp_path: Path, make_engine: MakeEngine) -> None:
    for name, release in (("r1", "1.0.1"), ("r2", "1.0.2")):
        tree = copy_code(tmp_path / name)
        (tree / "refreshd/__init__.py").write_text(f'"""A release."""\n\n__version__ = "{release}"\n')
        script = tree / "run"
        # As what pip installs does: the interpreter in the first line knows where its packages are.
        script.write_text(
            f"#!{sys.executable}\nimport os, sys\nos.environ['PYTHONPATH'] = sys.path[0] = {str(tree)!r}\n"
            "from tests.refreshd.master import run_master\n"
            "sys.exit(run_master.main(make_master=run_master.make))\n"
        )
        script.chmod(0o755)
    current = tmp_path / "current"
    current.symlink_to("r1")
    engine = make_engine(tree=tmp_path, command=(current / "run",)).start_up()
    assert engine.request("engine_status")["release"] == "1.0.1"
    current.unlink()
    current.symlink_to("r2")
    assert upgrade(engine)["why"].startswith("release 1.0.2; ")
    assert engine.request("engine_status")["release"] == "1.0.2"
    codes = [Path(start["code"]) for start in starts(engine, 0)]
    assert [code.relative_to(tmp_path).parts[0] for code in codes] == ["r1", "r2"]
    # And back.
    current.unlink()
    current.symlink_to("r1")
    assert upgrade(engine)["state"] == "done"
    assert engine.request("engine_status")["release"] == "1.0.1"


def test_a_changed_configuration_is_what_the_new_workers_get(engine: Engine) -> None:
    engine.configure("line_max = 8192\ntasks_max = 5\n")
    outcome = upgrade(engine)
    assert "in place: engine.tasks_max; with new workers: engine.line_max; 2 workers rolled" in outcome["why"]
    for slot in (0, 1):
        last = starts(engine, slot)[-1]
        assert (last["line_max"], last["tasks_max"]) == (8192, 5)
        assert not notes(engine, slot, "configure")
    assert engine.request("reload") != {}
    assert engine.outcome("2")["why"] == "no setting changed; 2 workers rolled"


def test_a_reload_that_waits_is_done_by_the_new_code(engine: Engine, make_engine: MakeEngine) -> None:
    assert engine.request("upgrade") == {"operation": "1"}
    engine.wait_for("rehearsal begins")
    engine.configure("tasks_max = 5\n")
    assert engine.request("reload") == {"operation": "2"}
    assert engine.outcome("1")["state"] == "done"
    assert engine.outcome("2")["state"] == "done"


# If the new code does not come up, the old goes on and says why


def check_refused(engine: Engine, why: str) -> None:
    """An upgrade fails with this reason, and nothing else has changed."""
    assert engine.process is not None
    pids, fds = [row["pid"] for row in engine.workers()], engine.fds()
    outcome = upgrade(engine)
    assert outcome["state"] == "failed"
    assert why in outcome["why"]
    assert engine.log("operation failed")[-1]["why"] == outcome["why"]
    assert not engine.log("re-executed")
    assert [row["pid"] for row in engine.workers()] == pids
    assert engine.process.poll() is None
    wait_until(lambda: engine.fds() <= fds, f"{fds} descriptors, as before")


BROKEN = [
    ("refreshd/__main__.py", "1 +", "SyntaxError: invalid syntax"),
    ("refreshd/master/master.py", "import nonsense", "ModuleNotFoundError: No module named 'nonsense'"),
    ("refreshd/control.py", "VERSION = 3", "speaks version 2 with the master, this code 3; restart"),
    ("refreshd/master/reexec.py", "VERSION = 2", "leaves a state of version 1, this code"),
    ("tests/refreshd/master/fake_worker.py", "1 / 0", "the workers' code cannot be imported: exit status 1"),
    (
        "refreshd/master/rolls.py",
        "import os\nos._exit(0)",
        "the code on disk would not come up: exit status 0",
    ),
    (
        "refreshd/master/slots.py",
        "while True:\n    print('x' * 999)",
        "it printed without end; it printed:\nxxx",
    ),
]


def test_code_that_does_not_come_up_is_refused_and_mended_code_is_not(
    tree: Path, make_engine: MakeEngine
) -> None:
    engine = make_engine(tree=tree, workers=1).start_up()
    main = '\n\nif __name__ == "__main__":\n'
    for file, code, why in BROKEN:
        source = (tree / file).read_text()
        head, _, body = source.partition(main)
        (tree / file).write_text(f"{head}\n\n{code}\n{main}{body or '    pass'}")
        check_refused(engine, why)
        (tree / file).write_text(source)
    shutil.move(tree / "refreshd/master", tree / "elsewhere")
    check_refused(engine, "ModuleNotFoundError: No module named 'refreshd.master'")
    shutil.move(tree / "elsewhere", tree / "refreshd/master")
    engine.configure("worker = 3\n", workers=1)
    check_refused(engine, "line 6: engine.worker: not a setting; did you mean engine.workers?")
    engine.configure('id = "e2"\n', workers=1)
    check_refused(engine, 'line 6: engine.id: "e1" → "e2" needs a restart of the engine')
    engine.configure("", workers=1)
    assert upgrade(engine)["state"] == "done"


def test_code_that_hangs(tree: Path, make_engine: MakeEngine) -> None:
    engine = make_engine(tree=tree, workers=1, rehearsal_timeout_s=2.0).start_up()
    (tree / "refreshd/master/slots.py").write_text(
        "import time\nprint('here', flush=True)\ntime.sleep(1000)\n"
    )
    check_refused(engine, "it was not done within 2 s; it printed:\nhere")


SCRIPT = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
if "--rehearse" in sys.argv and os.path.exists(__file__ + ".fades"):
    os.unlink(__file__)
from tests.refreshd.master import run_master
sys.exit(run_master.main(make_master=run_master.make))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_that_is_gone(tmp_path: Path, make_engine: MakeEngine, when: str) -> None:
    """Before the rehearsal, or after it: then it is the exec itself that fails."""
    script = tmp_path / "run"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    engine = make_engine(command=(script,), workers=1).start_up()
    if when == "before":
        script.unlink()
    else:
        (tmp_path / "run.fades").touch()
    check_refused(engine, f"the code on disk cannot be run: No such file or directory ({script})")
    assert len(engine.log("re-executing")) == (when == "after")
    script.write_text(SCRIPT)
    script.chmod(0o755)
    (tmp_path / "run.fades").unlink(missing_ok=True)
    assert upgrade(engine)["state"] == "done"


def test_workers_that_do_not_start_with_the_new_code(tree: Path, make_engine: MakeEngine) -> None:
    engine = make_engine(tree=tree).start_up()
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    worker = tree / "tests/refreshd/master/fake_worker.py"
    worker.write_text(worker.read_text().replace("    FakeWorker().run()\n", "    FakeWorker().fail()\n"))
    outcome = upgrade(engine)
    assert "is gone while the new one started: the store is damaged (0 of 2 rolled)" in outcome["why"]
    assert [engine.pid_of(slot) for slot in (0, 1)] == pids


# Signals, and what else happens while nobody listens


class Gate:
    """Holds a master between its exec and its first line of code."""

    def __init__(self, tree: Path) -> None:
        self.shut = tree / "shut"
        self.held = tree / "held"
        (tree / "sitecustomize.py").write_text(f"FOLDER = {str(tree)!r}\n{GATE}")
        self.shut.touch()

    def hold(self, engine: Engine) -> str:
        """Starts an upgrade; returns its number once nobody is at home."""
        number = engine.request("upgrade")["operation"]
        wait_until(self.held.exists, "it was re-executed")
        return number

    def open(self) -> None:
        self.shut.unlink()


@pytest.fixture
def gate(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setenv("PYTHONPATH", str(tree))
    return Gate(tree)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_comes_in_between_is_heard(
    tree: Path, gate: Gate, make_engine: MakeEngine, number: signal.Signals
) -> None:
    engine = make_engine(tree=tree).start_up()
    gate.hold(engine)
    processes = engine.remember_workers()
    engine.signal(number)
    gate.open()
    assert engine.wait() == 0
    assert not any(process.is_running() for process in processes)
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]
    assert len(engine.log("worker started")) == 2


def test_reloads_and_deaths_in_between_are_acted_on(tree: Path, gate: Gate, make_engine: MakeEngine) -> None:
    engine = make_engine(tree=tree).start_up()
    number = gate.hold(engine)
    pid = starts(engine, 0)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        engine.signal(signal.SIGHUP)
    with engine.admin() as early:
        early.sendall(b"ping\n")
        gate.open()
        assert early.recv(100).startswith(b"ok now=")
    assert engine.outcome(number)["state"] == "done"
    assert engine.row_of(0)["restarts"] == "1"
    assert engine.outcome("2")["kind"] == "reload"
    assert engine.outcome("2")["state"] == "done"


def test_an_upgrade_that_is_asked_for_in_between_is_done_next(
    tree: Path, gate: Gate, make_engine: MakeEngine
) -> None:
    engine = make_engine(tree=tree, workers=1).start_up()
    gate.hold(engine)
    engine.signal(signal.SIGUSR2)
    gate.open()
    wait_until(lambda: engine.request("operation operation=2").get("kind") == "upgrade", "it was heard")
    assert engine.outcome("2")["state"] == "done"
    assert starts(engine, 0)[-1]["generation"] == 3


def test_a_stop_ends_a_rehearsal(tree: Path, make_engine: MakeEngine) -> None:
    engine = make_engine(tree=tree).start_up()
    (tree / "refreshd/master/slots.py").write_text("import time\ntime.sleep(1000)\n")
    engine.request("upgrade")
    (begun,) = engine.wait_for("rehearsal begins")
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    assert not Path(f"/proc/{begun['pid']}").exists()


def test_a_master_that_was_re_executed_still_watches_its_workers(make_engine: MakeEngine) -> None:
    engine = make_engine(heartbeat_timeout_s=1.0).start_up()
    engine.behave(0, "fail")
    # The roll fails, so the workers are those of the master before.
    assert upgrade(engine)["state"] == "failed"
    engine.behave(0, "ready")
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    assert pids == [starts(engine, slot)[0]["pid"] for slot in (0, 1)]
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(pids[1], signal.SIGTERM)
    for slot in (0, 1):
        engine.wait_for_worker(slot, pids[slot])
    assert engine.log("worker killed")[0]["why"].startswith("silent for 1.")
