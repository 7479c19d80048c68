"""The arithmetic of a lease, against the Redis that it is about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.cluster.lease import TIMING, Lease

LENGTH_MS, MARGIN_MS = 10_000, 1_000


def a_lease() -> Lease:
    return Lease(LENGTH_MS, MARGIN_MS)


@pytest.mark.parametrize(("length_ms", "margin_ms"), [(10, 10), (10, 11), (10, -1), (0, 0)])
def test_a_margin_must_leave_something(length_ms: int, margin_ms: int) -> None:
    with pytest.raises(ValueError, match="wanted less"):
        Lease(length_ms, margin_ms)


def test_nobody_acts_without_a_lease() -> None:
    lease = a_lease()
    assert not lease.acts(0)
    assert lease.remaining_ms(0) == lease.held_ms(0) == 0


def test_it_ends_counted_from_when_it_was_asked_for_and_began_when_the_answer_came() -> None:
    lease = a_lease()
    lease.granted(sent_ms=1_000, now_ms=1_800)
    assert lease.acts(9_999)
    assert not lease.acts(10_000)
    assert lease.remaining_ms(9_000) == 1_000
    assert lease.held_ms(2_800) == 1_000


def test_an_answer_that_comes_when_the_lease_is_over_grants_nothing() -> None:
    lease = a_lease()
    lease.granted(sent_ms=0, now_ms=9_000)
    assert not lease.acts(9_000)


def test_a_late_answer_takes_nothing_back() -> None:
    lease = a_lease()
    lease.granted(sent_ms=5_000, now_ms=5_001)
    lease.granted(sent_ms=2_000, now_ms=5_002)
    assert lease.acts(13_999)


def test_after_a_break_it_is_held_anew() -> None:
    lease = a_lease()
    lease.granted(0, 0)
    lease.granted(8_000, 8_000)
    assert lease.held_ms(16_000) == 16_000
    lease.granted(17_000, 17_000)
    assert lease.held_ms(17_500) == 500
    lease.drop()
    assert not lease.acts(17_500)
    lease.granted(17_600, 17_600)
    assert lease.held_ms(18_600) == 1_000


def test_a_successor_has_held_it_as_long_as_who_handed_it_over() -> None:
    lease = a_lease()
    lease.granted(50_000, 50_010)
    lease.inherit(20_000)
    assert lease.held_ms(51_000) == 31_000


steps = st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 6_000), st.integers(0, 6_000)), max_size=30)


@given(steps)
def test_its_holder_never_acts_when_redis_has_ended_it(rows: list[tuple[int, int, int]]) -> None:
    """Each row: how long until it asks, until Redis hears it, until the answer is here."""
    lease, now_ms, ends_in_redis_ms = a_lease(), 0, 0
    for wait_ms, there_ms, back_ms in rows:
        now_ms += wait_ms
        sent_ms = now_ms
        heard_ms = sent_ms + there_ms
        ends_in_redis_ms = heard_ms + LENGTH_MS
        now_ms = heard_ms + back_ms
        lease.granted(sent_ms, now_ms)
        for later_ms in (now_ms, ends_in_redis_ms - MARGIN_MS, ends_in_redis_ms, ends_in_redis_ms + 1):
            if lease.acts(later_ms):
                assert later_ms < ends_in_redis_ms - MARGIN_MS
            assert lease.acts(later_ms) == (lease.remaining_ms(later_ms) > 0)


def test_the_memory_ends_before_the_lease_of_anybody_who_renews_as_he_should() -> None:
    assert 2 * TIMING.renew_ms < TIMING.memory_ms < TIMING.lease_ms - TIMING.renew_ms
