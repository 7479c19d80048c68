"""The way to Redis: no call waits long, none is repeated, and every error is one kind.

redis-py repeats a call that timed out, which Redis may have carried out; it is told
not to. A call that fails breaks its connection, and the next one makes another. So
there is no state "disconnected", and nothing to reconnect by hand.
"""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import redis.asyncio as redis_asyncio
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from refreshd.cluster.scripts import Script
from refreshd.errors import ClusterUnavailable

CALL_S = 1.0
# One for the coordinator's calls, one for the news it listens to, and two for whoever else in
# the worker (quotas, queues) asks at the same time; more than these wait for each other.
CONNECTIONS_MAX = 4
# Options that a URL may have. The others would change how long a call waits, or repeat it.
_URL_OPTIONS = frozenset(
    {
        "db",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
_URL_PARTS = frozenset({"username", "password", "path", "connection_class", "host", "port"})
# Redis says what it is in a few KiB; only this of it matters.
_RUN_ID = b"run_id:"


def read_url(url: str) -> dict[str, Any]:
    """What redis-py wants to know of `redis://`, `rediss://` (TLS) or `unix://`.

    Raises: ValueError, whose text shows neither user nor password.
    """
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ValueError(f"{error}; wanted a URL such as redis://127.0.0.1:6379/0") from None
    if unknown := sorted(options.keys() - _URL_OPTIONS - _URL_PARTS):
        wanted = ", ".join(sorted(_URL_OPTIONS))
        raise ValueError(f"{', '.join(unknown)}: not an option here; wanted one of {wanted}")
    if url.startswith("unix:") and not options.get("path"):
        raise ValueError("unix:// without a path; wanted a URL such as unix:///run/redis/redis.sock")
    return options


def shown_url(url: str) -> str:
    """The URL without user, password and options, for logs and errors."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class ClusterClient:
    """A few connections to one Redis, for one event loop. Makes none until the first call."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "refreshd",
        call_s: float = CALL_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        """`name` is what `CLIENT LIST` shows. Raises: ValueError, see `read_url`."""
        self.server = ""
        """Names the run of Redis that answered last: another after a restart or a fail-over."""
        self._where = shown_url(url)
        self._call_s = call_s
        self._connects = 0
        # Their types have holes: calls of some methods are untyped.
        self._pool: Any = redis_asyncio.BlockingConnectionPool(
            max_connections=connections_max,
            timeout=call_s,
            # Whatever is asked has a deadline here. The library's own for writing uses asyncio.wait_for,
            # which in Python 3.11 may swallow a cancellation: who stops a task would wait for ever.
            socket_timeout=None,
            socket_connect_timeout=call_s,
            retry=Retry(NoBackoff(), 0),
            # The older protocol: it is all that is needed, and every Redis and its kin speak it.
            protocol=2,
            driver_info=None,
            client_name=name,
            redis_connect_func=self._greet,
            **read_url(url),
        )
        self._redis: Any = redis_asyncio.Redis(connection_pool=self._pool)

    async def _greet(self, connection: AbstractConnection) -> None:
        """A new connection: logs in, and asks which Redis this is."""
        await connection.on_connect()
        self._connects += 1
        # Where it may not be asked, each connection counts as to another server: that is the safe side.
        server = f"connection {self._connects}"
        try:
            await connection.send_command("INFO", "server")
            for line in bytes(await connection.read_response()).splitlines():
                if line.startswith(_RUN_ID):
                    server = line[len(_RUN_ID) :].decode()
        except redis_asyncio.ResponseError:
            pass
        self.server = server

    @property
    def library(self) -> redis_asyncio.Redis:
        """The library's client over the same connections. Whoever uses it sets deadlines of its own."""
        client: redis_asyncio.Redis = self._redis
        return client

    async def run(self, script: Script, keys: list[str], *args: str | int | bytes) -> Any:
        """What the script returns, texts as bytes.

        Raises: ClusterUnavailable: it may have run all the same, or may still run.
        """
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *args)
        except _NotKnown:
            # Redis has not run it: this is no repetition.
            return await self.call("EVAL", script.text, len(keys), *keys, *args)

    async def call(self, *command: str | int | bytes) -> Any:
        """What Redis answers to one command. Raises: ClusterUnavailable, as `run` does."""
        async with self._deadline(str(command[0])):
            return await self._redis.execute_command(*command)

    @asynccontextmanager
    async def _deadline(self, what: str, *, after_s: float = 0.0) -> AsyncIterator[None]:
        """Translates all that can go wrong. Connecting, logging in and the answer share one deadline."""
        try:
            async with asyncio.timeout(after_s + self._call_s):
                yield
        except NoScriptError as error:
            raise _NotKnown(f"Redis at {self._where} does not know a script: {error}") from None
        except TimeoutError:
            raise ClusterUnavailable(
                f"Redis at {self._where} did not answer {what} within {self._call_s:g} s"
            ) from None
        except (RedisError, OSError, RuntimeError, AttributeError) as error:
            # The last two come of a connection that is closed under a call, by uvloop and by the library.
            raise ClusterUnavailable(f"Redis at {self._where}: {what}: {error}") from error

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[Subscription]:
        """Listens to a channel, on a connection of its own. Raises: ClusterUnavailable."""
        async with self._deadline("SUBSCRIBE"):
            connection = await self._pool.get_connection()
        try:
            async with self._deadline("SUBSCRIBE"):
                await connection.send_command("SUBSCRIBE", channel)
                await connection.read_response()
            yield Subscription(connection, self._deadline)
        finally:
            # Nobody else can use a connection that is subscribed.
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)

    async def close(self) -> None:
        """Closes all connections; calls under way fail."""
        try:
            await self._pool.disconnect()
        except (RedisError, OSError, RuntimeError):
            # The other end does not say goodbye.
            pass

    def __repr__(self) -> str:
        return f"<ClusterClient {self._where}>"


class Subscription:
    """A channel that is listened to."""

    def __init__(
        self,
        connection: AbstractConnection,
        deadline: Callable[..., AbstractAsyncContextManager[None]],
    ) -> None:
        self._connection = connection
        self._deadline = deadline

    async def message(self, quiet_s: float) -> bytes | None:
        """The next message. None if none comes for so long, and Redis is still there.

        Raises: ClusterUnavailable.
        """
        async with self._deadline("SUBSCRIBE", after_s=quiet_s):
            answer = await self._connection.read_response(timeout=quiet_s)
            if answer is None:
                # A connection whose other end vanished is as quiet as one without news.
                await self._connection.send_command("PING")
                answer = await self._connection.read_response()
        match answer:
            case [b"message", _, bytes(message)]:
                return message
            case _:
                return None


class _NotKnown(ClusterUnavailable):
    """Redis does not know a script (it was started anew, or forgot): it was not run."""
