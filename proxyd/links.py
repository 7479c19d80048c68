"""Connections to the engines: one to each worker of each engine, kept up for as long as the agent runs.

The engines are those of the configuration and, where that is wanted, those that they name (`roster.py`).
Trouble in one disturbs no other. What the configuration wants is said by `apply`; where links must greet
anew for it, `settle` does that, and goes on trying for as long as an engine does not take it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from proxyd.addresses import format_address
from proxyd.asks import Asks
from proxyd.carry import CarriedEngine, CarriedSlot
from proxyd.catching_up import EngineView
from proxyd.config import AgentConfig
from proxyd.dispatch import Dispatcher
from proxyd.engine import Engine
from proxyd.homes import Home, parts_of
from proxyd.link import LinkSettings
from proxyd.logs import Log
from proxyd.outbox import Outbox
from proxyd.receipts import Notary
from proxyd.roster import Roster
from proxyd.route import SLOW_TYPES
from proxyd.session import Greeted, Identity
from proxyd.settings import LIST_MAX
from proxyd.slot import Slot
from proxyd.tasks import CarriedTask

# An engine that refuses a greeting may take it after a reload of its own.
SETTLE_AGAIN_S = 2.0


class Links:
    """All engines."""

    def __init__(
        self, config: AgentConfig, dispatcher: Dispatcher, asks: Asks, notary: Notary, log: Log
    ) -> None:
        self.dispatcher = dispatcher
        self.asks = asks
        self.notary = notary
        self.log = log
        self.settings = self._settings(config)
        """What links greet with."""
        self.silence_s = config.silence_s
        self.leave_s = config.stop_timeout_s
        self.learning = config.learn_engines
        """Whether engines that are named are linked."""
        self.stopping = False
        self._configured = dict.fromkeys(config.engines)
        self._roster = Roster()
        self._extra_max = config.breaker.queue_max
        self._held = False
        self._still = False
        self._resumed: list[Slot] = []
        self._engines: dict[tuple[str, int], Engine] = {}
        self._leaving: dict[asyncio.Task[None], Engine] = {}
        self._settling = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    @property
    def engines(self) -> list[Engine]:
        """Those that are configured, those that were learned, those that are being left."""
        return [*self._engines.values(), *self._leaving.values()]

    @property
    def reading(self) -> bool:
        """Whether what engines send is read."""
        return not self._held and not self._still

    @property
    def serving(self) -> int:
        """How many links are up."""
        return sum(slot.serving for slot in self._slots())

    @property
    def prefetch_bytes_per_s(self) -> int:
        """The least that any engine with a link lets prefetches bring here; 0: no bound."""
        rates = (engine.prefetch_bytes_per_s for engine in self._engines.values() if engine.up)
        return min(filter(None, rates), default=0)

    @property
    def engines_up(self) -> tuple[int, int]:
        """(engines that have a link, those of them that were learned)"""
        up = [engine for engine in self._engines.values() if engine.up]
        return len(up), sum(engine.learned for engine in up)

    def views(self) -> list[EngineView]:
        """How the links of each engine are, for `catching_up.py`; one of two names is there once."""
        return [
            EngineView(engine.name, tuple(slot.view() for slot in engine.slots))
            for engine in self._engines.values()
            if not engine.parked
        ]

    def is_configured(self, address: tuple[str, int]) -> bool:
        """Whether the configuration names that address."""
        return address in self._configured

    def apply(self, config: AgentConfig) -> None:
        """Links to engines that are new, lets go of those that are gone; notes what is greeted with."""
        self._greet_with(self._settings(config))
        self.silence_s = config.silence_s
        self.leave_s = config.stop_timeout_s
        self._extra_max = config.breaker.queue_max
        self._configured = dict.fromkeys(config.engines)
        self.learning = config.learn_engines
        if self.learning:
            self._decide()
        else:
            self._roster.unlearn()
        self._make_so()
        if self._again is None:
            self._again = asyncio.get_running_loop().create_task(self._settle_again())

    def _make_so(self) -> None:
        """Links what is configured or learned, lets go of what is neither."""
        before = self._engines
        wanted = [*self._configured, *self._roster.learned]
        new = [Engine(self, address) for address in wanted if address not in before]
        known = before | {engine.configured: engine for engine in new}
        self._engines = {address: known[address] for address in wanted}
        for address, engine in before.items():
            if address not in self._engines:
                self._roster.let_go(address)
                task = asyncio.get_running_loop().create_task(engine.leave())
                self._leaving[task] = engine
                task.add_done_callback(self._leaving.pop)
        for engine in new:
            engine.start()
        self.count_slots()

    # ── engines that are named ────────────────────────────────────────────────────────────

    def learn(self, by: Engine, addresses: list[str], *, also: bool = False) -> None:
        """An engine names the others: all that it knows, or some `also`."""
        if by.configured not in self._engines:
            return
        name = self._roster.name_also if also else self._roster.name
        if name(by.configured, addresses):
            self.log.info("engine names others", engine=by.name, engines=addresses)
            self.review()

    def review(self) -> None:
        """Learns and forgets engines, and takes up those again that are linked by no other name any more.

        To be called every second or so.
        """
        if self.stopping or self._still:
            return
        if self.learning and self._decide():
            self._make_so()
        for engine in self._engines.values():
            if engine.parked and self.twin_of(engine, Greeted(engine.id, 1, engine.store)) is None:
                engine.unpark()

    def _decide(self) -> bool:
        """Whether any engine was learned or forgotten."""
        up = {address for address, engine in self._engines.items() if engine.up}
        learned, forgotten, refused = self._roster.decide(self._configured, up, _now())
        for address in learned:
            self.log.info("engine learned", engine=format_address(address))
        for address in forgotten:
            self.log.info("engine forgotten: nobody names it, and it is away", engine=format_address(address))
        if refused:
            self.log.sampled("engines", "too many engines are named", refused=refused, most=LIST_MAX)
        return bool(learned or forgotten)

    def twin_of(self, engine: Engine, greeted: Greeted) -> Engine | None:
        """The engine that is linked and is the same one as `engine`, by another name."""
        if greeted.engine in ("", "?"):
            return None
        for other in self._engines.values():
            if other is not engine and other.id == greeted.engine and other.linked and not other.parked:
                # Two clusters may each have an e1, and a configuration may name both.
                stores = {other.store, greeted.store} - {""}
                surely = other.store == greeted.store != ""
                if surely or (len(stores) < 2 and (engine.learned or other.learned)):
                    return other
        return None

    def _settings(self, config: AgentConfig) -> LinkSettings:
        who = Identity(config.name, config.group, config.layer)
        # One that lives as long as the process is told when it is there: no link greets anew for it.
        receipt_key = self.notary.public if config.receipt_key_file else ""
        drop_after_s = config.drop_after_s or None
        return LinkSettings(who, config.credit, config.key, config.secret, drop_after_s, receipt_key)

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

    def carry_engines(self) -> list[CarriedEngine]:
        """What the next code needs to know of each engine."""
        return [engine.carry(self._roster.named_by(address)) for address, engine in self._engines.items()]

    def resume(self, slots: list[CarriedSlot], engines: list[CarriedEngine]) -> None:
        """Begins with the links that the code before this had; `apply` is to follow.

        Nothing is begun, and no descriptor taken, before all of it was understood.
        """
        by_engine: dict[tuple[str, int], list[CarriedSlot]] = {}
        for slot in slots:
            by_engine.setdefault(slot.engine, []).append(slot)
        known = {engine.address: engine for engine in engines}
        for engine in engines:
            self._roster.resume(engine.address, engine.learned, engine.named)
        for address in {**by_engine, **known}:
            made = self._engines[address] = Engine(self, address)
            made.resume(known.get(address), by_engine.get(address, []))
        self._resume_tasks({(slot.engine, slot.worker): slot.tasks for slot in slots})
        for made in self._engines.values():
            made.start()
        self._resumed = self._slots()

    def _resume_tasks(self, tasks: dict[tuple[tuple[str, int], int], list[CarriedTask]]) -> None:
        """Refreshes first: a prefetch may wait for one that came on another link, see `replay.py`."""
        for slow in (False, True):
            for slot in self._slots():
                carried = tasks.get((slot.engine.configured, slot.worker), [])
                slot.resume_tasks(task for task in carried if (task.head.type in SLOW_TYPES) is slow)

    @property
    def resumed(self) -> bool:
        """Whether each link that was carried is in our hands, or was lost."""
        return all(slot.tried.is_set() for slot in self._resumed)

    # ── all of them ───────────────────────────────────────────────────────────────────────

    def _slots(self) -> list[Slot]:
        """Those of engines that have not been let go of."""
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
        slots = self._slots()
        self.dispatcher.limit(self.settings.credit, len(slots), sum(slot.granted for slot in slots))

    def grant(self, left_behind: int) -> None:
        """Lets the engines push as many more as wait for caches that do not keep up, see `dispatch.py`.

        They may all have come on one link: each gets that much, up to its part of what is granted at most.
        """
        slots = self._slots()
        most = min(left_behind, self._extra_max // max(1, len(slots)))
        granted = [slot.grant(most) for slot in slots]
        if any(granted):
            self.count_slots()


def _now() -> float:
    return asyncio.get_running_loop().time()
