"""How much is sent at once, decided from how long answers took."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxyd.pace import LATE_S, Pace


def warmed(most: int = 256) -> Pace:
    """One of a cache that has answered well."""
    pace = Pace(most)
    pace.answered(0.005, 1.0)
    return pace


def test_a_cache_that_is_well_is_never_slowed() -> None:
    pace = warmed()
    for number in range(1000):
        # A full pipeline, a busy machine.
        pace.answered(LATE_S * (number % 100) / 100, 1.0 + number / 1000)
        assert pace.limit == 256


def test_late_answers_cut_it_once_in_their_time() -> None:
    pace = warmed()
    pace.answered(0.3, 2.0)
    assert pace.limit == 179
    for tenth in (1, 2):
        pace.answered(0.3, 2.0 + tenth / 10)
        assert pace.limit == 179
    pace.answered(0.3, 2.4)
    assert pace.limit == 125


def test_it_grows_again_with_care() -> None:
    pace = warmed()
    pace.answered(0.3, 2.0)
    grown = [pace.limit]
    while pace.limit < 256:
        pace.answered(0.005, 3.0)
        grown.append(pace.limit)
    assert grown == [179, 195, 211, 227, 243, 256]


def test_a_cache_that_is_back_is_met_with_one_and_soon_with_all() -> None:
    pace = warmed()
    pace.failed(2.0)
    pace.restart()
    grown = [pace.limit]
    while pace.limit < 256:
        pace.answered(0.005, 3.0)
        grown.append(pace.limit)
    assert grown[:8] == [1, 2, 4, 8, 16, 32, 64, 80]
    assert len(grown) < 25


def test_a_cache_that_is_always_slow_is_not_late() -> None:
    pace = Pace(8)
    for second in range(300):
        pace.answered(2.0, float(second))
        assert pace.limit == 8


def test_another_bound_holds_at_once() -> None:
    pace = warmed()
    pace.set_most(10)
    assert pace.limit == 10
    pace.set_most(64)
    assert pace.limit == 64
    pace.failed(2.0)
    pace.set_most(100)
    assert pace.limit == 32


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.sampled_from("afr"), st.floats(0, 5), st.floats(0, 5)), max_size=60),
)
def test_it_stays_between_one_and_the_most(most: int, steps: list[tuple[str, float, float]]) -> None:
    pace, now = Pace(most), 0.0
    for what, took_s, step_s in steps:
        now += step_s
        if what == "a":
            pace.answered(took_s, now)
        elif what == "f":
            pace.failed(now)
        else:
            pace.restart()
        assert 1 <= pace.limit <= most
