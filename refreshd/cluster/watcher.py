"""What every worker but the first does for the cluster: it reads along."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from refreshd.cluster.client import ClusterClient
from refreshd.cluster.lease import TIMING, Timing
from refreshd.cluster.names import Names
from refreshd.cluster.news import News
from refreshd.cluster.registry import Registry
from refreshd.cluster.snapshot import Snapshot
from refreshd.cluster.tasks import end, rest
from refreshd.errors import ClusterUnavailable

log = structlog.get_logger()


class Watcher:
    """Keeps `snapshot` fresh. While Redis is away, the last one stands; `at_ms` says how old it is."""

    def __init__(
        self,
        client: ClusterClient,
        names: Names,
        *,
        on_registry: Callable[[Snapshot], None] = lambda _: None,
        on_handout: Callable[[int], None] = lambda _: None,
        timing: Timing = TIMING,
    ) -> None:
        """`on_registry`: it was read, once a second; `on_handout`: the engine of that number got tasks."""
        self.snapshot = Snapshot()
        self.error = ""
        """Why Redis did not answer the last question, "" if it did."""
        self._on_registry = on_registry
        self._poll_s = timing.poll_ms / 1000
        self._registry = Registry(client, names, timing)
        self._wake = asyncio.Event()
        self._news = News(client, names, on_handout=on_handout, on_registry=self._wake.set)
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins. Redis need not be there."""
        self._news.start()
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Ends."""
        if self._watching is not None:
            await end([self._watching])
        await self._news.close()

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._read()
            except Exception:
                log.exception("a fault while reading the registry")
            await rest(self._wake, self._poll_s)

    async def _read(self) -> None:
        try:
            self.snapshot = await self._registry.read()
        except ClusterUnavailable as error:
            if not self.error:
                log.warning("redis does not answer; the registry stands as it was", error=str(error))
            self.error = str(error)
            return
        self.error = ""
        self._on_registry(self.snapshot)
