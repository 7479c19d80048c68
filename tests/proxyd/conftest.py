"""What the agent's tests share."""

from tests.cache_fixtures import ats, host, origin, varnish

__all__ = ["ats", "host", "origin", "varnish"]
