"""The breaker alone: every state, every way from one to the next, and the table that is shown of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd.breaker import TRANSITIONS, WINDOW_S, Breaker, BreakerSettings, Event, Outcome, State

OK, FAILED, TIMEOUT = Outcome.OK, Outcome.FAILED, Outcome.TIMEOUT
SETTINGS = BreakerSettings(errors=3, error_rate=0.5, error_rate_min=20, retry_first_s=1.0, retry_max_s=4.0)


def make(settings: BreakerSettings = SETTINGS, above: Breaker | None = None) -> Breaker:
    """A breaker whose waits are not shortened."""
    return Breaker(settings, above, random_source=lambda: 0.0)


def opened(now: float = 100.0) -> Breaker:
    """One that is open."""
    breaker = make()
    for _ in range(3):
        breaker.note(FAILED, now, why="killed: gone")
    assert breaker.state is State.OPEN
    return breaker


def test_errors_in_a_row_open_it() -> None:
    breaker = make()
    for outcome in (FAILED, TIMEOUT, OK, FAILED, FAILED):
        breaker.note(outcome, 1.0)
        assert breaker.may_send(1.0)
    breaker.note(TIMEOUT, 1.5, 64, why="frozen: no answer")
    assert breaker.state is State.OPEN
    assert not breaker.may_send(2.4)
    row = breaker.row(2.0, 7)
    assert (row.state, row.concurrency, row.successes, row.failures, row.timeouts) == ("open", 7, 1, 3, 65)
    assert (row.consecutive_errors, row.error_rate, row.for_s, row.why) == (
        3,
        0.986,
        0.5,
        "frozen: no answer",
    )
    assert row.retry_in_s == 0.5


def test_many_requests_on_one_connection_are_one_error_in_a_row() -> None:
    breaker = make(BreakerSettings(errors=2, error_rate_min=1000))
    breaker.note(TIMEOUT, 1.0, 64)
    assert breaker.state is State.CLOSED
    breaker.note(FAILED, 1.0, 2, in_a_row=2)
    assert breaker.state is State.OPEN


def test_a_rate_opens_it_once_there_are_enough() -> None:
    breaker = make()
    for number in range(9):
        breaker.note(FAILED, 1.0 + number / 10, why="full: 503")
        breaker.note(OK, 1.0 + number / 10)
    assert breaker.state is State.CLOSED
    breaker.note(OK, 2.0)
    breaker.note(FAILED, 2.0, why="full: 503")
    assert breaker.state is State.OPEN
    assert breaker.why == "full: 503 (10 of 20 requests failed in 10 s)"


def test_a_rate_looks_back_ten_seconds() -> None:
    breaker = make()
    for _ in range(9):
        breaker.note(FAILED, 1.0)
        breaker.note(OK, 1.0)
    later = 1.0 + WINDOW_S + 1
    breaker.note(FAILED, later)
    breaker.note(FAILED, later)
    assert breaker.state is State.CLOSED
    assert (breaker.row(later, 0).successes, breaker.row(later, 0).failures) == (0, 2)


def test_the_one_that_is_let_through_decides() -> None:
    breaker = opened(100.0)
    assert not breaker.may_send(100.9)
    assert breaker.may_send(101.0)
    assert breaker.state is State.HALF_OPEN
    assert not breaker.may_send(101.5)
    breaker.note(FAILED, 102.0)
    # The next wait is twice as long, and so on up to a bound.
    for wait_s, now in ((2.0, 102.0), (4.0, 104.0), (4.0, 108.0)):
        assert not breaker.may_send(now + wait_s - 0.1)
        assert breaker.may_send(now + wait_s)
        breaker.note(TIMEOUT, now + wait_s)
    assert breaker.down_since == 100.0
    assert breaker.may_send(116.0)
    breaker.note(OK, 116.0)
    assert breaker.state is State.CLOSED
    assert breaker.down_since is None
    # And the first wait is short again.
    for _ in range(3):
        breaker.note(FAILED, 200.0)
    assert breaker.may_send(201.0)


def test_what_was_sent_before_decides_nothing() -> None:
    breaker = opened()
    breaker.note(OK, 100.5, 10)
    breaker.note(FAILED, 100.5)
    assert breaker.state is State.OPEN
    assert breaker.row(100.5, 0).successes == 10


def test_what_it_opened_for_does_not_open_it_again() -> None:
    breaker = opened(100.0)
    breaker.note(FAILED, 100.0, 50)
    breaker.may_send(101.0)
    breaker.note(OK, 101.0)
    breaker.note(FAILED, 101.1)
    assert breaker.state is State.CLOSED
    assert breaker.row(101.1, 0).failures == 54


def test_an_origins_errors_are_counted_and_open_nothing() -> None:
    breaker = make()
    breaker.note(FAILED, 1.0, 100, blame=False)
    breaker.note(TIMEOUT, 1.0, 100, blame=False)
    assert breaker.state is State.CLOSED
    assert breaker.row(1.0, 0).error_rate == 1.0
    # But an answer from behind the cache shows that the cache is there; silence does not.
    breaker = opened(100.0)
    breaker.may_send(101.0)
    breaker.note(TIMEOUT, 102.0, blame=False)
    assert breaker.state is State.OPEN
    breaker.may_send(110.0)
    breaker.note(FAILED, 110.0, blame=False)
    assert breaker.state is State.CLOSED


def test_what_is_below_waits_for_what_is_above() -> None:
    above = opened(100.0)
    below = make(above=above)
    assert (below.state, below.closed, below.down_since) == (State.CLOSED, False, 100.0)
    assert below.reason == "killed: gone"
    # It does not take the try that is the other's.
    assert not below.may_send(101.0)
    assert above.state is State.OPEN
    above.may_send(101.0)
    above.note(OK, 101.0)
    assert below.closed
    assert below.may_send(101.0)
    for _ in range(3):
        below.note(FAILED, 102.0)
    assert (below.closed, above.closed) == (False, True)


def test_each_change_is_told() -> None:
    told: list[State] = []
    breaker = make()
    breaker.changed = lambda: told.append(breaker.state)
    for _ in range(3):
        breaker.note(FAILED, 1.0)
    breaker.may_send(2.0)
    breaker.note(OK, 2.0)
    assert told == [State.OPEN, State.HALF_OPEN, State.CLOSED]


def test_what_is_not_in_the_table_is_a_fault() -> None:
    with pytest.raises(KeyError):
        opened()._change(Event.MENDED, 1.0)
    assert set(TRANSITIONS) == set(State)


def test_other_settings_hold_at_once() -> None:
    breaker = make()
    breaker.note(FAILED, 1.0)
    breaker.settings = BreakerSettings(errors=2)
    breaker.note(FAILED, 1.0)
    assert breaker.state is State.OPEN


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["send", *Outcome]), st.floats(0, 3), st.integers(1, 70), st.booleans()
    ),
    max_size=80,
)  # fmt: skip


@given(EVENTS)
def test_whatever_comes_it_keeps_its_rules(events: list[tuple[object, float, int, bool]]) -> None:
    breaker, now, noted = make(), 0.0, []
    for what, step_s, count, blame in events:
        now += step_s
        before = breaker.state
        if isinstance(what, Outcome):
            breaker.note(what, now, count, blame=blame)
            noted.append((int(now), what, count))
        elif breaker.may_send(now):
            # At most one from one wait to the next.
            assert before is State.CLOSED or (before is State.OPEN and now >= breaker.retry_at)
            assert before is State.CLOSED or not breaker.may_send(now)
        row = breaker.row(now, 0)
        recent = [each for each in noted if each[0] >= int(now) - WINDOW_S]
        assert row.successes == sum(count for _, what, count in recent if what is OK)
        assert row.timeouts == sum(count for _, what, count in recent if what is TIMEOUT)
        assert (breaker.down_since is None) == (breaker.state is State.CLOSED)
        assert (row.retry_in_s is not None) == (breaker.state is State.OPEN)
