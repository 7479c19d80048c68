"""The real master changes the number of fake workers: what the tables in docs/handover.md say of that."""

import os
import resource
import signal

import pytest

from tests.refreshd.master.driver import Engine, MakeEngine, notes, reload, starts, wait_until

CPUS = sorted(os.sched_getaffinity(0))


def resize(engine: Engine, workers: int, settings: str = "") -> dict[str, str]:
    """Reloads with another number of workers; what became of it."""
    engine.configure(settings, workers=workers)
    return reload(engine)


def pids(engine: Engine) -> list[int]:
    return [int(row["pid"]) for row in engine.workers()]


def told(engine: Engine, slot: int, key: str) -> list[int]:
    return [note[key] for note in notes(engine, slot, key)]


def check_serving(engine: Engine, workers: int) -> None:
    """There are so many slots, each with one process, which serves."""

    def served() -> bool:
        rows = [(row["worker"], row["role"]) for row in engine.workers()]
        return rows == [(str(slot), "serving") for slot in range(workers)]

    wait_until(served, f"{workers} workers, one process each, serving")
    assert {process.pid for process in engine.remember_workers()} == {*pids(engine)}
    status = engine.request("engine_status")
    assert (status["workers"], status["ready"]) == (str(workers), str(workers))


# As it should be


def test_more_workers(engine: Engine) -> None:
    before = pids(engine)
    outcome = resize(engine, 4)
    assert (outcome["state"], outcome["why"]) == ("done", "with new workers: engine.workers; 2 → 4 workers")
    check_serving(engine, 4)
    assert pids(engine)[:2] == before
    for slot in range(4):
        (start,) = starts(engine, slot)
        assert (start["workers"], start["standby"], start["side"]) == (2, False, 0)
        assert (told(engine, slot, "remap"), told(engine, slot, "route")) == ([4], [4])
        assert start["cpus"] == ([CPUS[slot % len(CPUS)]] if slot < 2 else CPUS)
        assert os.sched_getaffinity(start["pid"]) == {CPUS[slot % len(CPUS)]}
        peers = {*told(engine, slot, "peer")}
        assert peers == {0, 1, 2, 3} - {slot}
    assert not engine.log("worker killed")
    # Who starts from now on is told the new number.
    os.kill(before[1], signal.SIGKILL)
    engine.wait_for_worker(1, before[1])
    assert starts(engine, 1)[-1]["workers"] == 4


def test_fewer_workers(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=3).start_up()
    before = pids(engine)
    outcome = resize(engine, 1)
    assert outcome["why"] == "with new workers: engine.workers; 3 → 1 workers"
    check_serving(engine, 1)
    assert pids(engine) == before[:1]
    for slot in (1, 2):
        assert (told(engine, slot, "retire"), told(engine, slot, "stop")) == ([1], [0.0])
    assert not told(engine, 0, "retire")
    wait_until(lambda: sorted(told(engine, 0, "left")) == [1, 2], "who stays knows that they have left")
    assert not engine.log("worker killed")
    assert {line["level"] for line in engine.log("worker ended")} == {"info"}
    os.kill(before[0], signal.SIGKILL)
    engine.wait_for_worker(0, before[0])
    assert starts(engine, 0)[-1]["workers"] == 1


def test_there_and_back_leaves_nothing_behind(engine: Engine) -> None:
    resize(engine, 3)
    resize(engine, 2)
    before = engine.fds()
    for _ in range(3):
        assert resize(engine, 5)["state"] == "done"
        assert resize(engine, 1)["state"] == "done"
        assert resize(engine, 2)["state"] == "done"
    wait_until(lambda: engine.fds() <= before, f"{before} descriptors, as before")
    check_serving(engine, 2)
    assert [row["restarts"] for row in engine.workers()] == ["0", "0"]


def test_what_else_has_changed_is_there_before(engine: Engine) -> None:
    before = pids(engine)
    outcome = resize(engine, 3, "line_max = 8192\ntasks_max = 5\n")
    assert outcome["why"] == (
        "in place: engine.tasks_max; with new workers: engine.workers, engine.line_max; "
        "2 workers rolled; 2 → 3 workers"
    )
    check_serving(engine, 3)
    assert not {*before} & {*pids(engine)}
    for slot in range(3):
        last = starts(engine, slot)[-1]
        assert (last["line_max"], last["tasks_max"], last["workers"]) == (8192, 5, 2)
    assert len(starts(engine, 2)) == 1


def test_a_configuration_with_which_no_worker_starts_changes_no_number(engine: Engine) -> None:
    engine.behave(0, "fail")
    assert resize(engine, 3, "line_max = 8192\n")["state"] == "failed"
    engine.behave(0, "ready")
    check_serving(engine, 2)
    assert not starts(engine, 2)
    assert reload(engine)["state"] == "done"
    check_serving(engine, 3)


def test_one_a_cpu(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=len(CPUS) + 1).start_up()
    assert resize(engine, 0)["state"] == "done"
    check_serving(engine, len(CPUS))
    # The same number in another way: nothing is to be done, and that is remembered.
    before = pids(engine)
    assert resize(engine, len(CPUS))["why"] == "with new workers: engine.workers"
    assert pids(engine) == before
    assert reload(engine)["why"] == f"no setting changed; {len(CPUS)} workers rolled"


def test_all_slots_are_rolled_by_a_reload_behind_it(engine: Engine) -> None:
    resize(engine, 3)
    before = pids(engine)
    assert reload(engine)["why"] == "no setting changed; 3 workers rolled"
    assert not {*before} & {*pids(engine)}
    assert resize(engine, 2)["state"] == "done"
    check_serving(engine, 2)


def test_an_upgrade_knows_the_number_and_changes_it(engine: Engine) -> None:
    resize(engine, 3)
    engine.configure("", workers=1)
    outcome = engine.outcome(engine.request("upgrade")["operation"])
    assert outcome["state"] == "done", outcome
    assert outcome["why"].endswith("; 3 workers rolled; 3 → 1 workers")
    check_serving(engine, 1)
    outcome = engine.outcome(engine.request("upgrade")["operation"])
    assert outcome["why"].endswith("; no setting changed; 1 workers rolled")
    check_serving(engine, 1)


# GROWING


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("fail", "is gone while the new workers started: the store is damaged"),
        ("babble", "is gone while the new workers started: said what is no message: "),
        ("old", "speaks version 1 of the hand-over, the master 2; restart the engine"),
    ],
)
def test_a_new_one_that_does_not_come_up_leaves_the_old_ones_as_they_are(
    engine: Engine, deed: str, why: str
) -> None:
    before = pids(engine)
    engine.behave(3, deed)
    outcome = resize(engine, 4)
    assert outcome["state"] == "failed"
    assert why in outcome["why"]
    check_serving(engine, 2)
    assert pids(engine) == before
    for slot in (0, 1):
        assert not told(engine, slot, "remap")
        wait_until(lambda slot=slot: sorted(told(engine, slot, "left")) == [2, 3], "nobody waits for them")
    # And once what was wrong is mended, the same file is enough.
    engine.behave(3, "ready")
    assert reload(engine)["why"] == "with new workers: engine.workers; 2 → 4 workers"
    check_serving(engine, 4)


def test_a_new_one_that_hangs_is_waited_for_only_so_long(make_engine: MakeEngine) -> None:
    engine = make_engine(grow_timeout_s=1.0).start_up()
    engine.behave(2, "hang")
    assert resize(engine, 3)["why"] == "not ready within 1 s: worker 2"
    check_serving(engine, 2)


def test_an_old_one_that_dies_while_new_ones_start_is_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.start_up()
    pid = engine.pid_of(0)
    engine.behave(2, "hang")
    engine.configure("", workers=3)
    number = engine.request("reload")["operation"]
    wait_until(lambda: starts(engine, 2), "the new one starts")
    os.kill(pid, signal.SIGKILL)
    engine.wait_for_worker(0, pid)
    assert starts(engine, 0)[-1]["workers"] == 2
    os.kill(starts(engine, 2)[0]["pid"], signal.SIGKILL)
    assert engine.outcome(number)["state"] == "failed"
    check_serving(engine, 2)


def test_no_descriptors_for_a_new_one(engine: Engine) -> None:
    before = pids(engine)
    assert engine.process is not None
    _, hard = resource.prlimit(engine.process.pid, resource.RLIMIT_NOFILE)
    # The admin connection that asks has one, and one is left.
    resource.prlimit(engine.process.pid, resource.RLIMIT_NOFILE, (engine.fds() + 2, hard))
    assert resize(engine, 4)["why"].startswith("worker 2 could not be started: ")
    check_serving(engine, 2)
    assert pids(engine) == before


# REMAPPING and ROUTING


@pytest.mark.parametrize(
    ("slot", "workers", "deed", "why"),
    [
        (0, 3, "remap:die", "is gone while shards moved: killed by SIGKILL"),
        (1, 1, "remap:freeze", "is gone while shards moved: silent for 1."),
        (2, 3, "remap:decline", "worker 2 cannot go on: it declines at remap"),
        (0, 1, "route:die", "is gone while requests were routed anew: killed by SIGKILL"),
        (1, 1, "route:ignore", "requests were not routed anew within 1 s: worker 1"),
    ],
)
def test_who_is_lost_while_shards_are_between_owners_is_so_with_all(
    make_engine: MakeEngine, slot: int, workers: int, deed: str, why: str
) -> None:
    engine = make_engine(heartbeat_timeout_s=1.0, route_timeout_s=1.0)
    engine.behave(slot, deed)
    engine.start_up()
    before = pids(engine)
    engine.configure("", workers=workers)
    number = engine.request("reload")["operation"]
    wait_until(lambda: told(engine, slot, "remap"), "shards move")
    engine.behave(slot, "ready")
    outcome = engine.outcome(number)
    assert outcome["state"] == "failed"
    assert why in outcome["why"]
    anew = f"; all workers were started anew, {workers} by now, and connections were lost"
    assert outcome["why"].endswith(anew)
    check_serving(engine, workers)
    assert not {*before} & {*pids(engine)}
    for number_ in range(workers):
        last = starts(engine, number_)[-1]
        assert (last["workers"], last["standby"]) == (workers, False)
    # Nobody was started while one of those before was there.
    events = [(line["event"], line["pid"]) for line in engine.log() if line["event"].startswith("worker ")]
    ended = [pid for event, pid in events if event == "worker ended"]
    last_end = max(events.index(("worker ended", pid)) for pid in ended)
    assert [event for event, _ in events[last_end:]].count("worker started") == workers
    assert reload(engine)["why"] == f"no setting changed; {workers} workers rolled"


# RETIRING


def test_who_dies_while_it_retires_is_told_of_and_all_goes_on(make_engine: MakeEngine) -> None:
    engine = make_engine(workers=3)
    engine.behave(1, "retire:die")
    engine.start_up()
    before = pids(engine)
    outcome = resize(engine, 1)
    assert outcome["state"] == "done"
    assert outcome["why"].endswith(
        f"; 3 → 1 workers; worker 1 (pid {before[1]}) is gone while its connections moved: killed by SIGKILL"
    )
    check_serving(engine, 1)
    wait_until(lambda: sorted(told(engine, 0, "left")) == [1, 2], "who stays knows that they have left")


def test_who_does_not_retire_in_time_is_killed(make_engine: MakeEngine) -> None:
    engine = make_engine(retire_timeout_s=1.0)
    engine.behave(1, "retire:ignore")
    engine.start_up()
    outcome = resize(engine, 1)
    assert outcome["state"] == "done"
    assert outcome["why"].endswith("its connections were not handed over within 1 s")
    assert len(engine.log("worker killed")) == 1
    check_serving(engine, 1)


def test_who_stays_and_dies_meanwhile_is_replaced(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.behave(1, "retire:ignore")
    engine.start_up()
    before = pids(engine)
    engine.configure("", workers=1)
    number = engine.request("reload")["operation"]
    wait_until(lambda: told(engine, 1, "retire"), "one retires")
    os.kill(before[0], signal.SIGKILL)
    engine.wait_for_worker(0, before[0])
    last = starts(engine, 0)[-1]
    assert last["workers"] == 1
    # It meets who is still there.
    wait_until(lambda: [n for n in notes(engine, 0, "peer") if n["pid"] == last["pid"]], "they met")
    os.kill(before[1], signal.SIGKILL)
    assert engine.outcome(number)["state"] == "done"
    check_serving(engine, 1)


# Stops


@pytest.mark.parametrize(
    ("step", "number"), [("remap", signal.SIGTERM), ("route", signal.SIGINT), ("retire", signal.SIGTERM)]
)
def test_a_stop_wins(make_engine: MakeEngine, step: str, number: signal.Signals) -> None:
    engine = make_engine()
    engine.behave(1, f"{step}:ignore")
    engine.start_up()
    engine.configure("", workers=1)
    engine.request("reload")
    wait_until(lambda: told(engine, 1, step), f"it was told {step}")
    processes = engine.remember_workers()
    engine.signal(number)
    assert engine.wait() == 0
    assert not any(process.is_running() for process in processes)
    assert not engine.log("worker killed")
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]


def test_a_stop_while_new_ones_start(engine: Engine) -> None:
    engine.behave(2, "hang")
    engine.configure("", workers=3)
    engine.request("reload")
    engine.wait_for("worker started", 3)
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    assert engine.log("worker killed")[0]["why"] == "stopped while it started"
