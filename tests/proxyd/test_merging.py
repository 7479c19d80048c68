"""Which refresh satisfies which, and where it stands; what follows from it is in test_replay.py."""

from __future__ import annotations

import pytest

from proxyd.merging import MergingQueue
from tests.proxyd.rig import make_refresh


def sent(*queued: str, priorities: tuple[int, ...] = ()) -> list[str]:
    """What goes out for what was put in, each as "TYPE TARGET [force]", with what it satisfies behind it."""
    queue = MergingQueue()
    for number, text in enumerate(queued):
        queue.put(make_refresh(*text.split(" ")), priorities[number] if priorities else 5)
    assert len(queue) == len(list(queue)) == len(queued)
    out = []
    while exchanges := queue.take(2):
        for exchange in exchanges:
            names = [exchange, *exchange.part()]
            out.append(" + ".join(f"{each.task.head.type} {each.target.decode()}" for each in names))
    assert len(queue) == 0
    return out


@pytest.mark.parametrize(
    ("directory", "url"),
    [
        ("http://h/", "http://h/"),
        ("http://h/", "http://h"),
        ("http://h/", "http://h?q"),
        ("http://h/a/", "http://h/a/"),
        ("http://h/a/", "http://h/a/b?c=/d/"),
        ("http://h/a/", "https://H/a//"),
        ("http://h/a//", "http://h/a//b"),
        ("http://h/a?b=/", "http://h/a?b=/c"),
    ],
)
def test_a_directory_satisfies_what_lies_under_it(directory: str, url: str) -> None:
    assert sent(f"url {url}", f"dir {directory}") == [f"dir {directory} + url {url}"]
    assert sent(f"dir {directory}", f"url {url}") == [f"dir {directory} + url {url}"]


@pytest.mark.parametrize(
    ("directory", "url"),
    [
        ("http://h/a/", "http://h/a"),
        ("http://h/a/", "http://h/ab"),
        ("http://h/a/", "http://h/A/b"),
        ("http://h/a/", "http://i/a/b"),
        ("http://h/a/", "http://h:80/a/b"),
        ("http://h/a//", "http://h/a/b"),
        ("http://h/a/b/", "http://h/a/"),
        ("http://h/a/", "http://h/a%2Fb"),
    ],
)
def test_a_directory_satisfies_nothing_beside_it(directory: str, url: str) -> None:
    assert sent(f"url {url}", f"dir {directory}") == [f"url {url}", f"dir {directory}"]
    assert sent(f"dir {directory}", f"url {url}") == [f"dir {directory}", f"url {url}"]


def test_a_url_and_a_directory_of_one_name_are_two() -> None:
    assert sent("url http://h/a/", "url http://h/a", "url http://h/a/") == [
        "url http://h/a/ + url http://h/a/",
        "url http://h/a",
    ]


def test_directories_satisfy_those_below() -> None:
    assert sent("dir http://h/a/b/", "url http://h/c", "dir http://h/a/", "dir http://h/a/b/c/") == [
        "dir http://h/a/ + dir http://h/a/b/ + dir http://h/a/b/c/",
        "url http://h/c",
    ]


def test_force_is_another_work() -> None:
    assert sent("url http://h/a", "url http://h/a force", "dir http://h/ force") == [
        "url http://h/a",
        "dir http://h/ + url http://h/a",
    ]


def test_a_drop_satisfies_everything() -> None:
    assert sent("url http://h/a", "regex http://h/x", "drop", "url http://i/b force", "drop") == [
        "drop  + url http://h/a + regex http://h/x + url http://i/b + drop "
    ]
    assert sent("drop", "regex http://h/x") == ["drop  + regex http://h/x"]


def test_what_is_neither_url_nor_directory_is_merged_with_the_same_only() -> None:
    assert sent(
        "regex http://h/x", "url http://h/x", "regex http://h/x", "regex http://h/x force", "tag x"
    ) == [
        "regex http://h/x + regex http://h/x",
        "url http://h/x",
        "regex http://h/x",
        "tag x",
    ]


def test_a_drop_that_took_a_place_leaves_nothing_of_the_one_before() -> None:
    queue = MergingQueue()
    queue.put(make_refresh("url", "http://h/a"), 9)
    queue.put(make_refresh("drop"), 5)
    assert [each.task.head.type for each in queue.take(1)] == ["drop"]
    # It is sent: what comes now is not satisfied by it.
    queue.put(make_refresh("url", "http://h/a"), 5)
    queue.put(make_refresh("dir", "http://h/"), 5)
    assert [each.task.head.type for each in queue.take(9)] == ["dir"]


def test_whatever_is_most_urgent_carries_the_rest() -> None:
    both = ("url http://h/b", "url http://h/a", "url http://h/a")
    assert sent(*both, priorities=(5, 0, 9)) == ["url http://h/a + url http://h/a", "url http://h/b"]
    lower = ("url http://h/b", "url http://h/a/1", "dir http://h/a/")
    assert sent(*lower, priorities=(5, 9, 0)) == ["dir http://h/a/ + url http://h/a/1", "url http://h/b"]


def test_repr_tells_how_much_is_saved() -> None:
    queue = MergingQueue()
    queue.put(make_refresh("url", "http://h/a"), 5)
    queue.put(make_refresh("url", "http://h/a"), 5)
    assert repr(queue) == "<MergingQueue 1 to be sent for 2>"


def test_what_is_removed_leaves_what_was_merged_into_it() -> None:
    queue = MergingQueue()
    texts = ("url http://h/a/1", "url http://h/a/2", "url http://h/b", "url http://h/b", "dir http://h/a/")
    for text in texts:
        queue.put(make_refresh(*text.split(" ")), 5)
    removed = queue.remove(lambda exchange: exchange.target in (b"http://h/a/", b"http://h/a/2"))
    assert sorted(exchange.target for exchange in removed) == [b"http://h/a/", b"http://h/a/2"]
    assert len(queue) == len(list(queue)) == 3
    assert len(queue.remove(lambda exchange: exchange.target == b"http://h/b")) == 2
    assert [exchange.target for exchange in queue.take(9)] == [b"http://h/a/1"]
    assert len(queue) == 0
    # And what comes is merged as before.
    queue.put(make_refresh("dir", "http://h/a/"), 5)
    queue.put(make_refresh("url", "http://h/a/1"), 5)
    assert len(queue.take(9)) == 1


def test_a_drop_that_is_removed_takes_nothing_along() -> None:
    queue = MergingQueue()
    for text in ("url http://h/a", "drop", "url http://h/b"):
        queue.put(make_refresh(*text.split(" ")), 5)
    assert len(queue.remove(lambda exchange: exchange.task.head.type == "drop")) == 1
    assert len(queue) == 2
    assert [exchange.target for exchange in queue.take(9)] == [b"http://h/a", b"http://h/b"]
