"""What the agent's tests share."""

from collections.abc import Iterator

import pytest

from tests.cache_fixtures import ats, ats_rules, host, nginx, origin, squid, varnish
from tests.proxyd.fake_cache import FakeCache


@pytest.fixture
def cache() -> Iterator[FakeCache]:
    """A cache of the test's own."""
    made = FakeCache()
    yield made
    made.close()


__all__ = ["ats", "ats_rules", "cache", "host", "nginx", "origin", "squid", "varnish"]
