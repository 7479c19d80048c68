"""The way to Redis: nothing waits long, nothing is repeated, every error is one kind."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
import uvloop

from refreshd.cluster.client import ClusterClient, read_url, shown_url
from refreshd.cluster.scripts import RENEW
from refreshd.errors import ClusterUnavailable
from tests.refreshd.cluster.timing import run, until
from tools.servers import RedisServer
from tools.servers.waiting import free_port

pytestmark = pytest.mark.needs("redis-server")
# Workers run in the one, all else in the other; they differ in what a closed connection raises.
in_both_loops = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


@asynccontextmanager
async def a_client(url: str, **more: Any) -> AsyncIterator[ClusterClient]:
    client = ClusterClient(url, **{"call_s": 0.3, **more})
    try:
        yield client
    finally:
        await client.close()


def test_a_script_runs_also_where_redis_has_forgotten_it(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_client(redis_server.url) as client:
            for _ in range(2):
                redis_server.client.script_flush()
                assert await client.run(RENEW, ["k"], "v", 1_000) == b""
                assert await client.run(RENEW, ["k"], "v", 1_000) == b""

    run(test())


@in_both_loops
def test_a_call_that_timed_out_is_not_repeated_although_it_may_be_carried_out(
    redis_server: RedisServer,
    loop: Any,
) -> None:
    async def test() -> None:
        async with a_client(redis_server.url) as client:
            assert await client.call("INCR", "n") == 1
            redis_server.pause()
            with pytest.raises(ClusterUnavailable, match="did not answer INCR"):
                await client.call("INCR", "n")
            redis_server.resume()
            await until(lambda: redis_server.client.get("n") == "2")
            assert await client.call("INCR", "n") == 3

    run(test(), loop)


@in_both_loops
def test_it_connects_again_and_sees_that_this_is_another_redis(redis_server: RedisServer, loop: Any) -> None:
    async def test() -> None:
        async with a_client(redis_server.url) as client:
            await client.call("PING")
            before = client.server
            assert before
            redis_server.kill()
            with pytest.raises(ClusterUnavailable, match=redis_server.address):
                await client.call("PING")
            redis_server.restart()
            assert await client.call("PING")
            assert client.server != before

    run(test(), loop)


def _has_heard_the_end(client: ClusterClient) -> bool:
    return all(connection._reader.at_eof() for connection in client._pool._available_connections)


@in_both_loops
def test_also_when_it_never_saw_it_gone(redis_server: RedisServer, loop: Any) -> None:
    async def test() -> None:
        async with a_client(redis_server.url) as client:
            await client.call("PING")
            before = client.server
            redis_server.restart()
            await until(lambda: _has_heard_the_end(client))
            assert await client.call("PING")
            assert client.server != before

    run(test(), loop)


def test_another_connection_to_the_same_redis_is_no_other_redis(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_client(redis_server.url, name="mine") as client:
            await client.call("PING")
            before = client.server
            redis_server.client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: _has_heard_the_end(client))
            await client.call("PING")
            assert client.server == before

    run(test())


def test_who_may_not_ask_which_redis_it_is_takes_each_connection_for_another(
    redis_server: RedisServer,
) -> None:
    redis_server.client.acl_setuser("low", True, passwords=["+pw"], commands=["+@all", "-info"], keys=["*"])

    async def test() -> None:
        async with a_client(f"redis://low:pw@{redis_server.address}") as client:
            await client.call("PING")
            assert client.server == "connection 1"

    run(test())


def test_a_wrong_password_is_the_same_kind_of_error_and_shows_none(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_client(f"redis://me:secret@{redis_server.address}") as client:
            with pytest.raises(ClusterUnavailable) as caught:
                await client.call("PING")
            assert redis_server.address in str(caught.value)
            assert "secret" not in str(caught.value) + repr(client)

    run(test())


def test_what_redis_refuses_is_the_same_kind_of_error(redis_server: RedisServer) -> None:
    redis_server.client.lpush("list", "x")

    async def test() -> None:
        async with a_client(redis_server.url) as client:
            with pytest.raises(ClusterUnavailable, match="WRONGTYPE"):
                await client.call("GET", "list")
            with pytest.raises(ClusterUnavailable, match="WRONGTYPE"):
                await client.run(RENEW, ["list"], "v", 1_000)

    run(test())


def test_connections_are_bounded_and_who_is_one_too_many_waits(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with a_client(redis_server.url, name="mine", connections_max=2, call_s=10) as client:
            await asyncio.gather(*(client.call("INCR", "n") for _ in range(50)))
            assert redis_server.client.get("n") == "50"
            mine = [row for row in redis_server.client.client_list() if row["name"] == "mine"]
            assert 1 <= len(mine) <= 2

    run(test())


@in_both_loops
def test_a_call_that_is_cancelled_leaves_no_answer_behind(redis_server: RedisServer, loop: Any) -> None:
    async def test() -> None:
        async with a_client(redis_server.url, connections_max=1, call_s=10) as client:
            waiting = asyncio.create_task(client.call("BLPOP", "empty", 30))
            await until(lambda: any(row["cmd"] == "blpop" for row in redis_server.client.client_list()))
            waiting.cancel()
            await asyncio.wait([waiting])
            assert await client.call("ECHO", "mine") == b"mine"

    run(test(), loop)


@in_both_loops
def test_a_call_under_way_fails_when_it_is_closed(redis_server: RedisServer, loop: Any) -> None:
    async def test() -> None:
        async with a_client(redis_server.url, call_s=10) as client:
            waiting = asyncio.create_task(client.call("BLPOP", "empty", 30))
            await until(lambda: any(row["cmd"] == "blpop" for row in redis_server.client.client_list()))
            await client.close()
            with pytest.raises(ClusterUnavailable):
                await waiting

    run(test(), loop)


@in_both_loops
def test_news_are_heard_and_silence_is_looked_into(redis_server: RedisServer, loop: Any) -> None:
    async def test() -> None:
        async with a_client(redis_server.url) as client, client.subscribe("news") as subscription:
            redis_server.client.publish("news", "one")
            redis_server.client.publish("news", "two")
            assert await subscription.message(5) == b"one"
            assert await subscription.message(5) == b"two"
            assert await subscription.message(0.01) is None
            redis_server.pause()
            with pytest.raises(ClusterUnavailable):
                await subscription.message(0.01)
            redis_server.resume()
            assert await client.call("PING")

    run(test(), loop)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"

    async def test() -> None:
        async with a_client(f"unix://{path}?db=3") as client:
            await client.call("SET", "a", "1")

    with RedisServer(settings=("--unixsocket", str(path))) as server:
        run(test())
        server.client.select(3)
        assert server.client.get("a") == "1"


@pytest.mark.needs("openssl")
def test_tls_and_nobody_else_is_taken_for_the_server(tmp_path: Path) -> None:
    cert, key, port = tmp_path / "cert", tmp_path / "key", free_port()
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    settings = (
        *("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"),
    )

    async def test() -> None:
        async with a_client(f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}", call_s=5) as client:
            assert await client.call("PING")
        async with a_client(f"rediss://127.0.0.1:{port}", call_s=5) as client:
            with pytest.raises(ClusterUnavailable, match="certificate verify failed"):
                await client.call("PING")

    with RedisServer(settings=settings):
        run(test())


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://127.0.0.1:6379", "redis://"),
        ("", "redis://"),
        ("unix://", "without a path"),
        ("redis://h:1?socket_timeout=90", "socket_timeout: not an option here"),
        ("redis://h:1?retry_on_timeout=yes&x=1", "retry_on_timeout, x: not an option here"),
        ("redis://me:secret@h:port", "port"),
        ("redis://me:secret@h:1?db=x", "db"),
    ],
)
def test_a_url_that_will_not_do(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as caught:
        read_url(url)
    assert "secret" not in str(caught.value)


def test_what_is_shown_of_a_url() -> None:
    assert shown_url("rediss://me:p@ss@h:6380/2?ssl_ca_certs=/x") == "rediss://h:6380/2"
    assert shown_url("unix:///run/redis.sock") == "unix:///run/redis.sock"


def test_nothing_is_repeated_whatever_the_library_does_by_default() -> None:
    async def test() -> None:
        async with a_client("redis://127.0.0.1:1") as client:
            connection = client._pool.make_connection()
            assert type(connection.retry) is redis_asyncio.retry.Retry
            assert connection.retry.get_retries() == 0

    run(test())
