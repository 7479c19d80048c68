"""Tasks: the table of states, counts, masks, marks and push lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd.task import (
    FINAL,
    STATE_BY_TEXT,
    TRANSITIONS,
    Failure,
    IllegalTransition,
    State,
    body_of,
    failure_mark,
    line_of,
    mark,
    push_line,
    read_marks,
    read_verified,
    split_body,
    verified_mark,
)
from tests.refreshd.making import a_plan, a_task
from wire.fields import FINAL_STATES, STATES
from wire.lines import parse
from wire.tasks import push_head_table

# What a proxy may say: any text that a line can carry.
error_texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[*map(chr, range(9)), "\x7f"]).filter(
        lambda char: not "\x0b" <= char <= "\x0c" and not "\x0e" <= char <= "\x1f"
    ),
    max_size=30,
)


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_every_pair_of_states_is_allowed_or_raises(before: State, after: State) -> None:
    task = a_task(state=before)
    if after in TRANSITIONS[before]:
        task.move(after)
        assert task.state is after
    else:
        with pytest.raises(IllegalTransition, match=f"{before.name} → {after.name}"):
            task.move(after)
        assert task.state is before


def test_the_table_is_what_the_page_says() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(not TRANSITIONS[state] for state in FINAL)
    assert TRANSITIONS[State.NEW] == {State.PENDING}
    assert {state.text for state in FINAL} == FINAL_STATES
    assert set(STATE_BY_TEXT) == set(STATES)
    assert all(state.text == text for text, state in STATE_BY_TEXT.items())
    assert State.NEW.text == "pending"


@given(
    st.dictionaries(
        st.integers(0, 5000),
        st.tuples(
            st.integers(0, 1 << 40),
            st.none() | st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40), error_texts),
        ),
        max_size=8,
    )
)
def test_marks_come_back_as_they_went(ended: dict[int, tuple[int, tuple[int, int, str] | None]]) -> None:
    task = a_task()
    for rank, (ms, failed) in ended.items():
        task.add_mark(mark(rank, ms) if failed is None else failure_mark(rank, ms, Failure(*failed)))
    read = {
        rank: (ms, None if failure is None else (failure.done, failure.failed, failure.error))
        for rank, (ms, failure) in read_marks(bytes(task.marks or b"")).items()
    }
    assert read == ended


@pytest.mark.parametrize(
    "error", ["", " ", "a:b:c:d:e:f", "\u00a0", "\u2028\x85\u3000", "\\s \\", "1:2 3:4 ", "é\n\t\r"]
)
def test_an_odd_error_is_one_mark(error: str) -> None:
    marks = mark(0, 1) + failure_mark(1, 2, Failure(3, 4, error)) + mark(2, 5)
    read = read_marks(marks)
    assert list(read) == [0, 1, 2]
    assert read[1][1] is not None
    assert read[1][1].error == error


@pytest.mark.parametrize(
    ("fields", "pushed"),
    [
        (b"type=url", b"type=url"),
        (b"type=url scope=a due=5 ttl=86400 priority=5 force=0", b"type=url"),
        (b"type=dir ttl=60 priority=9 force=1 callback=http://x/", b"type=dir ttl=60 priority=9 force=1"),
        (b"then=prefetch verify=1 type=url", b"type=url verify=1 then=prefetch"),
    ],
)
def test_a_push_tells_what_a_proxy_needs(fields: bytes, pushed: bytes) -> None:
    task = a_task(b"a.1", fields=fields, count=2)
    assert push_line(task) == b"!task task_id=a.1 " + pushed + b" -- http://a/0 http://a/1\n"
    cut = push_head_table().cut(push_line(task)[:-1])
    assert cut is not None
    assert cut[0] == b"a.1"


def test_a_push_keeps_the_targets_byte_for_byte() -> None:
    task = a_task()
    task.line = rb"post_task type=tag task_id=t -- -- \\s x -- y"
    assert push_line(task) == rb"!task task_id=t type=url -- -- \\s x -- y" + b"\n"
    assert parse(push_line(task)[:-1]).items == ("--", "\\s", "x", "--", "y")


class Counting(RuleBasedStateMachine):
    """What a task counts, against a model that keeps every proxy's report."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = a_plan(3, 9, 1)
        self.task = a_task(layer=self.plan.layers[0], count=4)
        self.ended: dict[str, tuple[int, int]] = {}
        self.progress: dict[str, tuple[int, int]] = {}

    def proxies(self) -> list[str]:
        return [name for name in self.task.layer.proxies if name not in self.ended]

    @precondition(lambda self: self.proxies())
    @rule(data=st.data(), failed=st.integers(0, 4))
    def end(self, data: st.DataObject, failed: int) -> None:
        name = data.draw(st.sampled_from(self.proxies()))
        place = self.task.layer.places[name]
        assert self.task.owes(place)
        assert self.task.take_bit(place)
        assert not self.task.owes(place)
        assert not self.task.take_bit(place)
        self.task.failed += failed
        self.task.extras().progress.pop(place[2], None)
        self.progress.pop(name, None)
        self.ended[name] = (4 - failed, failed)

    @precondition(lambda self: self.proxies())
    @rule(data=st.data(), done=st.integers(0, 2), failed=st.integers(0, 2))
    def go_on(self, data: st.DataObject, done: int, failed: int) -> None:
        name = data.draw(st.sampled_from(self.proxies()))
        self.task.extras().progress[self.task.layer.places[name][2]] = (done, failed)
        self.progress[name] = (done, failed)

    @precondition(lambda self: self.task.layer.first or self.ended)
    @rule(data=st.data())
    def end_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.task.layer.proxies))
        if name in self.ended:
            assert not self.task.take_bit(self.task.layer.places[name])

    @precondition(lambda self: not self.task.left and self.task.layer.next)
    @rule()
    def next_layer(self) -> None:
        following = self.task.layer.next
        assert following is not None
        self.task.layer, self.task.left, self.task.mask = following, following.size, None

    @invariant()
    def counts_are_what_was_reported(self) -> None:
        both = [*self.ended.values(), *self.progress.values()]
        expected = sum(done for done, _ in both), sum(failed for _, failed in both)
        assert self.task.counts() == expected
        assert sum(expected) <= self.task.total == 13 * 4
        assert self.task.left == len(self.proxies())

    @invariant()
    def final_counts_add_up(self) -> None:
        done, failed = self.task.counts()
        self.task.closing = State.EXPIRED
        assert self.task.final_counts() == (done, self.task.total - done)
        self.task.closing = State.CANCELLED
        assert self.task.final_counts() == (done, failed)
        self.task.closing = None
        if len(self.ended) == self.plan.size:
            assert done + failed == self.task.total
            assert self.task.outcome() is (State.FAILED if failed else State.COMPLETE)


TestCounting = Counting.TestCase
TestCounting.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("key", [None, "acme", "a.b:c-d_9"])
def test_what_is_stored_of_a_task_tells_whose_it_is(key: str | None) -> None:
    task = a_task(count=2)
    task.key = key
    body = body_of(task)
    assert split_body(body) == (task.line, key)
    assert line_of(body) == task.line
    assert (body == task.line) == (key is None)


def test_keys_of_many_tasks_are_one_object() -> None:
    assert split_body(b"a\nacme")[1] is split_body(b"b\nacme")[1]


def test_a_verified_mark_is_a_mark_to_code_that_does_not_know_it() -> None:
    failure = Failure(1, 2, "0:0 é")
    marks = (
        mark(0, 0) + verified_mark(1, 0) + verified_mark(12, 345) + failure_mark(3, 7, failure) + mark(2, 100)
    )
    assert {rank: ms for rank, (ms, _) in read_marks(marks).items()} == {0: 0, 1: 0, 12: 345, 3: 7, 2: 100}
    assert read_verified(marks) == {1, 12}
    assert read_verified(b"") == frozenset()
