"""What follows from a look after a purge."""

from __future__ import annotations

import pytest

from proxyd.sight import Answer, Purged, Sight, Verdict, judge, read_only_if_cached, read_varnish_look

GONE = Sight(False, 10.0)
PURGED = Purged(10.0, cache_now=500.0)


def there(at: float, age_s: float | None = None, validator: bytes | None = None) -> Sight:
    """A copy, as caches that know no more than RFC 9111 show it."""
    return Sight(True, at, age_s, None, validator)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (None, GONE, Verdict.GONE),
        (there(9.9, 50, b"1"), GONE, Verdict.GONE),
        # By the cache's clock, whatever else it says.
        (None, Sight(True, 10.1, begun=500.001), Verdict.NEW),
        (None, Sight(True, 10.1, begun=500.0), Verdict.OLD),
        (None, Sight(True, 10.1, begun=499.0), Verdict.OLD),
        # Another validator, whatever its age: the cache below may have had it for long.
        (there(9.9, 50, b"1"), there(10.1, 80, b"2"), Verdict.NEW),
        (GONE, there(10.1, 80, b"2"), Verdict.NEW),
        # The same: it must have been fetched since.
        (there(9.9, 50, b"1"), there(10.1, 0, b"1"), Verdict.NEW),
        (there(9.9, 50, b"1"), there(10.1, 49, b"1"), Verdict.NEW),
        (there(9.9, 50, b"1"), there(10.1, 50, b"1"), Verdict.OLD),
        (there(9.9, 50, b"1"), there(10.1, 51, b"1"), Verdict.OLD),
        # Too young to tell; a second later it would show.
        (there(9.9, 0, b"1"), there(10.1, 0, b"1"), Verdict.OLD),
        (there(9.9, 0, b"1"), there(11.1, 0, b"1"), Verdict.NEW),
        (there(9.9, 0, b"1"), there(11.1, 1, b"1"), Verdict.OLD),
        # Without a validator the age tells, and without an age nothing does.
        (there(9.9, 50), there(10.1, 1), Verdict.NEW),
        (there(9.9, 50), there(10.1, 50), Verdict.OLD),
        (there(9.9), there(10.1), Verdict.OLD),
    ],
)
def test_what_a_look_means(before: Sight | None, after: Sight, verdict: Verdict) -> None:
    assert judge(before, after, PURGED) is verdict


def test_after_a_soft_purge_it_may_stay_if_it_is_out_of_date() -> None:
    old = Sight(True, 10.1, begun=499.0, stale=True)
    assert judge(None, old, Purged(10.0, 500.0, soft=True)) is Verdict.GONE
    assert judge(None, old, PURGED) is Verdict.OLD
    fresh = Sight(True, 10.1, begun=499.0, stale=False)
    assert judge(None, fresh, Purged(10.0, 500.0, soft=True)) is Verdict.OLD


@pytest.mark.parametrize(
    ("status", "headers", "shown"),
    [
        (504, {}, Sight(False, 1.0)),
        (200, {b"age": b"7", b"etag": b'"1"'}, Sight(True, 1.0, 7.0, None, b'"1"')),
        (404, {b"age": b"0", b"last-modified": b"x"}, Sight(True, 1.0, 0.0, None, b"x")),
        (200, {b"age": b"-1"}, Sight(True, 1.0)),
        (403, {}, "was answered 403"),
        (503, {}, "was answered 503"),
    ],
)
def test_only_if_cached(status: int, headers: dict[bytes, bytes], shown: Sight | str) -> None:
    seen = read_only_if_cached(Answer(status, headers, 1.0))
    assert seen == shown if isinstance(shown, Sight) else shown in str(seen)


@pytest.mark.parametrize(
    ("status", "headers", "shown"),
    [
        (299, {b"x-refreshd-look": b"Gone", b"x-refreshd-begun": b""}, Sight(False, 1.0)),
        (
            299,
            {b"x-refreshd-look": b"There", b"x-refreshd-begun": b"5.001", b"x-refreshd-ttl": b"-0.1"},
            Sight(True, 1.0, begun=5.001, stale=True),
        ),
        # One from before the VCL was included.
        (299, {b"x-refreshd-look": b"There", b"x-refreshd-ttl": b"9"}, Sight(True, 1.0)),
        (200, {b"x-refreshd-look": b"There"}, "LOOK was answered 200"),
        (299, {}, "LOOK was answered 299"),
    ],
)
def test_look(status: int, headers: dict[bytes, bytes], shown: Sight | str) -> None:
    seen = read_varnish_look(Answer(status, headers, 1.0))
    assert seen == shown if isinstance(shown, Sight) else shown in str(seen)
