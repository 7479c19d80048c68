"""Carrying out: one thread, one call at a time, and what fails for one engine keeps no other waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from refreshd.cluster.acts import Acts, TruthThread
from refreshd.cluster.takeover import BATCH_UNKNOWN, Estate, Plan
from refreshd.errors import NotLeader, StoreError, StoreFailed, StoreFenced, StoreUnavailable
from tests.refreshd.cluster.sql import Row
from tests.refreshd.cluster.timing import UNTIL_S, run


class FakeTruth:
    """Has so many tasks an engine, and fails where it is told to."""

    def __init__(self, **tasks: int) -> None:
        self.tasks = {int(name[1:]): count for name, count in tasks.items()}
        self.fails: dict[tuple[str, int], Exception] = {}
        self.done: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()

    def _answer(self, what: str, number: int) -> None:
        self.threads.add(threading.current_thread().name)
        if (what, number) in self.fails:
            raise self.fails[what, number]

    def claim_leadership(self) -> int:
        return 1

    def engines(self) -> list[Row]:
        return []

    def fence(self, leader_epoch: int, number: int) -> int | None:
        self._answer("fence", number)
        self.done.append(("fence", leader_epoch, number))
        return 9 if number in self.tasks else None

    def hand_out(self, leader_epoch: int, number: int, fenced_epoch: int, to_number: int, limit: int) -> int:
        self._answer("hand_out", number)
        moved = min(limit, self.tasks[number])
        self.tasks[number] -= moved
        self.done.append(("hand_out", leader_epoch, number, fenced_epoch, to_number, moved))
        return moved


class Rig:
    def __init__(self, truth: FakeTruth) -> None:
        self.truth = truth
        self.leads = True
        self.heirs: tuple[int, ...] = (1, 2)
        self.told: list[int] = []
        self.on_tell: Callable[[], None] = lambda: None
        self.thread = TruthThread(truth, 10)
        self.acts = Acts(
            self.thread,
            may_act=lambda epoch: self.leads and epoch == 5,
            heirs=lambda: self.heirs,
            tell=self.tell,
        )

    async def tell(self, number: int) -> None:
        self.told.append(number)
        self.on_tell()

    async def carry_out(self, *dead: int, estates: tuple[int, ...] = (), epoch: int = 5) -> None:
        fence = tuple(Row(number, f"e{number}", 8, True, True) for number in dead)
        plan = Plan(fence, tuple(Estate(number, 9, f"e{number}") for number in estates), self.heirs)
        try:
            await self.acts.carry_out(epoch, plan, {})
        finally:
            self.thread.close()


def test_it_fences_then_deals_out_in_turns_and_tells_each() -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=2 * BATCH_UNKNOWN + 7))
        await rig.carry_out(3)
        assert rig.truth.done == [
            ("fence", 5, 3),
            ("hand_out", 5, 3, 9, 1, BATCH_UNKNOWN),
            ("hand_out", 5, 3, 9, 2, BATCH_UNKNOWN),
            ("hand_out", 5, 3, 9, 1, 7),
        ]
        assert rig.told == [1, 2, 1]
        assert (rig.acts.fenced, rig.acts.handed_out) == (1, 2 * BATCH_UNKNOWN + 7)
        assert rig.truth.threads == {"cluster-truth"}

    run(test())


@pytest.mark.parametrize("failing", [("fence", 3), ("hand_out", 3)])
def test_what_cannot_be_done_for_one_keeps_no_other_waiting(failing: tuple[str, int]) -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=10, e4=10, e6=10))
        rig.truth.fails[failing] = StoreUnavailable("its rows are held")
        with pytest.raises(StoreUnavailable, match="its rows are held"):
            await rig.carry_out(3, 4, estates=(6,))
        assert rig.truth.tasks == {3: 10, 4: 0, 6: 0}

    run(test())


@pytest.mark.parametrize("error", [NotLeader("x"), StoreFenced("x"), StoreFailed("x")])
def test_a_leader_that_is_refused_does_nothing_more(error: StoreError) -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=10, e4=10))
        rig.truth.fails["hand_out", 3] = error
        with pytest.raises(type(error)):
            await rig.carry_out(3, estates=(3, 4))
        assert rig.truth.tasks == {3: 10, 4: 10}

    run(test())


def test_it_stops_between_two_batches_once_it_leads_no_more() -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=5 * BATCH_UNKNOWN, e4=1))
        rig.on_tell = lambda: setattr(rig, "leads", False)
        await rig.carry_out(3, estates=(4,))
        assert rig.truth.tasks == {3: 5 * BATCH_UNKNOWN, 4: 0}

    run(test())


def test_by_another_epoch_nothing_is_done() -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=10))
        await rig.carry_out(3, estates=(3,), epoch=4)
        assert rig.truth.done == []

    run(test())


def test_an_engine_that_goes_amid_gets_no_more_and_nobody_no_tasks() -> None:
    async def test() -> None:
        rig = Rig(FakeTruth(e3=5 * BATCH_UNKNOWN))
        heirs = iter([(2,), ()])
        rig.on_tell = lambda: setattr(rig, "heirs", next(heirs))
        await rig.carry_out(3)
        assert rig.told == [1, 2]
        assert rig.truth.tasks == {3: 3 * BATCH_UNKNOWN}

    run(test())


def test_an_engine_that_is_not_known_leaves_nothing() -> None:
    async def test() -> None:
        rig = Rig(FakeTruth())
        await rig.carry_out(3)
        assert (rig.truth.done, rig.acts.fenced) == ([("fence", 5, 3)], 0)

    run(test())


def test_a_call_that_does_not_end_is_given_up_and_no_other_is_begun() -> None:
    goes_on = threading.Event()

    async def test() -> None:
        thread = TruthThread(FakeTruth(), 0.05)
        try:
            with pytest.raises(StoreUnavailable, match="did not answer"):
                await thread.call(lambda: goes_on.wait(30))
            with pytest.raises(StoreUnavailable, match="has not ended"):
                await thread.call(lambda: 1)
            goes_on.set()
            async with asyncio.timeout(UNTIL_S):
                while True:
                    try:
                        assert await thread.call(lambda: 1) == 1
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.01)
        finally:
            goes_on.set()
            thread.close()

    run(test())


def test_a_fault_of_ours_is_an_error_like_any_other() -> None:
    async def test() -> None:
        thread = TruthThread(FakeTruth(), 10)
        with pytest.raises(StoreUnavailable, match="ZeroDivisionError"):
            await thread.call(lambda: 1 // 0)
        assert await thread.call(lambda: 2) == 2
        thread.close()

    run(test())
