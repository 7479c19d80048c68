"""What of the cluster is in SQL, as the coordinator wants it: identity, epochs, who owns what.

All calls block and are made from one thread, one after the other. A call that was
given up may still be carried out later: so each act names the epoch of the leader
that does it, and SQL refuses it, in the same transaction, once there is a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class EngineRow(Protocol):
    """An engine as SQL knows it. A named tuple will do."""

    @property
    def number(self) -> int:
        """What stands as owner in its tasks' rows."""

    @property
    def name(self) -> str:
        """Its id."""

    @property
    def epoch(self) -> int:
        """Raised when it is fenced, and when it comes back."""

    @property
    def alive(self) -> bool:
        """False: it was fenced, and has not come back since."""

    @property
    def owns(self) -> bool:
        """Whether any unfinished task is its."""


class Truth(Protocol):
    """The tables `engine`, `cluster`, `task` and `handout`, for one engine."""

    def claim_leadership(self) -> int:
        """Raises the leader's epoch by one; from now on no earlier leader can act.

        Returns the new epoch. Raises: StoreUnavailable; StoreFenced if this engine itself was fenced.
        """

    def engines(self) -> Sequence[EngineRow]:
        """All engines that ever were. Raises: StoreUnavailable."""

    def fence(self, leader_epoch: int, number: int) -> int | None:
        """From now on no transaction of that engine's incarnation is committed; waits for those under way.

        Returns the epoch that the engine is fenced with, also if it was before; None if it is not known.
        Raises: StoreUnavailable, also when a transaction of it does not end; NotLeader.
        """

    def hand_out(self, leader_epoch: int, number: int, fenced_epoch: int, to_number: int, limit: int) -> int:
        """Gives up to `limit` unfinished tasks of a fenced engine, the oldest, to another one.

        Returns how many; 0 also if the engine is back, and then owns what is left, or if
        the other one was fenced. Raises: StoreUnavailable, NotLeader.
        """
