"""nginx as Debian has it: refreshed in one of three ways, chosen by what stands in its [[cache]].

With `path` (its cache folder): files are unlinked, by hands instead of requests (`nginx_files.py`,
`local.py`).

    url ──► its key (nginx_key.py), md5, unlink ──there, and it has no variants──► done
                       └──slices; variants, or no way to know──► sweep ──► done
    dir, drop ──► sweep: read the KEY line of each file, unlink what fits ──► done

Everything that waits when a sweep begins is done by that one; what comes later, by the next. What is
bounded by what, and what a fault of each step means, stands in those two files.

Without `path`: a GET that refreshd.conf takes past the cache (`proxy_cache_bypass`). It can only put
another object in the place of the old one, so it fails where the origin does not answer 2xx, and it is no
way to refresh

- what the origin says may not be stored (no-store, max-age=0, Set-Cookie): the old copy stays, and nothing
  says so;
- answers with `Vary`: one variant is fetched anew, the others stay.

With `purge` (a module built by hand; the one of Debian 12 crashes its worker at each PURGE): PURGE, 412 or
404 where there was nothing.

In none of these ways does nginx forget what it is *just fetching*: an answer that set out before the
refresh and comes in after it is stored (seen with a real one; nothing on disk tells of it).
"""

from __future__ import annotations

from proxyd.caches.base import NOT_YET, PREFETCH, CacheKind, Deed, LocalDeed
from proxyd.caches.nginx_files import DROP, UNLINK, UNLINK_BELOW

_REFUSED = {"regex": NOT_YET.format("pattern"), "tag": NOT_YET.format("tag")}
_NO_FOLDER = "without its cache folder (path) this agent can ask nginx for single URLs only"
_NO_DROP = "without its cache folder (path) nothing tells nginx to drop all it holds"

_REFETCH_HINTS = {
    404: "the origin has it no more, and nginx keeps its old copy unless it may store this answer; set path",
    504: "nginx got no answer from the origin; the old copy stays",
    502: "nginx got no answer from the origin; the old copy stays",
}

NGINX_FILES = CacheKind(
    name="nginx",
    deeds={
        "url": LocalDeed(
            method=UNLINK,
            good=frozenset(),
            exact=False,
            certain=True,
            note="its files are unlinked: all slices and variants",
        ),
        "dir": LocalDeed(
            method=UNLINK_BELOW,
            good=frozenset(),
            sweeps=True,
            exact=False,
            certain=True,
            note="one walk through the folder for all that wait",
        ),
        "prefetch": PREFETCH,
    },
    refused=_REFUSED,
    drop=LocalDeed(method=DROP, good=frozenset(), sweeps=True, exact=False, note="all files are unlinked"),
)

NGINX_REFETCH = CacheKind(
    name="nginx",
    deeds={
        "url": Deed(
            method=b"GET",
            good=PREFETCH.good,
            hints=_REFETCH_HINTS,
            # Not HEAD, though nginx fetches the object for that, too: its answer is there before the
            # object. Even the last byte of a GET is, by a moment in which another worker serves the old one
            # (1 of 300 reads). It closes the connection when it has put the object into its place.
            headers=b"Refreshd-Refetch: 1\r\nConnection: close\r\n" + PREFETCH.headers,
            exact=False,
            note="fetched again, in place of the old one ([not always](#without-the-folder))",
        ),
        "prefetch": PREFETCH,
    },
    refused={**_REFUSED, "dir": _NO_FOLDER},
    no_drop=_NO_DROP,
    no_look="nginx cannot be asked whether it has a copy; set path",
    streams=True,
)

NGINX_PURGE = CacheKind(
    name="nginx",
    deeds={
        "url": Deed(
            method=b"PURGE",
            # 412: it was not in the cache, which is what was asked for; 404 where the module was told to
            # say that.
            good=frozenset({200, 204, 404, 412}),
            hints={
                403: "allow PURGE for this agent's address: proxy_cache_purge PURGE from 127.0.0.1",
                405: "this nginx has no purge module, or no proxy_cache_purge stands in that location",
            },
        ),
        "prefetch": PREFETCH,
    },
    refused={**_REFUSED, "dir": _NO_FOLDER},
    no_look="nginx cannot be asked whether it has a copy; set path",
    no_drop=_NO_DROP,
)


def nginx_kind(path: str, *, purge: bool) -> CacheKind:
    """The kind of an nginx with these settings."""
    return NGINX_FILES if path else NGINX_PURGE if purge else NGINX_REFETCH
