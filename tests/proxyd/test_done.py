"""What was done well is known for a while, and only what was done."""

from __future__ import annotations

import pytest

from proxyd import done
from proxyd.done import AGE_MAX_S, Done, content_of
from wire.tasks import PushHead

URL = PushHead("url")


def filled(*ids: str, at: float = 0.0) -> Done:
    made = Done()
    for task_id in ids:
        made.add(task_id.encode(), URL, b"http://h/" + task_id.encode(), at)
    return made


def known(memory: Done, now: float = 1.0) -> set[str]:
    """Which of a to e are known."""
    return {each for each in "abcde" if memory.knows(each.encode(), URL, b"http://h/" + each.encode(), now)}


def test_contents_differ_by_every_target() -> None:
    lists = [
        [b"http://h/1"], [b"http://h/2"], [b"http://h/1", b"http://h/2"], [b"http://h/2", b"http://h/1"],
        [b"http://h/1 http://h/2"], [b"x" * 1000], [b"x" * 1001], [],
    ]  # fmt: skip
    contents = [content_of(each) for each in lists]
    assert len(set(contents)) == len(lists)
    assert all(contents)
    assert contents == [content_of(list(each)) for each in lists]
    assert max(map(len, contents)) <= done.CONTENT_MAX_BYTES


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(done, "DONE_MAX", 3)
    memory = filled(*"abcde")
    assert known(memory) == {"c", "d", "e"}
    assert len(memory) == 3


def test_age() -> None:
    memory = filled("a")
    memory.add(b"b", URL, b"http://h/b", 5.0)
    assert known(memory, AGE_MAX_S) == {"a", "b"}
    memory.sweep(AGE_MAX_S + 1.0)
    assert len(memory) == 1
    # Also what no sweep has seen.
    assert known(memory, AGE_MAX_S + 6.0) == set()
    assert len(memory) == 0


def test_a_sweep_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(done, "SWEEP_MAX", 2)
    memory = filled(*"abcde")
    memory.sweep(AGE_MAX_S * 2)
    assert len(memory) == 3


def test_another_content_is_not_known_and_forgotten() -> None:
    memory = filled("a")
    assert not memory.knows(b"a", URL, b"http://h/other", 1.0)
    assert known(memory) == set()


def test_it_crosses_an_upgrade_with_its_age() -> None:
    memory = filled("a", at=100.0)
    memory.add(b"b", PushHead("dir", priority=9, force=True), b"http://h/b/", 300.0)
    again = Done()
    again.resume(memory.carry(400.0), 1000.0)
    assert again.carry(1000.0) == memory.carry(400.0)
    assert again.knows(b"b", PushHead("dir", force=True), b"http://h/b/", 1000.0)
    assert known(again, 1300.0) == {"a"}
    assert known(again, 1301.0) == set()


def test_the_newest_cross_an_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(done, "CARRIED_MAX", 3)
    again = Done()
    again.resume(filled(*"abcde").carry(1.0), 1.0)
    assert [key for key, *_ in again.carry(1.0)] == [b"c", b"d", b"e"]
