"""What waits, by origin host, so that a host that is slow or at its bound is passed over. Pure.

    a level of priority:  ring of hosts ──► host ──► its items, first come, first served
                             ▲    └──no room──► aside
                             └───── room again ───┘

Of the highest priority that any host with room has, hosts take turns; within a host the order is kept. Taking
an item costs the same however many hosts there are and however many are at their bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from proxyd.prefetch.buckets import Bucket
from proxyd.queues import PRIORITIES

Item = TypeVar("Item")
HasRoom = Callable[[bytes], bool]


class HostQueue(Generic[Item]):
    """A `Queue` that knows hosts. Its length is bounded by who fills it, see `dispatch.py`."""

    __slots__ = ("_host_of", "_levels", "_rings", "_size", "aside")

    def __init__(self, host_of: Callable[[Item], bytes]) -> None:
        self._host_of = host_of
        self._rings: tuple[deque[bytes], ...] = tuple(deque() for _ in range(PRIORITIES))
        self._levels: tuple[dict[bytes, deque[Item]], ...] = tuple({} for _ in range(PRIORITIES))
        self.aside: dict[bytes, list[int]] = {}
        """Hosts without room, and at which levels they are missing in the ring."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: Item, priority: int) -> None:
        """Adds an item behind those of its priority and host."""
        host = self._host_of(item)
        items = self._levels[priority].get(host)
        if items is None:
            self._levels[priority][host] = deque((item,))
            self._rings[priority].append(host)
        else:
            items.append(item)
        self._size += 1

    def top(self, has_room: HasRoom) -> int:
        """The highest priority of which something can be taken; -1 if nothing can."""
        if self._size:
            for priority in range(PRIORITIES - 1, -1, -1):
                ring = self._rings[priority]
                while ring:
                    if has_room(ring[0]):
                        return priority
                    host = ring.popleft()
                    self.aside.setdefault(host, []).append(priority)
        return -1

    def pop(self, priority: int) -> Item:
        """What goes first of a priority that `top` gave."""
        ring = self._rings[priority]
        host = ring.popleft()
        level = self._levels[priority]
        items = level[host]
        item = items.popleft()
        if items:
            ring.append(host)
        else:
            del level[host]
        self._size -= 1
        return item

    def recall(self, host: bytes) -> None:
        """A host that was passed over has room again, or may have."""
        for priority in self.aside.pop(host, ()):
            self._rings[priority].append(host)

    def take(self, count: int) -> list[Item]:
        """Removes and returns the first items whatever room their hosts have, at most `count`."""
        for host in list(self.aside):
            self.recall(host)
        taken: list[Item] = []
        while len(taken) < count and (priority := self.top(lambda _: True)) >= 0:
            taken.append(self.pop(priority))
        return taken

    def remove(self, fits: Callable[[Item], bool]) -> list[Item]:
        """Removes and returns all that fits, the highest priority first."""
        removed = [item for item in self if fits(item)]
        if removed:
            kept = [
                (item, priority)
                for priority, level in enumerate(self._levels)
                for items in level.values()
                for item in items
                if not fits(item)
            ]
            self._size = 0
            self.aside.clear()
            for ring, level in zip(self._rings, self._levels, strict=True):
                ring.clear()
                level.clear()
            for item, priority in kept:
                self.put(item, priority)
        return removed

    def __iter__(self) -> Iterator[Item]:
        """All that waits, the highest priority first."""
        return (item for level in reversed(self._levels) for items in level.values() for item in items)

    def __repr__(self) -> str:
        hosts = {host for level in self._levels for host in level}
        return f"<HostQueue {self._size} of {len(hosts)} hosts, {len(self.aside)} of them without room>"


class _Host:
    __slots__ = ("bucket", "in_flight")

    def __init__(self, bytes_per_s: float) -> None:
        self.in_flight = 0
        self.bucket = Bucket(bytes_per_s)


class HostGate:
    """How much is in flight for each host, and whether there is room for more."""

    def __init__(self, per_host: int, bytes_per_s: float) -> None:
        self._hosts: dict[bytes, _Host] = {}
        self._per_host = per_host
        self.rate = bytes_per_s
        self.now = 0.0
        """For what owes; its user keeps it up to date."""

    def set_bounds(self, per_host: int, bytes_per_s: float) -> None:
        """Other bounds from now on."""
        self._per_host, self.rate = per_host, bytes_per_s
        for host in self._hosts.values():
            host.bucket.set_rate(bytes_per_s, self.now)

    def has_room(self, host: bytes) -> bool:
        """Whether a request for this host may begin."""
        state = self._hosts.get(host)
        if state is None:
            return True
        return state.in_flight < self._per_host and not (self.rate and state.bucket.wait_s(self.now))

    def begin(self, host: bytes) -> Bucket:
        """A request for this host begins; what it brings is to be spent there."""
        state = self._hosts.get(host)
        if state is None:
            state = self._hosts[host] = _Host(self.rate)
        state.in_flight += 1
        return state.bucket

    def end(self, host: bytes) -> None:
        """A request for this host has ended."""
        state = self._hosts[host]
        state.in_flight -= 1
        if not state.in_flight and not self.rate:
            del self._hosts[host]

    def sweep(self) -> list[bytes]:
        """The hosts that owe nothing; those with nothing in flight and a full bucket are forgotten."""
        now = self.now
        ready = [name for name, host in self._hosts.items() if not host.bucket.wait_s(now)]
        for name in ready:
            host = self._hosts[name]
            if not host.in_flight and host.bucket.is_full(now):
                del self._hosts[name]
        return ready

    def __len__(self) -> int:
        return len(self._hosts)
