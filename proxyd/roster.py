"""Which engines there are besides the configured ones: those that engines name (`!engines`). Pure.

    named ──► learned ──no engine that is up names it, and it is not up, for FORGET_AFTER_S──► forgotten

What an engine said last holds until it says otherwise or is let go of. Time counts towards forgetting only
while some engine is up: an agent that is cut off from all of them knows nothing new of any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from proxyd.addresses import parse_address
from proxyd.settings import LIST_MAX

FORGET_AFTER_S = 300.0

Address = tuple[str, int]


class Changes(NamedTuple):
    """What `Roster.decide` found: `refused` counts those that are one too many."""

    learned: list[Address]
    forgotten: list[Address]
    refused: int


class Roster:
    """The engines that are named, and those of them that are learned."""

    def __init__(self) -> None:
        self._named: dict[Address, tuple[Address, ...]] = {}
        """What each engine, by its address, has named."""
        self._learned: dict[Address, float | None] = {}
        """Since when nobody names or reaches it."""

    @property
    def learned(self) -> list[Address]:
        """Those that were learned and not forgotten, the oldest first."""
        return list(self._learned)

    def name(self, by: Address, texts: Iterable[str]) -> bool:
        """An engine names all that it knows; what is no address is passed over. Returns if that is new."""
        return self._set(by, _read(texts))

    def name_also(self, by: Address, texts: Iterable[str]) -> bool:
        """An engine names some more."""
        return self._set(by, [*self._named.get(by, ()), *_read(texts)])

    def _set(self, by: Address, addresses: Iterable[Address]) -> bool:
        before = self._named.get(by, ())
        # More than this is never learned; an engine is not believed beyond it.
        self._named[by] = tuple(dict.fromkeys(addresses))[:LIST_MAX]
        return self._named[by] != before

    def named_by(self, by: Address) -> list[Address]:
        """What an engine has named."""
        return list(self._named.get(by, ()))

    def let_go(self, by: Address) -> None:
        """What an engine has named does not count any more."""
        self._named.pop(by, None)

    def resume(self, by: Address, learned: bool, named: Iterable[Address]) -> None:
        """Goes on with what the code before this knew of one engine."""
        self._set(by, named)
        if learned:
            self._learned[by] = None

    def unlearn(self) -> None:
        """Forgets what was learned; what is named is kept."""
        self._learned.clear()

    def decide(self, configured: Collection[Address], up: Collection[Address], now: float) -> Changes:
        """Learns and forgets. `up` are the engines that have a link."""
        for address in configured:
            self._learned.pop(address, None)
        named = dict.fromkeys(address for by in up for address in self._named.get(by, ()))
        forgotten = list(self._forget(up, named, now))
        new = [each for each in named if each not in configured and each not in self._learned]
        room = max(0, LIST_MAX - len(configured) - len(self._learned))
        for address in new[:room]:
            self._learned[address] = None
        return Changes(new[:room], forgotten, len(new[room:]))

    def _forget(self, up: Collection[Address], named: Collection[Address], now: float) -> Iterator[Address]:
        for address, since in list(self._learned.items()):
            if address in up or address in named or not up:
                self._learned[address] = None
            elif since is None:
                self._learned[address] = now
            elif now - since >= FORGET_AFTER_S:
                del self._learned[address]
                yield address

    def __repr__(self) -> str:
        return f"<Roster {len(self._learned)} learned>"


def _read(texts: Iterable[str]) -> list[Address]:
    return [address for address in map(parse_address, texts) if address is not None]
