"""News: what makes an engine look at once at what it would see within a second anyway.

A message may be lost, come twice or come late. So nothing hangs on one, and it
holds nothing but where to look: "handout NUMBER", "registry".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from refreshd.cluster.client import ClusterClient
from refreshd.cluster.names import Names
from refreshd.cluster.tasks import end
from refreshd.errors import ClusterUnavailable

log = structlog.get_logger()

# How long to wait for a message before it is looked whether the connection still lives.
_QUIET_S = 5.0
_AGAIN_S = 1.0
# A message that is longer is none of ours.
_MESSAGE_MAX_BYTES = 100


class News:
    """Says and hears news of one cluster."""

    def __init__(
        self,
        client: ClusterClient,
        names: Names,
        *,
        on_handout: Callable[[int], None] = lambda _: None,
        on_registry: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_handout` gets the number of the engine that was given tasks; it may be another."""
        self._client = client
        self._channel = names.news
        self._on_handout = on_handout
        self._on_registry = on_registry
        self._listening: asyncio.Task[None] | None = None

    async def tell_handout(self, number: int) -> None:
        """Tasks were given to an engine. Never raises: it looks by itself a little later."""
        await self._publish(f"handout {number}")

    async def tell_registry(self) -> None:
        """An engine came, goes, or drains. Never raises."""
        await self._publish("registry")

    async def _publish(self, message: str) -> None:
        try:
            await self._client.call("PUBLISH", self._channel, message)
        except ClusterUnavailable as error:
            log.info("news not told", message=message, error=str(error))

    def start(self) -> None:
        """Begins to listen."""
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def close(self) -> None:
        """Ends listening."""
        if self._listening is not None:
            await end([self._listening])

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear()
            except ClusterUnavailable:
                # Whoever polls says it already.
                pass
            except Exception:
                log.exception("a fault while listening to news")
            await asyncio.sleep(_AGAIN_S)

    async def _hear(self) -> None:
        async with self._client.subscribe(self._channel) as subscription:
            while True:
                self._read(await subscription.message(_QUIET_S))

    def _read(self, message: bytes | None) -> None:
        if message is None or len(message) > _MESSAGE_MAX_BYTES:
            return
        match message.decode("ascii", "replace").split():
            case ["handout", number] if number.isdecimal():
                self._on_handout(int(number))
            case ["registry"]:
                self._on_registry()
            case _:
                # Of a later release.
                pass
