"""Ids that wait for the index, against a model; `add` is always followed by `settle` or `undo`."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from refreshd.store import ids as module
from refreshd.store.base import IdEntry
from refreshd.store.ids import BUCKETS, PendingIds

BUCKET_MAX = 4


class Ids(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "BUCKET_MAX", BUCKET_MAX)
        self.ids = PendingIds()
        self.waiting: dict[bytes, int] = {}
        self.written: dict[bytes, int] = {}
        self.serial = 0

    def teardown(self) -> None:
        self.patch.undo()

    def fresh(self, numbers: int) -> list[IdEntry]:
        entries = []
        for _ in range(numbers):
            self.serial += 1
            task_id = b"%d" % self.serial
            # Few buckets, so that they fill; both ends of the range.
            entries.append((crc32(task_id) & 0xC000_0000 | self.serial, task_id, self.serial))
        return entries

    @rule(number=st.integers(0, 9), kept=st.booleans())
    def add(self, number: int, kept: bool) -> None:
        entries = self.fresh(number)
        due = self.ids.add(entries)
        held = self.waiting | {entry[1]: entry[2] for entry in entries}
        assert {entry[1]: entry[2] for entry in due}.items() <= held.items()
        assert len(due) == len(set(due))
        # Neighbours in the index are written together.
        assert due == sorted(due, key=lambda entry: (self.order(due, entry), entry))
        for entry in entries:
            assert self.ids.get(entry[1]) == entry[2]
        if kept:
            self.ids.settle()
            self.waiting = {key: held[key] for key in held.keys() - {entry[1] for entry in due}}
            self.written |= {entry[1]: entry[2] for entry in due}
        else:
            self.ids.undo()

    @staticmethod
    def order(due: list[IdEntry], entry: IdEntry) -> int:
        """Buckets come in the order they filled up; within one, entries are sorted."""
        buckets = list(dict.fromkeys(other[0] >> 26 for other in due))
        return buckets.index(entry[0] >> 26)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        serials = data.draw(st.sets(st.integers(1, max(self.serial, 1)), max_size=5))
        self.ids.drop(serials)
        self.waiting = {key: serial for key, serial in self.waiting.items() if serial not in serials}

    @rule()
    def undo_without_add(self) -> None:
        """A transaction that failed before it came to the ids."""
        self.ids.undo()

    @invariant()
    def what_waits_is_known_and_nothing_else(self) -> None:
        assert len(self.ids) == len(self.waiting)
        assert {entry[1]: entry[2] for entry in self.ids.all()} == self.waiting
        assert self.ids.all() == sorted(self.ids.all())
        for number in range(1, self.serial + 1):
            assert self.ids.get(b"%d" % number) == self.waiting.get(b"%d" % number)
        assert self.ids.smallest_serial(1 << 62) == min(self.waiting.values(), default=1 << 62)

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.ids) <= BUCKETS * (BUCKET_MAX - 1)


TestIds = Ids.TestCase
TestIds.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
