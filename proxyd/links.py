"""Connections to the engines: one to each worker of each engine, kept up for as long as the agent runs.

`Engine` knows how many workers there are (each `ok` to a hello says it) and has one `Slot` a worker.
Trouble in one disturbs no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxyd import session as s
from proxyd.addresses import format_address, parse_address
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkRefused
from proxyd.link import LinkSettings
from proxyd.logs import Log
from proxyd.slot import GREET_TIMEOUT_S, Slot

# Addresses taken from one `!drain to=`; a fleet has few engines.
REDIRECTS_MAX = 8


class Engine:
    """One engine: its address, its workers' slots."""

    def __init__(
        self,
        address: tuple[str, int],
        settings: LinkSettings,
        dispatcher: Dispatcher,
        log: Log,
        known: list[tuple[str, int]],
        on_slots: Callable[[], None],
    ) -> None:
        self.configured = address
        self._known = known
        self.name = format_address(address)
        self.settings = settings
        self.dispatcher = dispatcher
        self.log = log
        self.held = False
        self.stopping = False
        self._on_slots = on_slots
        self._redirects: list[tuple[str, int]] = []
        self.slots: list[Slot] = []
        self._retired: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begins with worker 0, whose greeting tells how many there are."""
        self._resize(1)

    async def stop(self) -> None:
        """Closes every connection."""
        self.stopping = True
        await asyncio.gather(*(slot.stop() for slot in self.slots), *self._retired, return_exceptions=True)

    def address(self) -> tuple[str, int]:
        """Where to connect now."""
        return self._redirects[0] if self._redirects else self.configured

    def redirect(self, to: list[str]) -> None:
        """The engine goes away and names others: they are tried first, then it again."""
        wanted = [parse_address(text) for text in to[:REDIRECTS_MAX]]
        # An engine that is configured has links of its own already; a second one would replace the first.
        self._redirects = [address for address in wanted if address and address not in self._known]

    def greeted(self, slot: Slot, greeted: s.Greeted) -> None:
        """A slot is up."""
        self.log.info(
            "link up", engine=self.name, id=greeted.engine, worker=slot.worker, workers=greeted.workers
        )
        if greeted.workers != len(self.slots):
            self._resize(greeted.workers)

    def refused(self, slot: Slot, address: tuple[str, int], error: LinkRefused) -> None:
        """A slot was refused. An engine that has fewer workers than before refuses the number."""
        self.failed(slot, address, error)
        if error.field == "worker" and slot.worker:
            self._resize(slot.worker)

    def failed(self, slot: Slot, address: tuple[str, int], error: Exception) -> None:
        """A slot's connection ended."""
        if address in self._redirects:
            self._redirects.remove(address)
        if not self.stopping:
            text = str(error) or f"no answer within {GREET_TIMEOUT_S:g} s"
            self.log.sampled(
                f"down {self.name} {slot.worker}", "link down",
                engine=format_address(address), worker=slot.worker, error=text,
            )  # fmt: skip

    def _resize(self, workers: int) -> None:
        """Makes or retires slots. What a retired one has to report goes to worker 0, which passes it on."""
        while len(self.slots) > workers:
            slot = self.slots.pop()
            slot.heir = self.slots[0].outbox
            task = asyncio.get_running_loop().create_task(slot.stop())
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
            slot.bequeath()
        while len(self.slots) < workers:
            self.slots.append(Slot(self, len(self.slots)))
        self._on_slots()


class Links:
    """All engines."""

    def __init__(
        self, engines: list[tuple[str, int]], settings: LinkSettings, dispatcher: Dispatcher, log: Log
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self.engines = [
            Engine(address, settings, dispatcher, log, engines, self._count_slots) for address in engines
        ]

    def start(self) -> None:
        """Connects to all."""
        for engine in self.engines:
            engine.start()

    def beat(self, figures: dict[str, str | int | float | None], now: float) -> None:
        """Beats on every connection."""
        for engine in self.engines:
            for slot in engine.slots:
                slot.beat(figures, now)

    def hold(self, on: bool) -> None:
        """Stops (or goes on) reading from the engines."""
        for engine in self.engines:
            engine.held = on
            for slot in engine.slots:
                slot.set_reading(not on)

    def refuse_pushes(self) -> None:
        """The agent stops: what is pushed from now on is left to the next one."""
        for engine in self.engines:
            engine.stopping = True

    @property
    def flushed(self) -> bool:
        """Whether every report has been written."""
        return all(slot.flushed for engine in self.engines for slot in engine.slots if slot.serving)

    async def stop(self) -> None:
        """Closes every connection."""
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def _count_slots(self) -> None:
        self._dispatcher.limit(self._settings.credit, sum(len(engine.slots) for engine in self.engines))
