"""Quotas of keys: targets a second with a burst, targets a day by type, tasks in flight.

All workers of an engine count on one *page* of words, so that a quota is the whole engine's
however requests are spread. Pure: the page is a block of words, the clock is passed in;
`scoreboard.py` makes the page one of shared memory.

On the page each key has a *column*, and in it each worker process a word for each count (its
*row*). A word has one writer, and is aligned: who adds up the rows sees whole values without a
lock, late by what others do just now. A worker that sees much left sets a part of it aside, and
looks again in the next millisecond: what others take meanwhile is not missing there. So all
together may get more than is left, by less than half of that; it is counted, so the next ones wait
longer for it.

The bucket. All that was ever taken is T, the sum of the rows. All that was ever allowed is A:

    A grows by `rate`, but never beyond T + `burst`;  A - T may be taken now

T grows by what is taken alone, A by time alone, so A need not be agreed on: each worker reckons
it for itself, never too high (it caps by the T of its last look), shows it, and goes on from the
highest that any shows. Where that is too high all the same, as after a reload with a smaller
burst, a new *epoch* of A begins, and what was shown in earlier ones counts no more.

A request that is larger than `burst` is let in when the bucket is full, and leaves a debt, A < T,
that time pays: refused for ever would be a smaller limit in disguise. One that is larger than a
whole day's quota is `denied`: no time to try again would be true.

In flight is what each process has in memory, shown by it: what was accepted and has not ended.
A task's key is stored with it, so that this holds after a restart, a hand-over, a crash.

Refused means: nothing was taken. What was taken for a task that could not be saved is given back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

from wire.errors import Refused
from wire.fields import TASK_TYPES

if TYPE_CHECKING:
    from refreshd.config import Config, Key

KINDS = len(TASK_TYPES)
DAY_MS = 86_400_000
# A thousandth of a target a second is a millionth of one a millisecond: all is reckoned in whole numbers.
MICRO = 1_000_000
# Nobody knows when a task will end. Long enough not to be a flood, short enough not to be felt beside it.
IN_FLIGHT_RETRY_MS = 1000
# What this engine may do of what several engines share is dealt anew so often (cluster/quotas.py).
DEAL_MS = 5000
_PLENTY = 1 << 62
_NO_DAY = (0,) * KINDS

# ── the page ──────────────────────────────────────────────────────────────────────────────

ROWS = 128
"""Processes: two a slot, as one hands over to the other."""
# More than a configuration has room for: keys that are gone keep theirs. Only what is used is memory.
COLUMNS = 2048
# The lines of a column, each with a word a row.
_TAKEN, _EPOCH, _ALLOWED, _TURNED_AWAY, _REFUSED, _IN_FLIGHT, _DAY, _TODAY = range(8)
_SHARE = _TODAY + KINDS
_LINES = _SHARE + 1
# In the last one there is no word a row, but how often a share was dealt, and the newest, see `Share`.
_SHARE_WORDS = 5 + 2 * KINDS
# A tick looks at so many keys, which takes it 1 ms; where there are more, each has its turn less often.
TICK_KEYS = 256
# The head: rows and columns in use, and whether the day's counts of an earlier life were added.
_ROWS_USED, _COLUMNS_USED, _RESTORED = range(3)
_HEAD = 8


def page_words(columns: int) -> int:
    """The size of a page."""
    return _HEAD + columns + columns * _LINES * ROWS


class Page:
    """Counts of all keys and processes. This one is nobody else's; `lock` guards one that is shared."""

    def __init__(
        self,
        words: memoryview | None = None,
        columns: int = 64,
        lock: contextlib.AbstractContextManager[Any] | None = None,
    ) -> None:
        self.words = memoryview(bytearray(8 * page_words(columns))).cast("q") if words is None else words
        self._columns = columns
        self._lock = lock or contextlib.nullcontext()

    def enter(self, row: int) -> None:
        """A process will write in `row`."""
        with self._lock:
            self.words[_ROWS_USED] = max(self.words[_ROWS_USED], row + 1)

    @property
    def rows(self) -> int:
        """How many rows are in use; all others are zero."""
        return int(self.words[_ROWS_USED])

    def column(self, name: str) -> int | None:
        """Where the key's column begins; None if there is no room for another."""
        mark = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1 or 1
        with self._lock:
            used = self.words[_COLUMNS_USED]
            marks = self.words[_HEAD : _HEAD + used].tolist()
            if mark in marks:
                return self._start(marks.index(mark))
            if used == self._columns:
                return None
            self.words[_HEAD + used] = mark
            self.words[_COLUMNS_USED] = used + 1
            return self._start(used)

    def _start(self, number: int) -> int:
        return _HEAD + self._columns + number * _LINES * ROWS

    def nothing_in_flight(self, row: int) -> None:
        """The process of this row is gone, and what it had in memory is, or will be, another's."""
        for number in range(self.words[_COLUMNS_USED]):
            self.words[self._start(number) + _IN_FLIGHT * ROWS + row] = 0

    def first_to_restore(self) -> bool:
        """Whether the day's counts of an earlier life are still to be added; says so once."""
        with self._lock:
            first = not self.words[_RESTORED]
            self.words[_RESTORED] = 1
            return first


# ── what may be, and what was ─────────────────────────────────────────────────────────────


class Limits(NamedTuple):
    """What a key may do; 0: no limit. `per_day` is by type, in the order of TASK_TYPES."""

    rate_milli: int = 0
    """Thousandths of a target a second."""
    burst: int = 0
    """Targets at once; not 0 where there is a rate."""
    in_flight: int = 0
    per_day: tuple[int, ...] = _NO_DAY


UNLIMITED = Limits()


def limits_of(key: Key) -> Limits:
    """As the configuration says it. Without a burst, a second's worth may come at once."""
    return Limits(
        key.rate * 1000,
        key.burst or key.rate,
        key.in_flight,
        tuple(key.per_day.get(kind, 0) for kind in TASK_TYPES),
    )


class Share(NamedTuple):
    """What this engine may do of what several share (cluster/quotas.py); only where there is a limit at all.

    `per_day` is up to where this engine may count on that day, `elsewhere` what the others had counted.
    """

    rate_milli: int
    burst: int
    in_flight: int
    day: int
    engines: int
    per_day: tuple[int, ...]
    elsewhere: tuple[int, ...]


class Spent(NamedTuple):
    """What all workers of this engine have counted for a key. `today` is by type, of `day`."""

    taken: int
    """Targets that were let in, ever."""
    turned_away: int
    """Targets that were not, ever."""
    refused: int
    """Requests that were not, ever."""
    in_flight: int
    day: int
    today: tuple[int, ...]


def day_of(wall_ms: int) -> int:
    """The number of the UTC day."""
    return wall_ms // DAY_MS


class Usage:
    """One key, as one process counts it."""

    __slots__ = (
        "_allowed",
        "_at",
        "_burst",
        "_caps",
        "_day",
        "_day_at",
        "_day_kinds",
        "_deals",
        "_dealt",
        "_ease",
        "_elsewhere",
        "_epoch",
        "_in_flight_at",
        "_in_flight_max",
        "_lines",
        "_looked_ms",
        "_page",
        "_rate",
        "_refilled_ms",
        "_row",
        "_seen",
        "_taken_at",
        "_today_at",
        "_words",
        "limits",
        "name",
    )

    def __init__(self, name: str, page: Page, row: int, limits: Limits = UNLIMITED) -> None:
        """Goes on where the process that had the row before has ended."""
        start = page.column(name)
        if start is None:
            # Then each process has the whole quota: that is said where the usage is made.
            page = Page(columns=1)
            page.enter(row)
            start = page.column(name) or 0
        self.name = name
        self.limits = limits
        self._page = page
        self._words = page.words
        self._row = row
        self._at = start
        self._taken_at = start + _TAKEN * ROWS + row
        self._in_flight_at = start + _IN_FLIGHT * ROWS + row
        self._day_at = start + _DAY * ROWS + row
        self._today_at = [start + (_TODAY + kind) * ROWS + row for kind in range(KINDS)]
        self._lines: list[memoryview] = []
        self._ease = 0
        """Targets that may be let in without a look at what others did, while the clock says `_looked_ms`."""
        self._looked_ms = -1
        self._day = 0
        self._epoch = -1
        self._allowed = 0
        self._refilled_ms = -1
        self._seen = 0
        """What was taken, when last looked at."""
        self._deals = 0
        self._dealt: tuple[int, ...] = ()
        self._settle()

    def __repr__(self) -> str:
        return f"<Usage {self.name} {self.limits}>"

    # ── limits ────────────────────────────────────────────────────────────────────────────

    def configure(self, limits: Limits) -> None:
        """What holds from now on. A rate that is new begins with a full bucket."""
        is_new = limits.rate_milli and not self.limits.rate_milli
        self.limits = limits
        self._settle()
        if is_new:
            # Now, not at the first look: all workers do so within milliseconds.
            epoch, shown = self._shown()
            self._show(epoch, max(shown, (sum(self._lines[_TAKEN]) + self._burst) * MICRO))
            self._refilled_ms = -1

    def deal(self, share: Share) -> None:
        """For all workers of this engine. To be called by one of them only."""
        at = self._at + _SHARE * ROWS
        words = (*share[:3], share.day, share.engines, *share.per_day, *share.elsewhere)
        if words != self._dealt:
            for offset, value in enumerate(words, at + 1):
                self._words[offset] = value
            self._words[at] += 1
            self._settle()

    def _settle(self) -> None:
        """Works out what holds just now, from the limits and the engine's share."""
        limits, rows = self.limits, self._page.rows
        start = self._at
        self._lines = [
            self._words[start + line * ROWS : start + line * ROWS + rows] for line in range(_SHARE)
        ]
        at = start + _SHARE * ROWS
        self._deals = self._words[at]
        self._dealt = dealt = tuple(self._words[at + 1 : at + 1 + _SHARE_WORDS])
        rate, burst, in_flight, day, engines, *by_kind = dealt
        self._ease = 0
        self._rate, self._burst = limits.rate_milli, limits.burst
        self._in_flight_max = limits.in_flight
        self._caps = limits.per_day
        self._elsewhere = _NO_DAY
        self._day_kinds = [kind for kind in range(KINDS) if limits.per_day[kind]]
        if not engines:
            return
        if rate and limits.rate_milli:
            self._rate, self._burst = min(rate, limits.rate_milli), max(1, min(burst, limits.burst))
        if limits.in_flight:
            self._in_flight_max = min(in_flight, limits.in_flight)
        if day == self._day:
            self._caps, self._elsewhere = tuple(by_kind[:KINDS]), tuple(by_kind[KINDS:])
        else:
            # The day has just begun: until it is dealt, each engine has as much as any other.
            self._caps = tuple(limit // engines for limit in limits.per_day)

    # ── counting ──────────────────────────────────────────────────────────────────────────

    def take(self, kind: int, count: int, now_ms: int, wall_ms: int) -> None:
        """Counts a task of so many targets as accepted. `now_ms` is monotonic.

        Raises: Refused, `limited` or `denied`; nothing was taken then.

        0.35 µs. The first one in a millisecond, and each while little is left, 6 µs: it looks at what all
        have counted (all kinds of limits, 2 workers; `make bench BENCH_ARGS=micro`).
        """
        if count > self._ease or now_ms != self._looked_ms:
            self._look(kind, count, now_ms, wall_ms)
        self._ease -= count
        words = self._words
        words[self._taken_at] += count
        words[self._in_flight_at] += 1
        words[self._today_at[kind]] += count

    def give_back(self, kind: int, count: int) -> None:
        """What was taken is not used. The task was in flight until `ended`."""
        words = self._words
        words[self._taken_at] -= count
        words[self._today_at[kind]] = max(words[self._today_at[kind]] - count, 0)

    def began(self) -> None:
        """A task that was accepted before, or elsewhere, is in this process's memory."""
        self._words[self._in_flight_at] += 1

    def ended(self) -> None:
        """A task has left it."""
        self._words[self._in_flight_at] -= 1

    def tick(self, now_ms: int, wall_ms: int) -> None:
        """Keeps up with the others. To be called every 100 ms or so: by so much may A be too low."""
        self._keep_up(wall_ms)
        if self._rate:
            self._refill(now_ms)

    def _keep_up(self, wall_ms: int) -> None:
        """Rows, shares and days come and go."""
        if len(self._lines[0]) != self._page.rows or self._words[self._at + _SHARE * ROWS] != self._deals:
            self._settle()
        if wall_ms // DAY_MS != self._day:
            self._turn_day(wall_ms // DAY_MS)

    # ── looking at what all have counted ──────────────────────────────────────────────────

    def _look(self, kind: int, count: int, now_ms: int, wall_ms: int) -> None:
        """Whether the request may come in. Raises: Refused."""
        self._keep_up(wall_ms)
        self._ease = 0
        self._looked_ms = now_ms
        room = self._room_today(kind, count, wall_ms) if self._day_kinds else _PLENTY
        wait_ms, why = 0, ""
        if self.limits.in_flight:
            in_flight = sum(self._lines[_IN_FLIGHT])
            room = min(room, self._in_flight_max - in_flight)
            if in_flight >= self._in_flight_max:
                wait_ms, why = IN_FLIGHT_RETRY_MS, f"{in_flight} of its tasks are in flight; key.in_flight"
        if self._rate:
            spare = self._refill(now_ms)
            lacking = min(count, self._burst) * MICRO - spare
            room = min(room, spare // MICRO)
            if lacking > 0 and -(-lacking // self._rate) > wait_ms:
                wait_ms = self._at_most_until_dealt(-(-lacking // self._rate))
                why = f"{self._rate / 1000:g} targets a second, {self._burst} at once; key.rate"
        if wait_ms:
            raise self._limited(count, wait_ms, why)
        # As all may be at it, each has its part; the half of that, as some look late.
        self._ease = max(room - count, 0) // (2 * self._page.rows) + count

    def _limited(self, count: int, wait_ms: int, why: str) -> Refused:
        self._words[self._at + _TURNED_AWAY * ROWS + self._row] += count
        self._words[self._at + _REFUSED * ROWS + self._row] += 1
        return Refused("limited", f"the quota of key {self.name} is used up: {why}", retry_ms=wait_ms)

    def _at_most_until_dealt(self, wait_ms: int) -> int:
        """With several engines it may be this one's turn sooner."""
        return min(wait_ms, DEAL_MS) if self._dealt[4] else wait_ms

    def _refill(self, now_ms: int) -> int:
        """Lets time pass in the bucket; returns what it holds, in millionths of a target."""
        epoch, shown = self._shown()
        taken = sum(self._lines[_TAKEN]) * MICRO
        full = self._burst * MICRO
        allowed = shown
        if not shown:
            # Nobody has looked before.
            allowed = taken + full
        elif self._epoch == epoch and self._refilled_ms >= 0:
            grown = self._allowed + self._rate * (now_ms - self._refilled_ms)
            # What others took since the last look may have been taken at once, or only now.
            allowed = max(shown, min(grown, self._seen + full))
        if allowed > taken + full:
            allowed = taken + full
            epoch += 1
        self._refilled_ms = now_ms
        self._seen = taken
        self._show(epoch, allowed)
        return allowed - taken

    def _shown(self) -> tuple[int, int]:
        """The newest epoch of A, and the highest A in it."""
        # In this order: who shows a new epoch has shown its A before.
        epochs = self._lines[_EPOCH].tolist()
        epoch = max(epochs)
        lines = zip(epochs, self._lines[_ALLOWED], strict=True)
        return epoch, max(allowed for in_epoch, allowed in lines if in_epoch == epoch)

    def _show(self, epoch: int, allowed: int) -> None:
        self._epoch, self._allowed = epoch, allowed
        self._words[self._at + _ALLOWED * ROWS + self._row] = allowed
        self._words[self._at + _EPOCH * ROWS + self._row] = epoch

    def _turn_day(self, day: int) -> None:
        words = self._words
        if words[self._day_at] != day:
            words[self._day_at] = 0
            for at in self._today_at:
                words[at] = 0
            words[self._day_at] = day
        self._day = day
        self._settle()

    def _today(self, kinds: Iterable[int]) -> list[int]:
        """What was counted today of these types."""
        is_today = [day == self._day for day in self._lines[_DAY].tolist()]
        return [sum(compress(self._lines[_TODAY + kind], is_today)) for kind in kinds]

    def _room_today(self, kind: int, count: int, wall_ms: int) -> int:
        """Targets of any type that may come today. Raises: Refused."""
        room = _PLENTY
        for at, used in zip(self._day_kinds, self._today(self._day_kinds), strict=True):
            left = self._caps[at] - used
            room = min(room, left)
            if at == kind and left < count:
                raise self._no_room_today(kind, count, used, wall_ms)
        return room

    def _no_room_today(self, kind: int, count: int, used: int, wall_ms: int) -> Refused:
        limit, name = self.limits.per_day[kind], TASK_TYPES[kind]
        if count > limit:
            self._words[self._at + _REFUSED * ROWS + self._row] += 1
            why = f"key {self.name} may ask for {limit} {name} targets a day, this task has {count}; split it"
            return Refused("denied", why)
        used += self._elsewhere[kind]
        wait_ms = DAY_MS - wall_ms % DAY_MS
        if used + count <= limit:
            # Not all is used: other engines have parts of it.
            wait_ms = self._at_most_until_dealt(wait_ms)
        return self._limited(count, wait_ms, f"{used} of {limit} {name} targets today (UTC); key.per_day")

    # ── showing ───────────────────────────────────────────────────────────────────────────

    def spent(self, wall_ms: int) -> Spent:
        """What all workers have counted."""
        self._keep_up(wall_ms)
        lines = self._lines
        taken, turned_away, refused, in_flight = (
            sum(lines[at]) for at in (_TAKEN, _TURNED_AWAY, _REFUSED, _IN_FLIGHT)
        )
        today = tuple(self._today(range(KINDS))) if self._day in lines[_DAY].tolist() else _NO_DAY
        return Spent(taken, turned_away, refused, in_flight, self._day, today)

    def spare(self, now_ms: int) -> int | None:
        """Targets that would be let in at once; less than 0 is a debt, None no limit."""
        return self._refill(now_ms) // MICRO if self._rate else None

    @property
    def rate_here(self) -> float | None:
        """Targets a second that this engine has of what several share; None where it is alone."""
        return self._rate / 1000 if self._rate and self._dealt[4] else None

    def add_today(self, day: int, counts: tuple[int, ...], wall_ms: int) -> None:
        """What was counted on that day by an earlier life of this engine."""
        self._keep_up(wall_ms)
        if day == self._day:
            for at, count in zip(self._today_at, counts, strict=True):
                self._words[at] += count


class Book:
    """All keys, as one process counts them."""

    def __init__(self, page: Page | None = None, row: int = 0) -> None:
        self.page = page or Page()
        self.row = row
        self._usages: dict[str, Usage] = {}
        self._configured: dict[str, Limits] = {}
        self._turns: list[Usage] = []
        """The keys that have still their turn in this round of ticks."""
        self.page.enter(row)

    def __iter__(self) -> Iterator[Usage]:
        """The keys that are configured, by name."""
        return (self._usages[name] for name in sorted(self._configured))

    def configure(self, config: Config) -> None:
        """The keys, and their limits, from now on."""
        self._configured = {key.name: limits_of(key) for key in config.keys}
        for name in self._configured:
            self.usage(name)
        for name, usage in self._usages.items():
            limits = self._configured.get(name, UNLIMITED)
            if limits != usage.limits:
                usage.configure(limits)
        self._turns = []

    def usage(self, name: str) -> Usage:
        """The key's; of one that is gone there may still be tasks."""
        usage = self._usages.get(name)
        if usage is None:
            limits = self._configured.get(name, UNLIMITED)
            usage = self._usages[name] = Usage(name, self.page, self.row, limits)
        return usage

    def tick(self, now_ms: int, wall_ms: int) -> None:
        """See `Usage.tick`."""
        if not self._turns:
            self._turns = list(self)
        for usage in self._turns[-TICK_KEYS:]:
            usage.tick(now_ms, wall_ms)
        del self._turns[-TICK_KEYS:]
