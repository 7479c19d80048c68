"""The link to one worker of an engine, over all its connections.

    ──► CONNECTING ──ok to hello──► UP ──connection ends──► CONNECTING (after a while)
                                     │
        retire(heir), leave()        ├──► its work and its reports are the heir's; closes
        retire(None), leave()        └──► finishes what it has in hand, reports, closes

It greets with the same settings for as long as it lives: where others hold, `Engine` makes another slot.
What was finished while the connection was down waits in its outbox.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxyd import session as s
from proxyd.backoff import Backoff
from proxyd.carry import CarriedLink, CarriedSettings, CarriedSlot
from proxyd.catching_up import LinkView
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkBroken, LinkError, LinkRefused
from proxyd.link import Link, LinkSettings
from proxyd.outbox import LINE_MAX_BYTES, Outbox
from proxyd.scope import UNKNOWN, Scope, scope_of
from proxyd.session import LinkSession, LinkState
from proxyd.tasks import CarriedTask, Task
from proxyd.waiting import wait_until
from wire import DEFAULT_LINE_MAX_BYTES

if TYPE_CHECKING:
    from proxyd.engine import Engine

# From the start of a connect to the engine's ok.
GREET_TIMEOUT_S = 10.0
BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 5.0
# A connection that served as long as this was a good one: the next try comes soon.
GOOD_AFTER_S = 10.0
# Above this an engine does not read what is written to it: beats are left out, and its silence ends the link.
WRITE_HIGH_BYTES = 1 << 20
# A goodbye takes no longer than this.
STOP_TIMEOUT_S = 2.0
# More credit is given in parts of the usual one: a line each, however fast the need for it grows.
STEPS = 16
# An engine that drains waits about as long (`engine.stop_deadline_s`).
DRAIN_S = 10.0


class Slot:
    """Keeps one connection up, once started, for as long as the engine has this worker."""

    def __init__(
        self, engine: Engine, worker: int, settings: LinkSettings, carried: CarriedLink | None = None
    ) -> None:
        self.engine = engine
        self.worker = worker
        self.settings = settings
        who = settings.who
        self.outbox = Outbox(self._wake, who.name, engine=engine.name, layer=who.layer)
        self.tried = asyncio.Event()
        """Set once a first connection has its credit, or has failed."""
        self._loop = asyncio.get_running_loop()
        self._heir: Slot | None = None
        self._link: Link | None = None
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_CAP_S)
        self._leaving = False
        self._address = engine.configured
        """Where the newest connection leads."""
        self._carried = carried
        """A connection that the code before this has greeted, until it is taken over."""
        self._task: asyncio.Task[None] | None = None
        self._said = False
        """Whether the engine has said on this connection that all that waited was pushed, or never will."""
        self.granted = 0
        """Credit that the newest connection was given beyond what links greet with."""
        self._before_that: list[bytes] = []
        """What is in hand of what was pushed before it said so."""

    def start(self) -> Slot:
        """Begins to connect, or takes over a carried connection."""
        self._task = self._loop.create_task(self._keep_up())
        return self

    @property
    def dispatcher(self) -> Dispatcher:
        """See `link.Owner`."""
        return self.engine.dispatcher

    @property
    def receipt_key(self) -> str:
        """See `link.Owner`."""
        return self.engine.links.notary.public

    @property
    def refusing(self) -> bool:
        """See `link.Owner`."""
        return self._leaving or self.engine.links.stopping

    @property
    def serving(self) -> bool:
        """Whether the engine has greeted back and may push."""
        link = self._link
        return link is not None and link.session.greeted

    @property
    def finished(self) -> bool:
        """Whether nothing is in hand, and all that was reported was answered."""
        link = self._link
        if link is not None and link.session.owes_reports:
            return False
        return not self.outbox.owed and not len(self.outbox)

    @property
    def flushed(self) -> bool:
        """Whether all that was finished has been written."""
        return not len(self.outbox) and (self._link is None or self._link.write_size == 0)

    def view(self) -> LinkView:
        """How the link is, for `catching_up.py`."""
        link = self._link
        if link is None or not link.session.greeted:
            return LinkView(self.worker, None, 0.0, False, 0)
        left = self.dispatcher.still_in_hand(self._before_that)
        return LinkView(self.worker, link.greeted_at, link.heard_at, self._said, left)

    # ── ending ────────────────────────────────────────────────────────────────────────────

    def retire(self, heir: Slot | None) -> None:
        """Takes nothing new from now on. An heir reports what this one owes. `leave` must follow."""
        self._leaving = True
        self._heir = heir
        if heir is not None:
            self.dispatcher.move(self.outbox, heir.outbox)
            kept, _ = self.outbox.take(self._loop.time(), LINE_MAX_BYTES)
            if heir.outbox.scope == UNKNOWN:
                heir.outbox.scope = self.outbox.scope
            heir.outbox.restore(kept)

    async def leave(self, within_s: float) -> None:
        """Ends a retired slot: one without an heir finishes and reports what is in hand."""
        if self._carried is not None:
            await self.tried.wait()
        if self._heir is None:
            await wait_until(lambda: self._link is None or self.finished, within_s)
            self.dispatcher.move(self.outbox, None)
        await self.stop()

    async def stop(self) -> None:
        """Closes the connection, after what was reported has been written."""
        self._leaving = True
        link = self._link
        if link is not None:
            link.end(None)
            # An engine that does not read shall not keep us.
            await asyncio.wait([self._loop.create_task(link.gone.wait())], timeout=STOP_TIMEOUT_S)
            link.end(LinkBroken("closed by this agent"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # ── crossing an upgrade ───────────────────────────────────────────────────────────────

    def carry(self, tasks: list[CarriedTask]) -> CarriedSlot:
        """What the next code needs to go on here, `tasks` included. Changes nothing."""
        link = self._link
        carried = None
        reports, _ = self.outbox.take(self._loop.time(), LINE_MAX_BYTES)
        self.outbox.restore(reports)
        if link is not None and link.session.greeted:
            fd = link.duplicate()
            frozen = link.session.freeze()
            if fd is not None:
                carried = CarriedLink(fd, frozen, self.granted)
            else:
                reports = frozen.unanswered + reports
        settings = CarriedSettings.of(self.settings)
        scope = self.outbox.scope
        return CarriedSlot(
            self.engine.configured, self.worker, settings, carried, reports, tasks, scope.engine, scope.store,
            self._said, self.outbox.certify is not None,
        )  # fmt: skip

    @classmethod
    def resume(cls, engine: Engine, slot: CarriedSlot, secret: bytes) -> Slot:
        """The slot that the code before this had, with all that it owed; to be started."""
        made = cls(engine, slot.worker, slot.settings.read(secret), slot.link)
        if slot.engine_id:
            made._belong_to(slot.engine_id, slot.store)
        made.granted = slot.link.granted if slot.link is not None else 0
        made.outbox.restore(slot.reports)
        made._said = slot.said
        made._take_receipts(slot.receipts)
        return made

    def resume_tasks(self, tasks: Iterable[CarriedTask]) -> None:
        """Begins what the code before this had in hand."""
        now = self._loop.time()
        for task in tasks:
            self.dispatcher.resume(self.outbox, task, now)
        # Some of it may have come later; to wait for all is never wrong.
        self._before_that = self.dispatcher.in_hand(self.outbox)

    # ── keeping it up ─────────────────────────────────────────────────────────────────────

    async def _keep_up(self) -> None:
        while self._carried is not None or not self._leaving:
            address = self.engine.address()
            wait_s = 0.0
            try:
                await self._serve(address)
            except LinkRefused as error:
                self.engine.refused(self, address, error)
                wait_s = (error.retry_ms or 0) / 1000
            except (LinkError, OSError, TimeoutError) as error:
                self.engine.failed(self, address, error)
            self.tried.set()
            if not self.engine.replace_if_outdated(self):
                await asyncio.sleep(max(self._backoff.next_s(), min(wait_s, BACKOFF_CAP_S)))

    async def _serve(self, address: tuple[str, int]) -> None:
        """One connection, from its connect to its end. Raises: LinkError, OSError, TimeoutError."""
        carried, self._carried = self._carried, None
        self._address = address
        link = Link(self, None if carried is None else LinkSession.thaw(carried.session))
        try:
            async with asyncio.timeout(GREET_TIMEOUT_S):
                if carried is not None:
                    sock = socket.socket(fileno=carried.fd)
                    await self._loop.create_connection(lambda: link, sock=sock)
                else:
                    await self._loop.create_connection(lambda: link, *address)
                await link.greeted.wait()
            since = self._loop.time()
            error = await link.ended
            if self._loop.time() - since > GOOD_AFTER_S:
                self._backoff.reset()
            raise error
        finally:
            if not link.ended.done():
                link.end(LinkBroken("given up"))

    # ── what the link tells ───────────────────────────────────────────────────────────────

    def take(self, link: Link, event: s.Event, now: float) -> None:
        """Acts on an event that is not a push."""
        match event:
            case s.Greeted():
                self._begin(link, event)
            case s.Credited():
                self.tried.set()
            case s.Counted(workers, prefetch_bytes_per_s):
                self.engine.prefetch_bytes_per_s = prefetch_bytes_per_s
                self.engine.counted(self, workers)
            case s.Refusal(refused):
                link.end(LinkRefused(str(refused), refused.field, refused.retry_ms))
            case s.BadPush(task_id, total, error):
                if not self.refusing:
                    self.dispatcher.refuse(self.outbox, task_id, total, error, now)
            case s.Cancel(task_ids):
                self.dispatcher.cancel(self.outbox, task_ids)
            case s.Drain(to):
                self._drain(link, to)
            case s.Engines(addresses):
                self.engine.links.learn(self.engine, addresses)
            case s.CaughtUp():
                if not self.refusing:
                    self._hear_all_is_pushed()
            case s.Drop(task_id):
                if not self.refusing:
                    self._drop(task_id, now)
            case s.Ask():
                self.engine.links.asks.take(link, event)
            case s.Resend(line, wait_s):
                self._loop.call_later(wait_s, self._restore, [line], self.outbox.scope)
            case s.Complaint(text):
                self.engine.log.sampled(f"link {self.engine.name}", text, engine=self.engine.name)
            case _:
                raise AssertionError(event)

    def _begin(self, link: Link, greeted: s.Greeted) -> None:
        """The engine took our hello: first what was finished is reported, then new work asked for."""
        if not self.engine.admit(self._address, greeted):
            link.end(LinkBroken("this engine is linked already, by another name"))
            return
        self._link = link
        link.greeted_at = self._loop.time()
        # One that is older than the line is not waited for.
        self._said, self._before_that = not greeted.tells, []
        self.outbox.live = True
        self._take_receipts(greeted.receipts)
        self._belong_to(greeted.engine, greeted.store)
        link.greeted.set()
        self.flush()
        self.granted = 0
        link.write(link.session.ready(self.settings.credit))
        if not self.engine.links.reading:
            # Whether the credit was taken is not heard before we read.
            link.set_reading(False)
            self.tried.set()
        self.engine.greeted(self, greeted)

    def _take_receipts(self, on: bool) -> None:
        """Whether the engine takes receipts; of what was done while no link is up, by what was said last."""
        self.outbox.certify = self._certify if on else None

    def _certify(self, task: Task) -> bytes:
        link = self._link
        line_max = DEFAULT_LINE_MAX_BYTES if link is None else link.session.line_max
        try:
            return self.engine.links.notary.line(task, self.settings.who, line_max)
        except Exception as error:
            # Such as a library that cannot be loaded: what was done is reported all the same.
            self.engine.log.sampled("receipt", "a receipt cannot be made", error=repr(error))
            return b""

    def grant(self, most: int) -> bool:
        """Gives more credit, so that it is `most` beyond the usual; returns whether any was given."""
        more = most - self.granted
        link = self._link
        if link is None or not self.serving or self.refusing or more < max(1, self.settings.credit // STEPS):
            return False
        self.granted = most
        link.write(link.session.ready(more))
        return True

    def _hear_all_is_pushed(self) -> None:
        self._said = True
        self._before_that = self.dispatcher.in_hand(self.outbox)

    def _drop(self, task_id: bytes, now: float) -> None:
        if self.settings.drop_after_s is None:
            error = "this agent's configuration does not allow to drop the whole cache"
            self.dispatcher.refuse(self.outbox, task_id, 1, error, now)
            return
        self.engine.log.warning(
            "dropping the whole cache: an engine says that this agent was away for too long",
            engine=self.engine.name, worker=self.worker, task=task_id.decode(),
        )  # fmt: skip
        self.dispatcher.drop(self.outbox, task_id, now)

    def _belong_to(self, engine_id: str, store: str) -> None:
        """Says whose ids are pushed here. What was pushed out of another store, nobody here waits for."""
        outbox = self.outbox
        before, outbox.scope = outbox.scope, scope_of(engine_id, store, self.engine.name)
        if before.mark not in (UNKNOWN.mark, outbox.scope.mark):
            self.engine.log.info(
                "engine has another store; what is in hand is not reported there",
                engine=self.engine.name, worker=self.worker, store=store, before=before.store,
            )  # fmt: skip
            self.dispatcher.move(outbox, None)
            outbox.clear()
        self.trust_ids()

    def trust_ids(self) -> None:
        """Whether a task that was done may be known by its id: see `done.py`."""
        who = self.settings.who
        same = who == self.engine.links.settings.who
        self.outbox.trusted = bool(self.outbox.scope.store) and who.layer == 0 and same

    def resumed(self, link: Link) -> None:
        """See `link.Owner`."""
        self._link = link
        self.outbox.live = True
        self.flush()
        link.set_reading(self.engine.links.reading)
        if link.session.state is LinkState.DRAINING:
            self._loop.call_later(DRAIN_S, link.end, None)
        self.tried.set()

    def _drain(self, link: Link, to: list[str]) -> None:
        self.engine.redirect(to)
        self.engine.log.info("engine drains", engine=self.engine.name, worker=self.worker, to=to)
        self._loop.call_later(DRAIN_S, link.end, None)

    def heard(self, link: Link) -> None:
        """See `link.Owner`: closes a link that drains once nothing is left to be said on it."""
        if link is self._link and self.finished:
            link.end(None)

    def lost(self, link: Link) -> None:
        """A connection ended: reports that were not answered go out again on the next one."""
        if self._link is link:
            self._link = None
            self.outbox.live = False
            self.engine.link_lost()
        self._restore(link.session.unanswered(), self.outbox.scope)

    def _restore(self, lines: list[bytes], scope: Scope) -> None:
        slot = self
        while slot._heir is not None:
            slot = slot._heir
        if slot.outbox.scope.mark == scope.mark:
            slot.outbox.restore(lines)

    # ── writing ───────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends what waits, once a turn of the loop however much was finished in it."""
        link = self._link
        if link is None or not self.serving:
            return
        kept, active = self.outbox.take(self._loop.time(), link.session.line_max)
        if link.write_size > WRITE_HIGH_BYTES:
            active = []
        if kept or active:
            link.write(link.session.report(kept, active))

    def beat(self, figures: dict[str, str | int | float | None], now: float) -> None:
        """Tells that we live, and gives up an engine that does not."""
        link = self._link
        if link is None:
            return
        silence_s = self.engine.links.silence_s
        if link.reading and now - link.heard_at > silence_s:
            link.end(LinkBroken(f"the engine was silent for {silence_s:g} s"))
        elif link.write_size <= WRITE_HIGH_BYTES:
            link.write(link.session.beat(figures))

    def set_reading(self, on: bool) -> None:
        """See `Link.set_reading`."""
        if self._link is not None:
            self._link.set_reading(on)

    def __repr__(self) -> str:
        state = "leaving" if self._leaving else "up" if self.serving else "down"
        return f"<Slot {self.engine.name} worker {self.worker}, {state}, {self.outbox}>"
