"""Ids of finished tasks on their way into the index.

An index over random ids is the dearest part of a store: each entry lands on a
page of its own, and each page is written whole. So entries wait here, in 64
buckets by the CRC that the index is ordered by, and a bucket is written when it
has a few hundred: neighbours then share pages. What waits is bounded; what is
lost with the process is found again at the next start.
"""

from __future__ import annotations

from collections.abc import Iterable

from refreshd.store.base import IdEntry

BUCKETS = 64
# 64 × 512 entries of about 200 bytes are 6 MiB at the most; at a million finished
# tasks an entry then costs 0.8 KB of log instead of 4.
BUCKET_MAX = 512
_SHIFT = 32 - 6


class PendingIds:
    """The entries that wait. Used in turns: `add` or `take_older`, then `settle` or `undo`."""

    def __init__(self) -> None:
        self._buckets: list[list[IdEntry]] = [[] for _ in range(BUCKETS)]
        self._serials: dict[bytes, int] = {}
        self._added: list[IdEntry] = []
        self._due: list[int] = []

    def __len__(self) -> int:
        return len(self._serials)

    def add(self, entries: Iterable[IdEntry]) -> list[IdEntry]:
        """Takes entries in. Returns those to be written in this transaction, in order."""
        self._added = list(entries)
        self._due = []
        due: list[IdEntry] = []
        for entry in self._added:
            number = entry[0] >> _SHIFT
            bucket = self._buckets[number]
            bucket.append(entry)
            self._serials[entry[1]] = entry[2]
            if len(bucket) == BUCKET_MAX:
                self._due.append(number)
        for number in self._due:
            due += sorted(self._buckets[number])
        return due

    def take_older(self, serial: int, most: int) -> list[IdEntry]:
        """Buckets with an entry older than `serial`, of about `most` entries: to be written, in order.

        As with `add`, `settle` or `undo` follows.
        """
        self._added, self._due = [], []
        due: list[IdEntry] = []
        for number, bucket in enumerate(self._buckets):
            if len(due) < most and any(entry[2] < serial for entry in bucket):
                self._due.append(number)
                due += sorted(bucket)
        return due

    def settle(self) -> None:
        """The transaction was committed: what was due is written."""
        for number in self._due:
            for _, task_id, _ in self._buckets[number]:
                self._serials.pop(task_id, None)
            self._buckets[number] = []
        self._added, self._due = [], []

    def undo(self) -> None:
        """The transaction was rolled back: as if the last `add` had not been."""
        gone = set(self._added)
        for number in {entry[0] >> _SHIFT for entry in self._added}:
            self._buckets[number] = [entry for entry in self._buckets[number] if entry not in gone]
        for _, task_id, _ in self._added:
            self._serials.pop(task_id, None)
        self._added, self._due = [], []

    def get(self, task_id: bytes) -> int | None:
        """The serial of an id that waits."""
        return self._serials.get(task_id)

    def drop(self, serials: set[int]) -> None:
        """Forgets the entries of tasks that are gone."""
        if not serials.isdisjoint(self._serials.values()):
            self._buckets = [[e for e in bucket if e[2] not in serials] for bucket in self._buckets]
            self._serials = {e[1]: e[2] for bucket in self._buckets for e in bucket}

    def smallest_serial(self, otherwise: int) -> int:
        """The smallest serial that waits."""
        return min(self._serials.values(), default=otherwise)

    def all(self) -> list[IdEntry]:
        """Everything that waits, in order."""
        return sorted(entry for bucket in self._buckets for entry in bucket)
