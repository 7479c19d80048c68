"""A lane and its reader against dictionaries, as an engine uses them, whatever the store.

A store's own test file makes a machine of it: how it is opened, how its statements
are made to fail, and what else may happen to it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar
from zlib import crc32

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd.errors import StoreUnavailable
from refreshd.fleet import Plan
from refreshd.shard import SERIAL_MAX, created_ms, first_serial
from refreshd.store.base import (
    Batch,
    Lane,
    Parked,
    ParkedCount,
    ParkedTask,
    ProxyRow,
    Reader,
    Stored,
    StoredResult,
)
from refreshd.task import FINAL, State
from tests.refreshd.store.making import PLANS, RETENTION_S, START_MS, end, row


class Model(RuleBasedStateMachine):
    """What every store does. A subclass opens `lane` and `reader` in an `initialize` rule."""

    FAILS: ClassVar[tuple[str, ...]] = ()
    """What to give to `failing`."""
    OWNER = 0
    """As which engine the lane writes where several share the store: unfinished tasks are known then."""

    lane: Lane
    reader: Reader

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = START_MS
        self.sequence = 0
        self.tasks: dict[int, tuple[bytes, Plan]] = {}
        self.results: dict[int, tuple[int, int, int, int, int, bytes | None]] = {}
        self.parked: dict[int, Parked] = {}
        """Those that are unfinished, as they were parked last."""
        self.proxies: dict[str, ProxyRow] = {}
        self.seen: set[bytes] = set()

    def open(self) -> None:
        """Opens what was closed, as the next process."""
        raise NotImplementedError

    def failing(self, statement: str) -> AbstractContextManager[object]:
        """Within it, statements with this text fail; it is true once one did."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        return hasattr(self, "lane")

    @property
    def unfinished(self) -> list[int]:
        return [serial for serial in self.tasks if serial not in self.results]

    def serial_of(self, task_id: bytes) -> int | None:
        """Of a task that the store knows by its id."""
        known = self.tasks if self.OWNER else [*self.results, *self.parked]
        return next((serial for serial in known if self.tasks[serial][0] == task_id), None)

    def next_serial(self) -> int:
        self.sequence += 1
        return first_serial(self.now_ms) + self.sequence

    # ── what an engine does ───────────────────────────────────────────────────────────────

    @rule(
        data=st.data(),
        numbers=st.lists(st.integers(0, 15), max_size=9, unique=True),
        plan=st.sampled_from(PLANS),
        low=st.booleans(),
        fails=st.integers(-4, 4),
    )
    def commit(self, data: st.DataObject, numbers: list[int], plan: Plan, low: bool, fails: int) -> None:
        batch = Batch()
        if low:
            held_serials = [serial for serial in self.unfinished if serial not in self.parked]
            batch.low = min(held_serials, default=0) or self.next_serial()
        # An engine knows what it has in memory; of what is parked it asks the store.
        held = {self.tasks[serial][0] for serial in self.unfinished if serial not in self.parked}
        for number in numbers:
            task_id = b"task-%d" % number
            if self.OWNER or task_id not in held:
                batch.tasks.append(row(self.next_serial(), task_id, plan))
        batch.plans = {plan.number: plan.text} if batch.tasks else {}
        for serial in (
            data.draw(st.sets(st.sampled_from(self.unfinished), max_size=6)) if self.unfinished else ()
        ):
            state = data.draw(st.sampled_from([State.COMPLETE, State.COMPLETE, *FINAL]))
            end(batch, serial, self.tasks[serial][0], state, self.now_ms)
        expected = {r[1]: old for r in batch.tasks if (old := self.serial_of(r[1])) is not None}
        if fails >= 0:
            with self.failing(self.FAILS[fails % len(self.FAILS)]) as failed:
                try:
                    self.lane.commit(batch)
                except StoreUnavailable:
                    assert failed
                    return
            # No such statement was needed: it was kept after all.
        else:
            assert self.lane.commit(batch) == expected
        for serial, task_id, _, _ in batch.tasks:
            if task_id not in expected:
                self.tasks[serial] = (task_id, plan)
                self.seen.add(task_id)
        for result in batch.results:
            self.results[result[0]] = result
            self.parked.pop(result[0], None)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), group=st.integers(1, 3), ms=st.integers(0, 300_000), fails=st.booleans())
    def park(self, data: st.DataObject, group: int, ms: int, fails: bool) -> None:
        """Tasks leave memory, or do so again and have come further since."""
        batch = Batch()
        for serial in data.draw(st.sets(st.sampled_from(self.unfinished), max_size=6)):
            marks = data.draw(st.sampled_from([None, b"0:1 "]))
            mask = data.draw(st.binary(min_size=1, max_size=3))
            batch.parked.append(
                Parked(serial, group, 0, group, mask, self.now_ms + ms, self.now_ms, 1, ms, marks)
            )
            task_id = self.tasks[serial][0]
            batch.finished.append((crc32(task_id), task_id, serial))
        with self.failing("INTO parked") if fails else nullcontext() as failed:
            try:
                assert self.lane.commit(batch) == {}
            except StoreUnavailable:
                assert failed
                return
        self.parked.update({parked.serial: parked for parked in batch.parked})

    @rule(name=st.sampled_from("abc"), layer=st.integers(0, 3), gone=st.booleans())
    def register(self, name: str, layer: int, gone: bool) -> None:
        batch = Batch()
        if gone:
            batch.forgotten = [name]
            self.proxies.pop(name, None)
        else:
            batch.proxies = [ProxyRow(name, "g", layer)]
            self.proxies[name] = ProxyRow(name, "g", layer)
        assert self.lane.commit(batch) == {}

    @rule(by_ms=st.sampled_from([1, 60_000, 101_000, 300_000]))
    def later(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule()
    def upkeep(self) -> None:
        for _ in range(100):
            if not self.lane.idle():
                break
        else:
            pytest.fail("upkeep never ends")
        limit_ms = self.now_ms - int(RETENTION_S * 1000)
        for serial, result in list(self.results.items()):
            if result[4] < limit_ms and created_ms(serial) < limit_ms:
                del self.results[serial], self.tasks[serial]

    @rule()
    def restart(self) -> None:
        self.reader.close()
        self.lane.close()
        self.open()

    # ── what is read ──────────────────────────────────────────────────────────────────────

    def stored(self, serial: int) -> Stored:
        task_id, plan = self.tasks[serial]
        result = self.results.get(serial)
        read = None if result is None else StoredResult(State(result[1]), *result[2:5], result[5] or b"")
        owner = self.OWNER if read is None else 0
        body = row(serial, task_id)[3]
        return Stored(serial, task_id, plan.text, body, read, owner, self.parked.get(serial))

    def parked_task(self, parked: Parked) -> ParkedTask:
        return ParkedTask(self.tasks[parked.serial][1].number, self.stored(parked.serial).body, parked)

    @invariant()
    def parked_tasks_are_there_by_group_and_by_deadline(self) -> None:
        if not self.is_open:
            return
        groups: dict[int, list[Parked]] = {}
        for parked in sorted(self.parked.values()):
            groups.setdefault(parked.group, []).append(parked)
        counts = {count.group: count for count in self.reader.parked_counts()}
        assert counts.keys() == groups.keys()
        for number, some in groups.items():
            first = some[0]
            plan = self.tasks[first.serial][1].number
            assert counts[number] == ParkedCount(
                number, len(some), first.serial, plan, 0, first.priority, first.mask
            )
            assert self.reader.parked_of(number, 0, 100) == [self.parked_task(each) for each in some]
            assert self.reader.parked_of(number, first.serial, 1) == [
                self.parked_task(each) for each in some[1:2]
            ]
        due = [each for each in self.parked.values() if each.deadline_ms <= self.now_ms + 100_000]
        read = self.reader.parked_due(self.now_ms + 100_000, 100)
        assert sorted(read) == sorted(map(self.parked_task, due))
        assert [task.parked.deadline_ms for task in read] == sorted(each.deadline_ms for each in due)

    @invariant()
    def unfinished_tasks_are_there_in_order(self) -> None:
        if self.is_open:
            expected = [
                (s, self.tasks[s][1].number, self.stored(s).body)
                for s in sorted(self.unfinished)
                if s not in self.parked
            ]
            assert list(self.reader.unfinished()) == expected
            slices = list(self.reader.unfinished_slices(2))
            assert [row for some in slices for row in some] == expected
            assert {len(some) for some in slices} <= {1, 2}
            assert self.reader.plans().items() >= {
                (plan.number, plan.text) for _, plan in self.tasks.values()
            }
            assert self.reader.proxies() == sorted(self.proxies.values())
            assert self.reader.last_serial() >= max(self.tasks, default=0)

    @rule()
    def every_known_task_is_found_and_no_other(self) -> None:
        for task_id in self.seen:
            serial = self.serial_of(task_id)
            waiting = self.lane.finished_serial(task_id)
            if waiting is not None:
                assert waiting == serial
                assert self.reader.serials([waiting]) == [self.stored(waiting)]
            else:
                found = self.reader.find(task_id, crc32(task_id))
                assert found == (None if serial is None else self.stored(serial))
        assert self.reader.find(b"nobody", crc32(b"nobody")) is None

    @precondition(lambda self: self.tasks)
    @rule(
        data=st.data(),
        limit=st.integers(1, 7),
        state=st.sampled_from([None, *sorted(FINAL)]),
        unfinished=st.booleans(),
    )
    def pages(self, data: st.DataObject, limit: int, state: State | None, unfinished: bool) -> None:
        before = data.draw(st.sampled_from([SERIAL_MAX, *self.tasks]))
        wanted = [
            serial
            for serial in sorted(self.tasks, reverse=True)
            if serial < before
            and (
                serial not in self.results
                if unfinished
                else state is None or (serial in self.results and self.results[serial][1] == state)
            )
        ]
        page = self.reader.page(before, limit, None if unfinished else state, unfinished)
        assert page == [self.stored(serial) for serial in wanted[:limit]]
        # Page by page it is the whole list.
        read: list[int] = []
        while page:
            read += [stored.serial for stored in page]
            page = self.reader.page(read[-1], limit, None if unfinished else state, unfinished)
        assert read == wanted
