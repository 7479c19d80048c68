"""From a push to its report, with caches that end exchanges when the test says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from proxyd.caches import KINDS, Request, kind_of
from proxyd.dispatch import Dispatcher
from proxyd.outbox import Outbox
from proxyd.queues import PriorityQueue, Queue
from proxyd.replay import Replay
from proxyd.route import Lanes
from proxyd.scope import scope_of
from proxyd.tasks import Exchange, carry_tasks
from wire.lines import parse
from wire.tasks import PushHead

URL = PushHead(type="url")


class FakeClient:
    """Takes exchanges and keeps them."""

    def __init__(self) -> None:
        self.taken: list[tuple[Exchange, int]] = []
        self.queue: Queue[Exchange] = PriorityQueue()

    def put(self, exchange: Exchange, priority: int) -> None:
        self.taken.append((exchange, priority))

    @property
    def waiting(self) -> int:
        return len(self.taken)

    def unended(self) -> Iterator[Exchange]:
        return (exchange for exchange, _ in self.taken)


def fake_lanes() -> Any:
    """(fast, slow, replay)"""
    fast, slow = FakeClient(), FakeClient()
    return fast, slow, Replay(fast, slow)


class Bench:
    """A dispatcher with fake caches and one outbox."""

    def __init__(self, *kinds: str) -> None:
        self.held: list[bool] = []
        self.dispatcher = Dispatcher(self.held.append)
        self.lanes = [Lanes(f"c{n}", KINDS[kind], *fake_lanes()) for n, kind in enumerate(kinds)]
        self.dispatcher.use_caches(self.lanes)
        self.box = Outbox(lambda: None)

    def push(self, task_id: str, *targets: str, head: PushHead = URL, box: Outbox | None = None) -> None:
        raw = [target.encode() for target in targets]
        self.dispatcher.push(self.box if box is None else box, task_id.encode(), head, raw, 1.0)

    def taken(self, cache: int = 0, *, slow: bool = False) -> list[Exchange]:
        """What a cache has in hand, in order."""
        client = self.lanes[cache].slow if slow else self.lanes[cache].fast
        return [exchange for exchange, _ in client.taken]  # type: ignore[attr-defined]

    def end(self, cache: int = 0, error: str | None = None, *, slow: bool = False) -> None:
        """Ends the first exchange of a cache."""
        client = self.lanes[cache].slow if slow else self.lanes[cache].fast
        exchange, _ = client.taken.pop(0)  # type: ignore[attr-defined]
        self.dispatcher.ended(exchange, error)

    def reports(self, box: Outbox | None = None) -> list[dict[str, object]]:
        kept, active = (self.box if box is None else box).take(2.0, 1 << 20)
        lines = [parse(line[:-1]) for line in kept + active]
        return [{**line.fields, "items": line.items} for line in lines]


def done(*ids: str) -> list[dict[str, object]]:
    return [{"state": "done", "ms": "1000", "items": ids}]


def test_one_target_one_cache() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/1")
    assert bench.dispatcher.figures() == {"fast": 1, "slow": 0, "inflight": 1}
    bench.end()
    assert bench.reports() == done("a")
    assert bench.dispatcher.figures() == {"fast": 0, "slow": 0, "inflight": 0}
    assert (bench.dispatcher.tasks, bench.box.owed) == (0, 0)


def test_priority_reaches_the_queue() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/1", head=PushHead(type="url", priority=9))
    assert bench.lanes[0].fast.taken[0][1] == 9  # type: ignore[attr-defined]


def test_prefetch_goes_the_slow_way() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/1", head=PushHead(type="prefetch"))
    assert [exchange.request[:4] for exchange in bench.taken(slow=True)] == [b"GET "]
    assert bench.taken() == []


def test_many_targets_end_together() -> None:
    bench = Bench("varnish")
    bench.push("a", *(f"http://h/{number}" for number in range(3)))
    bench.end()
    bench.end(error="bad luck")
    assert bench.reports() == []
    bench.dispatcher.tell_progress()
    assert bench.reports() == [
        {"state": "active", "task_id": "a", "done": "1", "failed": "1", "items": None},
    ]
    bench.dispatcher.tell_progress()
    assert bench.reports() == []
    bench.end()
    assert bench.reports() == [
        {
            "state": "failed",
            "task_id": "a",
            "done": "2",
            "failed": "1",
            "error": "bad luck",
            "items": ("http://h/1",),
        }
    ]


def test_several_caches_must_all_do_it() -> None:
    bench = Bench("varnish", "ats")
    bench.push("a", "http://h/1")
    bench.end(0)
    assert bench.reports() == []
    bench.end(1)
    assert bench.reports() == done("a")
    bench.push("b", "http://h/1")
    bench.end(1, "down")
    bench.end(0, "down too")
    [report] = bench.reports()
    assert (report["failed"], report["error"]) == ("1", "down")


@pytest.mark.parametrize("task_type", ["regex", "tag"])
def test_what_no_cache_can_do_is_refused(task_type: str) -> None:
    bench = Bench("ats", "ats")
    bench.push("a", "http://h/1", "http://h/2", head=PushHead(type=task_type))
    [report] = bench.reports()
    assert report["state"] == "failed"
    assert report["failed"] == "2"
    assert str(report["error"]).startswith(f"cache c0: type={task_type} refused: ")


def test_what_one_cache_cannot_do_is_done_at_the_other_and_failed() -> None:
    bench = Bench("varnish", "ats")
    bench.push("a", "http://h/d/", head=PushHead(type="dir"))
    assert [exchange.request[:8] for exchange in bench.taken(0)] == [b"BAN /d/ "]
    assert bench.taken(1) == []
    bench.end(0)
    [report] = bench.reports()
    assert str(report["error"]).startswith("cache c1: type=dir refused: without a file of rules")


def test_bad_targets_fail_and_good_ones_are_done() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/a b", "http://h/fine")
    bench.end()
    [report] = bench.reports()
    assert (report["done"], report["failed"], report["items"]) == ("1", "1", ("http://h/a b",))
    bench.push("d", "http://h/no-slash", head=PushHead(type="dir"))
    assert bench.reports()[0]["error"] == "a directory ends in /"


def test_what_cannot_be_asked_of_one_cache_is_done_at_the_other_and_failed() -> None:
    bench = Bench("varnish", "http")
    requests = (("url", Request("PURGE", "/purge{path}", (), "", (200,))),)
    below = kind_of("http", requests=requests)
    assert below is not None
    bench.lanes[1] = msgspec.structs.replace(bench.lanes[1], kind=below)
    bench.dispatcher.use_caches(bench.lanes)
    bench.push("a", "http://h/1", "http://h/../2")
    assert [len(bench.taken(cache)) for cache in (0, 1)] == [2, 1]
    for cache in (0, 0, 1):
        bench.end(cache)
    [report] = bench.reports()
    assert (report["done"], report["failed"], report["items"]) == ("1", "1", ("http://h/../2",))
    assert str(report["error"]).startswith("it has a .. in its path")
    bench.dispatcher.use_caches(bench.lanes[1:])
    bench.push("b", "http://h/../2")
    [report] = bench.reports()
    assert (report["done"], report["failed"]) == ("0", "1")


def test_a_repeat_in_flight_is_not_done_twice_and_reported_to_the_newest() -> None:
    bench = Bench("varnish")
    newer = Outbox(lambda: None)
    bench.push("a", "http://h/1")
    bench.push("a", "http://h/1", box=newer)
    assert len(bench.taken()) == 1
    assert (bench.box.owed, newer.owed) == (0, 1)
    bench.end()
    assert bench.reports() == []
    assert bench.reports(newer) == done("a")


def test_a_repeat_after_the_report_is_done_again() -> None:
    bench = Bench("varnish")
    for _ in range(2):
        bench.push("a", "http://h/1")
        bench.end()
        assert bench.reports() == done("a")


def test_cancelled_is_neither_begun_nor_reported() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/1", "http://h/2")
    first, second = bench.taken()
    bench.dispatcher.cancel(bench.box, [b"a", b"unknown"])
    assert first.task.expires_at == second.task.expires_at == 0.0
    bench.end()
    bench.end(error="dropped")
    assert bench.reports() == []
    assert (bench.dispatcher.open_targets, bench.dispatcher.tasks, bench.box.owed) == (0, 0, 0)


def test_a_cancelled_id_can_come_again() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/old")
    bench.dispatcher.cancel(bench.box, [b"a"])
    bench.push("a", "http://h/new")
    bench.end()
    assert bench.reports() == []
    bench.end()
    assert bench.reports() == done("a")


def test_ttl_is_passed_on() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/1", head=PushHead(type="url", ttl_s=60))
    bench.push("b", "http://h/1")
    assert [exchange.task.expires_at for exchange in bench.taken()] == [61.0, math.inf]


def test_overfull_holds_the_links_until_half_is_done() -> None:
    bench = Bench("varnish")
    bench.dispatcher.limit(credit=1, links=2)
    for number in range(5):
        bench.push(f"t{number}", "http://h/1")
    assert bench.held == [True]
    bench.end()
    bench.end()
    assert bench.held == [True]
    bench.end()
    assert bench.held == [True, False]


def test_a_push_that_cannot_be_read_is_reported_failed() -> None:
    bench = Bench("varnish")
    bench.dispatcher.refuse(bench.box, b"a", 3, "no such type", 1.0)
    assert bench.reports() == [
        {
            "state": "failed",
            "task_id": "a",
            "done": "0",
            "failed": "3",
            "error": "no such type",
            "items": None,
        }
    ]
    assert bench.box.owed == 0


def other_box(name: str = "") -> Outbox:
    return Outbox(lambda: None, name)


def test_under_two_names_both_are_told() -> None:
    bench = Bench("varnish")
    old, new, newer = other_box("old"), other_box("new"), other_box("new")
    for box in (old, new, newer):
        bench.push("a", "http://h/1", box=box)
    assert len(bench.taken()) == 1
    assert [box.owed for box in (old, new, newer)] == [1, 0, 1]
    bench.end()
    assert [bench.reports(box) for box in (old, new, newer)] == [done("a"), [], done("a")]
    assert [box.owed for box in (old, new, newer)] == [0, 0, 0]


def test_under_two_names_a_failure_and_progress_reach_both() -> None:
    bench = Bench("varnish")
    boxes = [other_box("old"), other_box("new")]
    for box in boxes:
        bench.push("a", "http://h/1", "http://h/2", box=box)
    bench.end()
    bench.dispatcher.tell_progress()
    bench.end(error="no")
    for box in boxes:
        assert [report["state"] for report in bench.reports(box)] == ["failed", "active"]


def test_what_is_owed_moves_to_an_heir() -> None:
    bench = Bench("varnish")
    gone, heir = other_box(), other_box()
    bench.push("a", "http://h/1", box=gone)
    bench.push("b", "http://h/2", box=bench.box)
    bench.dispatcher.move(gone, heir)
    assert (gone.owed, heir.owed, bench.box.owed) == (0, 1, 1)
    bench.end()
    bench.end()
    assert (bench.reports(gone), bench.reports(heir), bench.reports()) == ([], done("a"), done("b"))


def test_what_nobody_waits_for_is_done_all_the_same() -> None:
    bench = Bench("varnish")
    gone, other = other_box("old"), other_box("new")
    for task_id in ("a", "b", "c"):
        bench.push(task_id, "http://h/1", box=gone)
    bench.push("b", "http://h/1", box=other)
    bench.dispatcher.move(gone, None)
    assert (gone.owed, other.owed) == (0, 1)
    bench.dispatcher.cancel(bench.box, [b"c"])
    bench.push("a", "http://h/1", box=other)
    assert (gone.owed, other.owed) == (0, 2)
    for _ in range(3):
        bench.end()
    assert bench.reports(other) == done("a", "b")
    assert bench.dispatcher.tasks == 0


# ── several engines ───────────────────────────────────────────────────────────────────────


def engine_box(engine: str, store: str = "s", *, layer: int = 0) -> Outbox:
    """The outbox of a link to an engine that has greeted."""
    box = Outbox(lambda: None, "pop1", engine=engine, layer=layer)
    box.scope = scope_of(engine, store, engine)
    box.trusted = bool(store) and not layer
    return box


def test_two_engines_of_one_store_push_one_task() -> None:
    bench = Bench("varnish")
    boxes = [engine_box("e1"), engine_box("e2")]
    for box in (*boxes, boxes[0]):
        bench.push("a", "http://h/1", "http://h/2", box=box)
    assert len(bench.taken()) == 2
    assert [box.owed for box in boxes] == [1, 1]
    bench.end()
    bench.end()
    assert [bench.reports(box) for box in boxes] == [done("a")] * 2
    assert [box.owed for box in boxes] == [0, 0]


@pytest.mark.parametrize("store", ["", "other"])
def test_engines_of_two_stores_mean_two_tasks(store: str) -> None:
    bench = Bench("varnish")
    boxes = [engine_box("e1"), engine_box("e2", store)]
    for box in boxes:
        bench.push("a", "http://h/1", box=box)
    assert len(bench.taken()) == 2
    bench.end()
    assert [bench.reports(box) for box in boxes] == [done("a"), []]
    bench.dispatcher.cancel(boxes[0], [b"a"])
    bench.end()
    assert [bench.reports(box) for box in boxes] == [[], done("a")]
    bench.push("b", "http://h/1", box=boxes[1])
    bench.end()
    bench.push("b", "http://h/1", box=boxes[0])
    assert len(bench.taken()) == 1


def test_in_a_higher_layer_another_engine_has_it_begun_anew_for_both() -> None:
    """What was done before the layer below was mended is old; what had not begun is not done twice."""
    bench = Bench("varnish")
    boxes = [engine_box("e1", layer=1), engine_box("e2", layer=1)]
    for box in (boxes[0], boxes[0], boxes[1], boxes[1]):
        bench.push("a", "http://h/1", "http://h/2", box=box)
        if box is boxes[0]:
            continue
        assert [exchange.task.cancelled for exchange in bench.taken()] == [True, True, False, False]
    assert (bench.dispatcher.open_targets, bench.dispatcher.tasks) == (2, 1)
    bench.end()
    bench.end(error="its ttl ended before it was begun")
    assert [bench.reports(box) for box in boxes] == [[], []]
    bench.end()
    bench.end()
    assert [bench.reports(box) for box in boxes] == [done("a")] * 2
    assert [box.owed for box in boxes] == [0, 0]
    assert bench.dispatcher.open_targets == 0


def test_what_one_engine_takes_back_goes_on_for_another_that_waits() -> None:
    bench = Bench("varnish")
    boxes = [engine_box("e1"), engine_box("e2")]
    boxes[1].live = True
    for box in boxes:
        bench.push("a", "http://h/1", box=box)
    bench.dispatcher.cancel(boxes[0], [b"a"])
    assert [box.owed for box in boxes] == [0, 1]
    bench.end()
    assert [bench.reports(box) for box in boxes] == [[], done("a")]
    # One that is away pushes it again when it is back, if it still wants it.
    for box in boxes:
        bench.push("b", "http://h/1", box=box)
    bench.dispatcher.cancel(boxes[1], [b"b"])
    assert [box.owed for box in boxes] == [0, 0]
    assert bench.dispatcher.tasks == 0


def test_another_content_in_hand_is_done_beside_it() -> None:
    bench = Bench("varnish")
    boxes = [engine_box("e1"), engine_box("e2")]
    for box in boxes:
        bench.push("a", "http://h/1", "http://h/2", box=box)
    bench.push("a", "http://h/other", box=boxes[1])
    assert [box.owed for box in boxes] == [1, 1]
    assert bench.dispatcher.tasks == 2
    bench.end()
    bench.dispatcher.tell_progress()
    assert [len(bench.reports(box)) for box in boxes] == [1, 0]
    bench.end(error="no")
    assert [report["failed"] for report in bench.reports(boxes[0])] == ["1"]
    bench.end()
    assert [bench.reports(box) for box in boxes] == [[], done("a")]
    assert (bench.dispatcher.open_targets, bench.dispatcher.tasks) == (0, 0)


def test_another_content_of_the_same_engine_takes_the_place() -> None:
    bench = Bench("varnish")
    box = engine_box("e1")
    bench.push("a", "http://h/old", box=box)
    bench.push("a", "http://h/new", box=box)
    assert [exchange.task.cancelled for exchange in bench.taken()] == [True, False]
    bench.end()
    assert bench.reports(box) == []
    bench.end()
    assert bench.reports(box) == done("a")
    assert box.owed == 0


# ── what was done well ────────────────────────────────────────────────────────────────────


def do(bench: Bench, task_id: str, *targets: str, box: Outbox, error: str | None = None) -> bool:
    """Pushes a task; whether the caches were asked for it. The report is taken."""
    bench.push(task_id, *targets, box=box)
    asked = bool(bench.taken())
    while bench.taken():
        bench.end(error=error)
    [report] = bench.reports(box)
    assert report["state"] == ("failed" if error and asked else "done")
    assert box.owed == 0
    return asked


@pytest.mark.parametrize("targets", [["http://h/1"], ["http://h/1", "http://h/2"], ["http://h/" + "x" * 999]])
def test_what_was_done_well_is_not_done_again(targets: list[str]) -> None:
    bench = Bench("varnish")
    assert do(bench, "a", *targets, box=engine_box("e1"))
    assert not do(bench, "a", *targets, box=engine_box("e1"))
    assert not do(bench, "a", *targets, box=engine_box("e2"))
    assert (bench.dispatcher.open_targets, bench.dispatcher.tasks) == (0, 0)


def test_how_urgent_it_is_means_nothing_to_what_was_done() -> None:
    bench, box = Bench("varnish"), engine_box("e1")
    bench.push("a", "http://h/1", box=box)
    bench.end()
    bench.push("a", "http://h/1", box=box, head=PushHead("url", ttl_s=7, priority=9))
    assert bench.taken() == []


@pytest.mark.parametrize(
    ("target", "head"),
    [("http://h/2/", URL), ("http://h/1/", PushHead("dir")), ("http://h/1/", PushHead("url", force=True))],
)
def test_another_content_is_done_and_the_first_one_then_too(target: str, head: PushHead) -> None:
    bench, box = Bench("varnish"), engine_box("e1")
    assert do(bench, "a", "http://h/1/", box=box)
    bench.push("a", target, head=head, box=box)
    assert len(bench.taken()) == 1
    bench.end(error="no")
    bench.reports(box)
    assert do(bench, "a", "http://h/1/", box=box)


def test_what_failed_in_part_is_done_again() -> None:
    bench, box = Bench("varnish", "varnish"), engine_box("e1")
    bench.push("a", "http://h/1", "http://h/2", box=box)
    for cache in (0, 0, 1):
        bench.end(cache)
    bench.end(1, "down")
    assert bench.reports(box)[0]["state"] == "failed"
    bench.push("a", "http://h/1", "http://h/2", box=box)
    assert len(bench.taken()) == 2


def test_what_was_taken_back_is_done_again() -> None:
    bench, box = Bench("varnish"), engine_box("e1")
    bench.push("a", "http://h/1", box=box)
    bench.dispatcher.cancel(box, [b"a"])
    bench.end()
    assert do(bench, "a", "http://h/1", box=box)
    bench.dispatcher.cancel(box, [b"a"])
    assert do(bench, "a", "http://h/1", box=box)


def test_an_engine_that_names_no_store_has_it_done_again() -> None:
    bench, box = Bench("varnish"), engine_box("e1", store="")
    assert do(bench, "a", "http://h/1", box=box)
    assert do(bench, "a", "http://h/1", box=box)


def test_a_higher_layer_does_it_again() -> None:
    bench = Bench("varnish")
    assert do(bench, "a", "http://h/1", box=engine_box("e1", layer=1))
    assert do(bench, "a", "http://h/1", box=engine_box("e2", layer=1))


def test_a_prefetch_is_asked_for_again() -> None:
    bench, box = Bench("varnish"), engine_box("e1")
    for _ in range(2):
        bench.push("a", "http://h/1", box=box, head=PushHead("prefetch"))
        bench.end(slow=True)
        assert bench.reports(box) == done("a")


def test_with_other_caches_all_is_done_again() -> None:
    bench, box = Bench("varnish", "varnish"), engine_box("e1")
    first = bench.lanes[:1]
    bench.dispatcher.use_caches(first)
    assert do(bench, "before", "http://h/1", box=box)
    bench.push("amid", "http://h/1", box=box)
    bench.dispatcher.use_caches(bench.lanes)
    bench.end()
    assert bench.reports(box) == done("amid")
    for task_id in ("before", "amid"):
        bench.push(task_id, "http://h/1", box=box)
        assert len(bench.taken(1)) == 1
        bench.end(0)
        bench.end(1)
    bench.dispatcher.use_caches(list(bench.lanes))
    bench.reports(box)
    assert not do(bench, "amid", "http://h/1", box=box)


def test_what_goes_on_after_an_upgrade_is_remembered_if_nothing_else_changed() -> None:
    for changed in (False, True):
        bench, box = Bench("varnish"), engine_box("e1")
        bench.push("a", "http://h/1", "http://h/2", box=box)
        bench.end()
        [(_, carried)] = carry_tasks(bench.taken(), 2.0)
        after = Bench("varnish")
        after.dispatcher.know_done([], bench.dispatcher.era + changed, 2.0)
        after.dispatcher.resume(box, carried, 2.0)
        # It is pushed again while it goes on, and joins, whatever is open of it.
        after.push("a", "http://h/1", "http://h/2", box=box)
        assert len(after.taken()) == 1
        after.end()
        assert bench.reports(box) == done("a")
        box.owed = 0
        assert do(after, "a", "http://h/1", "http://h/2", box=box) is changed


@pytest.mark.parametrize(
    ("task_type", "target", "request_line"),
    [
        ("regex", "http://H/a/.*[.]png#x", b"BANREGEX /a/.*[.]png#x HTTP/1.1\r\nHost: H\r\n"),
        ("tag", "news+front/page", b"BANTAG /news+front/page HTTP/1.1\r\nHost: localhost\r\n"),
    ],
)
def test_patterns_and_tags_go_as_they_stand(task_type: str, target: str, request_line: bytes) -> None:
    bench = Bench("varnish")
    bench.push("a", target, head=PushHead(type=task_type))
    assert [exchange.request[: len(request_line)] for exchange in bench.taken(0)] == [request_line]


def test_a_pattern_that_an_older_engine_lets_through_is_refused_here() -> None:
    bench = Bench("varnish")
    bench.push("a", "http://h/x)|(y", head=PushHead(type="regex"))
    assert bench.taken(0) == []
    (report,) = bench.reports()
    assert "not a regular expression" in str(report["error"])
