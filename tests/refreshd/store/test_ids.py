"""Ids that wait for the index, against a model; `add` is always followed by `settle` or `undo`."""

from __future__ import annotations

from itertools import islice
from zlib import crc32

import pytest
from hypothesis import given, settings
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
        self.patch.setattr(module, "TRAIL", 1 / BUCKETS)
        self.ids = PendingIds()
        self.waiting: dict[bytes, int] = {}
        self.taken: dict[bytes, int] = {}
        self.given = 0
        self.written: dict[bytes, int] = {}
        self.order_added: list[bytes] = []
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
        self.ids.drain()
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
            self.order_added += [entry[1] for entry in entries]
            self.waiting = {key: held[key] for key in held.keys() - {entry[1] for entry in due}}
            self.written |= {entry[1]: entry[2] for entry in due}
        else:
            self.ids.undo()

    @staticmethod
    def order(due: list[IdEntry], entry: IdEntry) -> int:
        """Buckets come in the order they filled up; within one, entries are sorted."""
        buckets = list(dict.fromkeys(other[0] >> 26 for other in due))
        return buckets.index(entry[0] >> 26)

    @rule(number=st.integers(0, 9))
    def give(self, number: int) -> None:
        entries = self.fresh(number)
        self.ids.give(iter(entries))
        self.given += number
        self.waiting |= {entry[1]: entry[2] for entry in entries}

    @rule(shards=st.frozensets(st.integers(0, 63)))
    def take(self, shards: frozenset[int]) -> None:
        self.ids.drain()
        taken = self.ids.take(shards)
        expected = {key: serial for key, serial in self.waiting.items() if serial & 63 in shards}
        assert {entry[1]: entry[2] for entry in taken} == expected
        self.waiting = {key: serial for key, serial in self.waiting.items() if key not in expected}
        self.taken |= expected

    @rule()
    def forget_taken(self) -> None:
        self.ids.forget_taken()
        self.taken = {}

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        serials = data.draw(st.sets(st.integers(1, max(self.serial, 1)), max_size=5))
        self.ids.drain()
        self.ids.drop(serials)
        self.taken = {key: serial for key, serial in self.taken.items() if serial not in serials}
        self.waiting = {key: serial for key, serial in self.waiting.items() if serial not in serials}

    @rule()
    def undo_without_add(self) -> None:
        """A transaction that failed before it came to the ids."""
        self.ids.undo()

    @invariant()
    def what_waits_is_found_and_nothing_else(self) -> None:
        known = self.waiting | self.taken
        for number in range(1, self.serial + 1):
            assert self.ids.get(b"%d" % number) == known.get(b"%d" % number)

    @rule()
    def what_waits_is_there_whole(self) -> None:
        self.ids.drain()
        assert len(self.ids) == len(self.waiting)
        assert {entry[1]: entry[2] for entry in self.ids.all()} == self.waiting
        assert self.ids.all() == sorted(self.ids.all())
        assert all(self.ids.waits((0, *entry)) for entry in self.waiting.items())
        assert not any(self.ids.waits((0, *entry)) for entry in (self.taken | self.written).items())

    @invariant()
    def the_first_ones_that_were_added_wait_no_more(self) -> None:
        assert self.ids.added == len(self.order_added)
        assert self.waiting.keys().isdisjoint(self.order_added[: self.ids.indexed])

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.ids) <= BUCKETS * (BUCKET_MAX - 1) + self.given

    @rule()
    def nothing_is_added_for_a_while(self) -> None:
        """What is due becomes less, and so does what the journal has to name."""
        self.ids.drain()
        for _ in range(BUCKETS + self.given):
            due = self.ids.add(())
            self.ids.settle()
            self.written |= {entry[1]: entry[2] for entry in due}
        self.waiting = {key: held for key, held in self.waiting.items() if key not in self.written}
        assert self.ids.added - self.ids.indexed <= BUCKET_MAX


TestIds = Ids.TestCase
TestIds.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, BUCKETS - 1), min_size=1, max_size=4, unique=True),
    st.integers(1, 3_000),
    st.integers(0, 300),
)
def test_however_many_are_given_they_are_written_in_bounded_pieces(
    numbers: list[int], each: int, more: int
) -> None:
    ids = PendingIds()
    serials = iter(range(1, 1_000_000))
    for number in numbers:
        ids.give((number << 26 | s, b"%d" % s, s) for s in islice(serials, each))
    ids.drain()
    entries = len(ids)
    written: list[IdEntry] = []
    for _ in range(entries):
        fresh = [(numbers[0] << 26 | s, b"%d" % s, s) for s in islice(serials, more)]
        due = ids.add(fresh)
        assert len(due) <= max(module.DUE_ENTRIES, 2 * more) + 2 * module.BUCKET_MAX
        ids.settle()
        entries += more
        written += due
        if max(len(bucket) for bucket in ids._buckets) < module.BUCKET_MAX:
            break
    else:
        pytest.fail("what is due never becomes less")
    assert len(set(written)) == len(written)
    assert len(written) + len(ids) == entries


def test_ids_that_lie_in_one_bucket_do_not_make_the_journal_grow() -> None:
    """As those would that somebody makes up to lie there."""
    ids = PendingIds()
    ids.add([(number << 26, b"first-%d" % number, number) for number in range(BUCKETS)])
    ids.settle()
    bound = module.TRAIL * BUCKETS * module.BUCKET_MAX
    for at in range(1_000, 400_000, 1_000):
        ids.add([(s, b"%d" % s, s) for s in range(at, at + 1_000)])
        ids.settle()
        assert ids.added - ids.indexed <= bound + (BUCKETS + 1) * 1_000


def test_random_ids_leave_a_short_journal() -> None:
    ids = PendingIds()
    longest = 0
    for at in range(0, 300_000, 100):
        ids.add([(crc32(b"%d" % s), b"%d" % s, s) for s in range(at, at + 100)])
        ids.settle()
        longest = max(longest, ids.added - ids.indexed)
    assert longest < 1.4 * BUCKETS * module.BUCKET_MAX
