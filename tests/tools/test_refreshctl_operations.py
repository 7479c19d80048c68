"""`refreshctl reload`, `upgrade`, `drain`, `undrain` and `status`, against a fake engine."""

from __future__ import annotations

import pytest

from tests.tools.test_refreshctl import Bench, Ctl, bench, ctl
from tests.wire.fake_engine import Connection, cut
from tools.refreshctl import operations
from tools.servers.waiting import wait_until
from wire.lines import Line, format_line

__all__ = ["bench", "ctl"]
RUNNING = {"operation": 1, "kind": "reload", "state": "running", "step": "checks", "why": "", "ms": 100}
DONE = RUNNING | {"state": "done", "step": "", "why": "in place: engine.auth", "ms": 1234}
FAILED = DONE | {"state": "failed", "why": "worker 1 did not\ncome up"}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "POLL_S", 0.001)


def says(*states: dict[str, object]) -> tuple[bytes, ...]:
    return tuple(format_line("ok", state) for state in states)


@pytest.mark.parametrize("verb", ["reload", "upgrade"])
def test_it_begins(ctl: Ctl, bench: Bench, verb: str) -> None:
    ran = ctl(verb)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{verb} 1 begins; see `refreshctl status`\n"
    assert ctl(verb, "--json").json == {"operation": 2}
    assert bench.engine.requests("operation") == []
    assert [operation["kind"] for operation in bench.engine.operations] == [verb, verb]


def test_waiting_for_a_good_end(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("operation", *says(RUNNING | {"state": "waiting"}, RUNNING, RUNNING, DONE))
    ran = ctl("reload", "--wait")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "reload 1 done after 1.2 s: in place: engine.auth\n"
    assert len(bench.engine.requests("operation")) == 4
    bench.engine.script("operation", *says(DONE))
    assert ctl("reload", "--wait", "--json").json == DONE


def test_waiting_for_a_bad_end(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("operation", *says(FAILED, FAILED))
    ran = ctl("upgrade", "--wait")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "refreshctl: reload 1 failed after 1.2 s: worker 1 did not come up\n"
    ran = ctl("upgrade", "--wait", "--json")
    assert (ran.code, ran.json) == (1, FAILED)


def test_each_new_step_is_shown_on_a_terminal(
    ctl: Ctl, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [RUNNING, RUNNING, RUNNING | {"step": "hands\tover", "ms": 900}, DONE | {"step": "over"}]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bench.engine.script("operation", *says(*steps))
    ran = ctl("reload", "--wait")
    assert ran.err.splitlines() == ["    0.1 s  checks", "    0.9 s  hands?over"]


def test_a_wrong_configuration_is_told_fault_by_fault(ctl: Ctl, bench: Bench) -> None:
    refusal = b"err code=bad_field field=config msg=r.toml:\\sline\\s2:\\sa;\\sb\\nr.toml:\\sline\\s9:\\sc\n"
    bench.engine.script("reload", refusal, refusal)
    ran = ctl("reload", "--wait")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "refreshctl: r.toml: line 2: a; b",
        "refreshctl: r.toml: line 9: c",
        "refreshctl: nothing was changed; mend the file and try again",
    ]
    ran = ctl("reload", "--json")
    assert ran.code == 1
    assert ran.json == {
        "error": {"code": "bad_field", "field": "config", "msg": "r.toml: line 2: a; b\nr.toml: line 9: c"}
    }


def test_what_else_may_be_refused(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("upgrade", b"err code=denied msg=no\n")
    assert ctl("upgrade").code == 5
    bench.engine.script("upgrade", b"err code=unknown_verb msg=upgrade\n")
    assert ctl("upgrade").code == 1


def test_lost_connections_are_made_anew(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("operation", *says(RUNNING), cut, *says(RUNNING), cut, cut, *says(DONE))
    assert ctl("upgrade", "--wait").code == 0
    assert bench.engine.accepted == 4


def test_an_engine_that_does_not_come_back_is_unreachable(
    ctl: Ctl, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ANSWER_TIMEOUT_S", 0.2)

    def die(connection: Connection, line: Line) -> None:
        assert bench.engine.path is not None
        bench.engine.path.unlink()
        connection.abort()

    bench.engine.script("operation", *says(RUNNING), die)
    ran = ctl("upgrade", "--wait")
    assert ran.code == 3
    assert "start refreshd" in ran.err


def test_an_engine_that_was_restarted_knows_nothing(ctl: Ctl, bench: Bench) -> None:
    bench.engine.script("reload", b"ok operation=7\n")
    ran = ctl("reload", "--wait")
    assert ran.code == 1
    assert "operation 7 any more" in ran.err


def test_waiting_has_a_deadline(ctl: Ctl) -> None:
    ran = ctl("reload", "--wait", "--timeout", "0", "--json")
    assert (ran.code, ran.json["state"]) == (1, "running")
    assert ran.err == "refreshctl: not over after 0 s, it goes on: reload 1 running for 0.0 s\n"
    assert ctl("reload", "--timeout", "5").code == 2
    assert ctl("reload", "--wait", "--timeout", "soon").code == 2


def test_draining_and_back(ctl: Ctl, bench: Bench) -> None:
    ran = ctl("drain")
    assert (ran.code, ran.out) == (0, "the engine takes no new tasks; `refreshctl undrain` ends that\n")
    assert ctl("status", "--json").json["phase"] == "draining"
    assert ctl("undrain", "--json").json == {"draining": False}
    assert not bench.engine.draining


def test_the_status_and_the_newest_operation(ctl: Ctl, bench: Bench) -> None:
    assert ctl("status", "--json").json == {
        "phase": "up", "pid": 4710, "generation": 3, "release": "1.0", "workers": 2, "ready": 2,
    }  # fmt: skip
    bench.do(lambda: bench.engine.operations.append(RUNNING))
    lines = ctl("status").out.splitlines()
    assert lines[0].split() == ["phase", "up"]
    assert lines[-1] == "operation   reload 1 running for 0.1 s: checks"
    bench.do(lambda: bench.engine.operations[-1].update(DONE))
    assert ctl("status", "--json").json["why"] == "in place: engine.auth"


def test_workers_show_who_they_are(ctl: Ctl) -> None:
    row = ctl("workers", "--json").json["workers"][0]
    assert (row["role"], row["generation"], row["release"]) == ("serving", 3, "1.0")
    assert ctl("workers").out.splitlines()[0].split()[:6] == [
        "WORKER", "PID", "STATE", "ROLE", "GENERATION", "RELEASE",
    ]  # fmt: skip


def test_as_a_program_it_waits_while_the_engine_works(bench: Bench) -> None:
    process = bench.start_program("reload", "--wait", "--json")
    wait_until(lambda: len(bench.engine.requests("operation")) > 1)
    bench.do(lambda: bench.engine.operations[0].update(state="done", ms=5))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert '"state": "done"' in out
