"""Connections to the engines: one to each worker of each engine, kept up for as long as the agent runs.

Trouble in one disturbs no other. What the configuration wants is said by `apply`; where links must greet
anew for it, `settle` does that, and goes on trying for as long as an engine does not take it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxyd.carry import CarriedSlot
from proxyd.config import AgentConfig
from proxyd.dispatch import Dispatcher
from proxyd.engine import Engine
from proxyd.homes import Home, parts_of
from proxyd.link import LinkSettings
from proxyd.logs import Log
from proxyd.outbox import Outbox
from proxyd.session import Identity
from proxyd.slot import Slot
from proxyd.tasks import CarriedTask

# An engine that refuses a greeting may take it after a reload of its own.
SETTLE_AGAIN_S = 2.0


class Links:
    """All engines."""

    def __init__(self, config: AgentConfig, dispatcher: Dispatcher, log: Log) -> None:
        self.dispatcher = dispatcher
        self.log = log
        self.settings = _settings(config)
        """What links greet with."""
        self.silence_s = config.silence_s
        self.leave_s = config.stop_timeout_s
        self.stopping = False
        self._held = False
        self._still = False
        self._resumed: list[Slot] = []
        self._engines: dict[tuple[str, int], Engine] = {}
        self._leaving: dict[asyncio.Task[None], Engine] = {}
        self._settling = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    @property
    def engines(self) -> list[Engine]:
        """Those that are configured, then those that are being left."""
        return [*self._engines.values(), *self._leaving.values()]

    @property
    def reading(self) -> bool:
        """Whether what engines send is read."""
        return not self._held and not self._still

    @property
    def serving(self) -> int:
        """How many links are up."""
        return sum(slot.serving for slot in self._slots())

    def is_configured(self, address: tuple[str, int]) -> bool:
        """Whether an engine of that address has links of its own."""
        return address in self._engines

    def apply(self, config: AgentConfig) -> None:
        """Links to engines that are new, lets go of those that are gone; notes what is greeted with."""
        self._greet_with(_settings(config))
        self.silence_s = config.silence_s
        self.leave_s = config.stop_timeout_s
        before = self._engines
        new = [Engine(self, address) for address in config.engines if address not in before]
        known = before | {engine.configured: engine for engine in new}
        self._engines = {address: known[address] for address in config.engines}
        for address, engine in before.items():
            if address not in self._engines:
                task = asyncio.get_running_loop().create_task(engine.leave())
                self._leaving[task] = engine
                task.add_done_callback(self._leaving.pop)
        for engine in new:
            engine.start()
        self.count_slots()
        if self._again is None:
            self._again = asyncio.get_running_loop().create_task(self._settle_again())

    def _greet_with(self, settings: LinkSettings) -> None:
        before, self.settings = self.settings, settings
        if settings.who != before.who:
            # As another proxy, in another layer, what was done may have been done too early.
            self.dispatcher.forget_done()
            for engine in self.engines:
                for slot in engine.all_slots:
                    slot.trust_ids()

    async def settle(self) -> bool:
        """Has each link greet with what holds now, one at a time. Returns whether all do."""
        async with self._settling:
            return all([await engine.settle() for engine in self._engines.copy().values()])

    async def _settle_again(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_AGAIN_S)
            await self.settle()

    # ── crossing an upgrade ───────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def standstill(self) -> AsyncIterator[None]:
        """While it lasts nothing is read, and no slot is replaced."""
        async with self._settling:
            self._still = True
            self._regulate()
            try:
                yield
            finally:
                self._still = False
                self._regulate()

    @property
    def leaving(self) -> bool:
        """Whether any link was let go of and has not ended."""
        return bool(self._leaving) or any(engine.leaving for engine in self._engines.values())

    def flush(self) -> None:
        """Writes every report that waits."""
        for slot in self._slots():
            slot.flush()

    def carry(self, tasks: list[tuple[Home, CarriedTask]]) -> list[CarriedSlot]:
        """What the next code needs to go on at each link. Changes nothing."""
        by_home: dict[Outbox, list[CarriedTask]] = {}
        for home, task in tasks:
            for part in parts_of(home):
                by_home.setdefault(part, []).append(task)
        return [slot.carry(by_home.get(slot.outbox, [])) for slot in self._slots()]

    def resume(self, slots: list[CarriedSlot]) -> None:
        """Begins with the links that the code before this had; `apply` is to follow.

        Nothing is begun, and no descriptor taken, before all of it was understood.
        """
        by_engine: dict[tuple[str, int], list[CarriedSlot]] = {}
        for slot in slots:
            by_engine.setdefault(slot.engine, []).append(slot)
        for address, its_slots in by_engine.items():
            engine = self._engines[address] = Engine(self, address)
            engine.resume(its_slots)
        for engine in self._engines.values():
            engine.start()
        self._resumed = self._slots()

    @property
    def resumed(self) -> bool:
        """Whether each link that was carried is in our hands, or was lost."""
        return all(slot.tried.is_set() for slot in self._resumed)

    # ── all of them ───────────────────────────────────────────────────────────────────────

    def _slots(self) -> list[Slot]:
        """Those of configured engines that have not been let go of."""
        return [slot for engine in self._engines.values() for slot in engine.slots]

    def beat(self, figures: dict[str, str | int | float | None], now: float) -> None:
        """Beats on every connection."""
        for engine in self.engines:
            for slot in engine.all_slots:
                slot.beat(figures, now)

    def hold(self, on: bool) -> None:
        """Stops (or goes on) reading from the engines."""
        self._held = on
        self._regulate()

    def _regulate(self) -> None:
        for engine in self.engines:
            for slot in engine.all_slots:
                slot.set_reading(self.reading)

    def refuse_pushes(self) -> None:
        """The agent stops: what is pushed from now on is left to the next one."""
        self.stopping = True

    @property
    def flushed(self) -> bool:
        """Whether every report has been written."""
        return all(slot.flushed for slot in self._slots() if slot.serving)

    async def stop(self) -> None:
        """Closes every connection."""
        self.stopping = True
        if self._again is not None:
            self._again.cancel()
            await asyncio.gather(self._again, return_exceptions=True)
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def count_slots(self) -> None:
        """Tells the dispatcher how much may be pushed."""
        self.dispatcher.limit(self.settings.credit, len(self._slots()))


def _settings(config: AgentConfig) -> LinkSettings:
    who = Identity(config.name, config.group, config.layer)
    return LinkSettings(who, config.credit, config.key, config.secret)
