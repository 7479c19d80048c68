"""All clients and proxies of a soak, and the pace at which they post."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from tools.soak.clients import UNANSWERED_MAX, ByteByByte, Client, Halving, Silent, Site, Watcher
from tools.soak.ledger import BURST
from tools.soak.proxies import BEAT_S, Proxy

_TICK_S = 0.005
_CONNECT_DEADLINE_S = 60.0
_LOOK_S = 0.05
# Of each hundred clients: those that take their time, and those that post at the rate.
_SLOW = 6
_SILENT = 2


class Crowd:
    """`clients` connections that post `rate` tasks a second together, and `proxies` that do them.

    Slow clients are not part of the rate.
    """

    def __init__(self, site: Site, *, clients: int, proxies: int, workers: int, rate: int):
        self.skipped = 0
        """Tasks that were not posted in time as their client had too many unanswered."""
        self.lag_s = 0.0
        """The longest that this process itself was late."""
        self._site = site
        self._rate = rate
        self.proxies = [Proxy(site, number, workers) for number in range(proxies)]
        self._slow: list[Client] = [
            (ByteByByte, Halving)[number % 2](site, ("", "hello v=1 role=client")[number // 2 % 2])
            for number in range(clients * _SLOW // 100)
        ]
        self._silent = [Silent(site) for _ in range(clients * _SILENT // 100)]
        fast = clients - len(self._slow) - len(self._silent)
        self._fast = [_fast(site, number, workers) for number in range(fast)]
        self._tasks: list[asyncio.Task[None]] = []

    def _everyone(self) -> Iterator[Client | Proxy]:
        yield from self.proxies
        yield from self._clients()

    def _clients(self) -> Iterator[Client]:
        yield from self._fast
        yield from self._slow
        yield from self._silent

    # ── beginning and ending ──────────────────────────────────────────────────────────────

    async def begin(self) -> None:
        """Connects everyone, then begins to post. Raises: TimeoutError."""
        self._tasks.append(asyncio.create_task(self._beat()))
        for proxy in self.proxies:
            proxy.connect()
            await asyncio.sleep(0)
        for client in self._clients():
            client.connect()
            await asyncio.sleep(0)
        async with asyncio.timeout(_CONNECT_DEADLINE_S):
            while not all(one.ready for one in self._everyone()):
                self._look()
                await asyncio.sleep(_LOOK_S)
        self._tasks.append(asyncio.create_task(self._pace()))

    def _look(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def settle(self, deadline_s: float) -> str:
        """Posts no more; waits until all is acknowledged and every watcher told. Says what is missing."""
        self._look()
        self._tasks.pop().cancel()
        for silent in self._silent:
            silent.speak()
        end = time.monotonic() + deadline_s
        while (missing := self._missing()) and time.monotonic() < end:
            for client in self._slow:
                if client.again:
                    client.post()
            await asyncio.sleep(_LOOK_S)
        return missing

    def _missing(self) -> str:
        found = {
            "posted and not answered": sum(client.unanswered for client in self._clients()),
            "watches that were told no final state": sum(
                len(client.watching) for client in self._fast if isinstance(client, Watcher)
            ),
            "silent connections that are not served": sum(
                not client.answer.startswith(b"ok now=") for client in self._silent
            ),
        }
        return ", ".join(f"{number} {what}" for what, number in found.items() if number)

    async def close(self) -> None:
        """Ends every connection."""
        for task in self._tasks:
            task.cancel()
        for one in self._everyone():
            one.close()
        await asyncio.sleep(_LOOK_S)

    # ── the pace ──────────────────────────────────────────────────────────────────────────

    async def _pace(self) -> None:
        """Lets one client after the other post a burst, as many as the rate wants by then."""
        began = time.perf_counter()
        posted, turn = 0, 0
        expected = began
        while True:
            now = time.perf_counter()
            self.lag_s = max(self.lag_s, now - expected)
            while posted < (now - began) * self._rate:
                self._post(self._fast[turn])
                turn = (turn + 1) % len(self._fast)
                posted += BURST
            for client in self._slow:
                client.post()
            expected = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)

    def _post(self, client: Client) -> None:
        if client.unanswered > UNANSWERED_MAX:
            self.skipped += BURST
        else:
            client.post()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            for proxy in self.proxies:
                proxy.beat()


def _fast(site: Site, number: int, workers: int) -> Client:
    """The kinds in turn; of twenty one watches, two are anonymous, six ask for a worker, four are zipped."""
    kind = number % 20
    worker = number // 20 % workers
    plain = "hello v=1 role=client"
    if kind == 0:
        return Watcher(site, plain)
    if kind <= 2:
        return Client(site)
    if kind <= 6:
        return Client(site, f"{plain} worker={worker}", owner=worker)
    if kind <= 8:
        return Client(site, f"{plain} worker={worker} zip=snappy", owner=worker, zipped=True)
    if kind <= 10:
        return Client(site, f"{plain} zip=snappy", zipped=True)
    return Client(site, plain)
