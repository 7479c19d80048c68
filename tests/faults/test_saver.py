"""The saver over a lane that fails when told to; and what a lane keeps for those that share it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from refreshd.errors import StoreError, StoreFailed, StoreUnavailable
from refreshd.fleet import Plan
from refreshd.store.base import Batch
from refreshd.store.sqlite import SqliteLane, SqliteReader
from refreshd.task import State, Task, read_terms
from refreshd.worker import saver as saver_module
from refreshd.worker.saver import SaveBatch, Saver
from refreshd.worker.turns import Turn
from tests.driver import PATIENCE_S
from wire.lines import parse

PLAN = Plan([(0, ("p1",))])
Scenario = Callable[["Owner", "FailingLane", Saver], object]


class FailingLane:
    """A lane in memory. `fails` is raised by the next commits, until it is None."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.fails: StoreError | None = None
        self.tried = 0

    def commit(self, batch: Batch) -> dict[bytes, int]:
        self.tried += 1
        if self.fails is not None:
            raise self.fails
        self.batches.append(batch)
        return {}

    def finished_serial(self, task_id: bytes) -> int | None:
        return None

    def idle(self) -> bool:
        return False

    def close(self, *, handed_over: bool = False) -> None:
        pass


class Owner:
    """Whom the saver tells, and the connection that the replies go to."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []
        self.told: list[str] = []

    def turn_done(self, turn: Turn) -> None:
        self.replies += turn.parts

    def saved(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        self.told.append("saved")
        for turn in batch.turns:
            turn.release()

    def not_saved(self, batch: SaveBatch, error: StoreError) -> None:
        self.told.append("not saved")
        for turn in batch.turns:
            turn.replace({b"ok": b"err"})
            turn.release()

    def store_failed(self, error: StoreError) -> None:
        self.told.append("failed")

    async def wait_for(self, *told: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.told != list(told):
                await asyncio.sleep(0.001)


def _task(number: int) -> Task:
    line = b"post_task task_id=t%d type=url -- http://example.com/" % number
    return Task(b"t%d" % number, line, read_terms(parse(line)), 1, PLAN.layers[0], number, 0)


def _post(owner: Owner, saver: Saver, number: int) -> Task:
    turn = Turn(owner)
    turn.parts.append(b"ok")
    task = _task(number)
    saver.batch.add_task(task, turn)
    turn.release()
    saver.wake()
    return task


def _run(scenario: Callable[[Owner, FailingLane, Saver], object]) -> None:
    async def run() -> None:
        owner, lane = Owner(), FailingLane()
        saver = Saver(lane, owner, asyncio.get_running_loop(), "test")
        result = scenario(owner, lane, saver)
        assert asyncio.iscoroutine(result)
        await result
        lane.fails = None
        saver._jobs.put(None)
        saver._thread.join(PATIENCE_S)

    asyncio.run(run())


def test_no_reply_leaves_before_its_commit() -> None:
    async def scenario(owner: Owner, lane: FailingLane, saver: Saver) -> None:
        for number in range(10):
            _post(owner, saver, number)
        assert owner.replies == []
        await owner.wait_for("saved")
        assert owner.replies == [b"ok"] * 10
        assert len(lane.batches) == 1, "one commit for all that came in one turn"

    _run(scenario)


@pytest.mark.parametrize("error", [StoreFailed("the store could not sync"), StoreError("anything else")])
def test_after_a_failed_sync_nobody_is_answered_and_nothing_is_tried_again(
    error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 10."""
    monkeypatch.setattr(saver_module, "RETRY_S", 0.02)

    async def scenario(owner: Owner, lane: FailingLane, saver: Saver) -> None:
        lane.fails = error
        _post(owner, saver, 1)
        await owner.wait_for("failed")
        _post(owner, saver, 2)
        # What must not happen would have happened by then, five times.
        await asyncio.sleep(5 * saver_module.RETRY_S)
        assert (owner.replies, owner.told, lane.tried) == ([], ["failed"], 1)

    _run(scenario)


def test_a_store_that_is_away_refuses_tasks_and_keeps_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAULTS 9: results wait, in order, for the store to come back."""
    monkeypatch.setattr(saver_module, "RETRY_S", 0.02)

    async def scenario(owner: Owner, lane: FailingLane, saver: Saver) -> None:
        done = _post(owner, saver, 1)
        await owner.wait_for("saved")
        lane.fails = StoreUnavailable("the disk is full")
        done.closing = State.COMPLETE
        saver.batch.closing.append(done)
        _post(owner, saver, 2)
        await owner.wait_for("saved", "not saved")
        assert owner.replies == [b"ok", b"err"]
        lane.fails = None
        _post(owner, saver, 3)
        async with asyncio.timeout(PATIENCE_S):
            while owner.replies[-1:] != [b"ok"] or len(lane.batches) < 2:
                await asyncio.sleep(0.001)
        kept = [(len(batch.tasks), [row[0] for row in batch.results]) for batch in lane.batches]
        assert kept[0] == (1, [])
        assert [1] in [results for _, results in kept[1:]]
        assert sum(tasks for tasks, _ in kept) == 2, "the refused task is nowhere"

    _run(scenario)


# ── lanes that are shared ─────────────────────────────────────────────────────────────────


def _batch(*serials: int, low: int = 0) -> Batch:
    batch = Batch()
    batch.plans = {PLAN.number: PLAN.text}
    batch.tasks = [(serial, b"t%d" % serial, PLAN.number, b"line") for serial in serials]
    batch.low = low
    return batch


def _unfinished(path: Path) -> list[int]:
    reader = SqliteReader(path)
    serials = [row[0] for row in reader.unfinished()]
    reader.close()
    return serials


def test_a_low_mark_of_one_worker_hides_no_task_of_another(tmp_path: Path) -> None:
    """Two workers write one lane: it was made when there was one."""
    path = tmp_path / "lane"
    zero, one = (SqliteLane(path, 3600, slot=slot, sharers=(0, 1)) for slot in (0, 1))
    one.commit(_batch(10))
    zero.commit(_batch(20, low=15))
    one.commit(_batch(30, low=10))
    zero.commit(_batch(40, low=40))
    assert _unfinished(path) == [10, 20, 30, 40]
    one.commit(_batch(low=25))
    assert _unfinished(path) == [30, 40]
    for lane in (zero, one):
        lane.close()


def test_low_marks_of_other_numbers_of_workers_stay_true(tmp_path: Path) -> None:
    path = tmp_path / "lane"
    alone = SqliteLane(path, 3600)
    alone.commit(_batch(10, 20, 30, low=20))
    alone.close()
    zero, one = (SqliteLane(path, 3600, slot=slot, sharers=(0, 1)) for slot in (0, 1))
    assert _unfinished(path) == [20, 30]
    zero.commit(_batch(low=30))
    assert _unfinished(path) == [20, 30]
    for lane in (zero, one):
        lane.close()


def test_serials_go_on_behind_the_low_mark(tmp_path: Path) -> None:
    """It may be later than any task; the clock may have been set back since."""
    lane = SqliteLane(tmp_path / "lane", 3600)
    lane.commit(_batch(10, low=99))
    reader = SqliteReader(tmp_path / "lane")
    assert reader.last_serial() == 99
    reader.close()
    lane.close()
