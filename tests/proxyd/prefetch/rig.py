"""What the tests of prefetch are written with."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from proxyd.caches.base import PREFETCH
from proxyd.evidence import Evidence
from proxyd.outbox import Outbox
from proxyd.prefetch.buckets import Bucket
from proxyd.prefetch.client import PrefetchClient
from proxyd.prefetch.limits import PrefetchLimits, limits_of
from proxyd.targets import split_target
from proxyd.tasks import Exchange, Task
from tests.proxyd.rig import HASTY, SHORT, Visit, wait_until
from wire.tasks import PushHead

PATIENT = msgspec.structs.replace(limits_of(SHORT), streaming=True, answer_max_bytes=None, connections=4)
EAGER = msgspec.structs.replace(limits_of(HASTY), streaming=True, answer_max_bytes=None, connections=4)


def limits(base: PrefetchLimits = PATIENT, **changes: object) -> PrefetchLimits:
    """Limits of a test, some of them otherwise."""
    return msgspec.structs.replace(base, **changes)


def exchange(target: bytes, *, expires_at: float = math.inf, priority: int = 5) -> Exchange:
    """A prefetch as the dispatcher makes it."""
    task = Task(b"t", Outbox(lambda: None), 1, PushHead("prefetch", priority=priority), 0.0, expires_at)
    task.evidence = []
    return Exchange(task, target, PREFETCH.render(*split_target(target)), PREFETCH, None)


class Told:
    """A client, and what it has told of each target."""

    def __init__(
        self, address: tuple[str, int], how: PrefetchLimits = PATIENT, *, kind: str = "varnish"
    ) -> None:
        self.errors: dict[bytes, list[str | None]] = {}
        self.ended: list[bytes] = []
        self.evidence: dict[bytes, Evidence] = {}
        self.budget = Bucket()
        self.client = PrefetchClient("c", *address, how, self._take, kind=kind, budget=self.budget)

    def _take(self, exchange: Exchange, error: str | None) -> None:
        self.errors.setdefault(exchange.target, []).append(error)
        self.ended.append(exchange.target)
        if exchange.evidence is not None:
            self.evidence[exchange.target] = exchange.evidence

    def put(self, *targets: bytes, priority: int = 5) -> None:
        """Puts in prefetches."""
        for target in targets:
            self.client.put(exchange(target, priority=priority), priority)

    async def all(self, count: int) -> None:
        """Waits until so many have ended."""
        await wait_until(
            lambda: len(self.ended) >= count, f"the end of {count}: {self.client}, {self.errors}"
        )

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


async def fetch(
    address: tuple[str, int], *targets: bytes, how: PrefetchLimits = PATIENT, kind: str = "varnish"
) -> Told:
    """Prefetches all; every one must have ended once."""
    with Told(address, how, kind=kind) as told:
        told.put(*targets)
        await told.all(len(targets))
    assert {len(errors) for errors in told.errors.values()} == {1}
    assert told.client.in_flight == told.client.waiting == 0
    return told


def answer(body: bytes = b"", *headers: bytes, status: int = 200) -> bytes:
    """A whole answer."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), lines, body)


def path_of(request: bytes) -> bytes:
    """The path that was asked for."""
    return request.split(b" ", 2)[1]


def host_of(request: bytes) -> bytes:
    """Whose it is."""
    return request.partition(b"\r\nHost: ")[2].partition(b"\r\n")[0]


def serve(answer_to: Callable[[bytes], bytes]) -> Callable[[Visit], object]:
    """A script that answers each request with what `answer_to` makes of it."""

    async def script(visit: Visit) -> None:
        while request := await visit.request():
            await visit.send(answer_to(request))

    return script


class Crowd:
    """Counts who is there at once, by host; `gate` holds hosts back."""

    def __init__(self) -> None:
        self.now: dict[bytes, int] = {}
        self.most: dict[bytes, int] = {}
        self.open = asyncio.Event()
        self.held: set[bytes] = set()

    async def __call__(self, visit: Visit) -> None:
        while request := await visit.request():
            host = host_of(request)
            self.now[host] = self.now.get(host, 0) + 1
            self.most[host] = max(self.most.get(host, 0), self.now[host])
            if host in self.held:
                await self.open.wait()
            else:
                # Time for others to come.
                await asyncio.sleep(0.01)
            self.now[host] -= 1
            await visit.send(answer(b"x"))
