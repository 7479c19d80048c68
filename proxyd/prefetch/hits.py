"""Whether an answer came out of this very cache, by what caches say of it. Pure.

`Age` is not looked at: it is also more than 0 where a parent had the object and this cache has just fetched
it from there. A mark that each tier adds (`X-Cache`) counts if all of them say hit, for which is whose cannot
be told: a hit may then be taken for none, and the object comes once more, which harms nobody.

Traffic Server gives no mark by default. It is asked first, without filling: HEAD with `only-if-cached`
(RFC 9111, 5.2.1.7) is answered 504 at once where nothing is there that may be served.
"""

from __future__ import annotations

import re

from proxyd.prefetch.heads import Head

PROBED_KINDS = frozenset({"ats"})
"""Which are asked first."""
PROBE_HEADERS = ((b"Cache-Control", b"only-if-cached"),)
# A hit's body that is longer is not waited for: a new connection costs as much as this.
DRAIN_MAX_BYTES = 64 * 1024

_TWO_IDS = re.compile(rb"\d+ \d+").fullmatch
_HIT = re.compile(rb"(?:TCP_)?(?:\w+_)?HIT\b(?!-FOR)", re.IGNORECASE).match
# RFC 9211: the cache nearest to us is the last in the list; `hit` is a parameter of it.
_STATUS_HIT = re.compile(rb";\s*hit\s*(?:=\s*\?1\s*)?(?:;|$)", re.IGNORECASE).search
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


def is_hit(kind: str, head: Head) -> bool:
    """Whether the answer says that the cache had it."""
    if kind == "varnish":
        # The second number is that of the request that has fetched it.
        return bool(_TWO_IDS(head.get(b"x-varnish")))
    if status := head.get(b"cache-status"):
        last = _QUOTED.sub(b"", status).rpartition(b",")[2]
        return bool(_STATUS_HIT(last))
    marks = [value for name in (b"x-cache", b"x-cache-status") if (value := head.get(name))]
    return bool(marks) and all(_HIT(word.strip()) for mark in marks for word in mark.split(b","))


def is_probe_hit(head: Head) -> bool:
    """Whether the answer to a probe says that the cache has it."""
    return 200 <= head.status < 300
