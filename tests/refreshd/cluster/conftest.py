"""What these tests share: one Redis, as it is empty, up and awake for each of them."""

from collections.abc import Iterator

import pytest

from tools.servers import RedisServer


@pytest.fixture(scope="session")
def one_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(one_redis: RedisServer) -> RedisServer:
    """Whoever kills it or stops it need not put it right."""
    one_redis.resume()
    one_redis.client.close()
    if one_redis.process is None or one_redis.process.poll() is not None:
        one_redis.restart()
    one_redis.client.flushall()
    one_redis.client.script_flush()
    return one_redis
