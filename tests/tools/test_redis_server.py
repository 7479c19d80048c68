"""The private Redis of tests and bench."""

import os

import pytest
import redis

from tests.redis_fixtures import redis_server
from tools.servers import RedisServer, ServerFailed, wait_until

__all__ = ["redis_server"]

pytestmark = pytest.mark.needs("redis-server")


def test_it_serves_at_its_address(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("a", "1")
    assert redis_server.client.get("a") == "1"


def test_two_have_nothing_in_common(redis_server: RedisServer) -> None:
    with RedisServer() as other:
        other.client.set("a", "1")
        assert other.address != redis_server.address
        assert redis_server.client.get("a") is None


def test_killed_it_comes_back_empty_at_the_same_address(redis_server: RedisServer) -> None:
    redis_server.client.set("a", "1")
    address, pid = redis_server.address, redis_server.pid
    redis_server.kill()
    with pytest.raises(redis.ConnectionError):
        redis_server.client.ping()
    redis_server.restart()
    assert (redis_server.address, redis_server.client.get("a")) == (address, None)
    assert redis_server.pid != pid


def test_paused_it_answers_only_once_it_is_resumed(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=0.1) as hasty:
        redis_server.pause()
        with pytest.raises(redis.TimeoutError):
            hasty.get("a")
        redis_server.resume()
        wait_until(lambda: redis_server.client.ping(), what="Redis answers again")


@pytest.mark.parametrize("paused", [False, True])
def test_stopped_it_leaves_nothing_behind(paused: bool) -> None:
    server = RedisServer().start()
    pid, folder = server.pid, server.folder
    if paused:
        server.pause()
    server.stop()
    server.stop()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_it_does_not_understand_is_told() -> None:
    with pytest.raises(ServerFailed, match="no-such-setting"):
        RedisServer(settings=("--no-such-setting", "1")).start()
