"""Shards, owners and lanes; serials that only grow."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refreshd.shard import ENGINE_MAX, SERIAL_MAX, SerialClock, ShardMap, created_ms, first_serial
from wire import SHARDS
from wire.shards import shard_of, worker_of

# Until the year 2109, which is what 42 bits hold.
times_ms = st.integers(0, (1 << 42) - 2)
IDS = [b"task-%d" % number for number in range(2000)]


@pytest.mark.parametrize("workers", range(1, SHARDS + 1))
def test_owners_are_what_the_protocol_says(workers: int) -> None:
    shards = ShardMap(0, workers, 1)
    assert [shards.owner(task_id) for task_id in IDS] == [worker_of(task_id, workers) for task_id in IDS]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, SHARDS), st.integers(1, SHARDS))
def test_every_shard_has_one_owner_and_a_lane_that_the_owner_opens(workers: int, lanes: int) -> None:
    maps = [ShardMap(slot, workers, lanes) for slot in range(workers)]
    assert sorted(shard for shards in maps for shard in shards.owned) == list(range(SHARDS))
    for shards in maps:
        assert shards.own_lanes() == sorted({shard % lanes for shard in shards.owned})
        for lane in range(lanes):
            writers = [other.slot for other in maps if lane in other.own_lanes()]
            assert shards.sharers(lane) == writers
    for task_id in IDS[:50]:
        assert maps[0].lane(task_id) == shard_of(task_id) % lanes
        owner = maps[maps[0].owner(task_id)]
        assert owner.lane(task_id) in owner.own_lanes()


@given(st.integers(0, 63), st.lists(times_ms, min_size=1, max_size=60))
def test_serials_only_grow_whatever_the_clock_does(slot: int, clock: list[int]) -> None:
    serials = SerialClock(slot)
    given_out = [serials.next(now_ms) for now_ms in clock]
    assert given_out == sorted(set(given_out))
    assert all(0 < serial <= SERIAL_MAX for serial in given_out)
    latest = 0
    for now_ms, serial in zip(clock, given_out, strict=True):
        latest = max(latest, now_ms)
        # Never before the truth, and no more than a few of the milliseconds it borrowed after it.
        assert latest <= created_ms(serial) <= latest + 1


@given(st.lists(st.tuples(st.integers(0, 63), times_ms), min_size=1, max_size=80))
def test_workers_never_give_out_the_same(calls: list[tuple[int, int]]) -> None:
    clocks = [SerialClock(slot) for slot in range(64)]
    given_out = [clocks[slot].next(now_ms) for slot, now_ms in calls]
    assert len(set(given_out)) == len(given_out)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), times_ms), min_size=1, max_size=80))
def test_engines_that_share_a_store_never_give_out_the_same(calls: list[tuple[int, int, int]]) -> None:
    clocks = {(e, slot): SerialClock(slot, engine=e) for e in range(4) for slot in range(4)}
    given_out = [clocks[engine, slot].next(now_ms) for engine, slot, now_ms in calls]
    assert len(set(given_out)) == len(given_out)
    assert all(0 < SerialClock(63, engine=ENGINE_MAX).next(now_ms) <= SERIAL_MAX for *_, now_ms in calls)


@given(
    st.integers(0, 63),
    st.lists(st.tuples(st.integers(0, 1), times_ms, st.integers(1, 40)), min_size=1, max_size=40),
    st.data(),
)
def test_two_processes_of_one_slot_never_give_out_the_same(
    slot: int, calls: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    # Sequences that are nearly used up, and lives before, of any length.
    lasts = data.draw(st.tuples(*[st.one_of(st.just(0), times_ms.map(lambda ms: ms << 21 | 500))] * 2))
    clocks = [SerialClock(slot, last, side) for side, last in enumerate(lasts)]
    given_out: list[list[int]] = [[], []]
    for side, now_ms, number in calls:
        given_out[side] += [clocks[side].next(now_ms) for _ in range(number)]
        assert clocks[side].last == given_out[side][-1]
        if data.draw(st.booleans()):
            clocks[side].after(clocks[1 - side].last)
            assert clocks[side].last >= clocks[1 - side].last
    for side, serials in enumerate(given_out):
        assert serials == sorted(set(serials))
        assert all(serial > lasts[side] for serial in serials)
        assert {(serial >> 9 & 63, serial & 1) for serial in serials} <= {(slot, side)}
    assert not set(given_out[0]) & set(given_out[1])


@pytest.mark.parametrize("slot", [0, 1, 63])
def test_a_millisecond_that_is_used_up_borrows_of_the_next(slot: int) -> None:
    clock, other = SerialClock(slot), SerialClock((slot + 1) % 64)
    now_ms = 1_795_250_000_123
    mine = [clock.next(now_ms) for _ in range(2_000)]
    theirs = {other.next(now_ms) for _ in range(2_000)}
    assert mine == sorted(set(mine))
    assert not theirs & set(mine)
    assert [created_ms(mine[at]) - now_ms for at in (0, 255, 256, 511, 512)] == [0, 0, 1, 1, 2]
    # The time catches up with what was borrowed.
    assert created_ms(clock.next(now_ms + 10)) == now_ms + 10


@pytest.mark.parametrize("side", [0, 1])
def test_each_side_borrows_in_its_own_sequence(side: int) -> None:
    clock = SerialClock(7, side=side)
    mine = [clock.next(1_795_250_000_123) for _ in range(2_000)]
    assert mine == sorted(set(mine))
    assert {(serial >> 9 & 63, serial & 1) for serial in mine} == {(7, side)}


@given(st.integers(0, 63), st.integers(0, (1 << 62)), times_ms)
def test_it_goes_on_behind_what_an_earlier_life_gave_out(slot: int, last: int, now_ms: int) -> None:
    clock = SerialClock(slot)
    clock.after(last)
    first = clock.next(now_ms)
    assert first > last
    assert clock.next(now_ms) > first
    # Its slot stands in it, so no other worker gives it out too.
    assert first >> 9 & 63 == slot
    clock.after(0)
    assert clock.next(now_ms) > first


@given(times_ms, st.integers(0, 63))
def test_first_serial_parts_before_from_after(now_ms: int, slot: int) -> None:
    assert SerialClock(slot).next(now_ms) >= first_serial(now_ms)
    assert SerialClock(slot).next(max(now_ms - 1, 0)) < first_serial(max(now_ms - 1, 0) + 1)
    assert first_serial(-5) == 0
