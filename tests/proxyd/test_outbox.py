"""Reports: all of them, in few lines, none too long."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.outbox import ERROR_MAX_CHARS, LINE_MAX_BYTES, Outbox
from proxyd.tasks import Task
from wire.lines import parse
from wire.tasks import PushHead

HEAD = PushHead("url")


def make(total: int, box: Outbox, task_id: bytes = b"t") -> Task:
    box.owed += 1
    return Task(task_id, box, total, HEAD, 0.0, math.inf)


@given(st.lists(st.from_regex(rb"[A-Za-z0-9._:-]{1,64}", fullmatch=True), min_size=1, max_size=50))
def test_every_id_is_told_once(ids: list[bytes]) -> None:
    box = Outbox(lambda: None)
    for task_id in ids:
        box.add_done(task_id, 1.0)
    kept, active = box.take(1.5, 512)
    told = [item.encode() for line in kept for item in parse(line[:-1]).items or ()]
    assert told == ids
    assert active == []
    assert all(len(line) < 512 for line in kept)
    assert len(box) == 0


def test_one_line_for_many_and_the_longest_time() -> None:
    box = Outbox(lambda: None)
    for number in range(500):
        box.add_done(b"id%d" % number, 10 - number / 1000)
    [line] = box.take(10.25, 1 << 20)[0]
    assert parse(line[:-1]).fields == {"state": "done", "ms": "749"}


def test_lines_are_bounded_whatever_the_engine_takes() -> None:
    box = Outbox(lambda: None)
    for number in range(5000):
        box.add_done(b"%064d" % number, 0.0)
    kept, _ = box.take(0.0, 1 << 20)
    assert max(map(len, kept)) <= LINE_MAX_BYTES
    assert sum(line.count(b" ") - 3 for line in kept) == 5000


def test_wakes_once_until_taken() -> None:
    woken: list[int] = []
    box = Outbox(lambda: woken.append(1))
    box.add_done(b"a", 0.0)
    box.add_done(b"b", 0.0)
    assert len(woken) == 1
    box.take(0.0, 1000)
    box.add_done(b"c", 0.0)
    assert len(woken) == 2


def test_a_failure_names_what_failed() -> None:
    box = Outbox(lambda: None)
    task = make(3, box)
    task.end_target(b"http://h/a", None)
    task.end_target(b"http://h/b c", "it was\nbad")
    task.end_target(b"http://h/d\\", "later")
    box.add_failed(task)
    [line] = box.take(0.0, 1 << 20)[0]
    read = parse(line[:-1])
    fields = {"state": "failed", "task_id": "t", "done": "1", "failed": "2", "error": "it was\nbad"}
    assert read.fields == fields
    assert read.items == ("http://h/b c", "http://h/d\\")
    assert box.owed == 0


@pytest.mark.parametrize("target", [b"http://h/\x00", b"\xff\xfe"])
def test_a_target_that_no_line_can_carry(target: bytes) -> None:
    box = Outbox(lambda: None)
    task = make(1, box)
    task.end_target(target, "refused")
    box.add_failed(task)
    [line] = box.take(0.0, 1 << 20)[0]
    assert parse(line[:-1]).fields["failed"] == "1"


def test_errors_and_lines_are_cut_to_what_fits() -> None:
    box = Outbox(lambda: None)
    task = make(2, box)
    task.end_target(b"http://h/" + b"x" * 5000, "e" * 5000)
    task.end_target(b"http://h/", None)
    box.add_failed(task)
    [line] = box.take(0.0, 1000)[0]
    assert len(line) < 1000
    assert parse(line[:-1]).fields["error"] == "e" * ERROR_MAX_CHARS


def test_progress_may_be_lost_and_results_come_back() -> None:
    box = Outbox(lambda: None)
    task = make(2, box)
    task.end_target(b"http://h/", None)
    box.add_active(task)
    box.add_done(b"other", 0.0)
    kept, active = box.take(0.0, 1000)
    assert active == [b"report state=active task_id=t done=1 failed=0\n"]
    box.restore(kept)
    assert box.take(9.0, 1000)[0] == kept
