"""Simulated proxies: each has a connection to every worker, does nothing, and reports it.

They differ in how long they take and how much credit they give; the first of each group
says of some tasks that it failed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple, cast

from tools.soak.clients import RETRY_S, Site
from tools.soak.ledger import GROUP_SIZE, ID_BYTES, fails

BEAT_S = 2.5
_TASK = b"!task task_id=s"
_NUMBER_AT, _NUMBER_END = len(_TASK), len(_TASK) - 1 + ID_BYTES
# Seconds from a push until it is reported with all that came meanwhile.
_DELAY_S = (0.02, 0.1)
_SLOW_DELAY_S = (0.3, 1.0)
_SLOW_EVERY = 10
# Those with little credit are now and then at the end of it, the others never.
_CREDIT = 10_000
_LITTLE_CREDIT = 150
_LITTLE_EVERY = 10


class Row(NamedTuple):
    """A proxy of the fleet as the configuration lists it."""

    name: str
    group: str
    layer: int


def fleet(proxies: int) -> list[Row]:
    """So many proxies in groups of two; the second of every other group is in layer 1, the rest in 0."""
    return [
        Row(f"p{number}", f"g{number // GROUP_SIZE:02d}", int(number % (2 * GROUP_SIZE) == GROUP_SIZE - 1))
        for number in range(proxies)
    ]


class Proxy:
    """One proxy. Connects, and connects again, until `close`."""

    def __init__(self, site: Site, number: int, workers: int):
        self.site = site
        self.name = f"p{number}"
        self.place = number % GROUP_SIZE
        is_slow = number % _SLOW_EVERY == 0
        self.delay_s = _SLOW_DELAY_S if is_slow else _DELAY_S
        self.credit = _LITTLE_CREDIT if number % _LITTLE_EVERY == 1 else _CREDIT
        self.links = [_Link(self, worker) for worker in range(workers)]

    def connect(self) -> None:
        """Begins to connect to every worker."""
        for link in self.links:
            link.connect()

    def leave(self) -> None:
        """Goes away, until `connect`: what it was pushed and has not reported it has forgotten."""
        for link in self.links:
            link.leave()

    @property
    def ready(self) -> bool:
        """Whether every connection is greeted."""
        return all(link.ready for link in self.links)

    def beat(self) -> None:
        """Shows that it is there."""
        for link in self.links:
            link.beat()

    def reported(self, numbers: list[int]) -> None:
        """These are no longer outstanding, wherever they were pushed."""
        for link in self.links:
            link.outstanding.difference_update(numbers)

    def close(self) -> None:
        """Ends it for good."""
        for link in self.links:
            link.close()


class _Link(asyncio.Protocol):
    """One connection of a proxy."""

    def __init__(self, proxy: Proxy, worker: int):
        self.ready = False
        self.outstanding: set[int] = set()
        self._proxy = proxy
        self._site = proxy.site
        hello = f"hello v=1 role=proxy name={proxy.name} worker={worker}"
        self._first = f"{hello}\nready credit={proxy.credit}\n".encode()
        self._over = False
        self._away = False
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tail = b""
        self._done: list[int] = []
        """Pushed and not reported."""
        self._flush: asyncio.TimerHandle | None = None
        self._asked: deque[float] = deque()
        """When each request without a reply was sent."""

    def connect(self) -> None:
        self._away = False
        self._connecting = asyncio.ensure_future(self._connect())

    def leave(self) -> None:
        self._away = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._over:
            try:
                await loop.create_connection(lambda: self, *self._site.address())
                return
            except OSError as error:
                self._site.tally.lost("proxy, connecting", error)
                await asyncio.sleep(RETRY_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._tail = b""
        now = time.perf_counter()
        self._asked += (now, now)
        self._transport.write(self._first)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ready = False
        self._transport = None
        self._asked.clear()
        self._done.clear()
        self.outstanding.clear()
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if not self._over and not self._away:
            self._site.tally.lost("proxy", exc)
            asyncio.get_running_loop().call_later(RETRY_S, self._connect_again)

    def _connect_again(self) -> None:
        if not self._over and not self._away:
            self.connect()

    def close(self) -> None:
        self._over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ── what it hears ─────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data if self._tail else data).split(b"\n")
        now = time.perf_counter()
        pushed = []
        for line in lines:
            if line.startswith(_TASK):
                pushed.append(int(line[_NUMBER_AT:_NUMBER_END]))
            elif not line.startswith(b"!"):
                self._replied(line, now)
        if pushed:
            self._take(pushed)

    def _replied(self, line: bytes, now: float) -> None:
        if not self._asked:
            self._site.tally.refused("unasked", self._proxy.name, line)
            return
        self._site.tally.answered(now - self._asked.popleft())
        if not line.startswith(b"ok"):
            code = line.partition(b" code=")[2].partition(b" ")[0].decode() or "not a reply"
            self._site.tally.refused(code, f"proxy {self._proxy.name}", line)
            if not self.ready and self._transport is not None:
                # Not greeted: the worker is being replaced, perhaps.
                self._transport.close()
        elif line.startswith(b"ok v=1"):
            self.ready = True

    def _take(self, pushed: list[int]) -> None:
        place, effect = self._proxy.place, self._site.ledger.effect
        for number in pushed:
            effect(number, place)
        self._done += pushed
        self.outstanding.update(pushed)
        if len(self.outstanding) > self._proxy.credit:
            got = f"{len(self.outstanding)} outstanding, credit {self._proxy.credit}".encode()
            self._site.tally.refused("over credit", self._proxy.name, got)
        if self._flush is None:
            delay_s = self._site.rng.uniform(*self._proxy.delay_s)
            self._flush = asyncio.get_running_loop().call_later(delay_s, self._report)

    # ── what it says ──────────────────────────────────────────────────────────────────────

    def _report(self) -> None:
        self._flush = None
        numbers, self._done = self._done, []
        lines = []
        if self._proxy.place == 0:
            failed = [number for number in numbers if fails(number)]
            lines = [
                b"report state=failed task_id=s%09d done=0 failed=1 error=soak\n" % number
                for number in failed
            ]
            done = [number for number in numbers if not fails(number)] if failed else numbers
        else:
            done = numbers
        if done:
            lines.append(b"report state=done ms=1 -- %b\n" % b" ".join([b"s%09d" % n for n in done]))
        self._proxy.reported(numbers)
        self._say(lines)

    def beat(self) -> None:
        if self.ready:
            self._say([b"beat inflight=0\n"])

    def _say(self, lines: list[bytes]) -> None:
        if self._transport is not None:
            now = time.perf_counter()
            self._asked += [now] * len(lines)
            self._transport.write(b"".join(lines))
