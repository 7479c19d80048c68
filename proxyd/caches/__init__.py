"""The kinds of cache that this agent can act on, by the name that stands in the configuration."""

from __future__ import annotations

from proxyd.caches.ats import ATS
from proxyd.caches.base import CacheKind, Deed
from proxyd.caches.squid import SQUID
from proxyd.caches.varnish import VARNISH

KINDS: dict[str, CacheKind] = {kind.name: kind for kind in (VARNISH, ATS, SQUID)}

# Promised by the configuration's face, built later.
PLANNED_KINDS = ("nginx",)

__all__ = ["KINDS", "PLANNED_KINDS", "CacheKind", "Deed"]
