"""The real master with fake workers: deaths, silence, boot failures, stops, and what it leaves behind."""

import os
import signal
import socket

import pytest

from tests.refreshd.master.driver import Engine, MakeEngine, starts, wait_until

TERM, INT, KILL, STOP, CONT = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCONT,
)


def met(engine: Engine, slot: int) -> set[tuple[str, int]]:
    return {(note["met"], note["kind"]) for note in engine.notes(slot) if "met" in note}


# Start


def test_workers_get_what_they_need_and_nothing_else(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=3).start_up()
    cpus = sorted(os.sched_getaffinity(0))
    for slot in range(3):
        (start,) = starts(engine, slot)
        assert (start["start"], start["workers"], start["generation"], start["lanes"]) == (slot, 3, 1, 3)
        assert start["engine"] == "e1"
        assert start["cpus"] == [cpus[slot % len(cpus)]]
        # stdin, stdout, stderr, control, listener, scoreboard, lock; and the scoreboard's mapping needs none.
        assert len(start["fds"]) <= 8
    pinned = [line["cpu"] for line in engine.log("worker started")]
    assert pinned == [cpus[slot % len(cpus)] for slot in range(3)]


def test_every_two_workers_are_introduced(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=3).start_up()
    pids = [engine.pid_of(slot) for slot in range(3)]
    for slot in range(3):
        others = {f"from {other} pid {pids[other]}" for other in range(3) if other != slot}
        wanted = {(greeting, kind) for greeting in others for kind in (1, 5)}
        wait_until(lambda slot=slot, wanted=wanted: met(engine, slot) == wanted, f"slot {slot} met all")


def test_the_listener_is_shared_and_its_address_is_told(engine: Engine) -> None:
    with socket.create_connection(engine.address(), timeout=30) as client:
        assert client.recv(100).startswith(b"worker ")
    assert engine.log("listening")[0]["address"] == "{}:{}".format(*engine.address())
    assert engine.process is not None
    assert (engine.data / "refreshd.pid").read_text() == f"{engine.process.pid}\n"


def test_list_workers_tells_how_they_are(engine: Engine) -> None:
    rows = engine.workers()
    assert [row["worker"] for row in rows] == ["0", "1"]
    for row in rows:
        assert (row["state"], row["connections"], row["tasks"], row["restarts"]) == ("ready", "3", "4", "0")
        assert int(row["mem"]) > 1 << 20
        assert float(row["cpu_pct"]) >= 0
        assert 0 <= int(row["heartbeat_ms"]) < 10_000
        assert int(row["up_s"]) >= 0
    assert {int(row["pid"]) for row in rows} == {process.pid for process in engine.worker_processes()}


def test_one_worker_a_cpu(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=0).start_up()
    assert len(engine.workers()) == len(os.sched_getaffinity(0))


def test_the_number_of_lanes_is_kept(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=1).start_up()
    engine.signal(TERM)
    assert engine.wait() == 0
    again = make_engine(workers=2).start_up()
    assert starts(again, 1)[0]["lanes"] == 1


# The admin socket


def test_other_verbs_go_to_the_workers_in_turn(engine: Engine) -> None:
    answers = {engine.ask(b"ping\nstats\n").split(b"\n")[1] for _ in range(4)}
    assert answers == {b"ok worker=0 rest=6", b"ok worker=1 rest=6"}
    adopted = [note for note in engine.notes(0) if "adopt" in note]
    assert {(note["adopt"], note["rest"]) for note in adopted} == {("admin", "stats\n")}


def test_no_ready_worker_is_unavailable_and_the_master_still_answers(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for slot in (0, 1):
        engine.behave(slot, "hang")
    engine.start()
    engine.wait_for("worker started", 2)
    assert engine.ask(b"stats\n").startswith(
        b"err code=unavailable retry_ms=500 msg=no\\sworker\\sis\\sready\n"
    )
    assert [row["state"] for row in engine.workers()] == ["starting", "starting"]
    assert engine.ask(b"ping\n").startswith(b"ok now=")
    engine.signal(TERM)
    assert engine.wait() == 0


def test_a_flood_on_the_admin_socket_does_not_delay_a_respawn(engine: Engine) -> None:
    with engine.admin() as flood:
        flood.setblocking(False)
        for _ in range(1000):
            try:
                flood.send(b"list_workers\n" * 1000)
            except BlockingIOError:
                break
        pid = engine.pid_of(0)
        os.kill(pid, KILL)
        engine.wait_for_worker(0, pid)


# Deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_dead_worker_is_replaced_and_introduced_anew(engine: Engine, number: signal.Signals) -> None:
    pid = engine.pid_of(0)
    os.kill(pid, number)
    new = engine.wait_for_worker(0, pid)
    assert engine.wait_for("worker ended")[0]["how"] == f"killed by {number.name}"
    assert [start["generation"] for start in starts(engine, 0)] == [1, 2]
    greeting = f"from 0 pid {new}"
    wait_until(lambda: {(greeting, 1), (greeting, 5)} <= met(engine, 1), "the sibling met the new worker")
    rows = engine.workers()
    assert [row["restarts"] for row in rows] == ["1", "0"]
    assert int(rows[1]["pid"]) == starts(engine, 1)[0]["pid"]


def test_a_silent_worker_is_killed_and_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine(heartbeat_timeout_s=1.0)
    engine.behave(1, "silent")
    engine.start_up()
    pid = starts(engine, 1)[0]["pid"]
    engine.behave(1, "ready")
    engine.wait_for_worker(1, pid)
    (killed,) = engine.log("worker killed")
    assert killed["pid"] == pid
    assert killed["why"].startswith("silent for ")


def test_a_stopped_worker_is_killed_and_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine(heartbeat_timeout_s=1.0).start_up()
    pid = engine.pid_of(1)
    os.kill(pid, STOP)
    engine.wait_for_worker(1, pid)
    assert engine.log("worker killed")[0]["pid"] == pid


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("babble", "said what is no message: "),
        ("repeat", "spoke out of turn: ready while ready"),
        ("close control", "its control socket is closed"),
    ],
)
def test_a_worker_that_makes_no_sense_is_replaced(make_engine: MakeEngine, behaviour: str, why: str) -> None:
    engine = make_engine(end_timeout_s=0.5).start_up()
    pid = engine.pid_of(0)
    engine.behave(0, behaviour)
    os.kill(pid, KILL)
    killed = engine.wait_for("worker killed")
    assert killed[0]["why"].startswith(why)
    engine.behave(0, "ready")
    engine.wait_for_worker(0, pid)


def test_who_fails_again_and_again_does_not_stop_the_others(engine: Engine) -> None:
    pid = engine.pid_of(0)
    engine.behave(0, "fail")
    os.kill(pid, KILL)
    failed = engine.wait_for("worker failed to start", 4)
    assert {line["why"] for line in failed} == {"the store is damaged"}
    assert [row["state"] for row in engine.workers()][1] == "ready"
    engine.behave(0, "ready")
    engine.wait_for_worker(0, pid)


def test_thirty_deaths_leave_no_descriptor_behind(make_engine: MakeEngine) -> None:
    engine = make_engine(backoff_first_s=0.0, backoff_ready_max_s=0.0).start_up()
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    before = engine.fds()
    for death in range(30):
        slot = death % 2
        os.kill(pids[slot], KILL)
        pids[slot] = engine.wait_for_worker(slot, pids[slot])
    # An admin connection may be on its way out.
    wait_until(lambda: engine.fds() <= before, f"{before} descriptors, as before")
    assert [row["restarts"] for row in engine.workers()] == ["15", "15"]
    # The descriptors of a late worker are numbered like those of the first.
    assert len(starts(engine, 0)[-1]["fds"]) == len(starts(engine, 0)[0]["fds"])


# Boot failures


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [("fail", "the store is damaged"), ("exit", "exit status 5")],
)
def test_a_boot_failure_ends_the_engine_with_its_own_exit_code(
    make_engine: MakeEngine, behaviour: str, why: str
) -> None:
    engine = make_engine()
    engine.behave(1, behaviour)
    engine.start()
    assert engine.wait() == 3
    assert engine.log("not started")[0]["why"] == f"worker 1 could not start: {why}"
    assert len(engine.log("worker started")) == 2
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]


def test_a_second_engine_on_the_same_folder_is_refused(engine: Engine, make_engine: MakeEngine) -> None:
    second = make_engine().start()
    assert second.wait() == 71
    assert engine.process is not None
    assert second.log("not started")[0]["why"].endswith(f"in use by the engine with pid {engine.process.pid}")
    assert engine.ask(b"ping\n").startswith(b"ok")


def test_an_address_in_use_is_refused(make_engine: MakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        engine = make_engine()
        engine.config.write_text(engine.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        engine.start()
        assert engine.wait() == 71
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in engine.log("not started")[0]["why"]
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]


# Stops


@pytest.mark.parametrize("number", [TERM, INT])
def test_a_stop_leaves_nothing_behind(engine: Engine, number: signal.Signals) -> None:
    processes = engine.remember_workers()
    engine.signal(number)
    assert engine.wait() == 0
    assert not any(process.is_running() for process in processes)
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]
    stops = [note["stop"] for slot in (0, 1) for note in engine.notes(slot) if "stop" in note]
    assert stops == ([8.0, 8.0] if number is TERM else [0.0, 0.0])
    assert not engine.log("worker killed")


def test_who_does_not_stop_is_killed_at_the_deadline(make_engine: MakeEngine) -> None:
    engine = make_engine(settings="stop_deadline_s = 0.5\n")
    engine.behave(1, "stubborn")
    engine.start_up()
    engine.signal(TERM)
    assert engine.wait() == 0
    (killed,) = engine.log("worker killed")
    assert (killed["slot"], killed["why"]) == (1, "not gone at the deadline")


def test_while_it_stops_it_answers_but_takes_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(settings="stop_deadline_s = 100\n")
    engine.behave(1, "stubborn")
    engine.start_up()
    engine.signal(TERM)
    engine.wait_for("worker ended")
    assert [row["state"] for row in engine.workers()] == ["waiting", "stopping"]
    assert engine.ask(b"stats\n").startswith(b"err code=draining retry_ms=500 ")
    engine.signal(INT)
    engine.wait_for("stopping fast")
    engine.signal(INT)
    assert engine.wait() == 0


def test_a_stop_during_the_boot(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(0, "hang")
    engine.start()
    engine.wait_for("worker ready")
    engine.signal(TERM)
    assert engine.wait() == 0
    assert engine.log("worker killed")[0]["why"] == "stopped while it started"


# The death of the master


def test_after_the_masters_death_the_next_one_waits_for_the_last_worker(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(1, "stubborn")
    engine.start_up()
    processes = {process.pid: process for process in engine.remember_workers()}
    stopped = processes[starts(engine, 1)[0]["pid"]]
    # A worker that is stopped cannot see that its master is gone.
    stopped.suspend()
    engine.signal(KILL)
    engine.wait()
    engine.behave(1, "ready")
    engine.start()
    wait_until(lambda: [note for note in engine.notes(0) if "orphaned" in note], "the other worker saw it")
    assert engine.log() == []
    stopped.resume()
    engine.wait_for("up")
    engine.remember_workers()
    assert wait_until(lambda: not stopped.is_running(), "the last of the old workers is gone")
    assert engine.ask(b"ping\n").startswith(b"ok")


def test_a_pause_of_the_whole_engine_kills_nobody(make_engine: MakeEngine) -> None:
    engine = make_engine(heartbeat_timeout_s=1.0).start_up()
    assert engine.process is not None
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    at = max(int(row["heartbeat_ms"]) for row in engine.workers())
    assert at < 1000
    for pid in (engine.process.pid, *pids):
        os.kill(pid, STOP)
    with engine.admin() as nobody_answers:
        # Far longer than the heartbeat's time-out.
        nobody_answers.settimeout(4.0)
        with pytest.raises(TimeoutError):
            nobody_answers.recv(1)
    for pid in (engine.process.pid, *pids):
        os.kill(pid, CONT)
    assert [engine.pid_of(slot) for slot in (0, 1)] == pids
    assert not engine.log("worker killed")
