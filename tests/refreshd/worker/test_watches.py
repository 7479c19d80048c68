"""Who watches which task, against a model; nothing is kept for what has ended."""

from __future__ import annotations

from zlib import crc32

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from refreshd.task import State
from refreshd.worker.callers import Caller
from refreshd.worker.watches import Watches
from tests.refreshd.making import a_plan, a_task
from wire.lines import parse

LAYER = a_plan(2).layers[0]
ids = st.sampled_from([b"a", b"b", b"c"])
callers = st.tuples(st.integers(0, 2), st.integers(1, 3))


class WatchesAgainstPairs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int, bytes]] = []
        self.watches = Watches(lambda slot, number, data: self.told.append((slot, number, data)))
        self.pairs: set[tuple[tuple[int, int], bytes]] = set()

    @rule(who=callers, task_id=ids)
    def add(self, who: tuple[int, int], task_id: bytes) -> None:
        self.watches.add(Caller(*who, must_greet=False), task_id)
        self.pairs.add((who, task_id))

    @rule(who=callers)
    def forget(self, who: tuple[int, int]) -> None:
        self.watches.forget(*who)
        self.pairs = {pair for pair in self.pairs if pair[0] != who}

    @rule(slot=st.integers(0, 2))
    def forget_worker(self, slot: int) -> None:
        self.watches.forget_worker(slot)
        self.pairs = {pair for pair in self.pairs if pair[0][0] != slot}

    @rule(shards=st.sets(st.sampled_from([crc32(task_id) % 64 for task_id in (b"a", b"b", b"c")])))
    def go_elsewhere_and_come_back(self, shards: set[int]) -> None:
        taken = self.watches.take_of(shards)
        pairs = {(who, task_id) for task_id, watchers in taken for who in watchers}
        assert pairs == {pair for pair in self.pairs if crc32(pair[1]) % 64 in shards}
        assert not any(task_id in self.watches for task_id, _ in taken)
        for task_id, watchers in taken:
            self.watches.put(task_id, watchers)

    @rule(task_id=ids, state=st.sampled_from(list(State)[1:]))
    def change(self, task_id: bytes, state: State) -> None:
        task = a_task(task_id, LAYER, count=3, state=state)
        task.take_bit(LAYER.places["p0-0"])
        task.closing = state if state > State.ACTIVE else None
        self.watches.changed(task)
        who = {pair[0] for pair in self.pairs if pair[1] == task_id}
        assert sorted(told[:2] for told in self.told) == sorted(who)
        for _, _, data in self.told:
            line = parse(data[:-1])
            assert line.verb == "!state"
            failed = "3" if state in (State.COMPLETE, State.FAILED, State.EXPIRED) else "0"
            assert line.fields == {
                "task_id": task_id.decode(), "state": state.text, "done": "3", "failed": failed, "total": "6"
            }  # fmt: skip
        self.told.clear()
        if state > State.ACTIVE:
            self.pairs = {pair for pair in self.pairs if pair[1] != task_id}

    @invariant()
    def nothing_is_kept_in_vain(self) -> None:
        watched = {pair[1] for pair in self.pairs}
        assert len(self.watches) == len(watched)
        assert {task_id for task_id in (b"a", b"b", b"c") if task_id in self.watches} == watched
        assert set(self.watches._by_connection) == {pair[0] for pair in self.pairs}


TestWatches = WatchesAgainstPairs.TestCase
TestWatches.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
