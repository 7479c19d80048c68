"""What is to go through one cache, in line: which goes next, and whether anything may go now. Pure.

Of the highest priority that may go, what belongs to targets that have begun goes first, then what has not. A
host that is at its bound, or owes for what it brought, is passed over; a cache, or an agent, that owes holds
up everything.
"""

from __future__ import annotations

from proxyd.prefetch.buckets import Bucket
from proxyd.prefetch.hosts import HostGate, HostQueue
from proxyd.prefetch.limits import PrefetchLimits
from proxyd.prefetch.resource import Resource
from proxyd.tasks import Exchange

# Beyond it nothing new is begun until one has ended. Each holds 4 MiB of playlists at the most.
TREES_MAX = 16

Buckets = tuple[Bucket, ...]


class Lineup:
    """The two queues of a client, and what bounds them. `budget` is shared by all clients of the agent."""

    def __init__(self, limits: PrefetchLimits, budget: Bucket) -> None:
        self.fresh: HostQueue[Exchange] = HostQueue(_host_of)
        self.begun: HostQueue[Resource] = HostQueue(lambda resource: resource.host)
        self.trees = 0
        """Targets in hand whose playlists are read."""
        self.now = 0.0
        self._gate = HostGate(limits.per_host, limits.host_bytes_per_s)
        self._bucket = Bucket(limits.bytes_per_s)
        self._budget = budget

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self.fresh or self.begun)

    def tick(self, now: float) -> float:
        """To be called before anything else in a turn of the loop; returns `now`."""
        self.now = self._gate.now = now
        return now

    def set_limits(self, limits: PrefetchLimits) -> None:
        """From now on other bounds hold."""
        self._gate.set_bounds(limits.per_host, limits.host_bytes_per_s)
        self._bucket.set_rate(limits.bytes_per_s, self.now)
        for host in {*self.begun.aside, *self.fresh.aside}:
            self._recall(host)

    def next(self) -> Exchange | Resource | None:
        """Takes out what goes next; None if nothing may go now."""
        begun, fresh = self.begun, self.fresh
        if self.in_debt:
            return None
        low = begun.top(self._gate.has_room) if begun else -1
        top = fresh.top(self._gate.has_room) if fresh and self.trees < TREES_MAX else -1
        if low < 0 and top < 0:
            return None
        return begun.pop(low) if low >= top else fresh.pop(top)

    @property
    def ready(self) -> int:
        """How many may go now, about: none if none may."""
        if self.in_debt:
            return 0
        return sum(len(queue) for queue in (self.begun, self.fresh) if queue.top(self._gate.has_room) >= 0)

    @property
    def in_debt(self) -> bool:
        """Whether the cache, or the agent, has had more than it may."""
        bucket, budget = self._bucket, self._budget
        if not (bucket.rate or budget.rate):
            return False
        return bool(bucket.wait_s(self.now) or budget.wait_s(self.now))

    @property
    def pays(self) -> bool:
        """Whether something waits that may be waiting for a debt to be paid off."""
        return bool(self) and bool(self._gate.rate or self._bucket.rate or self._budget.rate)

    def begin(self, host: bytes) -> Buckets:
        """A request for this host begins; what it brings is to be spent there."""
        bucket = self._gate.begin(host)
        if not (bucket.rate or self._bucket.rate or self._budget.rate):
            return ()
        return (self._bucket, self._budget, bucket)

    def end(self, host: bytes) -> None:
        """A request for this host has ended."""
        self._gate.end(host)
        if self.fresh.aside or self.begun.aside:
            self._recall(host)

    def sweep(self) -> None:
        """Looks for hosts that were passed over and owe nothing any more."""
        for host in self._gate.sweep():
            self._recall(host)

    def _recall(self, host: bytes) -> None:
        self.begun.recall(host)
        self.fresh.recall(host)


def _host_of(exchange: Exchange) -> bytes:
    """The host of a target that `split_target` takes: between the second slash and what follows it."""
    host = exchange.target.split(b"/", 3)[2]
    return host if b"?" not in host else host.partition(b"?")[0]
