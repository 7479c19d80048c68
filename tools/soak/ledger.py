"""The checker of a soak: what was acknowledged, what took effect where, and what the engine made of it.

Tasks are numbered from 0; number N is the id `s` and N in nine digits, and goes to group
(N // BURST) % groups. So what is known of a task is a byte here and a bit there, and twelve
million of them are 24 MB.

    acknowledged, and not in the store                         lost
    acknowledged, and not final                                unfinished
    complete, but a proxy of its group was never pushed it     untrue
    failed though no proxy said so, or the other way round     untrue
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from refreshd.task import State

# Tasks that are sent together, all to one group: proxies then get some at a time, as they would.
BURST = 40
GROUP_SIZE = 2
_EVERYONE = (1 << GROUP_SIZE) - 1
# Every so many tasks there is one that the first proxy of its group says it failed at.
FAILS_EVERY = 997
_GROW = 1 << 20
_EXAMPLES = 5
ID_BYTES = 10


def task_id(number: int) -> bytes:
    """The id of a task."""
    return b"s%09d" % number


def fails(number: int) -> bool:
    """Whether the first proxy of its group reports a failure of it."""
    return number % FAILS_EVERY == 0


class Verdict(NamedTuple):
    """How many do not fit, and some of them by name."""

    acknowledged: int
    lost: int
    unfinished: int
    untrue: int
    examples: list[str]

    @property
    def fits(self) -> bool:
        """Whether there is nothing wrong, and there was something to look at."""
        return self.acknowledged > 0 and not (self.lost or self.unfinished or self.untrue)


class Ledger:
    """Of one run. `workers` and `groups` are the engine's."""

    def __init__(self, workers: int, groups: int) -> None:
        self.acknowledged = 0
        self.repeated = 0
        """Pushes of what a proxy had been pushed before."""
        self._workers = workers
        self._groups = groups
        self._acks = bytearray()
        self._effects = bytearray()
        self._next = 0
        self._left: dict[int, list[int]] = {worker: [] for worker in range(workers)}
        """Numbers that were passed over as another worker owns them."""

    # ── what is to be posted ──────────────────────────────────────────────────────────────

    def take(self, owner: int | None = None) -> list[int]:
        """A burst of new tasks; only such as the worker `owner` owns, where one is named."""
        if owner is None:
            return self._fresh()
        left = self._left[owner]
        while len(left) < BURST:
            for number in self._fresh():
                self._left[crc32(task_id(number)) % 64 % self._workers].append(number)
        self._left[owner] = left[BURST:]
        return left[:BURST]

    def _fresh(self) -> list[int]:
        first, self._next = self._next, self._next + BURST
        if self._next > len(self._acks):
            self._acks += bytes(_GROW)
            self._effects += bytes(_GROW)
        return list(range(first, self._next))

    def line(self, number: int) -> bytes:
        """The request that posts a task."""
        return b"post_task task_id=s%09d type=url scope=g%02d -- http://soak.example/%d\n" % (
            number,
            number // BURST % self._groups,
            number,
        )

    # ── what happened ─────────────────────────────────────────────────────────────────────

    def acknowledge(self, number: int) -> None:
        """The engine said `ok` to it."""
        if not self._acks[number]:
            self._acks[number] = 1
            self.acknowledged += 1

    def effect(self, number: int, place: int) -> None:
        """The proxy at that place of its group was pushed it."""
        if self._effects[number] >> place & 1:
            self.repeated += 1
        self._effects[number] |= 1 << place

    # ── the comparison ────────────────────────────────────────────────────────────────────

    def compare(self, states: Iterable[tuple[bytes, int | None]]) -> Verdict:
        """With (id, final state or None) of every task that there is."""
        unfinished, untrue = 0, 0
        examples: list[str] = []
        missing = bytearray(self._acks)
        for known_id, state in states:
            number = int(known_id[1:])
            missing[number] = 0
            fault = self._fault(number, state)
            if fault:
                unfinished += state is None
                untrue += state is not None
                if len(examples) < _EXAMPLES:
                    examples.append(f"{known_id.decode()}: {fault}")
        lost = sum(missing)
        at = -1
        for _ in range(min(lost, _EXAMPLES)):
            at = missing.index(1, at + 1)
            examples.append(f"{task_id(at).decode()}: lost")
        return Verdict(self.acknowledged, lost, unfinished, untrue, examples)

    def _fault(self, number: int, state: int | None) -> str:
        """What is wrong with a task in that state; "" if nothing is."""
        if state is None:
            return "unfinished" if self._acks[number] else ""
        if state not in (State.COMPLETE, State.FAILED):
            return f"{State(state).text}, which nobody asked for"
        if fails(number) != (state == State.FAILED):
            return f"{State(state).text}, but a proxy said {'failed' if fails(number) else 'done'}"
        if self._effects[number] != _EVERYONE:
            return f"{State(state).text}, but not pushed to all: {self._effects[number]:02b}"
        return ""

    def sample(self, count: int, rng: random.Random) -> list[int]:
        """Some that were acknowledged."""
        found = [number for number in _some(rng, self._next, 2 * count) if self._acks[number]]
        return found[:count]


def _some(rng: random.Random, below: int, count: int) -> Sequence[int]:
    return rng.sample(range(below), min(count, below))


def stored_states(store: Path) -> Iterator[tuple[bytes, int | None]]:
    """(id, final state or None) of every task in the store of an engine that has stopped."""
    return chain.from_iterable(_lane_states(path) for path in sorted(store.glob("lane-*.db")))


def _lane_states(path: Path) -> Iterator[tuple[bytes, int | None]]:
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        yield from db.execute("SELECT id, state FROM task LEFT JOIN result USING (serial)")
    finally:
        db.close()
