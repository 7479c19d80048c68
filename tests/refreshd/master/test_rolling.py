"""The real master rolls slots of fake workers: each row of "What a crash leads to" in docs/handover.md."""

import os
import signal

import pytest

from tests.refreshd.master.driver import Engine, MakeEngine, notes, reload, starts, wait_until


def check_all_serve(engine: Engine) -> None:
    """Every slot has one process, which serves."""

    def served() -> bool:
        return [(row["worker"], row["role"]) for row in engine.workers()] == [
            ("0", "serving"),
            ("1", "serving"),
        ]

    wait_until(served, "one process a slot, serving")
    engine.remember_workers()


def check_sibling_met(engine: Engine, wanted: list[tuple[int, bool]]) -> None:
    """Slot 1 was introduced to processes of slot 0 on these sides, which did or did not succeed another."""

    def met() -> bool:
        return [(note["side"], note["succeeds"]) for note in notes(engine, 1, "peer")] == wanted

    wait_until(met, f"slot 1 was introduced as in {wanted}")


# As it should be


def test_a_reload_without_a_change_rolls_every_slot(engine: Engine) -> None:
    old = [engine.pid_of(slot) for slot in (0, 1)]
    outcome = reload(engine)
    assert (outcome["state"], outcome["why"]) == ("done", "no setting changed; 2 workers rolled")
    new = [engine.pid_of(slot) for slot in (0, 1)]
    assert not {*old} & {*new}
    assert {process.pid for process in engine.worker_processes()} == {*new}
    assert [row["restarts"] for row in engine.workers()] == ["0", "0"]
    for slot, generation in ((0, 2), (1, 3)):
        first, second = starts(engine, slot)
        assert (first["side"], first["standby"]) == (0, False)
        assert (second["side"], second["standby"], second["generation"]) == (1, True, generation)
        (told,) = notes(engine, slot, "hand_over")
        assert (told["hand_over"], told["fds"], told["pid"]) == (generation, 2, old[slot])
        (told,) = notes(engine, slot, "take_over")
        assert (told["take_over"], told["fds"], told["pid"]) == (1, 2, new[slot])
        assert [note["stop"] for note in notes(engine, slot, "stop")] == [0.0]
    rolled = [(line["slot"], line["pid"]) for line in engine.log("worker rolled")]
    assert rolled == [(0, new[0]), (1, new[1])]
    assert not engine.log("worker killed")


def test_the_two_are_introduced_and_siblings_meet_the_new_one(engine: Engine) -> None:
    old = [engine.pid_of(slot) for slot in (0, 1)]
    reload(engine)
    new = [engine.pid_of(slot) for slot in (0, 1)]

    def met(slot: int, pid: int) -> set[tuple[str, int]]:
        return {(note["met"], note["kind"]) for note in notes(engine, slot, "met") if note["pid"] == pid}

    for pid in (f"from 0 pid {old[0]}", f"from 1 pid {old[1]}", f"from 1 pid {new[1]}"):
        wait_until(lambda pid=pid: met(0, new[0]) >= {(pid, 1), (pid, 5)}, f"N met the one {pid}")
    succeeded = [note for note in notes(engine, 0, "peer") if note["succeeds"]]
    # N is told of its sibling, and later of that one's successor.
    assert [(note["pid"], note["peer"], note["side"]) for note in succeeded] == [
        (new[0], 1, 0),
        (new[0], 1, 1),
    ]


def test_who_stands_by_has_all_cpus_until_it_has_taken_over(engine: Engine) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    reload(engine)
    for slot in (0, 1):
        assert starts(engine, slot)[1]["cpus"] == cpus
        assert os.sched_getaffinity(engine.pid_of(slot)) == {cpus[slot % len(cpus)]}


def test_twenty_rolls_leave_no_descriptor_behind(engine: Engine) -> None:
    reload(engine)
    before = engine.fds()
    for _ in range(10):
        assert reload(engine)["state"] == "done"
    wait_until(lambda: engine.fds() <= before, f"{before} descriptors, as before")
    assert len(starts(engine, 0)[-1]["fds"]) == len(starts(engine, 0)[0]["fds"])


def test_a_sibling_that_dies_meanwhile_is_replaced_and_meets_who_is_in_charge(engine: Engine) -> None:
    engine.behave(0, "hand_over:ignore given:ignore")
    os.kill(engine.pid_of(0), signal.SIGKILL)
    old = engine.wait_for_worker(0, starts(engine, 0)[0]["pid"])
    number = engine.request("reload")["operation"]
    wait_until(lambda: notes(engine, 0, "hand_over"), "O was told to hand over")
    sibling = engine.pid_of(1)
    os.kill(sibling, signal.SIGKILL)
    successor = engine.wait_for_worker(1, sibling)
    peers = wait_until(
        lambda: [note for note in notes(engine, 1, "peer") if note["pid"] == successor], "it met O"
    )
    assert [(note["peer"], note["side"], note["succeeds"]) for note in peers] == [(0, 0, False)]
    os.kill(old, signal.SIGKILL)
    assert engine.outcome(number)["state"] == "failed"
    check_all_serve(engine)


# What a crash leads to


@pytest.fixture
def patient(make_engine: MakeEngine) -> Engine:
    """A heartbeat is waited for a second only, and so is who takes what is left."""
    return make_engine(heartbeat_timeout_s=1.0, takeback_timeout_s=1.0)


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("fail", "is gone while the new one started: the store is damaged"),
        ("exit", "is gone while the new one started: exit status 5"),
        ("babble", "is gone while the new one started: said what is no message: "),
        ("old", "speaks version 1 of the hand-over, the master 2; restart the engine"),
    ],
)
def test_a_new_one_that_does_not_come_up_is_told_of_and_the_old_goes_on(
    engine: Engine, deed: str, why: str
) -> None:
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    engine.behave(0, deed)
    outcome = reload(engine)
    assert outcome["state"] == "failed"
    assert outcome["why"].startswith("worker 0: ")
    assert why in outcome["why"]
    assert outcome["why"].endswith(" (0 of 2 rolled)")
    assert [engine.pid_of(slot) for slot in (0, 1)] == pids
    assert len(engine.workers()) == 2
    assert not notes(engine, 0, "hand_over")
    assert len(starts(engine, 1)) == 1
    assert engine.log("operation failed")[0]["why"] == outcome["why"]


def test_who_was_rolled_stays_when_the_next_one_cannot_be(engine: Engine) -> None:
    pids = [engine.pid_of(slot) for slot in (0, 1)]
    engine.behave(1, "fail")
    assert reload(engine)["why"].endswith(" (1 of 2 rolled)")
    assert engine.pid_of(0) != pids[0]
    assert engine.pid_of(1) == pids[1]


@pytest.mark.parametrize(
    ("old", "new", "told", "reintroduced"),
    [
        # N dies or falls silent in MOVING …
        ("hand_over:ignore", "take_over:die", "the new worker", False),
        ("hand_over:ignore", "take_over:freeze", "the new worker", False),
        # … or later, when siblings know it.
        ("given:ignore", "peer:die", "the new worker", True),
        # Either declines.
        ("hand_over:decline", "", "it declines at hand_over", False),
        ("given:decline", "", "it declines at given", True),
        ("hand_over:ignore", "take_over:decline", "it declines at take_over", False),
    ],
)
def test_the_old_one_goes_on_when_the_hand_over_cannot(
    patient: Engine, old: str, new: str, told: str, reintroduced: bool
) -> None:
    engine = patient
    engine.behave(0, old)
    engine.start_up()
    pid = engine.pid_of(0)
    engine.behave(0, new or "ready")
    outcome = reload(engine)
    assert outcome["state"] == "failed"
    assert told in outcome["why"]
    assert engine.pid_of(0) == pid
    assert [note["pid"] for note in notes(engine, 0, "resume")] == [pid]
    assert engine.row_of(0)["restarts"] == "0"
    check_sibling_met(engine, [(0, False), (1, True), (0, False)] if reintroduced else [(0, False)])
    check_all_serve(engine)
    # And once what was wrong is mended, it can be done.
    os.kill(pid, signal.SIGKILL)
    engine.behave(0, "ready")
    engine.wait_for_worker(0, pid)
    assert reload(engine)["state"] == "done"


@pytest.mark.parametrize(
    ("old", "introduced"),
    [
        ("hand_over:die", [(1, False)]),
        ("hand_over:freeze", [(1, False)]),
        # Anew, as what O knew of siblings may not have come over.
        ("given:die", [(1, True), (1, False)]),
        ("given:freeze", [(1, True), (1, False)]),
    ],
)
def test_the_new_one_inherits_when_the_old_one_dies(
    patient: Engine, old: str, introduced: list[tuple[int, bool]]
) -> None:
    engine = patient
    engine.behave(0, old)
    engine.start_up()
    pid = engine.pid_of(0)
    engine.behave(0, "ready")
    outcome = reload(engine)
    assert outcome["state"] == "failed"
    assert f"the old worker (pid {pid}) is gone while " in outcome["why"]
    new = engine.pid_of(0)
    assert [note["pid"] for note in notes(engine, 0, "inherit")] == [new]
    check_sibling_met(engine, [(0, False), *introduced])
    assert engine.row_of(0)["restarts"] == "1"
    assert os.sched_getaffinity(new) == {sorted(os.sched_getaffinity(0))[0]}
    check_all_serve(engine)
    assert reload(engine)["state"] == "done"


def test_tasks_that_are_not_given_in_time_stay_where_they_are(make_engine: MakeEngine) -> None:
    engine = make_engine(handover_timeout_s=0.5)
    engine.behave(0, "hand_over:ignore")
    engine.start_up()
    pid = engine.pid_of(0)
    engine.behave(0, "ready")
    assert "not everything was given within 0.5 s" in reload(engine)["why"]
    assert engine.pid_of(0) == pid
    assert notes(engine, 0, "resume")
    check_all_serve(engine)


def test_connections_that_do_not_move_are_given_up_and_the_new_one_goes_on(make_engine: MakeEngine) -> None:
    engine = make_engine(connect_timeout_s=0.5)
    engine.behave(0, "given:ignore")
    engine.start_up()
    engine.behave(0, "ready")
    outcome = reload(engine)
    assert "its connections were not handed over within 0.5 s" in outcome["why"]
    assert engine.pid_of(0) == notes(engine, 0, "take_over")[0]["pid"]
    check_all_serve(engine)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Who is left never takes what is left, or dies as well.
        ("hand_over:ignore resume:ignore", "take_over:die"),
        ("hand_over:ignore resume:die", "take_over:die"),
        ("hand_over:die", "inherit:ignore"),
        ("given:die", "inherit:die"),
        # O is told to stop and N dies.
        ("hand_over:die", "take_over:die"),
    ],
)
def test_when_both_are_lost_a_new_one_starts_from_the_store(patient: Engine, old: str, new: str) -> None:
    engine = patient
    engine.behave(0, old)
    engine.start_up()
    engine.behave(0, new)
    number = engine.request("reload")["operation"]
    wait_until(lambda: notes(engine, 0, "take_over"), "N was told to take over")
    engine.behave(0, "ready")
    assert engine.outcome(number)["state"] == "failed"
    check_all_serve(engine)
    last = starts(engine, 0)[-1]
    assert not last["standby"]
    assert engine.pid_of(0) == last["pid"]


def test_an_old_one_that_does_not_end_is_killed(make_engine: MakeEngine) -> None:
    engine = make_engine(end_timeout_s=0.5)
    engine.behave(0, "stubborn")
    engine.start_up()
    engine.behave(0, "ready")
    assert reload(engine)["state"] == "done"
    (killed,) = engine.log("worker killed")
    assert killed["why"] == "did not end after it had handed over"


def test_a_worker_that_speaks_of_a_hand_over_when_there_is_none_is_replaced(engine: Engine) -> None:
    pid = engine.pid_of(0)
    engine.behave(0, "start:decline")
    os.kill(pid, signal.SIGKILL)
    assert engine.wait_for("worker killed")[0]["why"] == "spoke out of turn: worker 0 is not handing over"
    engine.behave(0, "ready")
    engine.wait_for_worker(0, pid)


# Stops


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", ["hand_over", "given"])
def test_a_stop_wins_over_a_roll(make_engine: MakeEngine, number: signal.Signals, step: str) -> None:
    engine = make_engine()
    engine.behave(0, f"{step}:ignore")
    engine.start_up()
    engine.behave(0, "ready")
    engine.request("reload")
    engine.wait_for("hand-over begins" if step == "hand_over" else "tasks handed over")
    processes = engine.remember_workers()
    assert len(processes) == 3
    engine.signal(number)
    assert engine.wait() == 0
    assert not any(process.is_running() for process in processes)
    assert len(notes(engine, 0, "stop")) == 2
    assert not engine.log("worker killed")
    assert sorted(os.listdir(engine.data)) == ["lock", "store"]


def test_a_stop_while_the_new_one_boots(engine: Engine) -> None:
    engine.behave(0, "hang")
    engine.request("reload")
    engine.wait_for("worker started", 3)
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    assert engine.log("worker killed")[0]["why"] == "stopped while it started"
