"""Whether this agent has caught up, so that its caches may serve: decided from what its links are like.
Pure.

    BEHIND ──each engine has pushed all that waited here, and all of it has ended──► CAUGHT UP
      ▲ at the start                                                                    │
      └──── a link is back that had led nowhere for AWAY_S; a drop was pushed ◄─────────┘

An engine says `!caught_up` once on each connection: all that its worker had for us when the connection
greeted stands before that line (PROTOCOL.md, "Catching up"). What each engine of the roster has to do
before this agent counts as caught up:

- Each of its workers has a link, on which the line came, and no task that came before the line is in hand.
- One that does not know the line (its `ok` lacks `catch_up=1`) only has to have its links.
- One that lacks links is given up once it was waited for as long as the configuration says; what it can be
  reached by still counts. It is waited for again when it was whole meanwhile. Time counts while we are
  behind, and while another engine is there: who is cut off from all of them knows nothing of any.

That links are lost makes nobody behind, however long it lasts: whether anything was missed is known only
when one is back, and an engine that is down would take the caches of a whole network out of service at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

# The engine takes us for offline as late as this (PROTOCOL.md, "Proxy verbs"); from then on tasks wait there.
AWAY_S = 15.0
# Longest time that one look counts for: a process that stood still has not waited for anybody.
STEP_MAX_S = 1.0


class LinkView(NamedTuple):
    """The link to one worker, as it is now. Times are of one clock."""

    worker: int
    since: float | None
    """When its connection was greeted; None while it has none."""
    heard_at: float
    """When the engine was heard last, on this connection."""
    said: bool
    """Whether the line came on this connection, or never will."""
    left: int
    """Tasks in hand that came before the line."""


class EngineView(NamedTuple):
    """One engine of the roster. `links` is empty until it has said how many workers it has."""

    name: str
    links: tuple[LinkView, ...]

    @property
    def is_whole(self) -> bool:
        """Whether each of its workers has a link."""
        return bool(self.links) and all(link.since is not None for link in self.links)


class FellBehind(NamedTuple):
    """The caches may be old from now on."""

    why: str


class CaughtUp(NamedTuple):
    """The caches may serve again. `without` are engines that could not be reached."""

    seconds: float
    without: list[str]


class CarriedLinkAge(msgspec.Struct, frozen=True):
    """How long ago a link that is down was heard."""

    engine: str
    worker: int
    age_s: float


class CarriedCatchingUp(msgspec.Struct, frozen=True):
    """The state as it crosses an upgrade. `missing` is how long each engine was waited for."""

    behind_s: float | None
    links: list[CarriedLinkAge]
    missing: dict[str, float]


class CatchingUp:
    """BEHIND until `look` says otherwise."""

    def __init__(self, now: float) -> None:
        self._behind_since: float | None = now
        self._looked_at = now
        self._heard: dict[tuple[str, int], float] = {}
        """When the engine was heard last on each link, or known first."""
        self._missing: dict[str, float] = {}
        self.waits_for: tuple[str, ...] = ("its engines",)
        """What is missing, for people; empty once it has caught up."""

    @property
    def behind(self) -> bool:
        """Whether the caches may be old."""
        return self._behind_since is not None

    def look(
        self, engines: Sequence[EngineView], now: float, wait_s: float, *, dropping: bool = False
    ) -> FellBehind | CaughtUp | None:
        """To be called often, compared with AWAY_S; returns what has changed.

        `wait_s`: how long an engine that cannot be reached is waited for, 0: for ever. `dropping`: a drop of
        the whole cache is in hand.
        """
        why = self._compare(engines, now)
        if dropping and why is None:
            why = "an engine has it drop the whole cache"
        fell: FellBehind | None = None
        if why is not None and self._behind_since is None:
            self._behind_since = now
            fell = FellBehind(why)
        self._wait(engines, now)
        if self._behind_since is None:
            return None
        given_up = [
            each.name
            for each in engines
            if wait_s and not each.is_whole and self._missing.get(each.name, 0.0) >= wait_s
        ]
        waits = ["a drop of the whole cache"] if dropping else []
        waits += [text for each in engines for text in _missing_of(each, given_up=each.name in given_up)]
        self.waits_for = tuple(waits)
        if waits or fell is not None:
            return fell
        seconds = now - self._behind_since
        self._behind_since = None
        return CaughtUp(seconds, given_up)

    def _compare(self, engines: Sequence[EngineView], now: float) -> str | None:
        """Notes when each link was heard; whether one is back after too long."""
        why = None
        before, self._heard = self._heard, {}
        for engine in engines:
            for link in engine.links:
                key = engine.name, link.worker
                heard_at = before.get(key, now)
                if link.since is None:
                    self._heard[key] = heard_at
                    continue
                # (Less than 0 while the connection is the one that was heard then.)
                away_s = link.since - heard_at
                if away_s >= AWAY_S:
                    why = f"{engine.name} worker {link.worker} is linked again after {away_s:.0f} s"
                self._heard[key] = link.heard_at
        return why

    def _wait(self, engines: Sequence[EngineView], now: float) -> None:
        step_s = min(max(0.0, now - self._looked_at), STEP_MAX_S)
        self._looked_at = now
        some = any(link.since is not None for engine in engines for link in engine.links)
        before, self._missing = self._missing, {}
        for engine in engines:
            if not engine.is_whole:
                counts = step_s if some or self.behind else 0.0
                self._missing[engine.name] = before.get(engine.name, 0.0) + counts

    # ── crossing an upgrade ───────────────────────────────────────────────────────────────

    def carry(self, engines: Sequence[EngineView], now: float) -> CarriedCatchingUp:
        """What the next code needs to go on. Of links that are up nothing: they were never away."""
        down = {(each.name, link.worker) for each in engines for link in each.links if link.since is None}
        ages = [CarriedLinkAge(*key, now - heard_at) for key, heard_at in self._heard.items() if key in down]
        behind_s = None if self._behind_since is None else now - self._behind_since
        return CarriedCatchingUp(behind_s, ages, dict(self._missing))

    def resume(self, carried: CarriedCatchingUp, now: float) -> None:
        """The inverse of `carry`."""
        self._behind_since = None if carried.behind_s is None else now - carried.behind_s
        self._heard = {(link.engine, link.worker): now - link.age_s for link in carried.links}
        self._missing = dict(carried.missing)
        self._looked_at = now

    def __repr__(self) -> str:
        return f"<CatchingUp {'behind' if self.behind else 'caught up'}, waits for {len(self.waits_for)}>"


def _missing_of(engine: EngineView, *, given_up: bool) -> list[str]:
    """What the engine still has to do, a text each."""
    if not engine.links:
        return [] if given_up else [f"{engine.name}: cannot be reached"]
    texts = []
    for link in engine.links:
        who = f"{engine.name} worker {link.worker}"
        if link.since is None:
            if not given_up:
                texts.append(f"{who}: no link")
        elif not link.said:
            texts.append(f"{who}: has more to push")
        elif link.left:
            texts.append(f"{who}: {link.left} tasks")
    return texts
