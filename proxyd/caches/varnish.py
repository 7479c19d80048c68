"""Varnish: PURGE of a URL; bans of a directory, a pattern or a tag; all answered by `varnish/refreshd.vcl`.

How a ban is written, and why nobody can break out of it, stands in that file.
"""

from __future__ import annotations

from proxyd.caches.base import PREFETCH, CacheKind, Canary, Deed, Look
from proxyd.sight import read_varnish_look

_HINTS = {
    400: "refused by refreshd.vcl: the host or the path is not one that it takes",
    403: "add this agent's address to the acl refreshd_purgers",
    405: "include refreshd.vcl in the VCL, see docs/agent.md",
    413: "the URL is longer than Varnish takes, see http_req_size and http_req_hdr_len",
    501: "include refreshd.vcl in the VCL, see docs/agent.md",
}

# What older versions of refreshd.vcl do not know is answered with 299, which no origin answers: some
# answer 200 to whatever method a Varnish without the VCL passes on. Methods of their own: an older
# refreshd.vcl would take an odd BAN for one of a directory.
_NEW = frozenset({299})
_NEW_HINTS = {
    **_HINTS,
    200: "include the refreshd.vcl of this version in the VCL: this Varnish passes this on to its origin",
}

# 200 whether or not the object was there. Not 404: a Varnish whose VCL does not know PURGE passes it on
# to the origin, and that is what origins answer.
_PURGED = frozenset({200, 204})

VARNISH = CacheKind(
    name="varnish",
    deeds={
        "url": Deed(method=b"PURGE", good=_PURGED, hints=_HINTS, note="all variants"),
        "dir": Deed(
            method=b"BAN",
            bans=True,
            good=frozenset({200}),
            hints=_HINTS,
            note="all that begins with it, on that host",
        ),
        "regex": Deed(
            method=b"BANREGEX",
            bans=True,
            good=_NEW,
            hints=_NEW_HINTS,
            note="all whose whole path with query it matches, on that host",
        ),
        "tag": Deed(
            method=b"BANTAG",
            bans=True,
            path_start=b"/",
            good=_NEW,
            hints=_NEW_HINTS,
            note="all that have it, on every host",
        ),
        "prefetch": PREFETCH,
    },
    refused={},
    look=Look(
        method=b"LOOK",
        good=frozenset(range(200, 600)),
        read=read_varnish_look,
        tells_begun=True,
    ),
    canary=Canary(method=b"CANARY", good=_NEW, hints=_NEW_HINTS),
    soft={
        "url": Deed(
            method=b"SOFTPURGE",
            good=_NEW,
            hints=_NEW_HINTS,
            note="all variants; they are served while they are fetched anew, for as long as `grace` lasts",
        ),
    },
    drop=Deed(method=b"DROP", good=_NEW, hints=_NEW_HINTS, note="a ban that matches everything"),
)
