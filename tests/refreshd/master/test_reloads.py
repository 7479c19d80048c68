"""Reload and drain, with the real master and fake workers."""

import os
import resource
import signal

import pytest

from tests.refreshd.master.driver import Engine, MakeEngine, notes, reload, starts, wait_until


def pids(engine: Engine) -> list[int]:
    return [engine.pid_of(slot) for slot in (0, 1)]


# What is refused


def test_a_wrong_file_is_refused_with_every_fault_and_touches_nothing(engine: Engine) -> None:
    before = pids(engine)
    fds = engine.fds()
    engine.configure('tasks_max = "many"\nworker = 3\n')
    refused = engine.request("reload")
    assert (refused["code"], refused["field"]) == ("bad_field", "config")
    assert refused["msg"] == (
        f"{engine.config}: line 6: engine.tasks_max: got 'many', wanted a whole number, 1 to 100,000,000\n"
        f"{engine.config}: line 7: engine.worker: not a setting; did you mean engine.workers?"
    )
    engine.signal(signal.SIGHUP)
    (line,) = engine.wait_for("reload refused")
    assert line["why"] == refused["msg"]
    assert engine.request("operation")["code"] == "not_found"
    assert pids(engine) == before
    assert engine.fds() <= fds
    engine.configure("")
    assert reload(engine)["state"] == "done"


def test_a_file_that_is_gone_is_refused(engine: Engine) -> None:
    engine.config.unlink()
    assert engine.request("reload")["msg"] == f"{engine.config}: cannot be read: No such file or directory"


def test_what_needs_a_restart_is_named_and_all_is_refused(engine: Engine) -> None:
    before = pids(engine)
    engine.configure('id = "e2"\ntasks_max = 5\n')
    refused = engine.request("reload")
    assert refused["code"] == "bad_field"
    assert 'line 6: engine.id: "e1" → "e2" needs a restart of the engine' in refused["msg"]
    assert not notes(engine, 0, "configure")
    assert pids(engine) == before


def test_a_boot_and_a_stop_are_no_time_for_it(make_engine: MakeEngine) -> None:
    engine = make_engine(settings="stop_deadline_s = 100\n")
    engine.behave(1, "hang")
    engine.start()
    engine.wait_for("worker ready")
    assert engine.request("reload")["code"] == "unavailable"
    assert engine.request("drain") == {}
    hangs = wait_until(lambda: starts(engine, 1), "the other one hangs")[0]["pid"]
    engine.behave(1, "stubborn")
    os.kill(hangs, signal.SIGKILL)
    engine.wait_for("up")
    engine.remember_workers()
    assert starts(engine, 1)[1]["draining"]
    engine.signal(signal.SIGTERM)
    engine.wait_for("worker ended")
    assert engine.request("reload")["code"] == "draining"
    assert engine.request("undrain")["code"] == "draining"


# What takes effect in place


def test_what_can_takes_effect_in_place(engine: Engine) -> None:
    before = pids(engine)
    engine.configure("tasks_max = 5\nheartbeat_timeout_s = 7\n")
    outcome = reload(engine)
    assert (outcome["state"], outcome["why"]) == (
        "done",
        "in place: engine.tasks_max, engine.heartbeat_timeout_s",
    )
    for slot in (0, 1):
        assert [note["tasks_max"] for note in notes(engine, slot, "configure")] == [5]
    assert pids(engine) == before
    # Who starts later has it from the start.
    os.kill(before[0], signal.SIGKILL)
    engine.wait_for_worker(0, before[0])
    assert starts(engine, 0)[-1]["tasks_max"] == 5


def test_a_worker_that_cannot_use_it_has_all_go_back(engine: Engine) -> None:
    pid = engine.pid_of(1)
    engine.behave(1, "configure:refuse")
    os.kill(pid, signal.SIGKILL)
    refuses = engine.wait_for_worker(1, pid)
    engine.configure("tasks_max = 5\n")
    assert reload(engine)["why"] == "worker 1 cannot use the new settings: it cannot"
    wait_until(lambda: len(notes(engine, 0, "configure")) == 2, "the other one was told to go back")
    assert [note["tasks_max"] for note in notes(engine, 0, "configure")] == [5, 5_000_000]
    engine.behave(1, "ready")
    os.kill(refuses, signal.SIGKILL)
    engine.wait_for_worker(1, refuses)
    assert starts(engine, 1)[-1]["tasks_max"] == 5_000_000
    assert reload(engine)["state"] == "done"


def test_a_worker_that_does_not_answer_is_waited_for_only_so_long(make_engine: MakeEngine) -> None:
    engine = make_engine(configure_timeout_s=0.5)
    engine.behave(1, "configure:ignore")
    engine.start_up()
    engine.configure("tasks_max = 5\n")
    assert reload(engine)["why"] == "workers 1 did not take the new settings within 0.5 s"


def test_a_worker_that_dies_instead_of_answering_has_it_from_its_start(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(1, "configure:die")
    engine.start_up()
    pid = engine.pid_of(1)
    engine.behave(1, "ready")
    engine.configure("tasks_max = 5\n")
    assert reload(engine)["state"] == "done"
    engine.wait_for_worker(1, pid)
    assert starts(engine, 1)[-1]["tasks_max"] == 5


def test_more_connections_raise_the_limit_of_descriptors(make_engine: MakeEngine) -> None:
    engine = make_engine(settings="connections_max = 10\n").start_up()
    assert engine.process is not None
    _, hard = resource.prlimit(engine.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(engine.process.pid, resource.RLIMIT_NOFILE, (1100, hard))
    engine.configure("connections_max = 1000\n")
    assert reload(engine)["state"] == "done"
    assert resource.prlimit(engine.process.pid, resource.RLIMIT_NOFILE) == (2024, hard)


# What needs new workers


def test_what_needs_new_workers_rolls_them(engine: Engine) -> None:
    before = pids(engine)
    engine.configure("line_max = 8192\ntasks_max = 5\n")
    outcome = reload(engine)
    assert outcome["why"] == "in place: engine.tasks_max; with new workers: engine.line_max; 2 workers rolled"
    for slot in (0, 1):
        assert starts(engine, slot)[-1]["line_max"] == 8192
    new = pids(engine)
    assert not {*before} & {*new}
    os.kill(new[1], signal.SIGKILL)
    engine.wait_for_worker(1, new[1])
    assert starts(engine, 1)[-1]["line_max"] == 8192


def test_a_configuration_with_which_no_worker_starts_is_not_used_for_a_respawn(engine: Engine) -> None:
    engine.configure("line_max = 8192\ntasks_max = 5\n")
    engine.behave(0, "fail")
    assert reload(engine)["state"] == "failed"
    engine.behave(0, "ready")
    pid = engine.pid_of(0)
    os.kill(pid, signal.SIGKILL)
    engine.wait_for_worker(0, pid)
    last = starts(engine, 0)[-1]
    # What took effect in place before stays.
    assert (last["line_max"], last["tasks_max"]) == (1 << 20, 5)


# One at a time


def test_one_runs_one_waits_and_the_others_join_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(0, "hand_over:ignore")
    engine.start_up()
    engine.behave(0, "ready")
    pid = engine.pid_of(0)
    assert engine.request("reload") == {"operation": "1"}
    engine.wait_for("hand-over begins")
    running = engine.request("operation")
    assert (running["state"], running["step"]) == ("running", "rolling worker 0 (1 of 2): tasks move")
    engine.configure("tasks_max = 5\n")
    assert engine.request("reload") == {"operation": "2"}
    engine.configure("tasks_max = 6\n")
    assert engine.request("reload") == {"operation": "2"}
    engine.signal(signal.SIGHUP)
    assert engine.request("operation operation=2")["state"] == "waiting"
    os.kill(pid, signal.SIGKILL)
    assert engine.outcome("1")["state"] == "failed"
    assert engine.outcome("2") | {"ms": ""} == {
        "operation": "2", "kind": "reload", "state": "done", "step": "telling the workers what has changed",
        "why": "in place: engine.tasks_max", "ms": "",
    }  # fmt: skip
    assert [note["tasks_max"] for note in notes(engine, 1, "configure")] == [6]


def test_a_file_that_went_wrong_while_the_reload_waited_is_its_outcome(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(0, "hand_over:ignore")
    engine.start_up()
    engine.behave(0, "ready")
    engine.request("reload")
    engine.wait_for("hand-over begins")
    number = engine.request("reload")["operation"]
    engine.configure("id = 7\n")
    os.kill(engine.pid_of(0), signal.SIGKILL)
    outcome = engine.outcome(number)
    assert outcome["state"] == "failed"
    assert outcome["why"].startswith(f"{engine.config}: line 6: engine.id: got 7, wanted a name")


def test_a_hundred_reloads_leave_nothing_behind(engine: Engine) -> None:
    before = engine.fds()
    for number in range(100):
        engine.configure(f"tasks_max = {number + 1}\n")
        engine.request("reload")
    assert engine.outcome(engine.request("operation")["operation"])["state"] == "done"
    wait_until(lambda: engine.fds() <= before, f"{before} descriptors, as before")


# Drain


def test_draining_is_told_to_all_and_to_who_comes_later(engine: Engine) -> None:
    assert engine.request("drain") == {}
    assert engine.request("engine_status")["phase"] == "draining"
    for slot in (0, 1):
        wait_until(lambda slot=slot: [n["drain"] for n in notes(engine, slot, "drain")] == [True], "told")
    reload(engine)
    assert [start["draining"] for start in starts(engine, 0)] == [False, True]
    assert engine.request("undrain") == {}
    assert engine.request("engine_status")["phase"] == "up"
    pid = engine.pid_of(0)
    os.kill(pid, signal.SIGKILL)
    engine.wait_for_worker(0, pid)
    assert not starts(engine, 0)[-1]["draining"]


@pytest.mark.parametrize("settings", ["heartbeat_timeout_s = 1\n"])
def test_a_shorter_heartbeat_counts_at_once(engine: Engine, settings: str) -> None:
    engine.configure(settings)
    reload(engine)
    pid = engine.pid_of(1)
    os.kill(pid, signal.SIGSTOP)
    engine.wait_for_worker(1, pid)
    assert engine.log("worker killed")[0]["why"].startswith("silent for 1.")
