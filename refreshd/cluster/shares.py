"""How engines divide what a key may do: each works out its own share from what all have told.

Every few seconds is a round: an engine tells the others how much it lets in and wants, and hears
what they told last. Between two rounds it keeps to its share; that is also what it goes on with
when it hears nothing more.

- Targets a second: as long as all together want less than there is, each gets what it wants and an
  equal part of the rest; else what there is, in proportion to what each wants. A small part is
  kept for each, so that the first who comes to an engine is not sent away. All use one rule on
  the same figures, so the shares add up as long as the figures hold.
- What is left of a day, or of the tasks in flight, is *held*: an engine tells up to where it wants
  to count, and may do so as far as the others hold no more than the rest. It holds what it has and
  a part of what nobody has: half of that in equal parts, half in proportion to what each wants.
  So all of it is used in the end, and never more, whatever the order of the rounds.

Pure: no I/O, the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refreshd.limits import KINDS, UNLIMITED, Limits, Share, Spent

# Of the rate, for each engine: what three engines nobody comes to cost the fourth is 1.5 %.
FLOOR = 0.005
# Demand is smoothed over a few rounds: so much of it is the newest. One that doubles, or halves, is another.
_NEWEST = 0.5
_JUMP = 2.0
# A second's worth of its rate an engine lets in at once, if the burst allows: with less it could not use all.
_AT_ONCE_S = 1
_NO_DAY = (0,) * KINDS


class Told(NamedTuple):
    """What an engine tells of a key. `today` and `holds_today` are by type."""

    demand_milli: int = 0
    """Thousandths of a target a second that were asked for, whether or not they were let in."""
    in_flight: int = 0
    holds_in_flight: int = 0
    """Up to so many tasks in flight it may have until its next round; `holds_today` likewise."""
    today: tuple[int, ...] = _NO_DAY
    holds_today: tuple[int, ...] = _NO_DAY


ByKey = Mapping[str, Told]
ByName = Mapping[str, Told]
"""By engine."""
_NOTHING = Told()


class Dealer:
    """One engine's part of the rounds. In each: `tell`, then `deal` with the answer, if there is one."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._demand: dict[str, float] = {}
        self._before: tuple[float, Mapping[str, Spent]] | None = None
        self._mine: dict[str, Told] = {}
        self._others: Mapping[str, ByKey] | None = None
        self._gone: Mapping[str, ByKey] = {}
        self._quiet: frozenset[str] = frozenset()
        self._day = 0
        """Of which day the others' counts are."""
        self._shares: dict[str, Share] = {}
        self._worked_out: dict[Any, Any] = {}
        """In this round, from what: most keys are used by nobody, and have the same share."""

    def tell(
        self, spent: Mapping[str, Spent], limits: Mapping[str, Limits], now_s: float
    ) -> tuple[dict[str, Told], dict[str, Share]]:
        """What to tell the others, and the shares that hold from now on: what is not held is let go first.

        `now_s` is monotonic.
        """
        self._note_demand(spent, now_s)
        self._worked_out = {}
        self._mine = {}
        for key, one in spent.items():
            self._mine[key] = self._wish(key, one, limits.get(key, UNLIMITED))
        for key, share in self._shares.items():
            mine = self._mine.get(key, _NOTHING)
            share = share._replace(in_flight=min(share.in_flight, mine.holds_in_flight))
            if key in spent and spent[key].day == share.day:
                share = share._replace(per_day=tuple(map(min, share.per_day, mine.holds_today)))
            self._shares[key] = share
        return self._mine, self._shares

    def _note_demand(self, spent: Mapping[str, Spent], now_s: float) -> None:
        """What was asked for since the last round, in thousandths of a target a second, smoothed."""
        before, self._before = self._before, (now_s, spent)
        for key, one in spent.items():
            was = before[1].get(key) if before is not None else None
            known = self._demand.setdefault(key, 0.0)
            if before is None or was is None or now_s <= before[0]:
                continue
            more = one.taken + one.turned_away - was.taken - was.turned_away
            newest = max(more, 0) * 1000 / (now_s - before[0])
            jumps = not known / _JUMP <= newest <= known * _JUMP
            self._demand[key] = newest if jumps else known + _NEWEST * (newest - known)

    def _wish(self, key: str, one: Spent, limits: Limits) -> Told:
        """What this engine tells of a key. Before it has heard of the others it holds only what it has."""
        mine = Told(round(self._demand[key]), one.in_flight, one.in_flight, one.today, one.today)
        if self._others is None:
            return mine
        told = {name: keys.get(key, _NOTHING) for name, keys in self._others.items()}
        gone = [keys.get(key, _NOTHING) for keys in self._gone.values()]
        if one.day != self._day:
            # It has just begun, and nobody has counted anything.
            told = {name: other._replace(today=_NO_DAY) for name, other in told.items()}
            gone = []
        known = (mine, limits, *told.values(), *gone)
        if known not in self._worked_out:
            self._worked_out[known] = self._hold(mine, limits, told, gone)
        wish: Told = self._worked_out[known]
        return wish

    def _hold(self, mine: Told, limits: Limits, told: ByName, gone: Sequence[Told]) -> Told:
        """`mine`, with what is to be held. `told` is of the others."""
        # All in one order: what rounding leaves must not be wanted by everybody.
        names = sorted([self._engine, *told])
        place = names.index(self._engine)
        all_told = [told.get(name, mine) for name in names]
        wanted = [each.demand_milli for each in all_told]
        in_flight = [each.in_flight for each in all_told]
        holds_today = []
        for kind, limit in enumerate(limits.per_day):
            counted = [each.today[kind] for each in all_told]
            left = limit - sum(counted) - sum(each.today[kind] for each in gone)
            more = split_rest(left, wanted, counted)[place] if limit else 0
            holds_today.append(max(0, mine.today[kind] + more))
        left = limits.in_flight - sum(in_flight)
        more = split_rest(left, wanted, in_flight)[place] if limits.in_flight else 0
        return mine._replace(holds_in_flight=max(0, mine.in_flight + more), holds_today=tuple(holds_today))

    def deal(
        self,
        told: Mapping[str, ByKey],
        gone: Mapping[str, ByKey],
        limits: Mapping[str, Limits],
        day: int,
        quiet: frozenset[str] = frozenset(),
    ) -> dict[str, Share]:
        """The shares until the next round; none at the first, in which this engine only listens.

        `told` is by living engine, with or without this one. `gone` are engines that are not
        heard any more: what they have counted on this day still counts. `quiet` are living ones
        that have told nothing of this day: they may be using their even part of it.
        """
        is_first = self._others is None
        self._others = {name: keys for name, keys in told.items() if name != self._engine}
        self._gone = gone
        self._quiet = quiet - {self._engine}
        self._day = day
        self._worked_out = {}
        if is_first:
            return {}
        self._shares = {
            key: self._share(key, limit, day) for key, limit in limits.items() if limit != UNLIMITED
        }
        return self._shares

    def _share(self, key: str, limits: Limits, day: int) -> Share:
        mine = self._mine.get(key, _NOTHING)
        told = {name: keys.get(key, _NOTHING) for name, keys in (self._others or {}).items()}
        gone = [keys.get(key, _NOTHING) for keys in self._gone.values()]
        known = (mine, limits, *told.values(), *gone)
        if known not in self._worked_out:
            self._worked_out[known] = self._share_of(mine, limits, told, gone, day)
        share: Share = self._worked_out[known]
        return share

    def _share_of(self, mine: Told, limits: Limits, told: ByName, gone: Sequence[Told], day: int) -> Share:
        names = sorted([self._engine, *told])
        others = list(told.values())
        wanted = [told.get(name, mine).demand_milli for name in names]
        rate = split_rate(limits.rate_milli, wanted)[names.index(self._engine)]
        held = sum(max(other.in_flight, other.holds_in_flight) for other in others)
        per_day, elsewhere = [], []
        for kind, limit in enumerate(limits.per_day):
            lost = sum(each.today[kind] for each in gone)
            held_today = sum(max(other.today[kind], other.holds_today[kind]) for other in others)
            held_today += len(self._quiet) * (limit // len(names))
            per_day.append(max(0, min(mine.holds_today[kind], limit - held_today - lost)))
            elsewhere.append(lost + sum(other.today[kind] for other in others))
        return Share(
            rate_milli=rate,
            burst=_burst_of(limits, rate),
            in_flight=max(0, min(mine.holds_in_flight, limits.in_flight - held)),
            day=day,
            engines=len(names),
            per_day=tuple(per_day),
            elsewhere=tuple(elsewhere),
        )


def _burst_of(limits: Limits, rate_milli: int) -> int:
    """An engine's part of the burst, for its part of the rate."""
    if not limits.rate_milli:
        return 0
    part = limits.burst * rate_milli // limits.rate_milli
    return min(limits.burst, max(part, rate_milli * _AT_ONCE_S // 1000, 1))


def split_rate(rate_milli: int, wanted: Sequence[int]) -> list[int]:
    """A rate in parts for engines that want so much of it."""
    number, total = len(wanted), sum(wanted)
    if total < rate_milli:
        rest = (rate_milli - total) // number
        return [one + rest for one in wanted]
    floor = int(rate_milli * FLOOR)
    rest = rate_milli - floor * number
    return [floor + rest * one // total if total else floor for one in wanted]


def split_rest(left: int, wanted: Sequence[int], had: Sequence[int]) -> list[int]:
    """What is left, in whole parts that add up to it. Less than nothing is taken from those who have most."""
    if left < 0:
        return _in_proportion(left, had)
    equal = _in_proportion(left - left // 2, [1] * len(wanted))
    return [one + more for one, more in zip(equal, _in_proportion(left // 2, wanted), strict=True)]


def _in_proportion(amount: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of `amount`; what rounding leaves goes to the largest remainders."""
    total = sum(weights)
    if not total:
        weights, total = [1] * len(weights), len(weights)
    parts = [amount * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(amount * weights[i] % total), i))
    for place in by_remainder[: amount - sum(parts)]:
        parts[place] += 1
    return parts
