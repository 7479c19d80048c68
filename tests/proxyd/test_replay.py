"""What catching up promises, against a cache that is a dict and content that changes before each post."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.caches import KINDS
from proxyd.dispatch import Dispatcher
from proxyd.outbox import Outbox
from proxyd.queues import PriorityQueue, Queue
from proxyd.replay import Replay
from proxyd.route import Lanes
from proxyd.tasks import Exchange
from wire.lines import parse
from wire.tasks import PushHead

URLS = ["http://h/a", "http://h/a/", "http://h/a/b", "http://h/a/b/c", "http://h/d", "http://i/a/b"]
DIRECTORIES = ["http://h/", "http://h/a/", "http://h/a/b/", "http://i/a/"]


class Lane:
    """A lane whose connections a test moves."""

    def __init__(self) -> None:
        self.queue: Queue[Exchange] = PriorityQueue()
        self.in_flight: list[Exchange] = []

    def put(self, exchange: Exchange, priority: int) -> None:
        self.queue.put(exchange, priority)

    def unended(self) -> Iterator[Exchange]:
        yield from self.in_flight
        yield from self.queue

    @property
    def waiting(self) -> int:
        return len(self.queue)


class Post:
    """A task that was posted when the content was of some version."""

    def __init__(self, head: PushHead, target: str, version: int) -> None:
        self.head = head
        self.target = target
        self.version = version
        self.state = "queued"

    def covers(self, url: str) -> bool:
        """Whether it is a refresh of that URL."""
        if self.head.type == "drop":
            return True
        if self.head.type == "dir":
            return url.startswith(self.target)
        return self.head.type == "url" and url == self.target


class World:
    """An agent's dispatcher, a cache, and the posts."""

    def __init__(self, *, replaying: bool = True) -> None:
        self.dispatcher = Dispatcher(lambda on: None)
        self.fast, self.slow = Lane(), Lane()
        fast: Any = self.fast
        slow: Any = self.slow
        self.lanes = Lanes("c", KINDS["varnish"], fast, slow, Replay(fast, slow))
        self.dispatcher.use_caches([self.lanes])
        self.dispatcher.replay(replaying)
        self.box = Outbox(lambda: None)
        self.version = 0
        self.posts: list[Post] = []
        self.cached: dict[str, int] = {}
        self.sent: list[str] = []
        """The refreshes that the cache was asked for."""

    def post(self, head: PushHead, target: str) -> None:
        """The content changes, and is refreshed; or prefetched."""
        self.version += 1
        task_id = b"%d" % len(self.posts)
        self.posts.append(Post(head, target, self.version))
        if head.type == "drop":
            self.dispatcher.drop(self.box, task_id, 0.0)
        else:
            self.dispatcher.push(self.box, task_id, head, [target.encode()], 0.0)

    def cancel(self, number: int) -> None:
        """Takes a post back, if it has not ended."""
        if self.posts[number].state == "queued":
            self.posts[number].state = "cancelled"
            self.dispatcher.cancel(self.box, [b"%d" % number])

    def visit(self, url: str) -> None:
        """Somebody is served."""
        self.cached.setdefault(url, self.version)

    def send(self, count: int) -> None:
        """What waits goes out, as `CacheClient.fill` has it."""
        for exchange in self.fast.queue.take(count):
            if exchange.task.cancelled:
                for follower in exchange.part():
                    self.fast.queue.put(follower, follower.task.head.priority)
                self.dispatcher.ended(exchange, "cancelled")
            else:
                self.fast.in_flight.append(exchange)

    def answer(self, number: int, *, well: bool) -> None:
        """The cache has done what is in flight, or has not."""
        if not self.fast.in_flight:
            return
        exchange = self.fast.in_flight.pop(number % len(self.fast.in_flight))
        if well:
            done = self.posts[int(exchange.task.id)]
            self.sent.append(done.target)
            self.cached = {url: version for url, version in self.cached.items() if not done.covers(url)}
        self.dispatcher.ended(exchange, None if well else "no luck")
        self.read_reports()

    def prefetch(self) -> None:
        """The next prefetch is done."""
        for exchange in self.slow.queue.take(1):
            if not exchange.task.cancelled:
                self.visit(exchange.target.decode())
            self.dispatcher.ended(exchange, None)
        self.read_reports()

    def read_reports(self) -> None:
        kept, _ = self.box.take(0.0, 1 << 20)
        for line in (parse(line[:-1]) for line in kept):
            for task_id in [line.fields["task_id"]] if "task_id" in line.fields else line.items or ():
                assert self.posts[int(task_id)].state == "queued", (
                    "what is cancelled or ended is not reported"
                )
                self.posts[int(task_id)].state = line.fields["state"]
        for post in self.posts:
            if post.state == "done" and post.head.type != "prefetch":
                for url, version in self.cached.items():
                    assert version >= post.version or not post.covers(url), f"{url} is old"

    def lose_patience(self, every: int) -> None:
        """Some of what waits fails, as in `CacheClient._fail_impatient`."""
        due = self.fast.queue.remove(lambda exchange: int(exchange.task.id) % every == 0)
        for exchange in due:
            for follower in exchange.part():
                self.fast.queue.put(follower, follower.task.head.priority)
            self.dispatcher.ended(exchange, "out of reach")
        self.read_reports()

    def work_off(self) -> None:
        """Until nothing waits, what was cancelled included."""
        for _ in range(10_000):
            if not (self.dispatcher.tasks or self.fast.queue or self.fast.in_flight or self.slow.queue):
                return
            self.send(3)
            self.answer(0, well=True)
            self.prefetch()
        raise AssertionError(f"{self.dispatcher} does not come to an end")

    def check_warm(self) -> None:
        """What was prefetched after its last refresh is there."""
        for number, post in enumerate(self.posts):
            later = any(other.covers(post.target) for other in self.posts[number:])
            if post.head.type == "prefetch" and post.state == "done" and not later:
                assert post.target in self.cached, f"{post.target} is cold"


heads = st.builds(
    PushHead,
    type=st.sampled_from(["url", "dir", "prefetch"]),
    priority=st.sampled_from([0, 5, 5, 5, 9]),
    force=st.sampled_from([False, False, True]),
)


@st.composite
def posts(draw: st.DrawFn) -> tuple[PushHead, str]:
    head = draw(heads)
    return head, draw(st.sampled_from(DIRECTORIES if head.type == "dir" else URLS))


Step = Callable[[World], None]
steps = st.one_of(
    posts().map(lambda post: lambda world: world.post(*post)),
    posts().map(lambda post: lambda world: world.post(*post)),
    st.integers(0, 40).map(lambda n: lambda world: world.posts and world.cancel(n % len(world.posts))),
    st.sampled_from(URLS).map(lambda url: lambda world: world.visit(url)),
    st.integers(1, 4).map(lambda count: lambda world: world.send(count)),
    st.tuples(st.integers(0, 5), st.sampled_from([True, True, False])).map(
        lambda how: lambda world: world.answer(how[0], well=how[1])
    ),
    st.just(lambda world: world.prefetch()),
    st.just(lambda world: world.post(PushHead(type="drop"), "")),
)


@given(st.lists(steps, max_size=60))
def test_nothing_is_served_old_and_what_was_prefetched_last_is_warm(script: list[Step]) -> None:
    world = World()
    for step in script:
        step(world)
    world.work_off()
    world.read_reports()
    assert all(post.state != "queued" for post in world.posts)
    world.check_warm()
    assert world.box.owed == 0
    assert world.dispatcher.open_targets == 0
    assert world.lanes.replay.waiting == 0


@given(
    st.lists(st.one_of(steps, st.booleans().map(lambda on: lambda w: w.dispatcher.replay(on))), max_size=60)
)
def test_nothing_is_served_old_whenever_it_begins_and_ends(script: list[Step]) -> None:
    world = World(replaying=False)
    for step in script:
        step(world)
    world.work_off()
    assert all(post.state != "queued" for post in world.posts)
    assert world.dispatcher.open_targets == 0


downs = st.sampled_from(
    [
        lambda world: world.lanes.replay.hold_order(),
        lambda world: world.lanes.replay.release_order(),
        lambda world: world.dispatcher.replay(True),
        lambda world: world.dispatcher.replay(False),
        lambda world: world.lose_patience(2),
    ]
)


@given(st.lists(st.one_of(steps, steps, downs), max_size=60))
def test_nothing_is_served_old_whenever_the_cache_goes_and_comes(script: list[Step]) -> None:
    world = World(replaying=False)
    for step in script:
        step(world)
    world.dispatcher.replay(False)
    world.lanes.replay.release_order()
    world.work_off()
    assert all(post.state != "queued" for post in world.posts)
    assert world.dispatcher.open_targets == world.box.owed == world.lanes.replay.waiting == 0
    assert not world.lanes.replay.on


@given(st.lists(steps, max_size=40), st.lists(steps, max_size=20))
def test_what_was_prefetched_while_the_cache_was_down_is_warm(before: list[Step], after: list[Step]) -> None:
    world = World(replaying=False)
    world.lanes.replay.hold_order()
    for step in before:
        step(world)
    world.lanes.replay.release_order()
    for step in after:
        if not world.lanes.replay.on:
            break
        step(world)
    world.work_off()
    world.check_warm()


URL, DIR, PREFETCH = PushHead(type="url"), PushHead(type="dir"), PushHead(type="prefetch")


def test_what_is_sent_is_the_least() -> None:
    world = World()
    for head, target in (
        (URL, "http://h/d"),
        (URL, "http://h/a/b"),
        (URL, "http://h/d"),
        (URL, "http://h/a"),
        (DIR, "http://h/a/b/"),
        (DIR, "http://h/a/"),
        (URL, "http://h/a/b/c"),
    ):
        world.post(head, target)
    world.work_off()
    # The directory stands where the first URL under it stood; /a does not lie under /a/.
    assert world.sent == ["http://h/d", "http://h/a/", "http://h/a"]
    assert world.dispatcher.merged == 4
    assert {post.state for post in world.posts} == {"done"}


def test_what_is_sent_already_satisfies_nothing() -> None:
    world = World()
    world.post(URL, "http://h/d")
    world.send(1)
    world.post(URL, "http://h/d")
    world.work_off()
    assert world.sent == ["http://h/d", "http://h/d"]


def test_what_is_merged_stays_so_when_the_replay_ends_and_begins_again() -> None:
    world = World()
    world.post(URL, "http://h/d")
    world.post(URL, "http://h/d")
    world.dispatcher.replay(False)
    world.post(URL, "http://h/d")
    world.dispatcher.replay(True)
    world.post(DIR, "http://h/")
    world.work_off()
    assert (world.sent, world.dispatcher.merged) == (["http://h/"], 3)
    assert {post.state for post in world.posts} == {"done"}


def test_what_was_merged_into_a_task_that_is_taken_back_is_done_by_itself() -> None:
    world = World()
    world.post(URL, "http://h/a/b")
    world.post(DIR, "http://h/a/")
    world.dispatcher.replay(False)
    world.cancel(1)
    world.work_off()
    assert world.sent == ["http://h/a/b"]


def test_what_is_merged_fails_with_it() -> None:
    world = World()
    world.post(URL, "http://h/a/b")
    world.post(DIR, "http://h/a/")
    world.send(9)
    world.answer(0, well=False)
    assert [post.state for post in world.posts] == ["failed", "failed"]


def test_a_prefetch_waits_for_the_refreshes_before_it_and_for_no_others() -> None:
    world = World()
    world.visit("http://h/d")
    world.post(URL, "http://h/d")
    world.post(PREFETCH, "http://h/d")
    world.prefetch()
    assert world.posts[1].state == "queued"
    assert world.dispatcher.figures() == {"fast": 1, "slow": 1, "inflight": 2}
    world.send(1)
    world.post(URL, "http://h/a")
    world.answer(0, well=True)
    world.prefetch()
    assert world.posts[1].state == "done"
    assert world.cached == {"http://h/d": 3}


def test_at_a_cache_that_was_down_the_order_holds_until_what_waited_is_done() -> None:
    world = World(replaying=False)
    replay = world.lanes.replay
    world.visit("http://h/d")
    replay.hold_order()
    world.post(URL, "http://h/d")
    world.post(URL, "http://h/d")
    replay.release_order()
    assert replay.catching_up
    world.post(PREFETCH, "http://h/d")
    world.post(URL, "http://h/a")
    world.prefetch()
    assert world.posts[2].state == "queued"
    # Nothing is merged for a cache that is back.
    world.send(2)
    assert len(world.fast.in_flight) == 2
    world.answer(0, well=True)
    world.answer(0, well=True)
    assert not replay.catching_up
    assert not replay.on
    world.prefetch()
    assert world.cached == {"http://h/d": 4}
    world.work_off()


def test_at_a_cache_that_was_down_the_order_ends_though_more_comes() -> None:
    world = World(replaying=False)
    world.lanes.replay.hold_order()
    world.post(URL, "http://h/d")
    world.lanes.replay.release_order()
    world.post(URL, "http://h/a")
    world.send(1)
    world.answer(0, well=True)
    assert world.fast.waiting == 1
    assert not world.lanes.replay.catching_up
    world.work_off()


def test_a_drop_satisfies_all_that_waits_and_is_done_before_what_follows() -> None:
    world = World(replaying=False)
    for url in URLS:
        world.visit(url)
    world.post(URL, "http://h/d")
    world.post(DIR, "http://i/a/")
    world.post(PushHead(type="url", force=True), "http://h/a")
    world.post(PushHead(type="drop"), "")
    world.post(PREFETCH, "http://h/d")
    world.prefetch()
    assert world.dispatcher.dropping
    world.work_off()
    assert (world.sent, world.dispatcher.dropping) == ([""], False)
    assert list(world.cached) == ["http://h/d"]
    assert {post.state for post in world.posts} == {"done"}


def test_a_drop_that_is_pushed_again_is_done_again_and_reported_once() -> None:
    world = World()
    world.dispatcher.drop(world.box, b"drop:1", 0.0)
    world.fast.in_flight += world.fast.queue.take(1)
    world.dispatcher.drop(world.box, b"drop:1", 0.0)
    (first, second) = (world.fast.in_flight[0], world.fast.queue.take(1)[0])
    world.dispatcher.ended(first, None)
    assert (world.dispatcher.dropping, world.box.take(0.0, 1 << 20)) == (True, ([], []))
    world.dispatcher.ended(second, "no luck")
    kept, _ = world.box.take(0.0, 1 << 20)
    assert kept == [b"report state=failed task_id=drop:1 done=0 failed=1 error=no\\sluck\n"]
    assert (world.dispatcher.dropping, world.box.owed) == (False, 0)


@pytest.mark.parametrize("many", [3000])
def test_places_that_were_given_up_are_not_kept(many: int) -> None:
    """Of low priority and always in front of others, they would pile up."""
    world = World()
    low = PushHead(type="url", priority=0)
    for _ in range(5):
        for number in range(many):
            world.post(low, f"http://h/x/{number}")
        world.post(PushHead(type="dir", priority=9), "http://h/x/")
        queue: Any = world.fast.queue
        world.send(1)
        world.answer(0, well=True)
        assert len(queue._queue) <= 1024 + 1
    assert not world.dispatcher.tasks
    assert all(not tree.below for tree in queue._trees.values())
