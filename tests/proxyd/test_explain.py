"""A dry run: what it tells of each kind of cache, and that it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from proxyd.caches import KINDS, kind_of
from proxyd.explain import Sizes, ask_length, explain, printable
from proxyd.merging import MergingQueue
from proxyd.queues import PriorityQueue
from proxyd.replay import Replay
from proxyd.route import Lanes
from tests.proxyd.http import get
from tests.proxyd.rig import Scripted, Visit, make_refresh, run, split_address
from tools.servers import Origin, Varnish
from wire.tasks import PushHead


class Client:
    """What is needed of a lane's client: nothing may be put in."""

    def __init__(self) -> None:
        self.queue: Any = PriorityQueue()


def lanes(
    name: str, kind: str, *, address: tuple[str, int] = ("h", 1), soft: bool = False, **how: Any
) -> Lanes:
    found = kind_of(kind, **how)
    assert found is not None
    fast: Any = Client()
    slow: Any = Client()
    return Lanes(name, found, fast, slow, Replay(fast, slow), soft=soft, address=address)


def rows_of(caches: list[Lanes], head: PushHead, target: str = "http://H/a.b/c?d") -> list[dict[str, Any]]:
    (shown,) = explain(caches, head, [target.encode()])["targets"]
    assert shown["target"] == target
    rows: list[dict[str, Any]] = shown["caches"]
    return rows


def test_what_is_sent_to_each_cache() -> None:
    caches = [lanes("v", "varnish"), lanes("s", "squid"), lanes("f", "nginx", path="/c"), lanes("x", "http")]
    rows = {row["cache"]: row for row in rows_of(caches, PushHead("url"))}
    assert rows["v"]["request"] == "PURGE /a.b/c?d HTTP/1.1\nHost: H"
    assert (rows["v"]["exact"], rows["v"]["lane"]) == (True, "fast")
    assert (rows["f"]["method"], rows["f"]["request"], rows["f"]["exact"]) == ("UNLINK", "", False)
    assert rows["s"]["request"].startswith("PURGE ")
    assert "refused" in rows["x"]
    assert "ban" not in rows["v"]
    rows = {row["cache"]: row for row in rows_of(caches, PushHead("dir"), "http://H/a.b/")}
    assert rows["v"]["ban"] == r"obj.http.x-refreshd-host == h && obj.http.x-refreshd-url ~ ^/a\.b/"
    assert rows["s"]["refused"].startswith("Squid removes single URLs only")


@pytest.mark.parametrize(
    ("task_type", "target", "ban"),
    [
        (
            "regex",
            "http://H/a.*[.]png",
            "obj.http.x-refreshd-host == h && obj.http.x-refreshd-url ~ ^(?:/a.*[.]png)$",
        ),
        ("tag", "news;1", r"obj.http.x-refreshd-tags ~ (?:^|[\x20,])news\;1(?:$|[\x20,])"),
    ],
)
def test_bans_of_varnish(task_type: str, target: str, ban: str) -> None:
    assert rows_of([lanes("v", "varnish")], PushHead(task_type), target)[0]["ban"] == ban


def test_every_type_at_every_kind_is_either_done_or_refused() -> None:
    for kind in KINDS:
        for task_type, target in (
            ("url", "http://h/a"), ("dir", "http://h/a/"), ("regex", "http://h/.*"), ("tag", "t"),
            ("prefetch", "http://h/a"),
        ):  # fmt: skip
            for more in ({}, {"verify": True}, {"force": True}):
                (row,) = rows_of([lanes("c", kind)], PushHead(task_type, **more), target)
                assert ("refused" in row) != ("method" in row)
                assert row.get("refused", "x")


def test_a_target_that_nobody_can_be_asked_for_is_refused_as_a_whole() -> None:
    document = explain([lanes("v", "varnish")], PushHead("dir"), [b"http://h/a", b"\xff"])
    assert [sorted(each) for each in document["targets"]] == [["refused", "target"]] * 2


def test_soft_and_hard() -> None:
    cache = lanes("v", "varnish", soft=True)
    assert rows_of([cache], PushHead("url"))[0]["method"] == "SOFTPURGE"
    assert rows_of([cache], PushHead("url", force=True))[0]["method"] == "PURGE"


def test_how_it_is_verified_and_what_follows() -> None:
    caches = [lanes("v", "varnish"), lanes("n", "nginx")]
    rows = rows_of(caches, PushHead("url", verify=True, then="prefetch"))
    assert [(row["cache"], row["type"]) for row in rows] == [
        ("v", "url"), ("n", "url"), ("v", "prefetch"), ("n", "prefetch"),
    ]  # fmt: skip
    assert (rows[0]["verified_by"], rows[0]["lane"]) == ("LOOK", "look")
    assert "verify=1 refused" in rows[1]["refused"]
    assert rows[2]["request"].startswith("GET /a.b/c?d HTTP/1.1\n")
    (row,) = rows_of([lanes("v", "varnish")], PushHead("dir", verify=True), "http://h/a/")
    assert row["verified_by"] == "LOOK of what CANARY has put there before"
    (row,) = rows_of([lanes("f", "nginx", path="/c")], PushHead("url", verify=True))
    assert row["verified_by"] == "who does it sees it"
    rows = rows_of([lanes("n", "nginx")], PushHead("url", then="prefetch"))
    assert rows[0]["unverified"]


def test_what_it_would_be_merged_into() -> None:
    cache = lanes("v", "varnish")
    queue = MergingQueue()
    cache.fast.queue = queue
    queue.put(make_refresh("dir", "http://h/a/"), 5)
    before = list(queue)
    (row,) = rows_of([cache], PushHead("url"), "http://h/a/b")
    assert row["merged_into"] == {"type": "dir", "target": "http://h/a/"}
    for head, target in (
        (PushHead("url"), "http://h/b"),
        (PushHead("url", force=True), "http://h/a/b"),
        (PushHead("url", verify=True), "http://h/a/b"),
        (PushHead("tag"), "a"),
    ):
        assert "merged_into" not in rows_of([cache], head, target)[0]
    queue.put(make_refresh("drop"), 5)
    assert rows_of([cache], PushHead("tag"), "a")[0]["merged_into"]["type"] == "drop"
    assert len(queue) == len(before) + 1


def test_what_is_printed_cannot_steer_a_terminal() -> None:
    assert printable(b"GET /\x1b[2J\xff HTTP/1.1\r\nHost: h\r\n\r\n") == "GET /?[2J? HTTP/1.1\nHost: h"


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────


def sizes_of(answer: bytes, kind: str = "squid", targets: int = 1) -> list[dict[str, Any]]:
    """What is told of the length where the cache answers like this; "" is silence."""

    async def script(visit: Visit) -> None:
        assert (await visit.request()).startswith(b"HEAD /")
        await (visit.send(answer) if answer else visit.forever())

    async def ask() -> list[dict[str, Any]]:
        async with Scripted(script) as server:
            cache = lanes("c", kind, address=server.address)
            head = PushHead("prefetch")
            document = explain([cache], head, [b"http://h/%d" % number for number in range(targets)])
            await Sizes().add([cache], document)
            assert server.visits <= 8
            return [row for target in document["targets"] for row in target["caches"]]

    return run(ask())


def test_the_length_of_an_object_is_asked_for() -> None:
    (row,) = sizes_of(b"HTTP/1.1 200 OK\r\nX: 1\r\ncontent-LENGTH: 4711\r\n\r\n")
    assert row["bytes"] == 4711


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "does not say how long"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\n", "answered 404"),
        (b"rubbish\r\n\r\n", "not one of HTTP"),
        (b"x" * 200_000, "not one of HTTP"),
    ],
)
def test_what_is_not_known_is_said_to_be(answer: bytes, why: str) -> None:
    (row,) = sizes_of(answer)
    assert row["bytes"] is None
    assert why in row["bytes_why"]


def test_a_cache_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyd.explain.SIZES_S", 0.1)
    (row,) = sizes_of(b"")
    assert (row["bytes"], "does not answer" in row["bytes_why"]) == (None, True)


def test_only_a_few_are_asked_for() -> None:
    rows = sizes_of(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", targets=10)
    assert [row["bytes"] for row in rows] == [1] * 8 + [None] * 2
    assert "at a time" in rows[9]["bytes_why"]


@pytest.mark.needs("varnishd")
def test_varnish_tells_how_long_an_object_is_and_keeps_nothing_for_it(
    varnish: Varnish, origin: Origin, host: str
) -> None:
    for path in (b"/here", b"/there"):
        origin.sizes[path] = 54321
    get(varnish.address, host, "/here")

    async def ask() -> list[int | str]:
        where = split_address(varnish.address)
        paths = (b"/here", b"/there", b"/there")
        return [await ask_length(where, (host.encode(), path), b"SIZE") for path in paths]

    assert run(ask()) == [54321] * 3
    # Asked twice, for nothing was kept.
    assert origin.asked[host.encode(), b"/there"] == 2
    assert origin.asked[host.encode(), b"/here"] == 1


def test_a_cache_that_would_keep_what_it_is_asked_for_is_not_asked() -> None:
    (row,) = sizes_of(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", "nginx")
    assert row["bytes"] is None
    assert "fetch and keep" in row["bytes_why"]
