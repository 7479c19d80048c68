"""Rates: damped averages of a counter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.rates import TURN_S, Rate


def test_a_steady_rate_is_what_all_windows_come_to() -> None:
    rate = Rate(0.0)
    for turn in range(1, 2000):
        rate.count += 500
        rate.turn(turn * TURN_S)
    figures = rate.figures(1999 * TURN_S)
    for window in ("1m", "5m", "15m", "avg"):
        assert figures[window] == pytest.approx(100, rel=0.01)
    assert figures["count"] == 1999 * 500


def test_a_burst_shows_first_in_the_short_window_and_fades_there_first() -> None:
    rate = Rate(0.0)
    rate.count += 10_000
    rate.turn(TURN_S)
    early = rate.figures(TURN_S)
    assert early["1m"] > early["5m"] > early["15m"] > 0
    for turn in range(2, 121):
        rate.turn(turn * TURN_S)
    late = rate.figures(600.0)
    assert late["1m"] < late["5m"] < late["15m"]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.001, 60)), max_size=20), st.floats(0, 1e9))
def test_averages_lie_between_the_rates_there_were(turns: list[tuple[int, float]], start_s: float) -> None:
    rate, now_s = Rate(start_s), start_s
    seen = [0.0]
    for events, elapsed_s in turns:
        before_s, now_s = now_s, now_s + elapsed_s
        rate.count += events
        rate.turn(now_s)
        if now_s > before_s:
            seen.append(events / (now_s - before_s))
    for window in ("1m", "5m", "15m"):
        assert 0 <= rate.figures(now_s)[window] <= max(seen) + 0.001


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=10))
def test_how_often_it_turns_does_not_matter_to_a_steady_rate(steps_s: list[float]) -> None:
    one, many = Rate(0.0), Rate(0.0)
    total_s = sum(steps_s)
    now_s = 0.0
    for step_s in steps_s:
        now_s += step_s
        many.count = round(now_s * 1e6)
        many.turn(now_s)
    one.count = round(total_s * 1e6)
    one.turn(total_s)
    for window in ("1m", "5m", "15m"):
        assert one.figures(now_s)[window] == pytest.approx(many.figures(now_s)[window], rel=1e-3)


def test_time_that_stands_still_or_goes_back_changes_nothing() -> None:
    rate = Rate(100.0)
    rate.count += 5
    rate.turn(100.0)
    rate.turn(50.0)
    figures = rate.figures(100.0)
    assert (figures["1m"], figures["count"]) == (0.0, 5)
    rate.turn(105.0)
    assert rate.figures(105.0)["1m"] > 0
