"""The small pure parts: buckets, hosts, heads, hits, variants, ranges, playlists, trees."""

from __future__ import annotations

import gzip
import zlib

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.prefetch import tree as tree_module
from proxyd.prefetch.buckets import BURST_S, Bucket
from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.heads import Head, cut_head
from proxyd.prefetch.hits import is_hit
from proxyd.prefetch.hosts import HostGate, HostQueue
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.prefetch.playlists import PLAYLIST_MAX_BYTES, decode, kind_of
from proxyd.prefetch.ranges import next_first
from proxyd.prefetch.tree import DEPTH_MAX, HELD_MAX_BYTES, LEFT_OUT_MAX, Tree
from proxyd.prefetch.variants import with_headers, with_method
from tests.proxyd.prefetch.rig import limits

# ── buckets ───────────────────────────────────────────────────────────────────────────────


def test_a_bucket_lets_no_more_through_than_its_rate() -> None:
    bucket = Bucket(1000.0)
    bucket.spend(100, 1.0)
    assert bucket.wait_s(1.0) == 0.0
    bucket.spend(500, 1.0)
    assert bucket.wait_s(1.0) == pytest.approx(0.5)
    assert bucket.wait_s(1.4) == pytest.approx(0.1)
    assert bucket.wait_s(1.501) == 0.0
    # A rest is not saved up beyond the burst.
    assert bucket.wait_s(1000.0) == 0.0
    bucket.spend(round(1000 * BURST_S) + 1000, 1000.0)
    assert bucket.wait_s(1000.0) == pytest.approx(1.0)


def test_a_bucket_without_a_rate_bounds_nothing_and_a_debt_outlives_another_rate() -> None:
    bucket = Bucket()
    bucket.spend(1 << 40, 1.0)
    assert bucket.wait_s(1.0) == 0.0
    bucket.set_rate(1000, 1.0)
    bucket.spend(2000, 1.0)
    bucket.set_rate(4000, 1.0)
    assert bucket.wait_s(1.0) == pytest.approx(0.5)


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), max_size=50))
def test_whoever_waits_as_told_keeps_to_the_rate(steps: list[tuple[int, float]]) -> None:
    rate = 1000.0
    bucket = Bucket(rate)
    now = total = 0.0
    for size, pause in steps:
        now += pause + bucket.wait_s(now + pause)
        assert total <= rate * (now + BURST_S) + 5000
        bucket.spend(size, now)
        total += size


# ── hosts ─────────────────────────────────────────────────────────────────────────────────


def queue_of(*items: tuple[bytes, int, int]) -> HostQueue[tuple[bytes, int, int]]:
    """Items are (host, priority, number)."""
    queue: HostQueue[tuple[bytes, int, int]] = HostQueue(lambda item: item[0])
    for item in items:
        queue.put(item, item[1])
    return queue


def test_hosts_take_turns_within_a_priority() -> None:
    items = [(b"a", 5, 1), (b"a", 5, 2), (b"a", 5, 3), (b"b", 5, 4), (b"b", 9, 5)]
    queue = queue_of(*items)
    order = []
    while (priority := queue.top(lambda _: True)) >= 0:
        order.append(queue.pop(priority)[2])
    assert order == [5, 1, 4, 2, 3]
    assert len(queue) == 0


def test_a_host_without_room_is_passed_over_until_it_is_recalled() -> None:
    queue = queue_of((b"a", 9, 1), (b"b", 5, 2), (b"a", 5, 3))
    assert queue.top(lambda host: host != b"a") == 5
    assert queue.pop(5)[2] == 2
    assert queue.top(lambda host: host != b"a") == -1
    queue.put((b"a", 5, 4), 5)
    assert queue.top(lambda _: True) == -1
    queue.recall(b"a")
    assert [queue.pop(queue.top(lambda _: True))[2] for _ in range(3)] == [1, 3, 4]
    assert queue.top(lambda _: True) == -1


def test_everything_can_be_taken_whatever_room_there_is() -> None:
    queue = queue_of((b"a", 1, 1), (b"b", 5, 2), (b"a", 5, 3))
    assert queue.top(lambda _: False) == -1
    assert [item[2] for item in queue] == [2, 3, 1]
    assert [item[2] for item in queue.take(2)] == [2, 3]
    assert [item[2] for item in queue.take(9)] == [1]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 9)), max_size=60),
    st.lists(st.tuples(st.booleans(), st.sampled_from([b"a", b"b", b"c"])), max_size=200),
)
def test_nothing_is_lost_and_no_bound_broken(
    items: list[tuple[bytes, int]], moves: list[tuple[bool, bytes]]
) -> None:
    queue = queue_of(*((host, priority, number) for number, (host, priority) in enumerate(items)))
    gate = HostGate(2, 0)
    in_flight: list[tuple[bytes, int, int]] = []
    taken: list[tuple[bytes, int, int]] = []
    for ends, host in [*moves, *[(True, host) for host in (b"a", b"b", b"c")] * (2 * len(items) + 2)]:
        if ends and (item := next((each for each in in_flight if each[0] == host), None)):
            in_flight.remove(item)
            gate.end(host)
            queue.recall(host)
        priority = queue.top(lambda host: gate.has_room(host))
        if priority >= 0:
            item = queue.pop(priority)
            assert item[1] == priority
            gate.begin(item[0])
            in_flight.append(item)
            taken.append(item)
        assert all(sum(each[0] == host for each in in_flight) <= 2 for host in (b"a", b"b", b"c"))
    assert sorted(taken) == sorted((host, priority, number) for number, (host, priority) in enumerate(items))
    for host in (b"a", b"b", b"c"):
        for priority in range(10):
            numbers = [item[2] for item in taken if item[:2] == (host, priority)]
            assert numbers == sorted(numbers)


def test_a_gate_remembers_only_who_is_there_or_owes() -> None:
    gate = HostGate(1, 1000)
    gate.begin(b"a").spend(1150, 0.0)
    gate.begin(b"b")
    gate.now = 5.0
    assert not gate.has_room(b"a")
    gate = HostGate(1, 1000)
    gate.begin(b"a").spend(1150, 0.0)
    gate.begin(b"b")
    gate.end(b"a")
    gate.end(b"b")
    gate.now = 0.5
    assert not gate.has_room(b"a")
    assert gate.sweep() == [b"b"]
    assert len(gate) == 1
    gate.now = 1.1
    assert gate.has_room(b"a")
    # It owes nothing; but were it forgotten now, it might spend its burst once more.
    assert (gate.sweep(), len(gate)) == ([b"a"], 1)
    gate.now = 1.3
    assert (gate.sweep(), len(gate)) == ([b"a"], 0)


# ── heads and hits ────────────────────────────────────────────────────────────────────────


def head(*fields: str) -> Head:
    return Head(200, b"HTTP/1.1 200 OK\r\n" + b"".join(field.encode() + b"\r\n" for field in fields))


def test_fields_are_found_whatever_their_case() -> None:
    got = head("CONTENT-TYPE:  text/Plain  ", "vary: A", "X-Vary: no", "Vary:B", "Content-Length: 12")
    assert (got.get(b"content-type"), got.get(b"vary"), got.get(b"age")) == (b"text/Plain", b"A, B", b"")
    assert got.length == 12
    assert head("Content-Length: 12", "Transfer-Encoding: chunked").length is None
    assert head("Content-Length: x").length is None
    interim = b"HTTP/1.1 103 Early\r\nVary: x\r\n\r\n"
    raw = interim + interim + b"HTTP/1.1 200 OK\r\nVary: y\r\n\r\nVary: z\r\n\r\n"
    assert Head(200, cut_head(raw, 2)).get(b"vary") == b"y"


@pytest.mark.parametrize(
    ("kind", "fields", "hit"),
    [
        ("varnish", ["X-Varnish: 32770 5"], True),
        ("varnish", ["X-Varnish: 32770"], False),
        # A parent had it: its Age, its mark.
        ("varnish", ["X-Varnish: 32770", "Age: 17", "X-Cache: HIT"], False),
        ("nginx", ["X-Cache: HIT"], True),
        ("nginx", ["X-Cache-Status: HIT"], True),
        ("nginx", ["X-Cache: MISS"], False),
        ("nginx", ["X-Cache: HIT", "X-Cache: MISS"], False),
        ("nginx", ["Age: 17"], False),
        ("squid", ["X-Cache: HIT from edge"], True),
        ("squid", ["X-Cache: HIT from parent", "X-Cache: MISS from edge"], False),
        ("squid", ["X-Cache: TCP_HIT"], True),
        ("http", ["Cache-Status: edge; hit"], True),
        ("http", ["Cache-Status: parent; hit, edge; fwd=miss; stored"], False),
        ("http", ["Cache-Status: parent; fwd=miss, edge; hit; ttl=30"], True),
        ("http", ['Cache-Status: "a; hit, b"; fwd=miss'], False),
        ("http", ["Cache-Status: edge; fwd=uri-miss; hit=?0"], False),
        ("http", ["X-Cache: HIT-FOR-PASS"], False),
        ("http", [], False),
    ],
)
def test_what_says_that_it_was_there(kind: str, fields: list[str], hit: bool) -> None:
    assert is_hit(kind, head(*fields)) is hit


# ── requests ──────────────────────────────────────────────────────────────────────────────


def test_headers_take_the_place_of_those_of_their_name() -> None:
    request = b"POST /a HTTP/1.1\r\nHost: h\r\naccept-encoding: gzip\r\nX: y\r\n\r\nbody\r\n\r\nmore"
    assert with_headers(request, [(b"Accept-Encoding", b"br"), (b"Range", b"bytes=0-1")]) == (
        b"POST /a HTTP/1.1\r\nHost: h\r\nX: y\r\nAccept-Encoding: br\r\nRange: bytes=0-1\r\n\r\n"
        b"body\r\n\r\nmore"
    )
    assert with_method(request, b"HEAD").startswith(b"HEAD /a HTTP/1.1\r\n")


def test_ranges_go_on_from_where_they_ended() -> None:
    assert next_first(0, b"bytes 0-9/100") == 10
    assert next_first(90, b"bytes 90-99/100") is None
    # Shorter than what was asked for.
    assert next_first(0, b"Bytes 0-0/100") == 1


# ── playlists ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("content_type", "path", "kind"),
    [
        (b"application/vnd.apple.mpegurl", b"/x", "hls"),
        (b"Application/X-MPEGURL; charset=utf-8", b"/x", "hls"),
        (b"audio/mpegurl", b"/x", "hls"),
        (b"application/dash+xml", b"/x.m3u8", "dash"),
        (b"", b"/x.m3u8?token=1", "hls"),
        (b"text/plain", b"/x.MPD", "dash"),
        (b"text/html", b"/x.m3u8", ""),
        (b"video/mp4", b"/x.mp4", ""),
        (b"", b"/x?y=.m3u8", ""),
    ],
)
def test_what_is_a_playlist(content_type: bytes, path: bytes, kind: str) -> None:
    assert kind_of(content_type, path) == kind


TEXT = b"#EXTM3U\n" * 100


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"", TEXT),
        (b"identity", TEXT),
        (b"GZIP", gzip.compress(TEXT, mtime=0)),
        (b"deflate", zlib.compress(TEXT)),
        (b"br", bytes(cramjam.brotli.compress(TEXT))),
    ],
    ids=lambda value: str(value)[:12],
)
def test_encodings_are_taken_off(encoding: bytes, body: bytes) -> None:
    assert decode(body, encoding) == TEXT


BOMB = b" " * (PLAYLIST_MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("encoding", "body", "error"),
    [
        (b"zstd", b"x", "wanted gzip, br, deflate or none"),
        (b"gzip", b"x", "cannot be decoded"),
        (b"gzip", gzip.compress(TEXT, mtime=0)[:-9], "it is cut"),
        (b"gzip", gzip.compress(BOMB, mtime=0), "too large"),
        (b"br", bytes(cramjam.brotli.compress(BOMB)), "cannot be decoded from br to at most"),
        (b"br", b"garbage", "cannot be decoded"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_cannot_be_decoded_says_why(encoding: bytes, body: bytes, error: str) -> None:
    with pytest.raises(BadPlaylist, match=error):
        decode(body, encoding)


# ── trees ─────────────────────────────────────────────────────────────────────────────────

ROOT = (b"h", b"/m.m3u8")


def grown(text: str, **changes: object) -> Tree:
    tree = Tree(ROOT, limits(**changes))
    tree.expand(ROOT, "hls", b"#EXTM3U\n" + text.encode(), 0)
    return tree


def take_all(tree: Tree) -> list[str]:
    """The paths of all, ten at a time."""
    found: list[str] = []
    while not tree.exhausted:
        found += [address[1].decode() for address, _ in tree.take(10)]
    return found


def test_each_is_taken_once_and_nothing_of_others() -> None:
    tree = grown('a\nb\n./a\nm.m3u8\n//o/c\nhttp://h/d\ndata:x\n#EXT-X-KEY:URI="skd://k"\nhttp://\n')
    assert take_all(tree) == ["/a", "/b", "/d"]
    assert tree.figures() == {"children": 3, "children_failed": 1, "at_other_hosts": 1, "not_http": 2}
    assert str(tree.error).startswith(
        "1 of 3 that its playlist names failed, first http://h/m.m3u8: names what"
    )
    assert take_all(grown("//o/c\n", follow_hosts=True)) == ["/c"]


def test_a_loop_ends() -> None:
    tree = grown("a.m3u8\n")
    [(a, depth)] = tree.take(5)
    tree.expand(a, "hls", b"#EXTM3U\nm.m3u8\na.m3u8\nb.m3u8\n", depth)
    [(b, depth)] = tree.take(5)
    tree.expand(b, "hls", b"#EXTM3U\na.m3u8\nm.m3u8\nb.m3u8\n", depth)
    assert (tree.take(5), tree.exhausted, tree.children, tree.error) == ([], True, 2, None)


def test_what_is_too_deep_is_not_expanded() -> None:
    tree = Tree(ROOT, limits())
    address = ROOT
    for depth in range(DEPTH_MAX):
        tree.expand(address, "hls", b"#EXTM3U\n%d.m3u8\n" % depth, depth)
        [(address, got)] = tree.take(5)
        assert got == depth + 1
    tree.expand(address, "hls", b"#EXTM3U\nx.m3u8\n", DEPTH_MAX)
    assert (tree.take(5), tree.failed) == ([], 1)
    assert "is not expanded" in str(tree.error)


def test_no_more_is_taken_or_held_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    many = "".join(f"{number}\n" for number in range(3000))
    tree = grown(many, playlist_max=100)
    assert len(take_all(tree)) == 100
    assert tree.error == "2900 were left out: [slow] playlist_max = 100"
    large = b"#EXTM3U\n" + b"#" * (HELD_MAX_BYTES // 2)
    tree = grown("a\n")
    for number in range(3):
        tree.expand((b"h", b"/%d" % number), "hls", large, 1)
    assert "more than 4194304 bytes of playlists at once" in str(tree.error)
    monkeypatch.setattr(tree_module, "LEFT_OUT_MAX", 1000)
    tree = grown(many, playlist_max=100)
    assert len(take_all(tree)) == 100
    assert tree.error == "1000 or more were left out: [slow] playlist_max = 100"
    assert LEFT_OUT_MAX > 1000


def test_a_turn_of_the_loop_is_short() -> None:
    """However much is named twice, one call looks at so much only."""
    tree = grown("a\n" * 100_000)
    calls = 0
    while not tree.exhausted:
        tree.take(10)
        calls += 1
    assert calls >= 100_000 / tree_module.LOOKED_MAX
    assert tree.children == 1


def test_the_limits_are_those_of_the_settings() -> None:
    assert PrefetchLimits.__struct_fields__[-9:] == (
        "per_host", "bytes_per_s", "host_bytes_per_s", "range_bytes", "variants", "skip_hits", "playlists",
        "playlist_max", "follow_hosts",
    )  # fmt: skip
