"""What the agent's tests share."""

from tests.servers.fixtures import ats, host, origin, varnish

__all__ = ["ats", "host", "origin", "varnish"]
