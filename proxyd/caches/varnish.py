"""Varnish: PURGE one URL, BAN one directory, both answered by the VCL in `varnish/refreshd.vcl`.

How a ban is written, and why nobody can break out of it, stands in that file.
"""

from __future__ import annotations

from proxyd.caches.base import NOT_YET, PREFETCH, CacheKind, Deed

_HINTS = {
    400: "refused by refreshd.vcl: the host or the path is not one that it takes",
    403: "add this agent's address to the acl refreshd_purgers",
    405: "include refreshd.vcl in the VCL, see docs/agent.md",
    413: "the URL is longer than Varnish takes, see http_req_size and http_req_hdr_len",
    501: "include refreshd.vcl in the VCL, see docs/agent.md",
}

_DROP_HINTS = {
    **_HINTS,
    200: "include the refreshd.vcl of this version in the VCL: this Varnish passes DROP on to its origin",
}

# 200 whether or not the object was there. Not 404: a Varnish whose VCL does not know PURGE passes it on
# to the origin, and that is what origins answer.
_PURGED = frozenset({200, 204})

VARNISH = CacheKind(
    name="varnish",
    deeds={
        "url": Deed(method=b"PURGE", good=_PURGED, hints=_HINTS, note="all variants"),
        "dir": Deed(
            method=b"BAN", good=frozenset({200}), hints=_HINTS, note="all that begins with it, on that host"
        ),
        "prefetch": PREFETCH,
    },
    refused={"regex": NOT_YET.format("pattern"), "tag": NOT_YET.format("tag")},
    # 299 is what no origin answers: some answer 200 to whatever method a Varnish without the VCL passes on.
    # A method of its own: an older refreshd.vcl would take an odd BAN for one of a directory.
    drop=Deed(method=b"DROP", good=frozenset({299}), hints=_DROP_HINTS, note="a ban that matches everything"),
)
