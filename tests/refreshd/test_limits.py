"""Quotas of keys: pure, on a page that stands for the shared one; time stands still until it is moved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refreshd.config import Config, parse
from refreshd.limits import (
    DAY_MS,
    DEAL_MS,
    IN_FLIGHT_RETRY_MS,
    ROWS,
    Book,
    Limits,
    Page,
    Share,
    Usage,
    limits_of,
)
from wire.errors import Refused
from wire.fields import TASK_TYPES

URL, DIR = TASK_TYPES.index("url"), TASK_TYPES.index("dir")
MIDNIGHT_MS = 20_774 * DAY_MS
NOON_MS = MIDNIGHT_MS + DAY_MS // 2


def config_of(**settings: object) -> Config:
    lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
    return parse(f'[[key]]\nname = "acme"\nsecret_file = "f"\n{lines}')


class Engine:
    """Some workers on one page, and a clock."""

    def __init__(self, workers: int = 1, **settings: object) -> None:
        self.page = Page()
        self.mono_ms, self.wall_ms = 7_000_000, NOON_MS
        self.config = config_of(**settings)
        self.books: list[Book] = []
        for slot in range(workers):
            self.start(2 * slot)

    def start(self, row: int) -> Book:
        book = Book(self.page, row)
        book.configure(self.config)
        self.books.append(book)
        book.tick(self.mono_ms, self.wall_ms)
        return book

    def usage(self, worker: int = 0) -> Usage:
        return self.books[worker].usage("acme")

    def reload(self, **settings: object) -> None:
        for book in self.books:
            book.configure(config_of(**settings))

    def take(self, count: int = 1, kind: int = URL, worker: int = 0) -> Refused | None:
        """None if it was let in."""
        try:
            self.usage(worker).take(kind, count, self.mono_ms, self.wall_ms)
        except Refused as refused:
            return refused
        return None

    def burst(self, number: int, count: int = 1, worker: int = 0) -> int:
        """How many of so many were let in."""
        return sum(self.take(count, worker=worker) is None for _ in range(number))

    def pass_time(self, ms: int) -> None:
        while ms > 0:
            step = min(ms, 100)
            ms -= step
            self.mono_ms += step
            self.wall_ms += step
            for book in self.books:
                book.tick(self.mono_ms, self.wall_ms)

    def spent(self, worker: int = 0) -> tuple[int, int, int]:
        """Targets let in, requests refused, tasks in flight."""
        spent = self.usage(worker).spent(self.wall_ms)
        return spent.taken, spent.refused, spent.in_flight


def refusal(refused: Refused | None) -> tuple[str, int | None]:
    assert refused is not None
    assert "acme" in refused.msg
    return refused.code, refused.retry_ms


# ── targets a second ──────────────────────────────────────────────────────────────────────


def test_a_key_without_limits_takes_what_comes() -> None:
    engine = Engine()
    assert engine.burst(10_000, 1000) == 10_000
    assert engine.spent() == (10_000_000, 0, 10_000)


def test_a_burst_and_then_the_rate() -> None:
    engine = Engine(rate=10, burst=20)
    assert engine.burst(30) == 20
    assert refusal(engine.take()) == ("limited", 100)
    engine.pass_time(1000)
    assert engine.burst(30) == 10
    engine.pass_time(3_600_000)
    assert engine.burst(30) == 20


def test_without_a_burst_it_is_a_second_of_the_rate() -> None:
    assert Engine(rate=7).burst(30) == 7


@pytest.mark.parametrize("count", [1, 3, 20])
def test_retry_ms_is_exact(count: int) -> None:
    """A millisecond sooner it is refused; then it is let in."""
    engine = Engine(rate=3, burst=20)
    assert engine.burst(30) == 20
    _, wait_ms = refusal(engine.take(count))
    assert wait_ms == -(-count * 1000 // 3)
    engine.pass_time(wait_ms - 1)
    assert refusal(engine.take(count)) == ("limited", 1)
    engine.pass_time(1)
    assert engine.take(count) is None


def test_all_or_nothing() -> None:
    engine = Engine(rate=10, burst=10)
    assert engine.take(8) is None
    before = engine.spent()
    assert refusal(engine.take(3)) == ("limited", 100)
    assert engine.spent() == (before[0], before[1] + 1, before[2])
    assert engine.take(2) is None


def test_more_than_the_burst_comes_in_when_that_is_whole_and_is_paid_off() -> None:
    engine = Engine(rate=10, burst=20)
    assert engine.take() is None
    assert refusal(engine.take(50)) == ("limited", 100)
    engine.pass_time(100)
    assert engine.take(50) is None
    assert engine.usage().spare(engine.mono_ms) == -30
    assert refusal(engine.take()) == ("limited", 3100)
    assert refusal(engine.take(50)) == ("limited", 5000)
    engine.pass_time(3100)
    assert engine.take() is None


def test_time_that_is_not_looked_at_is_not_lost() -> None:
    engine = Engine(rate=10, burst=20)
    assert engine.burst(30) == 20
    engine.mono_ms += 1500
    assert engine.burst(30) == 15


# ── several workers ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [2, 4, 64])
def test_workers_share_one_bucket(workers: int) -> None:
    engine = Engine(workers, rate=100, burst=1000)
    assert sum(engine.burst(1, worker=turn % workers) for turn in range(2000)) == 1000
    for _ in range(20):
        engine.pass_time(500)
        assert sum(engine.burst(1, worker=turn % workers) for turn in range(200)) == 50
        engine.pass_time(500)
        assert engine.burst(200, worker=1) == 50


def test_what_one_worker_took_the_others_know_at_once() -> None:
    engine = Engine(2, rate=100, burst=50)
    assert engine.burst(50, worker=0) == 50
    assert refusal(engine.take(worker=1)) == ("limited", 10)
    engine.pass_time(10)
    assert engine.take(worker=1) is None
    assert refusal(engine.take(worker=0)) == ("limited", 10)


@pytest.mark.parametrize("workers", [2, 4, 64])
def test_what_is_set_aside_is_bounded_counted_and_lasts_a_millisecond(workers: int) -> None:
    """All have looked when one takes what is left: the worst that can be."""
    for later_ms in (0, 1):
        engine = Engine(workers, rate=1, burst=1000)
        assert sum(engine.burst(1, worker=worker) for worker in range(workers)) == workers
        assert engine.burst(1000) == 1000 - workers
        engine.mono_ms += later_ms
        too_many = sum(engine.burst(1000, worker=worker) for worker in range(1, workers))
        assert 0 < too_many < 500 if later_ms == 0 else too_many == 0
        assert engine.usage().spare(engine.mono_ms) == -too_many


def test_a_worker_that_looked_long_ago_is_not_left_behind() -> None:
    """One took a while ago, the bucket is full again: the other must not think that it happened just now."""
    engine = Engine(2, rate=100, burst=50)
    engine.burst(50, worker=0)
    engine.pass_time(10_000)
    assert engine.burst(100, worker=1) == 50


def test_time_in_which_the_bucket_was_full_is_not_had_twice() -> None:
    """One takes all at the end of a while in which nobody looked: the other must not fill that up."""
    engine = Engine(2, rate=100, burst=50)
    engine.mono_ms += 90
    assert engine.burst(60, worker=1) == 50
    assert engine.take(worker=0) is not None


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(0, 700), st.booleans()), max_size=60
    )
)
@settings(deadline=None)
def test_never_more_than_a_bucket_holds(steps: list[tuple[int, int, int, bool]]) -> None:
    """Against one bucket that knows everything, whoever asks when; with ticks it is not far below that."""
    engine = Engine(4, rate=20, burst=40)
    level, ticks = 40_000, True
    for worker, count, ms, ticking in steps:
        ticks = ticks and ticking
        if ticking:
            engine.pass_time(ms)
        else:
            engine.mono_ms += ms
        level = min(level + 20 * ms, 40_000)
        if engine.take(count, worker=worker) is None:
            assert level >= min(count, 40) * 1000
            level -= count * 1000
        elif ticks:
            # Others' takes of the last 100 ms may count as if they came now.
            assert level < (min(count, 40) + 2) * 1000


def test_a_worker_that_is_replaced_goes_on_with_the_same_bucket() -> None:
    engine = Engine(2, rate=10, burst=20)
    assert engine.burst(30) == 20
    engine.pass_time(500)
    for row in (1, 0):
        again = engine.start(row)
        engine.books[0] = again
        assert engine.burst(30) == (5 if row == 1 else 0)
        assert engine.spent()[0] == 25


def test_a_row_beyond_those_in_use_is_seen_at_once() -> None:
    engine = Engine(1, rate=10, burst=20)
    engine.start(ROWS - 1)
    assert engine.burst(15, worker=1) == 15
    assert engine.burst(15, worker=0) == 5


# ── targets a day ─────────────────────────────────────────────────────────────────────────


def test_each_type_has_its_day() -> None:
    engine = Engine(2, per_day="{ url = 100, dir = 3 }")
    assert engine.burst(150) == 100
    assert [engine.take(kind=DIR, worker=turn % 2) is None for turn in range(5)] == [True] * 3 + [False] * 2
    assert engine.take(1000, kind=TASK_TYPES.index("prefetch")) is None
    assert engine.usage(1).spent(engine.wall_ms).today == (100, 3, 0, 0, 1000)


def test_until_midnight() -> None:
    engine = Engine(2, per_day="{ url = 10 }")
    engine.burst(10)
    assert refusal(engine.take(worker=1)) == ("limited", DAY_MS // 2)
    engine.wall_ms = MIDNIGHT_MS + DAY_MS - 1
    engine.mono_ms += DAY_MS // 2 - 1
    assert refusal(engine.take()) == ("limited", 1)
    engine.pass_time(1)
    assert engine.burst(20, worker=1) == 10
    assert refusal(engine.take(worker=0)) == ("limited", DAY_MS)


def test_more_than_a_day_has_is_denied() -> None:
    engine = Engine(per_day="{ url = 10 }", rate=1000)
    assert refusal(engine.take(11)) == ("denied", None)
    assert engine.spent() == (0, 1, 0)
    assert engine.take(10) is None


def test_the_longest_wait_is_told() -> None:
    engine = Engine(per_day="{ url = 10 }", rate=10, in_flight=10)
    engine.burst(10)
    assert refusal(engine.take()) == ("limited", DAY_MS // 2)
    assert refusal(engine.take(kind=DIR)) == ("limited", IN_FLIGHT_RETRY_MS)
    assert refusal(engine.take(kind=DIR, count=10))[1] == IN_FLIGHT_RETRY_MS
    engine.reload(rate=2, in_flight=10)
    engine.take(2)
    assert refusal(engine.take(2)) == ("limited", IN_FLIGHT_RETRY_MS)


def test_an_earlier_life_counts_only_on_its_day() -> None:
    engine = Engine(2, per_day="{ url = 10 }")
    engine.usage().add_today(20_773, (9, 0, 0, 0, 0), engine.wall_ms)
    assert engine.burst(1, 3) == 1
    engine.usage(1).add_today(20_774, (4, 1, 0, 0, 0), engine.wall_ms)
    assert engine.burst(10) == 3
    assert engine.usage().spent(engine.wall_ms).today == (10, 1, 0, 0, 0)


# ── tasks in flight ───────────────────────────────────────────────────────────────────────


def test_so_many_tasks_and_no_more() -> None:
    engine = Engine(2, in_flight=5)
    assert engine.burst(10, 100) == 5
    assert refusal(engine.take(worker=1)) == ("limited", IN_FLIGHT_RETRY_MS)
    engine.usage(0).ended()
    assert engine.take(worker=1) is None
    assert refusal(engine.take(worker=1))[0] == "limited"


def test_what_a_process_had_is_counted_until_another_has_it() -> None:
    engine = Engine(2, in_flight=5)
    assert engine.burst(5) == 5
    # The worker is killed: its tasks are in the store.
    assert refusal(engine.take(worker=1))[0] == "limited"
    engine.page.nothing_in_flight(0)
    engine.books[0] = engine.start(0)
    for _ in range(4):
        engine.usage().began()
    assert [engine.take(worker=1) is None for _ in range(2)] == [True, False]


def test_a_hand_over_from_one_process_to_another() -> None:
    engine = Engine(1, in_flight=4)
    engine.burst(4)
    successor = engine.start(1)
    for _ in range(4):
        successor.usage("acme").began()
        engine.usage(0).ended()
        assert engine.spent()[2] == 4


# ── giving back, reloading ────────────────────────────────────────────────────────────────


def test_what_was_not_saved_is_given_back() -> None:
    engine = Engine(rate=10, burst=10, per_day="{ url = 10 }", in_flight=1)
    assert engine.take(10) is None
    engine.usage().give_back(URL, 10)
    engine.usage().ended()
    assert engine.spent() == (0, 0, 0)
    engine.pass_time(1)
    assert engine.take(10) is None


def test_other_limits_hold_at_once() -> None:
    engine = Engine(2, rate=10, burst=20)
    engine.burst(5)
    engine.reload(rate=10, burst=5)
    assert engine.burst(30, worker=1) == 5
    engine.reload(rate=1000, burst=5)
    assert refusal(engine.take(worker=1)) == ("limited", 1)
    engine.reload()
    assert engine.burst(1000, 1000) == 1000
    engine.reload(rate=10, burst=20)
    assert engine.burst(30) == 20


def test_a_rate_that_is_new_begins_with_one_full_bucket() -> None:
    """Each worker is told, and looks for the first time when it is asked."""
    engine = Engine(3)
    engine.burst(100)
    engine.reload(rate=1, burst=10)
    assert [engine.burst(20, worker=worker) for worker in (2, 0, 1)] == [10, 0, 0]


def test_a_key_that_went_and_came_back() -> None:
    engine = Engine(in_flight=3)
    engine.burst(3)
    for book in engine.books:
        book.configure(parse(""))
    assert list(engine.books[0]) == []
    engine.usage().ended()
    engine.reload(in_flight=3)
    assert engine.burst(5) == 1


def test_every_limit_of_the_configuration_is_read() -> None:
    (key,) = config_of(rate=5, burst=6, per_day="{ tag = 7, url = 8, regex = 0 }", in_flight=9).keys
    assert limits_of(key) == Limits(5000, 6, 9, (8, 0, 0, 7, 0))


def test_keys_do_not_meet() -> None:
    engine = Engine(rate=10, burst=10)
    engine.take(10)
    other = engine.books[0].usage("other")
    other.configure(Limits(1000, 1))
    other.take(URL, 1, engine.mono_ms, engine.wall_ms)
    assert other.spent(engine.wall_ms).taken == 1


def test_on_a_full_page_a_key_is_counted_all_the_same() -> None:
    page = Page(columns=2)
    book = Book(page, 3)
    for name in ("a", "b", "c", "d"):
        usage = book.usage(name)
        usage.configure(Limits(1000, 2))
        usage.take(URL, 2, 0, NOON_MS)
        with pytest.raises(Refused):
            usage.take(URL, 1, 0, NOON_MS)


# ── a share of what several engines have ──────────────────────────────────────────────────


def _share(**other: object) -> Share:
    nothing = (0,) * len(TASK_TYPES)
    values: dict[str, object] = {
        "rate_milli": 0, "burst": 0, "in_flight": 0, "day": 20_774, "engines": 2, "per_day": nothing,
        "elsewhere": nothing,
    }  # fmt: skip
    return Share(**{**values, **other})  # type: ignore[arg-type]


def test_a_share_holds_for_all_workers_of_the_engine() -> None:
    engine = Engine(2, rate=100, burst=10)
    engine.burst(10)
    engine.usage(0).deal(_share(rate_milli=2500, burst=3))
    engine.pass_time(100)
    engine.pass_time(900)
    assert engine.burst(5, worker=1) + engine.burst(5, worker=0) <= 3
    assert engine.usage(1).rate_here == 2.5
    _, wait_ms = refusal(engine.take(worker=1))
    assert wait_ms is not None
    assert wait_ms <= 400


def test_no_wait_is_longer_than_until_the_shares_are_dealt_anew() -> None:
    engine = Engine(rate=100, burst=10)
    engine.usage().deal(_share(rate_milli=10, burst=1))
    engine.take(10)
    assert refusal(engine.take()) == ("limited", DEAL_MS)


def test_a_share_of_tasks_in_flight_may_be_none() -> None:
    engine = Engine(in_flight=2)
    engine.usage().deal(_share(in_flight=0))
    assert refusal(engine.take()) == ("limited", IN_FLIGHT_RETRY_MS)


def test_a_share_of_the_day() -> None:
    engine = Engine(per_day="{ url = 100 }")
    engine.usage().deal(_share(per_day=(30, 0, 0, 0, 0), elsewhere=(40, 0, 0, 0, 0)))
    assert engine.burst(50) == 30
    assert refusal(engine.take()) == ("limited", DEAL_MS), "others have not used theirs"
    assert refusal(engine.take(31)) == ("limited", DAY_MS // 2), "so many are not left anywhere"


def test_a_day_that_is_not_dealt_yet_is_shared_evenly() -> None:
    engine = Engine(per_day="{ url = 100 }")
    engine.usage().deal(_share(day=20_773, engines=4))
    assert engine.burst(50) == 25


def test_a_share_means_nothing_where_there_is_no_limit() -> None:
    engine = Engine()
    engine.usage().deal(_share(rate_milli=1, burst=1))
    assert engine.burst(100) == 100
