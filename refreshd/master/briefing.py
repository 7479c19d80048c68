"""What workers are told at their start. A reload changes it."""

from __future__ import annotations

import msgspec

from refreshd import control
from refreshd.config import Config, to_plain
from refreshd.master.slots import Spawn
from refreshd.settings import SETTINGS, Reload


class Briefing:
    """`config` is what a respawned worker gets: a configuration that a worker has served with.

    `wanted` is what those get that stand by to take over, while slots are rolled for it.
    """

    def __init__(self, config: Config, workers: int) -> None:
        self.config = config
        self.wanted: Config | None = None
        self.workers = workers
        self.lanes = 0
        self.draining = False

    def start(self, spawn: Spawn) -> control.Start:
        """The first message to a process."""
        config = self.wanted if spawn.standby and self.wanted is not None else self.config
        return control.Start(
            spawn.seat.slot,
            self.workers,
            spawn.generation,
            self.lanes,
            to_plain(config),
            spawn.seat.side,
            spawn.standby,
            self.draining,
        )


def only_in_place(old: Config, new: Config) -> Config:
    """`new`, but for what needs new workers: that is as in `old`."""
    kept: dict[str, dict[str, object]] = {}
    for row in SETTINGS:
        if row.reload is Reload.WORKERS:
            kept.setdefault(row.section, {})[row.key] = getattr(getattr(old, row.section), row.key)
    sections = {name: msgspec.structs.replace(getattr(new, name), **values) for name, values in kept.items()}
    return msgspec.structs.replace(new, **sections)


def with_number_of(old: Config, new: Config) -> Config:
    """`new`, but for the number of workers: that is as in `old`."""
    engine = msgspec.structs.replace(new.engine, workers=old.engine.workers)
    return msgspec.structs.replace(new, engine=engine)
