"""The kinds of cache that this agent can act on, by the name that stands in the configuration."""

from __future__ import annotations

from proxyd.caches.ats import ATS
from proxyd.caches.base import CacheKind, Deed
from proxyd.caches.nginx import NGINX_REFETCH, nginx_kind
from proxyd.caches.varnish import VARNISH

KINDS: dict[str, CacheKind] = {kind.name: kind for kind in (VARNISH, ATS, NGINX_REFETCH)}

# Promised by the configuration's face, built later.
PLANNED_KINDS = ("squid",)


def kind_of(name: str, *, path: str = "", purge: bool = False) -> CacheKind | None:
    """The kind of a cache with these settings; None if there is none of that name."""
    return nginx_kind(path, purge=purge) if name == "nginx" else KINDS.get(name)


__all__ = ["KINDS", "PLANNED_KINDS", "CacheKind", "Deed", "kind_of"]
