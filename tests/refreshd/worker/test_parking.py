"""Parking and replay: what happens between a read and its answer. The model is in test_engine.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from refreshd.fleet import Proxy
from refreshd.worker import parking, replay
from tests.refreshd.worker.core import Core, TableReader

FLEET = [Proxy("a0", "origin", 0, True), Proxy("a1", "origin", 0, True)]


@pytest.fixture
def core() -> Iterator[Core]:
    """A worker that keeps nothing in memory for proxies that are away, and has parked t0 to t7."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "SLICE_TASKS", 2)
        patch.setattr(replay, "_SHARE_MIN", 1)
        core = Core(patch, FLEET, toml="[engine]\npark_above = 0\n")
        core.post(*[b"post_task task_id=t%d type=url scope=a0 -- http://a/%d" % (n, n) for n in range(8)])
        core.commit()
        core.pass_time(2000)
        core.commit()
        assert (len(core.engine.tasks), len(core.parking)) == (0, 8)
        yield core


def bring_back(core: Core, serial: int) -> None:
    """As a cancel or a watch does."""
    core.parking.take_in([TableReader(core.table)._task(core.table.parked[serial])], set())
    core.loop.run()


def test_what_ends_while_it_is_read_does_not_come_back(core: Core) -> None:
    first = min(core.table.parked)
    core.connect("a0", 100)
    assert core.running, "a read is under way"
    bring_back(core, first)
    core.report("a0", b"t0")
    core.commit()
    core.read()
    assert b"t0" not in core.engine.tasks
    assert core.table.results.keys() == {first}
    for _ in range(9):
        core.read()
    assert core.engine.tasks.keys() == {b"t%d" % number for number in range(1, 8)}


def test_a_proxy_that_is_back_before_the_commit_finds_its_tasks_in_memory(core: Core) -> None:
    core.post(b"post_task task_id=t9 type=url scope=a1 -- http://a/9")
    core.commit()
    core.pass_time(100)
    assert [task.id for task, _ in core.saver.batch.parking] == [b"t9"]
    core.connect("a1", 100)
    core.commit()
    assert core.engine.tasks.keys() == {b"t9"}
    assert len(core.parking) == 8
    # It is kept all the same: after a kill it is found there.
    assert len(core.table.parked) == 9


def test_a_read_that_comes_when_the_proxy_is_gone_again_brings_nothing(core: Core) -> None:
    core.connect("a0", 100)
    core.disconnect("a0")
    for _ in range(9):
        core.read()
    assert not core.engine.tasks
    assert not core.running
    assert len(core.parking) == 8


def test_no_more_is_read_than_the_credit_asks_for(core: Core) -> None:
    core.connect("a0", 1)
    for _ in range(9):
        core.read()
    # One was pushed; so few were left to push that the next slice was read once.
    assert core.engine.tasks.keys() == {b"t0", b"t1", b"t2", b"t3"}


def test_a_task_that_is_watched_stays_in_memory(core: Core) -> None:
    core.watches.put(b"t0", [(0, 1)])
    bring_back(core, min(core.table.parked))
    core.pass_time(2000)
    core.commit()
    assert core.engine.tasks.keys() == {b"t0"}


def test_counts_that_are_too_high_are_corrected(core: Core) -> None:
    """As after a hand-over: what is in memory and was parked before is counted, too."""
    (group,) = core.parking.groups.values()
    group.tasks += 5
    core.pass_time(parking.CHECK_EVERY_MS)
    for _ in range(9):
        core.read()
    assert len(core.parking) == 8
    group.tasks = 1
    core.table.parked.clear()
    core.pass_time(parking.CHECK_EVERY_MS)
    for _ in range(9):
        core.read()
    assert not core.parking.groups


def test_a_group_that_was_not_known_is_replayed(core: Core) -> None:
    core.parking.groups.clear()
    core.connect("a0", 100)
    for _ in range(3):
        core.read()
    assert not core.engine.tasks
    core.pass_time(parking.CHECK_EVERY_MS)
    for _ in range(20):
        core.read()
    assert len(core.engine.tasks) == 8


def test_reads_that_have_seen_the_same_are_told_apart(core: Core) -> None:
    with core.parking.reading() as first, core.parking.reading():
        pass
    assert core.engine.changes == []
    with core.parking.reading() as outer:
        with core.parking.reading():
            pass
        assert [changed is outer for changed in core.engine.changes] == [True]
    assert first == set()


def test_a_plan_that_was_made_anew_shares_its_group(core: Core) -> None:
    (group,) = core.parking.groups.values()
    core.parking.empty(group)
    # The same proxies, another object; as after a change of the fleet and back.
    core.fleet._plans.clear()
    core.engine.fleet_changed()
    core.post(b"post_task task_id=t9 type=url scope=a0 -- http://a/9")
    core.commit()
    core.pass_time(2000)
    core.commit()
    (other,) = core.parking.groups.values()
    assert (other.number, other.tasks) == (group.number, 1)
