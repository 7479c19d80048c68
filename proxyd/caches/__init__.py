"""The kinds of cache that this agent can act on, by the name that stands in the configuration."""

from __future__ import annotations

from proxyd.caches.ats import ATS, ats_kind
from proxyd.caches.base import CacheKind, Deed
from proxyd.caches.http import Request, make_kind
from proxyd.caches.nginx import NGINX_REFETCH, nginx_kind
from proxyd.caches.squid import SQUID
from proxyd.caches.varnish import VARNISH

KINDS: dict[str, CacheKind] = {
    kind.name: kind for kind in (VARNISH, ATS, NGINX_REFETCH, SQUID, make_kind({}))
}

Requests = tuple[tuple[str, Request], ...]
"""What a [[cache]] says of task types, in the order of `PLACES`."""


def kind_of(
    name: str, *, requests: Requests = (), path: str = "", purge: bool = False, rules: bool = False
) -> CacheKind | None:
    """The kind of a cache with these settings; None if there is none of that name.

    `requests` are what was configured, where that says what the kind can; `path` and `purge` are an nginx's,
    `rules` is whether a Traffic Server has a file of them.
    """
    if name == "ats":
        return ats_kind(rules=rules)
    if name == "nginx":
        return nginx_kind(path, purge=purge)
    kind = KINDS.get(name)
    return make_kind(dict(requests)) if kind is not None and kind.configurable else kind


__all__ = ["KINDS", "CacheKind", "Deed", "Request", "Requests", "kind_of"]
