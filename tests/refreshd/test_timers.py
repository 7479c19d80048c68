"""The wheel, against a list that is looked through."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from refreshd.timers import TICK_MS, Wheel

entries = st.integers(0, 12)
# Every level of the wheel, and the borders between them.
distances = st.one_of(
    st.integers(-1000, 1000),
    st.builds(lambda level, off: (64**level + off) * TICK_MS, st.integers(1, 5), st.integers(-2, 2)),
    st.integers(0, 64**3 * TICK_MS),
    st.integers(0, 10 * 366 * 86_400_000),
)
# Some of them just before all levels are dealt out.
starts_ms = st.one_of(
    st.integers(0, 1 << 45),
    st.builds(
        lambda level, turns, off: (64**level * turns + off) * TICK_MS,
        st.integers(1, 5),
        st.integers(1, 70),
        st.integers(-200, 0),
    ),
)


class WheelAgainstList(RuleBasedStateMachine):
    """No entry fires early, or later than one tick; and each once."""

    @initialize(now_ms=starts_ms)
    def begin(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.wheel: Wheel[int] = Wheel(now_ms)
        self.model: dict[int, int] = {}

    @rule(entry=entries, distance_ms=distances)
    def add(self, entry: int, distance_ms: int) -> None:
        self.wheel.add(entry, self.now_ms + distance_ms)
        self.model[entry] = self.now_ms + max(distance_ms, 0)

    @rule(entry=entries)
    def remove(self, entry: int) -> None:
        assert self.wheel.remove(entry) == (self.model.pop(entry, None) is not None)

    @rule(by_ms=st.one_of(st.integers(0, 250), st.integers(0, 20_000), st.integers(0, 1_500_000)))
    def advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
        fired = self.wheel.advance(self.now_ms)
        assert len(fired) == len(set(fired))
        for entry in fired:
            assert self.model.pop(entry) <= self.now_ms, "early"
        assert all(at_ms > self.now_ms - TICK_MS for at_ms in self.model.values()), "late"

    @invariant()
    def holds_what_was_added(self) -> None:
        if hasattr(self, "wheel"):
            assert set(self.wheel) == set(self.model)
            assert len(self.wheel) == len(self.model)
            # Nothing is left behind in a bucket.
            held = [entry for level in self.wheel._buckets for bucket in level.values() for entry in bucket]
            assert sorted(held) == sorted(self.model)
            assert all(bucket for level in self.wheel._buckets for bucket in level.values())


TestWheel = WheelAgainstList.TestCase
TestWheel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=20, unique=True))
def test_earliest_first_over_one_long_gap(times_ms: list[int]) -> None:
    wheel: Wheel[int] = Wheel(0)
    for at_ms in times_ms:
        wheel.add(at_ms, at_ms)
    fired = wheel.advance(400_000)
    ticks = [-(-at_ms // TICK_MS) for at_ms in fired]
    assert ticks == sorted(ticks)
    assert sorted(fired) == sorted(times_ms)


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_every_tick_or_one_long_gap_is_the_same(start_ms: int, distance_ms: int) -> None:
    wheel: Wheel[str] = Wheel(start_ms)
    wheel.add("x", start_ms + distance_ms)
    now_ms = start_ms
    while not wheel.advance(now_ms):
        now_ms += TICK_MS // 2
    assert start_ms + distance_ms <= now_ms < start_ms + distance_ms + 2 * TICK_MS


def test_a_gap_over_four_levels() -> None:
    wheel: Wheel[int] = Wheel((64**4 - 100) * TICK_MS)
    now_ms = (64**4 - 100) * TICK_MS
    times_ms = [now_ms + ticks * TICK_MS for ticks in (1, 99, 100, 64**2, 64**3 - 1, 64**3, 64**3 + 70)]
    for at_ms in times_ms:
        wheel.add(at_ms, at_ms)
    assert wheel.advance(times_ms[-1] - 1) == times_ms[:-1]
    assert wheel.advance(times_ms[-1]) == times_ms[-1:]


@pytest.mark.parametrize("years", [1, 3, 4, 10])
def test_years_ahead(years: int) -> None:
    at_ms = years * 366 * 86_400_000
    wheel: Wheel[str] = Wheel(0)
    wheel.add("x", at_ms)
    # Stepping through years would take minutes: jump to just before, as an idle wheel does, and deal out.
    assert wheel.remove("x")
    assert wheel.advance(at_ms - 50_000) == []
    wheel.add("x", at_ms)
    assert wheel.advance(at_ms - 1) == []
    assert wheel.advance(at_ms + TICK_MS) == ["x"]


def test_time_that_stands_still_or_goes_back() -> None:
    wheel: Wheel[str] = Wheel(10_000)
    wheel.add("x", 10_500)
    assert wheel.advance(10_000) == []
    assert wheel.advance(0) == []
    assert wheel.advance(10_500) == ["x"]
    wheel.add("past", 0)
    assert wheel.advance(10_500) == []
    assert wheel.advance(10_600) == ["past"]
