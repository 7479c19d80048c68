"""What the little cache holds: keys are bytes, freshness ends, a purge is not undone by a slow fetch."""

from hypothesis import given
from hypothesis import strategies as st

from tools.demo import objects
from tools.demo.http1 import Response
from tools.demo.objects import Objects

PAGE = Response(200, {}, b"page")
HOST = "www.example.com"


def put(held: Objects, target: bytes, *, host: str = HOST) -> None:
    assert held.store((host, target), PAGE, now_s=0.0, fresh_s=60.0, epoch=held.epoch)


def has(held: Objects, target: bytes, *, host: str = HOST, now_s: float = 1.0) -> bool:
    return held.look_up((host, target), now_s) is not None


def test_an_object_is_served_until_it_is_stale() -> None:
    held = Objects()
    put(held, b"/a")
    assert has(held, b"/a", now_s=59.9)
    assert not has(held, b"/a", now_s=60.0)
    assert len(held) == 0


def test_a_purge_takes_that_very_key() -> None:
    held = Objects()
    for target in (b"/a/b", b"/a%2Fb", b"/a%2fb", b"/a/b?", b"/A/b"):
        put(held, target)
    put(held, b"/a/b", host="other.example.com")
    assert held.purge((HOST, b"/a/b")) == 1
    assert held.purge((HOST, b"/a/b")) == 0
    assert len(held) == 5
    assert has(held, b"/a/b", host="other.example.com")


def test_a_ban_takes_what_begins_so_on_that_host() -> None:
    held = Objects()
    for target in (b"/blog/", b"/blog/1", b"/blog/2?x", b"/blog", b"/blogs/1"):
        put(held, target)
    put(held, b"/blog/1", host="other.example.com")
    assert held.ban(HOST, b"/blog/") == 3
    assert has(held, b"/blog")
    assert has(held, b"/blogs/1")
    assert has(held, b"/blog/1", host="other.example.com")


def test_a_fetch_that_began_before_a_purge_brings_nothing_back() -> None:
    held = Objects()
    began = held.epoch
    held.purge((HOST, b"/a"))
    assert not held.store((HOST, b"/a"), PAGE, now_s=0.0, fresh_s=60.0, epoch=began)
    assert not has(held, b"/a")


def test_the_least_recently_used_goes_first() -> None:
    held = Objects()
    for number in range(objects.OBJECTS_MAX):
        put(held, b"/%d" % number)
    assert has(held, b"/0")
    put(held, b"/one-more")
    assert has(held, b"/0")
    assert not has(held, b"/1")
    assert len(held) == objects.OBJECTS_MAX


targets = st.sampled_from([b"/", b"/a", b"/a/", b"/a/1", b"/a/2", b"/b/1"])
actions = st.lists(st.tuples(st.sampled_from(["store", "purge", "ban"]), targets), max_size=30)


@given(actions)
def test_it_holds_what_a_plain_set_would(plan: list[tuple[str, bytes]]) -> None:
    held, model = Objects(), set[bytes]()
    for action, target in plan:
        if action == "store":
            put(held, target)
            model.add(target)
        elif action == "purge":
            assert held.purge((HOST, target)) == (target in model)
            model.discard(target)
        else:
            held.ban(HOST, target)
            model = {kept for kept in model if not kept.startswith(target)}
    assert {
        target for target in [b"/", b"/a", b"/a/", b"/a/1", b"/a/2", b"/b/1"] if has(held, target)
    } == model
