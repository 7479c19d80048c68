"""Where a task is reported to when it is not one outbox. Pure.

A task has one home nearly always: the outbox of the link that pushed it last. But
a task may be pushed by a second engine, which took it over from one that seemed
dead: each is told. An engine knows this agent by its name, so while the agent changes
its name it is two proxies, may be pushed the same task as each, and owes a report
to each. And a link that went away for good leaves tasks behind that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxyd.outbox import Outbox
from proxyd.tasks import Task


class Homes:
    """Any number of outboxes, each of another engine or name; what it is told, all of them are."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Outbox, ...] = ()) -> None:
        self.parts = parts

    def add_done(self, task_id: bytes, received_at: float) -> None:
        """See `Outbox`."""
        for part in self.parts:
            part.add_done(task_id, received_at)

    def add_merged(self, task: Task) -> None:
        """See `Outbox`."""
        for part in self.parts:
            part.add_merged(task)

    def add_failed(self, task: Task) -> None:
        """See `Outbox`."""
        for part in self.parts:
            part.add_failed(task)

    def add_evidence(self, task: Task) -> None:
        """See `Outbox`."""
        for part in self.parts:
            part.add_evidence(task)

    def add_active(self, task: Task) -> None:
        """See `Outbox`."""
        for part in self.parts:
            part.add_active(task)

    def __repr__(self) -> str:
        return f"<Homes {self.parts}>"


Home = Outbox | Homes


def parts_of(home: Home) -> tuple[Outbox, ...]:
    """The outboxes that it is made of."""
    return (home,) if isinstance(home, Outbox) else home.parts


def add_home(home: Home, newest: Outbox) -> Home:
    """The home of a task that `newest` pushed as well: an engine is told on the newest of its links."""
    return _settle(home, [*_others(home, newest), newest])


def drop_home(home: Home, newest: Outbox) -> Home:
    """The home of a task that `newest` does not wait for any more."""
    return _settle(home, _others(home, newest))


def is_told(home: Home, engine: str) -> bool:
    """Whether an engine is among those that are told."""
    return any(part.engine == engine for part in parts_of(home))


def _others(home: Home, newest: Outbox) -> list[Outbox]:
    return [part for part in parts_of(home) if part.name != newest.name or part.engine != newest.engine]


def move_home(home: Home, gone: Outbox, heir: Outbox | None) -> Home:
    """The home of a task when `heir`, or nobody, reports what `gone` owed."""
    return _settle(home, [heir if part is gone else part for part in parts_of(home)])


def leave_home(home: Home) -> None:
    """The task is not reported."""
    _settle(home, [])


def _settle(before: Home, after: Sequence[Outbox | None]) -> Home:
    """Counts who owes what, and keeps the usual case the quick one."""
    parts = tuple(dict.fromkeys(part for part in after if part is not None))
    for part in parts_of(before):
        part.owed -= 1
    for part in parts:
        part.owed += 1
    return parts[0] if len(parts) == 1 else Homes(parts)
