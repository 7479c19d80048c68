"""Counting: each target once, whatever the number of caches."""

import math

from hypothesis import given
from hypothesis import strategies as st

from proxyd.caches import KINDS
from proxyd.outbox import Outbox
from proxyd.tasks import FAILED_LISTED_MAX, FAILED_LISTED_MAX_BYTES, Exchange, Share, Task, end_exchange
from wire.tasks import PushHead

PURGE = KINDS["varnish"].deeds["url"]


HEAD = PushHead("url")


def make_task(total: int) -> Task:
    return Task(b"t", Outbox(lambda: None), total, HEAD, 0.0, math.inf)


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=3), min_size=1, max_size=5), st.randoms())
def test_a_target_counts_once(results: list[list[bool]], random: object) -> None:
    task = make_task(len(results))
    steps = []
    for number, caches in enumerate(results):
        share = Share(len(caches))
        target = b"http://h/%d" % number
        steps += [(Exchange(task, target, b"", PURGE, share), good) for good in caches]
    random.shuffle(steps)  # type: ignore[attr-defined]
    ends = [end_exchange(exchange, None if good else "bad") for exchange, good in steps]
    assert ends == [False] * (len(steps) - 1) + [True]
    assert task.failed == sum(not all(caches) for caches in results)
    assert task.done + task.failed == task.total == task.ended
    assert len(set(task.failed_targets)) == len(task.failed_targets) == task.failed


def test_what_is_listed_is_bounded() -> None:
    task = make_task(1000)
    for number in range(1000):
        task.end_target(b"http://h/%d" % number, "first" if not number else "later")
    assert len(task.failed_targets) == FAILED_LISTED_MAX
    assert task.failed == 1000
    assert task.error == "first"
    task = make_task(10)
    for _ in range(10):
        task.end_target(b"x" * 16_000, "long")
    assert sum(map(len, task.failed_targets)) <= FAILED_LISTED_MAX_BYTES
