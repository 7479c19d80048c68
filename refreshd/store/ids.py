"""Ids of finished tasks on their way into the index.

An index over random ids is the dearest part of a store: each entry lands on a
page of its own, and each page is written whole. So entries wait here, in 64
buckets by the CRC that the index is ordered by, and a bucket is written when it
has a few hundred: neighbours then share pages. What waits is bounded; what is
lost with the process is found again at the next start: the serials of what was added
are in a journal (store/sqlite_journal.py), and `indexed` says how much of it is needed no more.

When shards move to another process, what waits of them moves too: `take` there,
`give` here. All else belongs to the saver's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from refreshd.store.base import IdEntry
from wire import SHARDS

BUCKETS = 64
# 64 × 512 entries of about 200 bytes are 6 MiB at the most; at a million finished
# tasks an entry then costs 0.8 KB of log instead of 4.
BUCKET_MAX = 512
# Written at least in one transaction, if as many are due: 20 ms. Many buckets are full at
# a time when those of another process came on top. What is written is twice what
# came in, so however many are due, they become fewer.
DUE_ENTRIES = 2_048
# So many times what may wait is what the journal names at the most. Ids are random, and then all
# buckets fill at the same pace (1.2 times); ids that were chosen to lie in one leave an
# entry in each of the others, which are then written though they are not full.
TRAIL = 4
_SHIFT = 32 - 6
_SHARD_MASK = SHARDS - 1


class PendingIds:
    """The entries that wait. Used in turns: `add`, then `settle` or `undo`.

    From other threads only `get` and `give` may be called: `get` reads dictionaries
    in the order in which an entry goes through them, and each step puts it into
    the next before it leaves the one before.
    """

    def __init__(self) -> None:
        self._buckets: list[list[IdEntry]] = [[] for _ in range(BUCKETS)]
        self._serials: dict[bytes, int] = {}
        self._inbox: deque[list[IdEntry]] = deque()
        self._given: dict[bytes, int] = {}
        self._taken: dict[bytes, int] = {}
        self._added: list[IdEntry] = []
        self._due: list[IdEntry] = []
        self._left: dict[int, list[IdEntry]] = {}
        self.added = 0
        """How many entries were added and settled so far."""
        self.indexed = 0
        """Of as many of those, the first ones, none waits any more."""
        # Bucket by bucket: `added` when it was last empty. What is in it was added later, or given.
        self._since = [0] * BUCKETS

    def __len__(self) -> int:
        return len(self._serials)

    def add(self, entries: Iterable[IdEntry]) -> list[IdEntry]:
        """Takes entries in. Returns those to be written in this transaction, bucket by bucket in order."""
        self._added = list(entries)
        for entry in self._added:
            number = entry[0] >> _SHIFT
            if not self._buckets[number]:
                self._since[number] = self.added
            self._buckets[number].append(entry)
            self._serials[entry[1]] = entry[2]
        full = [number for number, bucket in enumerate(self._buckets) if len(bucket) >= BUCKET_MAX]
        full.sort(key=lambda number: -len(self._buckets[number]))
        if self.added - self.indexed > TRAIL * BUCKETS * BUCKET_MAX:
            full = list(dict.fromkeys([self._oldest(), *full]))
        return self._choose(full, max(DUE_ENTRIES, 2 * len(self._added)))

    def _oldest(self) -> int:
        """The bucket that has not been written for the longest time, of those with an entry."""
        return min(range(BUCKETS), key=lambda n: self._since[n] if self._buckets[n] else self.added)

    def _choose(self, numbers: list[int], most: int) -> list[IdEntry]:
        """Makes `most` entries of these buckets due, or a bucket more."""
        self._due, self._left = [], {}
        for number in numbers:
            if len(self._due) >= most:
                break
            bucket = sorted(self._buckets[number])
            # One that was given far too many goes in pieces.
            self._due += bucket[: 2 * BUCKET_MAX]
            self._left[number] = bucket[2 * BUCKET_MAX :]
        return self._due

    def settle(self) -> None:
        """The transaction was committed: what was due is written."""
        for _, task_id, _ in self._due:
            self._serials.pop(task_id, None)
        for number, left in self._left.items():
            self._buckets[number] = left
        self.added += len(self._added)
        if self._left:
            oldest = self._oldest()
            self.indexed = self._since[oldest] if self._buckets[oldest] else self.added
        self._added, self._due, self._left = [], [], {}

    def undo(self) -> None:
        """The transaction was rolled back: as if the last `add` had not been."""
        gone = set(self._added)
        for number in {entry[0] >> _SHIFT for entry in self._added}:
            self._buckets[number] = [entry for entry in self._buckets[number] if entry not in gone]
        for _, task_id, _ in self._added:
            self._serials.pop(task_id, None)
        self._added, self._due, self._left = [], [], {}

    def get(self, task_id: bytes) -> int | None:
        """The serial of an id that waits, here or where it was taken to."""
        serial = self._given.get(task_id)
        if serial is None:
            serial = self._serials.get(task_id)
        if serial is None:
            serial = self._taken.get(task_id)
        return serial

    def waits(self, entry: IdEntry) -> bool:
        """Whether an entry is among those that wait here."""
        return entry[2] in (self._given.get(entry[1]), self._serials.get(entry[1]))

    def give(self, entries: Iterable[IdEntry]) -> None:
        """Entries that waited in another process. `get` finds them from now on."""
        given = list(entries)
        self._given.update({task_id: serial for _, task_id, serial in given})
        self._inbox.append(given)

    def drain(self) -> list[IdEntry]:
        """Puts what was given beside what waits, and returns it.

        Before anything else is done, between transactions.
        """
        drained: list[IdEntry] = []
        while self._inbox:
            given = self._inbox.popleft()
            for entry in given:
                number = entry[0] >> _SHIFT
                if not self._buckets[number]:
                    self._since[number] = self.added
                self._buckets[number].append(entry)
                self._serials[entry[1]] = entry[2]
            for _, task_id, _ in given:
                self._given.pop(task_id, None)
            drained += given
        return drained

    def of(self, shards: frozenset[int]) -> list[IdEntry]:
        """The entries of these shards."""
        return [entry for bucket in self._buckets for entry in bucket if entry[0] & _SHARD_MASK in shards]

    def take(self, shards: frozenset[int]) -> list[IdEntry]:
        """Takes the entries of these shards out, for another process. `get` goes on to find them."""
        taken: list[IdEntry] = []
        kept: list[list[IdEntry]] = []
        for bucket in self._buckets:
            taken += [entry for entry in bucket if entry[0] & _SHARD_MASK in shards]
            kept.append([entry for entry in bucket if entry[0] & _SHARD_MASK not in shards])
        self._taken.update({task_id: serial for _, task_id, serial in taken})
        self._buckets = kept
        for _, task_id, _ in taken:
            self._serials.pop(task_id, None)
        return taken

    def forget_taken(self) -> None:
        """All that was taken is in the index by now."""
        self._taken = {}

    def drop(self, serials: set[int]) -> None:
        """Forgets the entries of tasks that are gone."""
        if not serials.isdisjoint(self._serials.values()):
            self._buckets = [[e for e in bucket if e[2] not in serials] for bucket in self._buckets]
            self._serials = {e[1]: e[2] for bucket in self._buckets for e in bucket}
        if not serials.isdisjoint(self._taken.values()):
            self._taken = {task_id: s for task_id, s in self._taken.items() if s not in serials}

    def all(self) -> list[IdEntry]:
        """Everything that waits, in order."""
        return sorted(entry for bucket in self._buckets for entry in bucket)
