"""Whom a leader fences, and how what they left is dealt out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.cluster.lease import TIMING
from refreshd.cluster.snapshot import Advert, Entry, Snapshot
from refreshd.cluster.takeover import (
    BATCH_MAX,
    BATCH_MIN,
    BATCH_UNKNOWN,
    Estate,
    Plan,
    Sightings,
    batch_limit,
    decide,
    heirs,
    next_heir,
)
from tests.refreshd.cluster.sql import Row

LEASE_MS, BOOT_MS = TIMING.lease_ms, TIMING.boot_ms


def a_row(number: int, epoch: int = 1, *, alive: bool = True, owns: bool = False) -> Row:
    return Row(number, f"e{number}", epoch, alive, owns)


def an_entry(number: int, epoch: int = 1, *, draining: bool = False, unfinished: int = 0) -> Entry:
    advert = Advert(f"e{number}", "127.0.0.1:1", number, epoch, "b", draining=draining, unfinished=unfinished)
    return Entry(advert, 9_000)


def a_snapshot(*entries: Entry, unreadable: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(entries, unreadable)


def plan(
    snapshot: Snapshot,
    rows: list[Row],
    sightings: Sightings,
    *,
    watched_ms: int = LEASE_MS,
    now_ms: int = 100_000,
) -> Plan:
    return decide(1, snapshot, rows, sightings, watched_ms=watched_ms, now_ms=now_ms, timing=TIMING)


def having_seen(*entries: Entry) -> Sightings:
    sightings = Sightings()
    sightings.note(a_snapshot(*entries))
    return sightings


def test_an_engine_that_had_a_lease_and_has_none_is_fenced() -> None:
    rows = [a_row(1), a_row(2), a_row(3)]
    sightings = having_seen(an_entry(1), an_entry(2), an_entry(3))
    assert plan(a_snapshot(an_entry(1), an_entry(3)), rows, sightings) == Plan((a_row(2),), (), (1, 3))


def test_nobody_is_fenced_before_everybody_had_time_to_come_back() -> None:
    sightings = having_seen(an_entry(1), an_entry(2))
    rows = [a_row(1), a_row(2)]
    assert not plan(a_snapshot(an_entry(1)), rows, sightings, watched_ms=LEASE_MS - 1).fence
    assert plan(a_snapshot(an_entry(1)), rows, sightings, watched_ms=LEASE_MS).fence


def test_an_engine_that_boots_has_time_to_load() -> None:
    sightings = Sightings()
    rows = [a_row(1), a_row(2)]
    sightings.note_rows(rows, 100_000)
    sightings.note_rows(rows, 100_000 + BOOT_MS - 1)
    snapshot = a_snapshot(an_entry(1))
    assert not plan(snapshot, rows, sightings, now_ms=100_000 + BOOT_MS - 1).fence
    assert plan(snapshot, rows, sightings, now_ms=100_000 + BOOT_MS).fence == (a_row(2),)


def test_the_lease_of_an_earlier_epoch_is_none_and_proves_none() -> None:
    # It was fenced and came back; what still renews, or was seen, is the process before it.
    sightings = having_seen(an_entry(2, epoch=1))
    rows = [a_row(1), a_row(2, epoch=3)]
    sightings.note_rows(rows, 0)
    snapshot = a_snapshot(an_entry(1), an_entry(2, epoch=1))
    assert not plan(snapshot, rows, sightings, now_ms=BOOT_MS - 1).fence
    assert plan(snapshot, rows, sightings, now_ms=BOOT_MS).fence == (a_row(2, epoch=3),)
    assert plan(snapshot, rows, sightings, now_ms=BOOT_MS).heirs == (1,)


def test_the_lease_of_a_later_epoch_counts_sql_was_read_before() -> None:
    sightings = having_seen(an_entry(2, epoch=1))
    snapshot = a_snapshot(an_entry(1), an_entry(2, epoch=3))
    assert not plan(snapshot, [a_row(1), a_row(2, epoch=1)], sightings).fence


def test_an_engine_whose_entry_cannot_be_read_lives() -> None:
    sightings = having_seen(an_entry(2))
    snapshot = a_snapshot(an_entry(1), unreadable=("e2",))
    assert not plan(snapshot, [a_row(1), a_row(2)], sightings).fence


def test_a_leader_does_not_fence_itself() -> None:
    sightings = having_seen(an_entry(1))
    assert not plan(a_snapshot(), [a_row(1)], sightings).fence


def test_what_is_fenced_is_dealt_out_until_nothing_is_left() -> None:
    rows = [a_row(1), a_row(2, epoch=4, alive=False, owns=True), a_row(3, alive=False)]
    snapshot = a_snapshot(an_entry(1))
    assert plan(snapshot, rows, Sightings(), watched_ms=0) == Plan((), (Estate(2, 4, "e2"),), (1,))
    assert not plan(snapshot, [a_row(1), a_row(2, epoch=4, alive=False)], Sightings())


def test_nothing_can_be_done_without_heirs() -> None:
    assert not plan(a_snapshot(), [a_row(2, alive=False, owns=True)], Sightings())


def test_heirs_live_by_redis_and_by_sql_and_do_not_drain() -> None:
    rows = [a_row(1), a_row(2), a_row(3, alive=False), a_row(4, epoch=2), a_row(5)]
    entries = [an_entry(1), an_entry(2, draining=True), an_entry(3), an_entry(4), an_entry(6)]
    assert heirs(a_snapshot(*entries), rows) == (1,)
    assert heirs(a_snapshot(*entries[1:]), rows) == (2,), "better one that drains than nobody"
    assert heirs(a_snapshot(*entries[2:]), rows) == ()


def test_sightings_forget_what_sql_does_not_have_alive() -> None:
    sightings = having_seen(an_entry(1), an_entry(2), an_entry(3))
    sightings.note_rows([a_row(1), a_row(2, epoch=2)], 0)
    assert sightings.handed() == [(1, 1)]
    assert sightings.missed_ms(a_row(2, epoch=2), 500) == 500
    sightings.note_rows([a_row(1)], 600)
    assert sightings.missed_ms(a_row(2, epoch=2), 600) == 0


def test_a_successor_has_seen_what_the_process_before_it_saw() -> None:
    sightings = Sightings()
    sightings.inherit(having_seen(an_entry(1), an_entry(2)).handed())
    assert plan(a_snapshot(an_entry(1)), [a_row(1), a_row(2)], sightings).fence == (a_row(2),)


def test_an_engine_that_lost_its_lease_for_a_while_is_missed_from_then_on() -> None:
    sightings = Sightings()
    rows = [a_row(1), a_row(2)]
    sightings.note_rows(rows, 0)
    sightings.note(a_snapshot(an_entry(2)))
    sightings.note_rows(rows, 50_000)
    assert sightings.missed_ms(a_row(2), 50_100) == 100


@given(st.integers(0, 200_000), st.integers(1, 8), st.booleans())
def test_shares_are_equal_and_batches_bounded(tasks: int, living: int, known: bool) -> None:
    numbers = tuple(range(1, living + 1))
    limit = batch_limit(tasks if known else None, living)
    assert 0 < limit <= BATCH_MAX
    given_to = dict.fromkeys(numbers, 0)
    left = tasks
    while left:
        heir = next_heir(numbers, given_to)
        moved = min(limit, left)
        given_to[heir] += moved
        left -= moved
    assert max(given_to.values()) - min(given_to.values()) <= limit
    # Where it is known how much there is, nobody gets a quarter more than another; else a small batch.
    if known and tasks:
        assert limit <= max(BATCH_MIN, tasks // (4 * living) + 1)
    else:
        assert limit == BATCH_UNKNOWN


@pytest.mark.parametrize("gone", [1, 2])
def test_an_heir_that_goes_amid_gets_no_more(gone: int) -> None:
    left = tuple(number for number in (1, 2, 3) if number != gone)
    assert next_heir(left, {1: 10, 2: 10, 3: 20}) != gone
