"""A thin pytest fixture over tools.servers.RedisServer; import it in a conftest.

One server a test: it is up in a few hundredths of a second, and tests kill it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.servers import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own; its users are marked needs("redis-server")."""
    with RedisServer() as server:
        yield server
