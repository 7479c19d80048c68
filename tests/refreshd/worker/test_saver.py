"""The saver: one thread, one batch at a time, with a lane that does as the test says."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable
from refreshd.store.base import Batch, ProxyRow
from refreshd.task import State
from refreshd.worker import saver as module
from refreshd.worker.saver import SaveBatch, Saver
from refreshd.worker.turns import Turn
from tests.refreshd.making import a_plan, a_task
from tests.refreshd.worker.core import Client, Quiet

LAYER = a_plan(2).layers[0]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    monkeypatch.setattr(module, "log", Quiet())


class FakeLane:
    """Each commit waits for its outcome: an error to raise, or the ids that are known."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.outcomes: queue.SimpleQueue[BaseException | dict[bytes, int]] = queue.SimpleQueue()
        self.upkeep: Callable[[], bool] = lambda: False
        self.closed = 0
        self.handed_over = False
        self.threads: set[str] = set()

    def commit(self, batch: Batch) -> dict[bytes, int]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(batch)
        outcome = self.outcomes.get(timeout=30)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def has(self, batches: int) -> bool:
        return len(self.batches) == batches

    def finished_serial(self, task_id: bytes) -> int | None:
        return None

    def idle(self) -> bool:
        return self.upkeep()

    def close(self, *, handed_over: bool = False) -> None:
        self.closed += 1
        self.handed_over = handed_over


class Owner:
    """What the saver said, in order."""

    def __init__(self) -> None:
        self.saved_: list[tuple[list[bytes], list[bytes], dict[bytes, int]]] = []
        self.refused: list[tuple[list[bytes], str]] = []
        self.fatal: list[StoreError] = []

    def saved(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        self.saved_.append(([task.id for task in batch.tasks], [task.id for task in batch.closing], known))
        for turn in batch.turns:
            turn.release()
        for waiter in batch.waiters:
            waiter(None)

    def not_saved(self, batch: SaveBatch, error: StoreError) -> None:
        self.refused.append(([task.id for task in batch.tasks], str(error)))
        for waiter in batch.waiters:
            waiter(error)

    def store_failed(self, error: StoreError) -> None:
        self.fatal.append(error)


class Rig:
    def __init__(self) -> None:
        self.lane, self.owner = FakeLane(), Owner()
        self.saver = Saver(self.lane, self.owner, asyncio.get_running_loop(), "test")
        self.turn = Turn(Client())

    def add(self, *ids: bytes) -> None:
        for task_id in ids:
            self.saver.batch.add_task(a_task(task_id, LAYER, state=State.NEW), self.turn)
        self.saver.wake()

    def end(self, task_id: bytes) -> None:
        task = a_task(task_id, LAYER)
        task.closing = State.COMPLETE
        task.left = 0
        self.saver.batch.closing.append(task)
        self.saver.wake()


@asynccontextmanager
async def rigged() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    for _ in range(100):
        rig.lane.outcomes.put({})
    assert await rig.saver.close(30)


def run(test: Callable[[Rig], Any]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), rigged() as rig:
            await test(rig)

    asyncio.run(whole())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def chance() -> None:
    """Time for what must not happen. On a slow machine the test sees less; it never fails for that."""
    await asyncio.sleep(0.01)


def ids(batch: Batch) -> list[bytes]:
    return [row[1] for row in batch.tasks]


def test_what_gathers_during_a_commit_is_the_next_one() -> None:
    async def test(rig: Rig) -> None:
        rig.add(b"a")
        rig.add(b"b")
        await until(lambda: rig.lane.batches)
        assert ids(rig.lane.batches[0]) == [b"a", b"b"]
        assert rig.saver.in_flight == 2
        rig.add(b"c")
        await asyncio.sleep(0)
        rig.end(b"x")
        rig.add(b"d")
        assert rig.saver.waiting == 3
        assert not rig.owner.saved_
        rig.lane.outcomes.put({b"b": 7})
        await until(lambda: len(rig.lane.batches) == 2)
        # The next commit runs while the first is settled.
        await until(lambda: rig.owner.saved_)
        assert rig.owner.saved_ == [([b"a", b"b"], [], {b"b": 7})]
        assert ids(rig.lane.batches[1]) == [b"c", b"d"]
        assert [row[1] for row in rig.lane.batches[1].results] == [State.COMPLETE]
        assert [entry[1] for entry in rig.lane.batches[1].finished] == [b"x"]
        rig.lane.outcomes.put({})
        await until(lambda: len(rig.owner.saved_) == 2)
        assert rig.saver.commits == 2
        assert (rig.saver.in_flight, rig.saver.waiting) == (0, 0)
        assert len(rig.lane.threads) == 1
        assert threading.current_thread().name not in rig.lane.threads

    run(test)


def test_rows_are_what_the_store_wants() -> None:
    batch = SaveBatch()
    turn = Turn(Client())
    task = a_task(b"a", LAYER, count=2, state=State.NEW)
    batch.add_task(task, turn)
    batch.add_task(a_task(b"b", LAYER, state=State.NEW), turn)
    assert (batch.turns, turn.waiting) == ([turn], 2)
    ended = a_task(b"c", LAYER, count=2)
    ended.closing, ended.marks, ended.left, ended.failed = State.FAILED, bytearray(b"0:1 "), 0, 1
    batch.closing.append(ended)
    batch.low = 9
    rows = batch.to_rows()
    assert rows.tasks[0] == (task.serial, b"a", LAYER.plan.number, task.line)
    assert rows.plans == {LAYER.plan.number: LAYER.plan.text}
    assert rows.results == [(ended.serial, int(State.FAILED), 3, 1, 1000, b"0:1 ")]
    assert rows.low == 9
    assert len(batch) == len(rows) == 3


def test_a_store_that_is_unavailable() -> None:
    async def test(rig: Rig) -> None:
        rig.add(b"a")
        rig.end(b"x")
        rig.saver.batch.proxies.append(ProxyRow("p", "g", 0))
        rig.saver.batch.forgotten.append("q")
        assert rig.saver.batch.add_receipt(1, "p", b"one")
        told: list[StoreError | None] = []
        rig.saver.batch.waiters.append(told.append)
        await until(lambda: rig.lane.batches)
        rig.end(b"y")
        rig.add(b"b")
        assert rig.saver.batch.add_receipt(1, "p", b"later")
        rig.lane.outcomes.put(StoreUnavailable("full"))
        await until(lambda: rig.owner.refused)
        # What gathered meanwhile does not wait for another try.
        assert rig.owner.refused == [([b"a", b"b"], "full")]
        assert str(told) == "[StoreUnavailable('full')]"
        assert str(rig.saver.last_error) == "full"
        # What must not get lost comes again, before what is newer; what was refused does not.
        for tries in (2, 3):
            await until(partial(rig.lane.has, tries))
            last = rig.lane.batches[-1]
            assert [entry[1] for entry in last.finished] == [b"x", b"y"]
            assert ids(last) == []
            assert (last.proxies, last.forgotten) == ([ProxyRow("p", "g", 0)], ["q"])
            assert last.receipts == [(1, "p", b"one"), (1, "p", b"later")]
            rig.lane.outcomes.put(StoreUnavailable("still full") if tries == 2 else {})
        await until(lambda: rig.owner.saved_)
        assert rig.owner.saved_ == [([], [b"x", b"y"], {})]
        assert rig.saver.last_error is None
        rig.add(b"c")
        rig.lane.outcomes.put({})
        await until(lambda: len(rig.owner.saved_) == 2)
        assert not rig.owner.fatal

    run(test)


def test_receipts_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECEIPTS_MAX_BYTES", 10)
    batch, other = SaveBatch(), SaveBatch()
    assert batch.add_receipt(1, "p", b"x" * 10)
    assert not batch.add_receipt(1, "q", b"x")
    assert len(batch) == len(batch.to_rows()) == 1
    assert other.add_receipt(1, "q", b"x" * 10)


def test_a_store_that_is_unavailable_is_tried_though_nothing_waits() -> None:
    """New tasks are refused meanwhile: none of them would find out that it is back."""

    async def test(rig: Rig) -> None:
        rig.add(b"a")
        rig.lane.outcomes.put(StoreUnavailable("away"))
        rig.lane.outcomes.put(StoreUnavailable("away"))
        await until(partial(rig.lane.has, 3))
        assert not len(rig.saver.batch)
        assert ids(rig.lane.batches[-1]) == []
        assert rig.saver.last_error is not None
        rig.lane.outcomes.put({})
        await until(lambda: rig.saver.last_error is None)
        # And then no more, though there is time for ten.
        await asyncio.sleep(10 * module.RETRY_S)
        assert rig.lane.has(3)

    run(test)


@pytest.mark.parametrize(
    "error", [StoreFailed("sync"), StoreDamaged("torn"), ValueError("a fault"), MemoryError()]
)
def test_a_store_that_cannot_be_trusted_ends_everything(error: BaseException) -> None:
    async def test() -> None:
        rig = Rig()
        rig.add(b"a")
        rig.lane.outcomes.put(error)
        await until(lambda: rig.owner.fatal)
        # Nothing is acknowledged, refused or tried again: the process is to end.
        rig.add(b"b")
        await chance()
        assert len(rig.lane.batches) == 1
        assert not rig.owner.saved_
        assert not rig.owner.refused
        rig.saver._jobs.put(None)
        await until(lambda: rig.lane.closed)

    asyncio.run(test())


@pytest.mark.parametrize("outcome", [{}, StoreUnavailable("full")])
def test_a_fault_while_settling_ends_everything_too(outcome: StoreError | dict[bytes, int]) -> None:
    """Else some of the batch would be acknowledged and never started."""

    async def test(rig: Rig) -> None:
        def fault(*_: object) -> None:
            raise KeyError("a fault of ours")

        owner: Any = rig.owner
        owner.saved = owner.not_saved = fault
        rig.add(b"a")
        rig.lane.outcomes.put(outcome)
        await until(lambda: rig.owner.fatal)
        assert "could not be settled: KeyError" in str(rig.owner.fatal[0])
        # Whoever goes on nevertheless finds no flag stuck.
        del owner.saved, owner.not_saved
        rig.add(b"b")
        rig.lane.outcomes.put({})
        await until(lambda: rig.owner.saved_)

    run(test)


def test_waiting_for_a_commit_of_nothing_but_a_waiter() -> None:
    async def test(rig: Rig) -> None:
        told: list[StoreError | None] = []
        rig.saver.batch.waiters.append(told.append)
        rig.saver.wake()
        rig.lane.outcomes.put({})
        await until(lambda: told)
        assert told == [None]

    run(test)


def test_a_low_alone_makes_no_commit() -> None:
    async def test(rig: Rig) -> None:
        rig.saver.batch.low = 5
        rig.saver.wake()
        await chance()
        assert not rig.lane.batches
        rig.add(b"a")
        rig.lane.outcomes.put({})
        await until(lambda: rig.owner.saved_)
        assert rig.lane.batches[0].low == 5

    run(test)


def test_upkeep_has_its_turn_under_load_and_goes_on_while_more_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "UPKEEP_S", 0.01)
    monkeypatch.setattr(module, "UPKEEP_MORE_S", 0.0)
    turns: list[int] = []

    def upkeep() -> bool:
        turns.append(len(rigs[0].lane.batches))
        if len(turns) == 2:
            raise StoreUnavailable("no room for upkeep either")
        return len(turns) < 10

    rigs: list[Rig] = []

    async def test(rig: Rig) -> None:
        rigs.append(rig)
        rig.lane.upkeep = upkeep
        for _ in range(100_000):
            if len(turns) >= 5:
                break
            rig.add(b"a")
            rig.lane.outcomes.put({})
            await asyncio.sleep(0)
            await until(lambda: not rig.saver.in_flight)
        assert len(turns) >= 5
        await until(lambda: len(turns) >= 10)

    run(test)


def test_close_saves_what_is_there() -> None:
    async def test() -> None:
        rig = Rig()
        rig.add(b"a")
        rig.lane.outcomes.put(StoreUnavailable("full"))
        rig.end(b"x")
        await until(lambda: rig.owner.refused)
        rig.add(b"b")
        closing = asyncio.ensure_future(rig.saver.close(30))
        await chance()
        assert not closing.done()
        for _ in range(5):
            rig.lane.outcomes.put({})
        assert await closing
        assert [kept[1] for kept in rig.owner.saved_ if kept[1]] == [[b"x"]]
        assert sum(len(kept[0]) for kept in rig.owner.saved_) == 1
        assert rig.lane.closed == 1
        assert not rig.saver._thread.is_alive()

    asyncio.run(test())


def test_close_gives_up_at_its_deadline() -> None:
    async def test() -> None:
        rig = Rig()
        rig.add(b"a")
        await until(lambda: rig.lane.batches)
        assert not await rig.saver.close(0.01)
        rig.lane.outcomes.put({})
        await until(lambda: rig.lane.closed)

    asyncio.run(test())


# ── work between commits ──────────────────────────────────────────────────────────────────


def test_work_runs_in_the_savers_thread_between_two_commits() -> None:
    async def test(rig: Rig) -> None:
        ran: list[tuple[str, int]] = []

        def work() -> str:
            ran.append((threading.current_thread().name, len(rig.lane.batches)))
            return "worked"

        rig.add(b"a")
        await until(lambda: rig.lane.batches)
        # The first batch is under way; what gathers now comes after the work.
        called = rig.saver.call(work)
        rig.add(b"b")
        assert not ran
        assert not called.done()
        rig.lane.outcomes.put({})
        assert await called == "worked"
        assert ran == [("saver-test", 1)]
        rig.lane.outcomes.put({})
        await until(lambda: len(rig.owner.saved_) == 2)
        assert await asyncio.gather(*(rig.saver.call(lambda n=n: n) for n in range(50))) == [*range(50)]

    run(test)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (StoreUnavailable("full"), StoreUnavailable),
        (KeyError("ours"), KeyError),
        (StopIteration(3), StoreError),
        (SystemExit(1), StoreError),
    ],
)
def test_a_fault_in_the_work_is_its_awaiters(fault: BaseException, raised: type[Exception]) -> None:
    async def test(rig: Rig) -> None:
        def work() -> None:
            raise fault

        with pytest.raises(raised):
            await rig.saver.call(work)
        # Nobody waits for this one any more.
        rig.saver.call(work).cancel()
        rig.add(b"a")
        rig.lane.outcomes.put({})
        await until(lambda: rig.owner.saved_)
        assert not rig.owner.fatal

    run(test)


def test_nothing_can_be_called_once_it_is_closed() -> None:
    async def test() -> None:
        rig = Rig()
        before = rig.saver.call(lambda: "in time")
        assert await rig.saver.close(30, handed_over=True)
        assert await before == "in time"
        assert rig.lane.handed_over
        with pytest.raises(StoreUnavailable, match="closed"):
            rig.saver.call(lambda: None)

    asyncio.run(test())


def test_without_upkeep_no_low_is_written_and_the_lane_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPKEEP_S", 0.001)
    turns: list[None] = []

    async def test(rig: Rig) -> None:
        rig.lane.upkeep = lambda: bool(turns.append(None))
        await until(lambda: turns)
        rig.saver.batch.low = 7
        rig.saver.upkeep = False
        await rig.saver.call(lambda: None)
        seen = len(turns)
        for low in (0, 8):
            rig.saver.batch.low = low
            rig.add(b"a%d" % low)
            rig.lane.outcomes.put({})
            await until(lambda: not rig.saver.in_flight and not rig.saver.waiting)
        await chance()
        assert len(turns) == seen
        # What was said before it is on again may be too much: tasks have come since.
        rig.saver.batch.low = 9
        rig.saver.upkeep = True
        rig.add(b"b")
        rig.lane.outcomes.put({})
        await until(lambda: len(turns) > seen and len(rig.lane.batches) == 3)
        assert [batch.low for batch in rig.lane.batches] == [0, 0, 0]
        rig.saver.batch.low = 10
        rig.add(b"c")
        rig.lane.outcomes.put({})
        await until(lambda: len(rig.lane.batches) == 4)
        assert rig.lane.batches[-1].low == 10

    run(test)
