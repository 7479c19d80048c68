"""A private Redis that keeps nothing: whoever kills it has the effect of a FLUSHALL, too."""

from __future__ import annotations

import signal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tools.servers.process import Server, find_program
from tools.servers.waiting import free_port

TIMEOUT_S = 5.0


class RedisServer(Server):
    """`redis-server`; it keeps its port when it is killed and restarted. `settings` are for its command line.

    `client` is a connection for the test's own questions: `server.client.flushall()`.
    """

    name = "redis"
    tries = 3

    def __init__(self, *, settings: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._settings = settings
        self._client: redis.Redis | None = None

    @property
    def url(self) -> str:
        """As in `redis.url` of refreshd.toml."""
        return f"redis://{self.address}/0"

    @property
    def client(self) -> redis.Redis:
        """Nothing it is asked is repeated behind the test's back."""
        if self._client is None:
            self._client = redis.Redis(
                host="127.0.0.1",
                port=self.port,
                socket_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
            )
        return self._client

    def _prepare(self) -> None:
        self.port = free_port()

    def stop(self) -> None:
        """See `Server.stop`."""
        self._hang_up()
        # One that is paused would not hear that it is to end.
        self.resume()
        super().stop()

    def kill(self) -> None:
        """Ends it at once, with all it holds; `restart` brings up an empty one."""
        self._hang_up()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        """Runs it again, on the same port, and waits until it serves. Raises: ServerFailed."""
        self.kill()
        self.run()
        self._wait_ready()

    def pause(self) -> None:
        """It accepts connections and answers nothing, until `resume`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The opposite of `pause`."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _command(self) -> list[str]:
        return [
            find_program("redis-server"),
            *("--port", str(self.port)),
            *("--bind", "127.0.0.1"),
            *("--dir", str(self.folder)),
            *("--save", ""),
            *("--appendonly", "no"),
            *self._settings,
        ]

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            # Not there yet, or (LOADING) not there quite.
            self._hang_up()
            return False
