"""The kinds of cache that this agent can act on, by the name that stands in the configuration."""

from __future__ import annotations

from proxyd.caches.ats import ATS
from proxyd.caches.base import CacheKind, Deed
from proxyd.caches.http import Request, make_kind
from proxyd.caches.squid import SQUID
from proxyd.caches.varnish import VARNISH

KINDS: dict[str, CacheKind] = {kind.name: kind for kind in (VARNISH, ATS, SQUID, make_kind({}))}

# Promised by the configuration's face, built later.
PLANNED_KINDS = ("nginx",)

Requests = tuple[tuple[str, Request], ...]
"""What a [[cache]] says of task types, in the order of `PLACES`."""


def kind_of(name: str, requests: Requests = ()) -> CacheKind:
    """The kind of that name. `requests` are what was configured, where that says what the kind can."""
    return make_kind(dict(requests)) if KINDS[name].configurable else KINDS[name]


__all__ = ["KINDS", "PLANNED_KINDS", "CacheKind", "Deed", "Request", "Requests", "kind_of"]
