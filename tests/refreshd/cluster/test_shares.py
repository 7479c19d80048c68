"""How engines divide a quota: parts that add up, and a simulation of engines that divide theirs every 5 s."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.cluster.shares import FLOOR, Dealer, Told, split_rate, split_rest
from refreshd.config import parse
from refreshd.limits import DAY_MS, DEAL_MS, Book, Limits, Share, Spent
from wire.errors import Refused
from wire.fields import TASK_TYPES

URL = TASK_TYPES.index("url")
DAY = 20_774
MIDNIGHT_MS = DAY * DAY_MS

_demands = st.lists(st.integers(0, 10**9), min_size=1, max_size=8)


@given(st.integers(0, 10**9), _demands)
def test_a_rate_is_divided_whole(rate: int, wanted: list[int]) -> None:
    parts = split_rate(rate, wanted)
    assert rate - 2 * len(wanted) <= sum(parts) <= rate
    assert all(part >= int(rate * FLOOR) for part in parts) or sum(wanted) < rate


@given(st.integers(1, 10**9), _demands)
def test_where_there_is_enough_each_has_what_it_wants(rate: int, wanted: list[int]) -> None:
    if sum(wanted) < rate:
        assert all(part >= one for part, one in zip(split_rate(rate, wanted), wanted, strict=True))


@given(
    st.integers(-1000, 10**6), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1)
)
def test_a_rest_is_divided_whole(left: int, engines: list[tuple[int, int]]) -> None:
    parts = split_rest(left, [wants for wants, _ in engines], [had for _, had in engines])
    assert sum(parts) == left


def spent_of(told: Told, day: int = DAY) -> Spent:
    return Spent(0, 0, 0, told.in_flight, day, told.today)


def test_what_is_held_adds_up_whatever_the_order() -> None:
    """Engines that know of each other what was so a while ago; each uses at once what it may."""
    limits = {"k": Limits(in_flight=100, per_day=(1000, 0, 0, 0, 0))}
    chance = random.Random(7)
    dealers = {name: Dealer(name) for name in "abcd"}
    uses = dict.fromkeys(dealers, 0)
    published: dict[str, dict[str, Told]] = {}
    shares: dict[str, Share] = {}
    for turn in range(400):
        name = "abcd"[turn] if turn < 4 else chance.choice("abcd")
        now = Told(in_flight=uses[name], today=(uses[name], 0, 0, 0, 0))
        mine, kept = dealers[name].tell({"k": spent_of(now)}, limits, turn)
        shares.update({name: kept["k"]} if kept else {})
        assert mine["k"].holds_in_flight >= uses[name]
        published[name] = mine
        dealt = dealers[name].deal(published, {}, limits, DAY)
        if dealt:
            shares[name] = dealt["k"]
            if chance.random() < 0.7:
                uses[name] = max(uses[name], min(shares[name].in_flight, shares[name].per_day[URL]))
        assert sum(uses.values()) <= 100
    assert sum(uses.values()) >= 95


def test_who_is_gone_still_counts() -> None:
    limits = {"k": Limits(per_day=(1000, 0, 0, 0, 0))}
    dealer = Dealer("a")
    gone = {"x": {"k": Told(today=(300, 0, 0, 0, 0))}}
    for turn in range(2):
        mine, _ = dealer.tell({"k": spent_of(Told(today=(50, 0, 0, 0, 0)))}, limits, turn)
        dealt = dealer.deal({"a": mine}, gone, limits, DAY)
    assert (dealt["k"].engines, dealt["k"].per_day[URL], dealt["k"].elsewhere[URL]) == (1, 700, 300)


def test_in_the_first_round_an_engine_only_listens() -> None:
    limits = {"k": Limits(in_flight=10)}
    dealer = Dealer("a")
    mine, kept = dealer.tell({"k": spent_of(Told(in_flight=3))}, limits, 0)
    assert (mine["k"].holds_in_flight, kept) == (3, {})
    assert dealer.deal({"a": mine}, {}, limits, DAY) == {}
    mine, _ = dealer.tell({"k": spent_of(Told(in_flight=3))}, limits, 1)
    assert dealer.deal({"a": mine}, {}, limits, DAY)["k"].in_flight == 10


def test_what_is_not_held_any_more_is_let_go_before_the_others_hear_of_it() -> None:
    limits = {"k": Limits(in_flight=100, per_day=(1000, 0, 0, 0, 0))}
    dealer = Dealer("a")
    for turn in range(2):
        mine, _ = dealer.tell({"k": spent_of(Told())}, limits, turn)
        dealt = dealer.deal({"a": mine}, {}, limits, DAY)
    assert (dealt["k"].in_flight, dealt["k"].per_day[URL]) == (100, 1000)
    other = {"k": Told(demand_milli=1000, in_flight=10, today=(200, 0, 0, 0, 0))}
    dealer.deal({"a": mine, "b": other}, {}, limits, DAY)
    mine, kept = dealer.tell({"k": spent_of(Told(in_flight=4))}, limits, 3)
    assert mine["k"].holds_in_flight < 50
    assert kept["k"].in_flight == mine["k"].holds_in_flight
    assert kept["k"].per_day == mine["k"].holds_today


def test_what_was_counted_yesterday_takes_nothing_from_today() -> None:
    limits = {"k": Limits(per_day=(1000, 0, 0, 0, 0))}
    dealer = Dealer("a")
    other = {"k": Told(today=(900, 0, 0, 0, 0), holds_today=(950, 0, 0, 0, 0))}
    for turn in range(2):
        mine, _ = dealer.tell({"k": spent_of(Told(today=(50, 0, 0, 0, 0)))}, limits, turn)
        dealer.deal({"a": mine, "b": other}, {}, limits, DAY)
    mine, kept = dealer.tell({"k": spent_of(Told(today=(2, 0, 0, 0, 0)), DAY + 1)}, limits, 3)
    assert mine["k"].holds_today[URL] == 2 + 500
    assert kept["k"].day == DAY
    share = dealer.deal({"a": mine, "b": {}}, {}, limits, DAY + 1, frozenset("b"))["k"]
    assert (share.day, share.per_day[URL]) == (DAY + 1, 500)


# ── a simulation ──────────────────────────────────────────────────────────────────────────


class Engine:
    """One engine with two workers, and clients that ask it so often."""

    def __init__(
        self, name: str, toml: str, per_s: float, chance: random.Random, *, lasts_ms: int = 0
    ) -> None:
        self.name = name
        self.per_s = per_s
        self.let_in = self.asked = 0
        self.page_books = [Book(row=0)]
        self.page_books.append(Book(self.page_books[0].page, 2))
        for book in self.page_books:
            book.configure(parse(toml))
        self.next_round_ms = chance.randrange(DEAL_MS)
        self._chance = chance
        self._lasts_ms = lasts_ms
        self._next_ms = 0.0
        self._ends: list[tuple[int, int]] = []
        self.dealer = Dealer(name)

    def step(self, now_ms: int, wall_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            self.page_books[self._ends.pop(0)[1]].usage("k").ended()
        for book in self.page_books:
            if now_ms % 100 == 0:
                book.tick(now_ms, wall_ms)
        while self.per_s and self._next_ms <= now_ms:
            self._next_ms = max(self._next_ms, now_ms - 10) + self._chance.expovariate(self.per_s) * 1000
            worker = self._chance.randrange(2)
            self.asked += 1
            try:
                self.page_books[worker].usage("k").take(URL, 1, now_ms, wall_ms)
            except Refused:
                continue
            self.let_in += 1
            if self._lasts_ms:
                self._ends.append((now_ms + self._lasts_ms, worker))

    @property
    def in_flight(self) -> int:
        return len(self._ends)

    def round(
        self, told: dict[str, Mapping[str, Told]], quiet: frozenset[str], now_ms: int, wall_ms: int
    ) -> None:
        """As `SharedQuotas` does it; `told` is what Redis has."""
        usage = self.page_books[0].usage("k")
        limits = {"k": usage.limits}
        spent = {"k": usage.spent(wall_ms)}
        mine, kept = self.dealer.tell(spent, limits, now_ms / 1000)
        self._deal(kept)
        told[self.name] = mine
        self._deal(self.dealer.deal(told, {}, limits, spent["k"].day, quiet))

    def _deal(self, shares: Mapping[str, Share]) -> None:
        for share in shares.values():
            self.page_books[0].usage("k").deal(share)


class Sim:
    """Engines that tell each other through a dictionary; time goes in steps of 10 ms."""

    def __init__(
        self, toml: str, demands: Sequence[float], *, lasts_ms: int = 0, at_ms: int = DAY_MS // 2
    ) -> None:
        chance = random.Random(4)
        self.now_ms, self.wall_ms = 1_000_000, MIDNIGHT_MS + at_ms
        text = f'[[key]]\nname = "k"\nsecret_file = "f"\n{toml}\n'
        self.engines = [
            Engine(f"e{number}", text, per_s, chance, lasts_ms=lasts_ms)
            for number, per_s in enumerate(demands)
        ]
        for engine in self.engines:
            engine.next_round_ms += self.now_ms
        self.told: dict[str, Mapping[str, Told]] = {}
        self.quiet: set[str] = set()
        self.day = self.wall_ms // DAY_MS
        self.redis_is_there = True
        self.in_flight_most = 0

    def run(self, seconds: float) -> float:
        """Returns how many targets a second were let in, over all engines."""
        before = sum(engine.let_in for engine in self.engines)
        for _ in range(int(seconds * 100)):
            self.now_ms += 10
            self.wall_ms += 10
            if self.wall_ms // DAY_MS != self.day:
                self.day = self.wall_ms // DAY_MS
                # Redis has a hash a day.
                nothing = (0,) * len(TASK_TYPES)
                for name, keys in self.told.items():
                    self.told[name] = {"k": keys["k"]._replace(today=nothing, holds_today=nothing)}
                self.quiet = set(self.told)
            for engine in self.engines:
                engine.step(self.now_ms, self.wall_ms)
                if self.now_ms >= engine.next_round_ms:
                    # The first one is followed by another at once.
                    engine.next_round_ms += DEAL_MS if engine.name in self.told else 10
                    if self.redis_is_there:
                        self.quiet.discard(engine.name)
                        engine.round(self.told, frozenset(self.quiet), self.now_ms, self.wall_ms)
            self.in_flight_most = max(self.in_flight_most, sum(engine.in_flight for engine in self.engines))
        return (sum(engine.let_in for engine in self.engines) - before) / seconds


@pytest.mark.parametrize(
    "demands",
    [
        (50, 50, 50, 50),
        (200, 200, 200, 200),
        (500, 30, 30, 30),
        (400, 0, 0, 0),
        (90, 10, 1, 0),
        (60, 40, 0, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("burst", [10, 100, 1000])
def test_four_engines_under_steady_demand(demands: tuple[float, ...], burst: int) -> None:
    """What all let in is within 5 % of what one engine would have."""
    toml = f"rate = 100\nburst = {burst}"
    sim, alone = Sim(toml, demands), Sim(toml, [sum(demands)])
    # Until all know of each other, and what came at once at the beginning is paid.
    for each in (sim, alone):
        each.run(20 + burst / 25)
    assert sim.run(60) == pytest.approx(alone.run(60), rel=0.05)


def test_demand_that_moves_to_another_engine_is_followed() -> None:
    sim = Sim("rate = 100\nburst = 100", (300, 0, 0, 0))
    sim.run(30)
    sim.engines[0].per_s, sim.engines[2].per_s = 0, 300
    sim.run(15)
    assert sim.run(30) == pytest.approx(100, rel=0.05)


def test_without_redis_the_last_shares_hold() -> None:
    sim = Sim("rate = 100\nburst = 100", (300, 100, 0, 0))
    sim.run(30)
    sim.redis_is_there = False
    assert sim.run(120) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("demands", [(50, 50, 50, 50), (400, 0, 0, 0), (300, 20, 20, 0)], ids=str)
def test_a_day_is_used_up_and_never_exceeded(demands: tuple[float, ...]) -> None:
    sim = Sim("per_day = { url = 5000 }", demands)
    sim.run(120)
    total = sum(engine.let_in for engine in sim.engines)
    assert 5000 * 0.95 <= total <= 5000


@pytest.mark.parametrize("demands", [(100, 100, 100, 100), (400, 0, 0, 0), (300, 20, 20, 0)], ids=str)
def test_tasks_in_flight(demands: tuple[float, ...]) -> None:
    """Each takes 20 s, so without a limit there would be 20 s of demand in flight."""
    sim = Sim("in_flight = 1000", demands, lasts_ms=20_000)
    sim.run(60)
    sim.in_flight_most = 0
    sim.run(60)
    assert sim.in_flight_most <= 1000
    assert sum(engine.in_flight for engine in sim.engines) >= 950


@pytest.mark.parametrize("redis_is_there", [True, False])
def test_a_new_day(redis_is_there: bool) -> None:
    sim = Sim("per_day = { url = 1000 }", (50, 50, 50, 50), at_ms=DAY_MS - 30_000)
    sim.run(29.9)
    before = sum(engine.let_in for engine in sim.engines)
    sim.redis_is_there = redis_is_there
    sim.run(60)
    assert 950 <= sum(engine.let_in for engine in sim.engines) - before <= 1000
