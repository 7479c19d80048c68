"""Fan-out, against a model that keeps a queue for every proxy.

The machine plays the pusher: it reads a log on behalf of several links, reports,
withdraws, and lets links come and go. Segments are made small, so that the
borders between them are met often.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd import fanout
from refreshd.fanout import Cursor, EncodedSegments, Log, Segment
from refreshd.task import Task, push_line
from tests.refreshd.making import WeakTask, a_log, a_plan, a_task, ids_in

PROXIES = ("p0-0", "p0-1", "p0-2")
SEGMENT = 4


class Reader:
    """A link: what it was given since it was attached, and is to report."""

    def __init__(self, log: Log, name: str, credit: int) -> None:
        self.name = name
        self.credit = credit
        self.outstanding = 0
        self.given: list[bytes] = []
        self.cursor: Cursor = log.attach(self, log.layer.places[name])


class FanOut(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(fanout, "SEGMENT_TASKS", SEGMENT)
        self.patch.setattr(fanout, "ENCODED_MAX_BYTES", 200)
        self.layer = a_plan(len(PROXIES)).layers[0]
        self.encoded = EncodedSegments()
        self.log = Log(self.layer, 5, push_line, self.encoded)
        self.tasks: dict[bytes, WeakTask] = {}
        self.counts: dict[bytes, int] = {}
        self.owed: dict[bytes, set[str]] = {}
        self.gone: list[weakref.ref[WeakTask]] = []
        self.links: dict[str, Reader] = {}
        self.activated: set[bytes] = set()
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        try:
            self.every_owed_task_can_be_read()
        finally:
            self.patch.undo()

    # ── what may happen ───────────────────────────────────────────────────────────────────

    @rule(count=st.sampled_from([1, 1, 1, 1, 2, 5]), deadline_ms=st.integers(1, 50), times=st.integers(1, 6))
    def append(self, count: int, deadline_ms: int, times: int) -> None:
        for _ in range(times):
            number = next(self.numbers)
            task = a_task(b"t%d" % number, self.layer, count, serial=number)
            task.deadline_ms = deadline_ms
            self.tasks[task.id], self.counts[task.id] = task, count
            self.owed[task.id] = set(PROXIES)
            before = self.log.tail.deadline_ms if len(self.log.tail.tasks) < SEGMENT else 0
            changed = self.log.append(task)
            segment = self.log.tail
            assert task.segment is segment
            assert (changed is segment) == (not before or deadline_ms < before)
            assert 0 < segment.deadline_ms <= deadline_ms

    @rule(name=st.sampled_from(PROXIES), credit=st.integers(0, 4))
    def attach(self, name: str, credit: int) -> None:
        if name in self.links:
            self.log.detach(self.links[name])
        self.links[name] = Reader(self.log, name, credit)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        link = self.links.pop(data.draw(st.sampled_from(sorted(self.links))))
        self.log.detach(link)

    @precondition(lambda self: self.links)
    @rule(data=st.data(), more=st.sampled_from([0, 0, 1, 2, 3, 9]))
    def read(self, data: st.DataObject, more: int) -> None:
        link = self.links[data.draw(st.sampled_from(sorted(self.links)))]
        link.credit += more
        self.read_once(link)

    @rule(names=st.sets(st.sampled_from(PROXIES), min_size=2), spare=st.integers(0, 2))
    def keep_up(self, names: set[str], spare: int) -> None:
        """Several links read to the end: from here on they share what they are given."""
        for name in sorted(names):
            if name not in self.links:
                self.attach(name, 0)
            link = self.links[name]
            owed = sum(self.counts[task_id] for task_id in self.tasks if self.is_owed(task_id, name))
            link.credit = owed + spare
            while self.read_once(link):
                pass

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        """Mostly of what was pushed, sometimes of what an earlier connection had been given."""
        name = data.draw(st.sampled_from(PROXIES))
        pushed = (
            [task_id for task_id in self.links[name].given if self.is_owed(task_id, name)]
            if name in self.links
            else []
        )
        owed = pushed or [task_id for task_id in self.tasks if name in self.owed[task_id]]
        if owed:
            self.end(data.draw(st.sampled_from(owed)), name)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def report_all(self, data: st.DataObject) -> None:
        link = self.links[data.draw(st.sampled_from(sorted(self.links)))]
        for task_id in [task_id for task_id in link.given if self.is_owed(task_id, link.name)]:
            self.end(task_id, link.name)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.tasks)))
        task = self.tasks[task_id]
        for link in self.links.values():
            if link.cursor.has_passed(task) and task.owes(link.cursor.place):
                assert task_id in link.given
                link.outstanding -= task.count
        del task
        self.remove(task_id)

    # ── how ───────────────────────────────────────────────────────────────────────────────

    def is_owed(self, task_id: bytes, name: str) -> bool:
        return task_id in self.tasks and name in self.owed[task_id]

    def end(self, task_id: bytes, name: str) -> None:
        """As `proxies.Proxies.done`."""
        task = self.tasks[task_id]
        link = self.links.get(name)
        assert task.segment is not None
        if link is not None and link.cursor.has_passed(task):
            assert task_id in link.given
            link.outstanding -= task.count
        else:
            task.segment.uniform = False
        assert task.take_bit(self.layer.places[name])
        self.owed[task_id].discard(name)
        if not task.left:
            del task
            self.remove(task_id)

    def remove(self, task_id: bytes) -> None:
        task = self.tasks.pop(task_id)
        self.gone.append(weakref.ref(task))
        segment = task.segment
        assert segment is not None
        gone = self.log.remove(task)
        assert (gone is segment) == (not segment.live and segment is not self.log.tail)
        assert self.log.remove(task) is None

    def activate(self, task: Task) -> None:
        assert task.id not in self.activated
        self.activated.add(task.id)

    def read_once(self, link: Reader) -> bool:
        """One step of the pusher. Returns whether there may be more."""
        cursor = link.cursor
        room = link.credit - link.outstanding
        to_come = [
            task_id
            for task_id in self.tasks
            if self.is_owed(task_id, link.name) and task_id not in link.given
        ]
        if cursor.at_end():
            assert not to_come
            return False
        if room <= 0:
            return False
        got = self.log.read(cursor, room, not link.outstanding, self.activate)
        if got is None:
            # Only where the next task is larger than the room, and others are outstanding.
            assert link.outstanding
            assert self.counts[to_come[0]] > room
            return False
        data, targets = got
        ids = ids_in(data)
        assert ids == to_come[: len(ids)]
        assert targets == sum(self.counts[task_id] for task_id in ids)
        assert targets <= room or (len(ids) == 1 and not link.outstanding)
        assert all(push_line(self.tasks[task_id]) in data for task_id in ids)
        assert self.activated.issuperset(ids)
        link.given += ids
        link.outstanding += targets
        return True

    # ── what holds ────────────────────────────────────────────────────────────────────────

    @invariant()
    def segments_are_in_order_and_none_is_empty(self) -> None:
        segments = list(self.log.segments())
        assert [task.id for s in segments for task in s.tasks if task is not None] == list(self.tasks)
        assert self.log.live == len(self.tasks)
        assert [s.live for s in segments] == [sum(t is not None for t in s.tasks) for s in segments]
        assert all(s.live for s in segments[:-1])
        assert segments[-1] is self.log.tail
        assert [s.number for s in segments] == sorted({s.number for s in segments})
        assert all(one.next is two and two.prev is one for one, two in itertools.pairwise(segments))
        assert segments[0].prev is None
        assert all(cursor.segment in segments for cursor in self.log.cursors.values())

    @invariant()
    def deadlines_are_not_missed(self) -> None:
        for segment in self.log.segments():
            for task in segment.tasks:
                assert task is None or segment.deadline_ms <= task.deadline_ms

    @invariant()
    def credit_is_what_was_given_and_not_reported(self) -> None:
        for link in self.links.values():
            given = [task_id for task_id in link.given if self.is_owed(task_id, link.name)]
            assert link.outstanding == sum(self.counts[task_id] for task_id in given)
            for task_id, task in self.tasks.items():
                if self.is_owed(task_id, link.name):
                    assert link.cursor.has_passed(task) == (task_id in link.given)

    @invariant()
    def what_left_is_free(self) -> None:
        assert all(ref() is None for ref in self.gone)
        self.gone.clear()

    @invariant()
    def encoded_segments_are_few_and_in_use(self) -> None:
        segments = set(self.log.segments())
        kept = self.encoded._kept
        assert kept == {segment: sum(map(len, segment.lines or ())) for segment in kept}
        assert self.encoded._total == sum(kept.values())
        assert self.encoded._total <= fanout.ENCODED_MAX_BYTES or len(kept) == 1
        assert set(self.encoded._kept) <= segments
        assert {segment for segment in segments if segment.lines is not None} == set(self.encoded._kept)

    def every_owed_task_can_be_read(self) -> None:
        for link in self.links.values():
            link.credit = 1 << 30
            while self.read_once(link):
                pass


TestFanOut = FanOut.TestCase
TestFanOut.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)


def drain(log: Log, cursor: Cursor, credit: int = 1 << 30) -> list[bytes]:
    """Everything that a link is given, with its credit never used up."""
    ids: list[bytes] = []
    while not cursor.at_end():
        got = log.read(cursor, credit, True, lambda _: None)
        assert got is not None
        ids += ids_in(got[0])
    return ids


def filled(number: int, proxies: int = 2) -> tuple[Log, list[WeakTask]]:
    layer = a_plan(proxies).layers[0]
    log = a_log(layer)
    tasks = [a_task(b"t%d" % i, layer) for i in range(number)]
    for task in tasks:
        log.append(task)
    return log, tasks


def test_links_at_one_place_share_the_very_same_bytes() -> None:
    log, _ = filled(10, proxies=5)
    cursors = [log.attach(name, log.layer.places[name]) for name in log.layer.proxies]
    for cursor in cursors:
        drain(log, cursor)
    log.append(a_task(b"new", log.layer))
    reads = [log.read(cursor, 99, True, lambda _: None) for cursor in cursors if not cursor.at_end()]
    first = reads[0]
    assert first is not None
    assert len(reads) == 5
    assert all(read is not None and read[0] is first[0] for read in reads)


def test_a_task_is_encoded_once_for_a_thousand_links(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = a_plan(1000).layers[0]
    encoded: list[bytes] = []

    def encode(task: Task) -> bytes:
        encoded.append(task.id)
        return push_line(task)

    log = Log(layer, 5, encode, EncodedSegments())
    for i in range(600):
        log.append(a_task(b"t%d" % i, layer))
    cursors = [log.attach(name, layer.places[name]) for name in layer.proxies]
    assert all(len(drain(log, cursor)) == 600 for cursor in cursors[:20])
    assert encoded == [b"t%d" % i for i in range(600)]


def test_a_link_that_comes_back_is_given_what_its_proxy_owes() -> None:
    log, tasks = filled(600)
    place = log.layer.places["p0-0"]
    assert len(drain(log, log.attach("first", place))) == 600
    for task in tasks[::2]:
        task.take_bit(place)
    log.detach("first")
    assert drain(log, log.attach("second", place)) == [task.id for task in tasks[1::2]]


def test_a_withdrawn_task_is_not_read_though_it_was_encoded() -> None:
    log, tasks = filled(5)
    first = log.attach("first", log.layer.places["p0-0"])
    second = log.attach("second", log.layer.places["p0-1"])
    assert len(drain(log, first)) == 5
    log.remove(tasks[2])
    assert drain(log, second) == [b"t0", b"t1", b"t3", b"t4"]


def test_a_withdrawn_task_is_not_read_though_it_was_joined() -> None:
    log, _ = filled(0)
    first = log.attach("first", log.layer.places["p0-0"])
    second = log.attach("second", log.layer.places["p0-1"])
    tasks = [a_task(b"t%d" % i, log.layer) for i in range(3)]
    for task in tasks:
        log.append(task)
    assert drain(log, first) == [b"t0", b"t1", b"t2"]
    log.remove(tasks[1])
    got = log.read(second, 99, True, lambda _: None)
    assert got is not None
    assert (ids_in(got[0]), got[1]) == ([b"t0", b"t2"], 2)


def test_a_large_task_goes_alone_when_nothing_is_outstanding() -> None:
    layer = a_plan(1).layers[0]
    log = a_log(layer)
    for task in (a_task(b"small", layer), a_task(b"large", layer, count=10), a_task(b"last", layer)):
        log.append(task)
    cursor = log.attach("link", layer.places["p0-0"])
    read = [log.read(cursor, 3, idle, lambda _: None) for idle in (True, False, True, False)]
    assert [got and (ids_in(got[0]), got[1]) for got in read] == [
        ([b"small"], 1), None, ([b"large"], 10), ([b"last"], 1)
    ]  # fmt: skip
    assert cursor.at_end()


def test_a_slow_task_keeps_one_segment_and_not_the_others() -> None:
    log, tasks = filled(256 * 10)
    for task in tasks[1:]:
        log.remove(task)
    assert [segment.number for segment in log.segments()] == [0, 9]
    cursor = log.attach("link", log.layer.places["p0-0"])
    assert drain(log, cursor) == [b"t0"]


def test_nothing_of_a_log_that_was_drained_stays_but_its_tail() -> None:
    log, tasks = filled(256 * 4)
    cursor = log.attach("link", log.layer.places["p0-0"])
    drain(log, cursor)
    refs = [weakref.ref(task) for task in tasks]
    while tasks:
        log.remove(tasks.pop())
    assert all(ref() is None for ref in refs), "freed by reference counts alone, no collection needed"
    gc.collect()
    segments = [thing for thing in gc.get_objects() if isinstance(thing, Segment) and thing.log is log]
    assert segments == [log.tail]
    assert log.live == 0
    assert repr(log.tail) == "<Segment 3: 0 of 256 live>"


def test_a_task_done_before_it_was_read_is_not_pushed() -> None:
    """A proxy may report on a new connection what an older one had brought it."""
    log, _ = filled(3)
    place = log.layer.places["p0-0"]
    cursor = log.attach("link", place)
    drain(log, cursor)
    late = a_task(b"late", log.layer)
    log.append(late)
    late.take_bit(place)
    segment: Any = late.segment
    segment.uniform = False
    assert drain(log, cursor) == []
