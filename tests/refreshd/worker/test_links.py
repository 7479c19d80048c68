"""Links: which log is read next, and how far a segment was read."""

from __future__ import annotations

import itertools

import pytest

from refreshd import fanout
from refreshd.fanout import Log
from refreshd.worker.links import RELAY_CREDIT, Link
from tests.refreshd.making import a_log, a_plan, a_task, ids_in
from tests.refreshd.worker.core import Wire

serials = itertools.count(1)


def add(log: Log, number: int = 1) -> list[bytes]:
    tasks = [
        a_task(b"t%d" % serial, log.layer, serial=serial) for serial in itertools.islice(serials, number)
    ]
    for task in tasks:
        log.append(task)
    for cursor in log.cursors.values():
        assert isinstance(cursor.link, Link)
        cursor.link.note(cursor)
    return [task.id for task in tasks]


def read_all(link: Link) -> list[bytes]:
    ids: list[bytes] = []
    while (cursor := link.next_cursor()) is not None:
        read = cursor.log.read(cursor, 1, True, lambda _: None)
        assert read is not None
        ids += ids_in(read[0])
    return ids


def test_highest_priority_then_oldest() -> None:
    link = Link("p0-0", Wire())
    logs = [a_log(a_plan(1).layers[0], priority) for priority in (5, 5, 9, 0)]
    for log in logs:
        link.attach(log)
    last = add(logs[3])
    normal = [add(logs[i % 2]) for i in range(4)]
    first = add(logs[2], 2)
    assert read_all(link) == first + [task_id for ids in normal for task_id in ids] + last
    assert not any(link.waiting)


def test_a_log_of_others_is_not_read() -> None:
    link = Link("nobody", Wire())
    log = a_log(a_plan(2).layers[0])
    link.attach(log)
    add(log)
    assert not link.cursors
    assert link.next_cursor() is None


def test_attach_drop_detach() -> None:
    link = Link("p0-0", Wire())
    log = a_log(a_plan(2).layers[0])
    ids = add(log, 3)
    link.attach(log)
    link.attach(log)
    assert read_all(link) == ids
    link.drop(log)
    assert not link.cursors
    log.cursors.clear()
    link.attach(log)
    assert read_all(link) == ids, "a new cursor begins at the head"
    link.detach()
    assert not log.cursors
    assert not link.cursors


def test_how_far_a_segment_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "SEGMENT_TASKS", 2)
    link = Link("p0-0", Wire())
    log = a_log(a_plan(2).layers[0])
    add(log, 5)
    segments = list(log.segments())
    assert [link.has_read(segment) for segment in segments] == [0, 0, 0]
    link.attach(log)
    for expected in ([0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 2, 1]):
        assert [link.has_read(segment) for segment in segments] == expected
        cursor = link.next_cursor()
        if cursor is not None:
            log.read(cursor, 1, False, lambda _: None)
    assert link.next_cursor() is None


def test_credit_never_goes_below_nothing_outstanding() -> None:
    link = Link("p", Wire())
    link.outstanding = 3
    link.freed(2)
    link.freed(5)
    assert link.outstanding == 0
    assert repr(link) == "<Link p: 0 of 0 outstanding>"
    assert repr(Link("p", Wire(), via=1)) == f"<Link p via worker 1: 0 of {RELAY_CREDIT} outstanding>"
