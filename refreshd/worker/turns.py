"""Turns: the requests of one read, and their replies in order.

All requests that one read of a connection brings are one turn. Each gets a place
in `parts`; those that can be answered at once fill it at once, the others when
their answer comes: from the saver, from a sibling over the mesh, from the store.
When the last place is filled, the whole turn goes out in one write, after the
turns before it.
"""

from __future__ import annotations

from typing import Protocol


class TurnOwner(Protocol):
    """Whoever the replies of a turn go to: a connection, or a sibling worker."""

    def turn_done(self, turn: Turn) -> None:
        """Every part of the turn is there."""


class Turn:
    """The replies to the requests of one read.

    `waiting` counts what is still to come: one for each held place, one for each
    save that some of the parts depend on, and one while requests are still read.
    """

    __slots__ = ("number", "owner", "parts", "waiting", "watches")

    def __init__(self, owner: TurnOwner, number: int = 0) -> None:
        self.owner = owner
        self.number = number
        """How a sibling names this turn; unused for connections."""
        self.parts: list[bytes] = []
        self.waiting = 1
        self.watches: list[tuple[int, bytes]] | None = None
        """(place, task id) of each `watch_task`: its pushes may not overtake its reply."""

    def watch(self, task_id: bytes) -> None:
        """The next place is for the reply to a `watch_task`."""
        if self.watches is None:
            self.watches = []
        self.watches.append((len(self.parts), task_id))

    def hold(self) -> int:
        """Keeps the next place for an answer that comes later; returns where it is."""
        self.parts.append(b"")
        self.waiting += 1
        return len(self.parts) - 1

    def fill(self, place: int, part: bytes) -> None:
        """The answer for a held place."""
        self.parts[place] = part
        self.release()

    def release(self) -> None:
        """Something the turn was waiting for has come."""
        self.waiting -= 1
        if not self.waiting:
            self.owner.turn_done(self)

    def replace(self, parts: dict[bytes, bytes]) -> None:
        """Puts other replies in place of some: the save that they stood for did not happen."""
        self.parts = [parts.get(part, part) for part in self.parts]

    def __repr__(self) -> str:
        return f"<Turn {len(self.parts)} parts, waits for {self.waiting}>"
