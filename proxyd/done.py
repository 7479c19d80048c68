"""What was done well, so that a later push of it is answered and not done again. Pure.

A task can be pushed again after it was done: its engine died before it wrote the report down and another
took the task over, or the report was lost with a connection. Doing it again is harmless; this only saves
work, so it answers only where the answer is certainly true, and forgets whenever in doubt:

- The engine names its store: only there an id stands for one task for longer than this remembers it.
- Every target was done well at every cache there is: neither the caches nor who we are have changed since it
  was begun. A task that failed, expired or was taken back is done again.
- The content is the same. `ttl` and `priority` are not looked at: they say when, and it is done. Targets in
  another order count as another content; engines push them as they were posted.
- It took something out of the caches. That stays true: whatever they fetch afterwards is newer than the task.
  A prefetch does not stay true: the object may be gone again, so it is asked for again.
- It is layer 0 here. In a higher layer caches fetch from the layer below, and an engine that begins a task
  anew may mend there what had failed: what we fetched before that is old.

Age counts from the first push, which an engine that has ended the task cannot have sent much later.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from wire.tasks import PushHead

# An engine that dies is followed by another within a minute; a report is repeated within seconds. 300 bytes
# an id, 30 MB when full.
DONE_MAX = 100_000
AGE_MAX_S = 600.0
# Longer contents are remembered by digest.
CONTENT_MAX_BYTES = 256
# At the most forgotten at a time because of their age: 3 ms.
SWEEP_MAX = 10_000
# The newest cross an upgrade, in which nothing is read meanwhile: 40 ms; all of them would take 130.
CARRIED_MAX = 20_000

Content = bytes
CarriedDone = tuple[bytes, str, bool, Content, float]
"""(key, type, force, content, age in seconds), as it crosses an upgrade."""


def content_of(targets: list[bytes]) -> Content:
    """Stands for the targets of a task; it is the same in every process.

    The target itself where there is one (which costs nothing, and nearly all tasks have one), else a digest.
    """
    if len(targets) == 1 and len(targets[0]) <= CONTENT_MAX_BYTES:
        return targets[0]
    return b"\0" + hashlib.blake2b(msgspec.msgpack.encode(targets), digest_size=16).digest()


def is_same_work(head: PushHead, other: PushHead) -> bool:
    """Whether two heads ask for the same, whenever it is to be done."""
    asked = (head.type, head.force, head.verify, head.then)
    return asked == (other.type, other.force, other.verify, other.then)


class Done:
    """The newest tasks that were done well, by key."""

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done: OrderedDict[bytes, tuple[str, bool, Content, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._done)

    def add(self, key: bytes, head: PushHead, content: Content, received_at: float) -> None:
        """A task that was pushed at `received_at` was done well."""
        # Of plain values, so that the collector of garbage need not look at 100,000 of them.
        self._done[key] = (head.type, head.force, content, received_at)
        if len(self._done) > DONE_MAX:
            self._done.popitem(last=False)

    def knows(self, key: bytes, head: PushHead, content: Content, now: float) -> bool:
        """Whether this very work was done. What is known under the key and is not that is forgotten."""
        entry = self._done.get(key)
        if entry is None:
            return False
        type_, force, done, received_at = entry
        if now - received_at <= AGE_MAX_S and (type_, force, done) == (head.type, head.force, content):
            return True
        del self._done[key]
        return False

    def forget(self, key: bytes) -> None:
        """It is done again if it comes again."""
        self._done.pop(key, None)

    def clear(self) -> None:
        """Forgets all."""
        self._done.clear()

    def sweep(self, now: float) -> None:
        """Forgets what is too old; to be called every second or so."""
        done = self._done
        for _ in range(min(len(done), SWEEP_MAX)):
            if now - next(iter(done.values()))[3] <= AGE_MAX_S:
                return
            done.popitem(last=False)

    def carry(self, now: float) -> list[CarriedDone]:
        """The newest, oldest first."""
        newest = list(itertools.islice(reversed(self._done.items()), CARRIED_MAX))
        return [
            (key, type_, force, content, now - received_at)
            for key, (type_, force, content, received_at) in reversed(newest)
        ]

    def resume(self, carried: Iterable[CarriedDone], now: float) -> None:
        """The inverse of `carry`."""
        for key, type_, force, content, age_s in carried:
            self._done[key] = (sys.intern(type_), force, content, now - age_s)

    def __repr__(self) -> str:
        return f"<Done {len(self._done)} tasks>"
