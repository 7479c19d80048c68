"""Apache Traffic Server 9: PURGE one URL. The settings it needs stand in `ats/`."""

from __future__ import annotations

from proxyd.caches.base import LOOK_ONLY_IF_CACHED, NOT_YET, PREFETCH, CacheKind, Deed

_HINTS = {
    403: "allow PURGE for this agent's address in ip_allow.yaml",
    405: "allow PURGE for this agent's address in ip_allow.yaml",
}

ATS = CacheKind(
    name="ats",
    deeds={
        # 404: it was not in the cache, which is what was asked for.
        "url": Deed(method=b"PURGE", good=frozenset({200, 404}), hints=_HINTS),
        "prefetch": PREFETCH,
    },
    refused={
        "dir": "Traffic Server purges single URLs; this agent cannot refresh a directory there yet",
        "regex": NOT_YET.format("pattern"),
        "tag": NOT_YET.format("tag"),
    },
    look=LOOK_ONLY_IF_CACHED,
    no_drop="Traffic Server knows no request that drops all it holds",
)
