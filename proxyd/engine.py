"""One engine: a slot for each of its workers, replaced one at a time when links are to greet otherwise.

`Engine` knows how many workers there are: each `ok` to a hello says it, and to a beat when there are more.
A slot is replaced by one that greets with what holds now:

    fresh ──up──► takes the old one's place; that passes on what it owes, or under another name finishes it
      ├──refused, or not up in time──► is dropped; the old one goes on and this is tried again
      └──the old one is lost──► takes its place, up or not: what holds now is what is greeted with

An engine that was learned is asked who it is before it is greeted. One that is linked by another name already
is parked: it has no slots, until that other name leads nowhere.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from proxyd import session as s
from proxyd.addresses import format_address, parse_address
from proxyd.backoff import Backoff
from proxyd.carry import CarriedEngine, CarriedSlot
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkError, LinkRefused
from proxyd.introduce import ask_who
from proxyd.logs import Log
from proxyd.slot import BACKOFF_CAP_S, BACKOFF_FIRST_S, GREET_TIMEOUT_S, Slot

if TYPE_CHECKING:
    from proxyd.links import Links

# Addresses taken from one `!drain to=`; a fleet has few engines.
REDIRECTS_MAX = 8
# From the connect of a fresh slot to its credit.
RENEW_S = 10.0
# An engine whose links were lost is still taken for linked by that name: longer than the longest wait between
# two tries, so that one that is there has its links again.
LINKED_S = 10.0


class Engine:
    """One engine: its address, its workers' slots."""

    def __init__(self, links: Links, address: tuple[str, int]) -> None:
        self.links = links
        self.configured = address
        self.name = format_address(address)
        self.dispatcher: Dispatcher = links.dispatcher
        self.log: Log = links.log
        self.slots: list[Slot] = []
        self.leaving: set[Slot] = set()
        """Slots that were let go of and have not ended."""
        self._endings: set[asyncio.Task[None]] = set()
        self._fresh: tuple[Slot, Slot] | None = None
        """(the slot that is being replaced, the one that is brought up for it)"""
        self._why_not = ""
        self._redirects: list[tuple[str, int]] = []
        self.id = ""
        """Who it says that it is; empty until it has said so."""
        self.store = ""
        self.parked = False
        """Whether it is linked by another name."""
        self.prefetch_bytes_per_s = 0
        """What it lets prefetches bring here; 0: no bound."""
        self._up_at = -math.inf
        self._introduction: asyncio.Task[None] | None = None

    @property
    def all_slots(self) -> set[Slot]:
        """Those that serve, that leave and that are brought up."""
        return {*self.slots, *self.leaving, *(self._fresh or ())}

    @property
    def learned(self) -> bool:
        """Whether other engines name it, and no configuration."""
        return not self.links.is_configured(self.configured)

    @property
    def up(self) -> bool:
        """Whether any of its links is."""
        return any(slot.serving for slot in self.slots)

    @property
    def linked(self) -> bool:
        """Whether it has links, or had some a moment ago."""
        return self.up or asyncio.get_running_loop().time() - self._up_at < LINKED_S

    def start(self) -> None:
        """Begins with what was resumed, or with worker 0, whose greeting tells how many there are."""
        for slot in self.slots:
            slot.start()
        if self.slots or self.parked:
            return
        if self.learned:
            self._introduction = asyncio.get_running_loop().create_task(self._introduce())
        else:
            self._resize(1)

    def carry(self, named: list[tuple[str, int]]) -> CarriedEngine:
        """What the next code needs to know of it, besides its slots."""
        return CarriedEngine(self.configured, self.learned, self.id, self.store, self.parked, named)

    def resume(self, carried: CarriedEngine | None, slots: list[CarriedSlot]) -> None:
        """Has the slots that the code before this had; nothing is begun before `start`."""
        if carried is not None:
            self.id, self.store, self.parked = carried.id, carried.store, carried.parked
            self._up_at = asyncio.get_running_loop().time()
        for slot in sorted(slots, key=lambda slot: slot.worker):
            self.slots.append(Slot.resume(self, slot, self.links.settings.secret))

    async def leave(self) -> None:
        """The engine was taken out: its links finish what they have in hand, report and close."""
        self._end_introduction()
        while self.slots:
            self._let_go(self.slots.pop(), None)
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def stop(self) -> None:
        """Closes every connection."""
        self._end_introduction()
        await asyncio.gather(*(slot.stop() for slot in self.all_slots), return_exceptions=True)
        await asyncio.gather(*self._endings, return_exceptions=True)

    # ── who it is ─────────────────────────────────────────────────────────────────────────

    async def _introduce(self) -> None:
        """Asks a learned engine who it is, until it says so; then links it, unless it is linked."""
        backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_CAP_S)
        while True:
            try:
                greeted = await ask_who(self.configured, self.links.settings, GREET_TIMEOUT_S)
            except LinkRefused:
                # It may take us as a proxy all the same.
                break
            except (LinkError, OSError, TimeoutError) as error:
                text = str(error) or f"no answer within {GREET_TIMEOUT_S:g} s"
                self.log.sampled(f"down {self.name}", "engine cannot be asked", engine=self.name, error=text)
                await asyncio.sleep(backoff.next_s())
                continue
            self.id, self.store = greeted.engine, greeted.store
            twin = self.links.twin_of(self, greeted)
            if twin is not None:
                self.park(twin)
                return
            break
        self._resize(1)

    def _end_introduction(self) -> None:
        if self._introduction is not None:
            self._introduction.cancel()

    def admit(self, address: tuple[str, int], greeted: s.Greeted) -> bool:
        """Whether what has answered a hello is linked here: not if it is linked by another name."""
        twin = self.links.twin_of(self, greeted)
        if address != self.configured:
            return twin is None
        self.id, self.store = greeted.engine, greeted.store
        if twin is None:
            return True
        if twin.learned and not self.learned:
            # What the configuration says is what is kept.
            twin.park(self)
            return True
        self.park(twin)
        return False

    def park(self, twin: Engine) -> None:
        """Gives its links up for those of a twin, which reports what they owe."""
        self.parked = True
        self.log.info("engine is linked by another name", engine=self.name, id=self.id, linked=twin.name)
        while self.slots:
            self._let_go(self.slots.pop(), twin.slots[0] if twin.slots else None)
        self.links.count_slots()

    def unpark(self) -> None:
        """The other name leads nowhere now."""
        self.parked = False
        self.start()

    # ── where to connect ──────────────────────────────────────────────────────────────────

    def address(self) -> tuple[str, int]:
        """Where to connect now."""
        return self._redirects[0] if self._redirects else self.configured

    def redirect(self, to: list[str]) -> None:
        """The engine goes away and names others: they are tried first, then it again."""
        if self.links.learning:
            # Linked for its own sake; this one is tried again.
            self.links.learn(self, to[:REDIRECTS_MAX], also=True)
            return
        wanted = [parse_address(text) for text in to[:REDIRECTS_MAX]]
        # An engine that is configured has links of its own already; a second one would replace the first.
        self._redirects = [address for address in wanted if address and not self.links.is_configured(address)]

    # ── what slots tell ───────────────────────────────────────────────────────────────────

    def greeted(self, slot: Slot, greeted: s.Greeted) -> None:
        """A slot is up."""
        self.log.info(
            "link up", engine=self.name, id=greeted.engine, worker=slot.worker, workers=greeted.workers,
            learned=self.learned,
        )  # fmt: skip
        if greeted.workers != len(self.slots) and not slot.refusing:
            self._resize(greeted.workers)

    def counted(self, slot: Slot, workers: int) -> None:
        """An engine that reloads may have more workers while its connections go on; of fewer, hellos tell."""
        if workers > len(self.slots) and not slot.refusing:
            self._resize(workers)

    def refused(self, slot: Slot, address: tuple[str, int], error: LinkRefused) -> None:
        """A slot was refused. An engine that has fewer workers than before refuses the number."""
        self.failed(slot, address, error)
        if error.field == "worker" and slot.worker:
            self._resize(slot.worker)

    def link_lost(self) -> None:
        """A link that was up is not any more."""
        self._up_at = asyncio.get_running_loop().time()

    def failed(self, slot: Slot, address: tuple[str, int], error: Exception) -> None:
        """A slot's connection ended."""
        if address in self._redirects:
            self._redirects.remove(address)
        text = str(error) or f"no answer within {GREET_TIMEOUT_S:g} s"
        old, fresh = self._fresh or (None, None)
        if slot is fresh:
            self._why_not = text
        elif slot is not old and not slot.refusing:
            # (Where a fresh one is greeted, the engine closes the old one.)
            self.log.sampled(
                f"down {self.name} {slot.worker}", "link down",
                engine=format_address(address), worker=slot.worker, error=text,
            )  # fmt: skip

    def _resize(self, workers: int) -> None:
        """Makes slots, or lets go of those beyond: worker 0 passes on what they have to report."""
        if self.parked:
            return
        while len(self.slots) > workers:
            self._let_go(self.slots.pop(), self.slots[0])
        while len(self.slots) < workers:
            self.slots.append(Slot(self, len(self.slots), self.links.settings).start())
        self.links.count_slots()

    # ── replacing slots ───────────────────────────────────────────────────────────────────

    async def settle(self) -> bool:
        """Brings up a fresh slot for each that greeted otherwise, one at a time. Returns whether all are."""
        for old in self.slots.copy():
            if self._is_outdated(old) and not await self._renew(old):
                self.log.sampled(
                    f"renew {self.name}", "engine does not take the new greeting; its link goes on as before",
                    engine=self.name, worker=old.worker, error=self._why_not,
                )  # fmt: skip
                return False
        return True

    def _is_outdated(self, slot: Slot) -> bool:
        return slot.settings != self.links.settings and slot in self.slots

    async def _renew(self, old: Slot) -> bool:
        """Replaces a slot; returns whether its place is taken by one that greets with what holds now."""
        if not old.serving:
            return self.replace_if_outdated(old)
        fresh = Slot(self, old.worker, self.links.settings).start()
        self._why_not = f"no credit within {RENEW_S:g} s"
        self._fresh = (old, fresh)
        try:
            async with asyncio.timeout(RENEW_S):
                await fresh.tried.wait()
        except TimeoutError:
            pass
        finally:
            self._fresh = None
        if fresh.serving and old in self.slots:
            self._put(old, fresh)
        elif fresh not in self.slots:
            await fresh.stop()
        return not self._is_outdated(old)

    def replace_if_outdated(self, slot: Slot) -> bool:
        """A slot whose connection is down greets no more with what does not hold any more."""
        if not self._is_outdated(slot):
            return False
        if self._fresh is not None and self._fresh[0] is slot:
            self._put(slot, self._fresh[1])
        else:
            self._put(slot, Slot(self, slot.worker, self.links.settings).start())
        return True

    def _put(self, old: Slot, fresh: Slot) -> None:
        self.slots[old.worker] = fresh
        self._let_go(old, fresh)

    def _let_go(self, slot: Slot, heir: Slot | None) -> None:
        """Ends a slot. An heir reports what it owes, if the engine knows the two by one name."""
        same_name = heir is not None and heir.outbox.name == slot.outbox.name
        slot.retire(heir if same_name else None)
        self.leaving.add(slot)
        self._spawn(self._see_off(slot))

    async def _see_off(self, slot: Slot) -> None:
        await slot.leave(self.links.leave_s)
        self.leaving.discard(slot)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def __repr__(self) -> str:
        return f"<Engine {self.name} {self.id or '?'} {'parked' if self.parked else self.slots}>"
