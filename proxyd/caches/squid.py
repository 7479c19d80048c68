"""Squid 5 as an accelerator: PURGE one URL, one variant of it. The settings it needs stand in `squid/`.

HTCP, in which Squid can be told to forget a URL too (CLR), is not used. It reaches less than PURGE does: of a
URL with variants it leaves all (measured: it forgets what leads to them, until the next visit). And it goes
over UDP, where an answer that is lost looks like one that is late.
"""

from __future__ import annotations

from proxyd.caches.base import LOOK_ONLY_IF_CACHED, PREFETCH, CacheKind, Deed

_HINTS = {
    # Measured: both are answered like this.
    400: "Squid takes URLs below 8192 bytes, http:// and host counted, at an http_port with the word accel",
    403: "include refreshd.conf in squid.conf above what it allows, and add this agent's address to the acl "
    "refreshd_agents",
}

_ONE_BY_ONE = "Squid removes single URLs only; name each of them, as type=url"

SQUID = CacheKind(
    name="squid",
    deeds={
        # 404: it was not in the cache, which is what was asked for. Squid itself says so, no origin is asked.
        "url": Deed(
            method=b"PURGE",
            good=frozenset({200, 404}),
            hints=_HINTS,
            note="with the settings that are shipped, see [Squid and Vary](#squid-and-vary)",
        ),
        "prefetch": PREFETCH,
    },
    refused={"dir": _ONE_BY_ONE, "regex": _ONE_BY_ONE, "tag": _ONE_BY_ONE},
    look=LOOK_ONLY_IF_CACHED,
    no_drop="Squid knows no request that drops all it holds; stop it, remove its cache_dir, start it",
)
