"""The oldest unfinished task, also after tasks came from another process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.task import Task
from refreshd.worker import oldest as module
from refreshd.worker.oldest import Oldest
from tests.refreshd.making import a_task


def put(tasks: dict[bytes, Task], serial: int) -> None:
    task = a_task(b"t%d" % serial, serial=serial)
    tasks[task.id] = task


def known(oldest: Oldest) -> int:
    for _ in range(1000):
        serial = oldest.serial()
        if serial:
            return serial
        oldest.look_on()
    raise AssertionError("it is never known")


def test_the_first_one_is_the_oldest_while_all_are_in_order() -> None:
    tasks: dict[bytes, Task] = {}
    oldest = Oldest(tasks)
    for serial in (3, 4, 9):
        put(tasks, serial)
    assert oldest.serial() == 3
    del tasks[b"t3"]
    assert oldest.serial() == 4


@given(st.sets(st.integers(1, 500), min_size=1), st.integers(0, 40), st.randoms())
def test_it_is_found_among_tasks_in_any_order(serials: set[int], later: int, random: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TASKS_A_TICK", 7)
        tasks: dict[bytes, Task] = {}
        oldest = Oldest(tasks)
        mixed = list(serials)
        random.shuffle(mixed)  # type: ignore[attr-defined] # hypothesis gives a random.Random
        for serial in mixed:
            put(tasks, serial)
        oldest.order_is_lost()
        assert known(oldest) == min(serials)
        for serial in range(1000, 1000 + later):
            put(tasks, serial)
        while tasks:
            smallest = min(task.serial for task in tasks.values())
            assert known(oldest) == smallest
            gone = random.choice(list(tasks))  # type: ignore[attr-defined] # as above
            del tasks[gone]


def test_it_is_known_though_all_that_came_has_finished_meanwhile() -> None:
    tasks: dict[bytes, Task] = {}
    oldest = Oldest(tasks)
    for serial in (9, 3, 4):
        put(tasks, serial)
    oldest.order_is_lost()
    assert oldest.serial() == 0
    tasks.clear()
    put(tasks, 20)
    oldest.look_on()
    assert oldest.serial() == 20
    assert "in_order=True" in repr(oldest)
