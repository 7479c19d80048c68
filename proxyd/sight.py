"""What a look at a cache shows, and what follows from it after a purge. Pure.

A cache that has answered a purge may still have a copy that is old: it did not do what it said (or did it to
another key), or it was fetching the object while it was purged and has stored what came, which its origin,
or the cache below it, had sent before. So after a purge it is looked whether a copy is there, without having
the cache fetch one. Nothing there: gone. A copy there may be one that a visitor had it fetch since, so:

- Where the cache tells by its own clock when the fetch of the copy began (our VCL does), and when the purge
  came, it is new if the fetch began later. That holds whatever lies below.
- Elsewhere it was looked before the purge as well. A copy with another validator (ETag, Last-Modified) than
  then is new. So is any if none was there then. One with the same validator is new if its `Age` (whole
  seconds, RFC 9111, 5.1) shows that it cannot be the one from then: that would have grown older. If it could
  be, it counts as the same.

What cannot be seen like this: a fetch that a cache has begun before a purge and that has not brought anything
yet. Varnish makes a look wait for it, and Traffic Server a purge. Squid and nginx do neither.
"""

from __future__ import annotations

import enum

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """What a cache answered, but for the body. Names of headers are in lower case; `at` is loop time, s."""

    status: int
    headers: dict[bytes, bytes]
    at: float


class Sight(msgspec.Struct, frozen=True):
    """What a look shows. Unknown is None. Ages are in seconds; `begun` is by the cache's clock."""

    there: bool
    at: float
    """When it was seen: loop time, s."""
    age_s: float | None = None
    begun: float | None = None
    validator: bytes | None = None
    stale: bool = False
    """It is there, but is not served any more without the origin being asked, or while it is."""


class Purged(msgspec.Struct, frozen=True):
    """When a purge was sent (loop time, s), and when it came by the cache's clock (None: not told)."""

    sent_at: float
    cache_now: float | None = None
    soft: bool = False
    """What is there may stay, if it is not served as fresh."""


class Verdict(enum.Enum):
    """What a look after a purge means."""

    GONE = "gone"
    NEW = "a newer copy is there"
    OLD = "the copy from before is there"


def judge(before: Sight | None, after: Sight, purged: Purged) -> Verdict:
    """What the look `after` a purge means; `before` is the one before it, where it was looked."""
    if not after.there or (purged.soft and after.stale):
        return Verdict.GONE
    if after.begun is not None and purged.cache_now is not None:
        # (Both are cut to ms.)
        return Verdict.NEW if after.begun > purged.cache_now else Verdict.OLD
    if before is None or not before.there:
        return Verdict.NEW
    if None not in (before.validator, after.validator) and before.validator != after.validator:
        return Verdict.NEW
    if after.age_s is None or before.age_s is None:
        return Verdict.OLD
    # Of the old copy, all that was shown then and the time since; each may be off by the second it is cut to.
    return Verdict.NEW if after.age_s + 1 <= before.age_s + (after.at - before.at) else Verdict.OLD


def read_only_if_cached(answer: Answer) -> Sight | str:
    """What an answer to a HEAD with `Cache-Control: only-if-cached` shows, or what is wrong with it.

    RFC 9111, 5.2.1.7: 504 where nothing is there.
    """
    if answer.status == 504:
        return Sight(False, answer.at)
    if answer.status >= 500 or answer.status in (400, 401, 403, 405, 407):
        return f"a look (HEAD, only-if-cached) was answered {answer.status}"
    headers = answer.headers
    age = headers.get(b"age", b"")
    validator = headers.get(b"etag") or headers.get(b"last-modified")
    return Sight(True, answer.at, float(age) if age.isdigit() else None, None, validator)


def read_varnish_look(answer: Answer) -> Sight | str:
    """What an answer to the LOOK of refreshd.vcl shows, or what is wrong with it."""
    seen = answer.headers.get(b"x-refreshd-look")
    if answer.status != 299 or seen is None:
        return f"LOOK was answered {answer.status} (include the refreshd.vcl of this version in the VCL)"
    ttl = read_seconds(answer, b"x-refreshd-ttl")
    return Sight(
        seen == b"There", answer.at, begun=read_seconds(answer, b"x-refreshd-begun"),
        stale=ttl is not None and ttl <= 0,
    )  # fmt: skip


def read_seconds(answer: Answer, name: bytes) -> float | None:
    """A header that is a number of seconds; None if it is not there, or is not one."""
    text = answer.headers.get(name, b"")
    try:
        return float(text)
    except ValueError:
        return None
