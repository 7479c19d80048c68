"""A store that several engines share, as one of them sees it; and what only the leader does in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from refreshd.store.base import ProxyRow


class Handout(NamedTuple):
    """Unfinished tasks with serials from `first` to `last` that were given to an engine."""

    id: int
    first: int
    last: int


class EngineRow(NamedTuple):
    """An engine as the store knows it."""

    number: int
    name: str
    epoch: int
    alive: bool
    owns: bool
    """Whether any unfinished task is its."""


class Shared(Protocol):
    """One engine's membership. All calls block; of `look` and `proxies` one at a time, as of all others.

    They raise StoreUnavailable, StoreFailed, StoreDamaged besides what they say.
    """

    number: int
    """This engine's: what stands as owner in the rows of its tasks."""
    epoch: int
    peers_secret: bytes
    """What engines sign their greetings with among themselves: whoever may read the store knows it."""

    def last_handout(self, before_ms: int | None) -> int:
        """The id of the last hand-out, or of the last one before that time; 0 if there was none."""

    def look(self, after: int) -> list[Handout]:
        """What was handed out to this engine after that hand-out, in order. Raises: StoreFenced."""

    def proxies(self) -> list[ProxyRow]:
        """The proxies that registered, at any engine, without being listed."""

    # ── what the leader does (cluster/truth.py says more) ─────────────────────────────────

    def claim_leadership(self) -> int:
        """Raises the leader's epoch by one and returns it. Raises: StoreFenced."""

    def engines(self) -> Sequence[EngineRow]:
        """All engines that ever were."""

    def fence(self, leader_epoch: int, number: int) -> int | None:
        """Ends what an engine may do; the epoch with which it is fenced. Raises: NotLeader."""

    def hand_out(self, leader_epoch: int, number: int, fenced_epoch: int, to_number: int, limit: int) -> int:
        """Gives up to `limit` tasks of a fenced engine to another one; how many. Raises: NotLeader."""
