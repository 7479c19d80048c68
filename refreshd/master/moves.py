"""What moves shards and connections between workers: rolls of slots, or a change of their number."""

from __future__ import annotations

from refreshd.master import resizes, rolls
from refreshd.master.resizes import Resizes
from refreshd.master.rolls import Rolls
from refreshd.master.slots import Supervisor

Action = rolls.Action | resizes.Action


class Moves:
    """Both, one at a time; who starts one sees to that."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.rolls = Rolls(supervisor)
        self.resizes = Resizes(supervisor)

    def __repr__(self) -> str:
        return f"<Moves {self.under_way}>"

    @property
    def under_way(self) -> Rolls | Resizes:
        """Who is told what happens to workers, and passes on to the supervisor what is the supervisor's."""
        return self.rolls if self.resizes.resize is None else self.resizes

    def tick(self, now: float) -> list[Action]:
        """What is overdue."""
        return [*self.rolls.tick(now), *self.resizes.tick(now)]

    def stop(self) -> None:
        """The engine stops: what is under way is left to the supervisor."""
        self.rolls.stop()
        self.resizes.stop()
