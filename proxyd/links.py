"""Connections to the engines: one to each worker of each engine, kept up for as long as the agent runs.

`Engine` knows how many workers there are (each `ok` to a hello says it) and has
one `Slot` a worker. A slot connects, greets, serves, and when the connection
ends connects again, with backoff; trouble in one disturbs no other. What was
finished meanwhile waits in its outbox. `_Link` is one connection.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import cast

import msgspec

from proxyd import session as s
from proxyd.addresses import format_address, parse_address
from proxyd.backoff import Backoff
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkBroken, LinkError, LinkRefused
from proxyd.logs import Log
from proxyd.outbox import LINE_MAX_BYTES, Outbox
from proxyd.session import Identity, LinkSession, LinkState
from wire.signatures import sign_hello

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
# Addresses taken from one `!drain to=`; a fleet has few engines.
REDIRECTS_MAX = 8


class LinkSettings(msgspec.Struct, frozen=True):
    """What all links have in common. `key` is empty where the engines ask for none."""

    who: Identity
    credit: int
    silence_s: float
    key: str = ""
    secret: bytes = b""


class _Link(asyncio.Protocol):
    """One connection: bytes to the session, events to whom they concern."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._dispatcher = slot.engine.dispatcher
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.session = LinkSession()
        self.heard_at = self._loop.time()
        self.reading = True
        self.greeted = asyncio.Event()
        """Set when the engine has answered the hello, or will not."""
        self.ended: asyncio.Future[LinkError] = self._loop.create_future()
        """Why the connection ended, or is about to."""
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        settings = self._slot.engine.settings
        self.write(self.session.greet(settings.who, self._slot.worker, _sign(settings)))

    def write(self, data: bytes) -> None:
        """Sends, unless the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def write_size(self) -> int:
        """Bytes that the engine has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def set_reading(self, on: bool) -> None:
        """Reads, or leaves what the engine sends to TCP's own flow control."""
        if self._transport is None or self._transport.is_closing() or on == self.reading:
            return
        self.reading = on
        if on:
            self.heard_at = self._loop.time()
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.heard_at = now = self._loop.time()
        try:
            events = self.session.feed(data)
        except LinkBroken as error:
            self.end(error)
            return
        slot = self._slot
        outbox = slot.outbox
        push = self._dispatcher.push
        for event in events:
            if type(event) is tuple:
                if not slot.engine.stopping:
                    push(outbox, *cast(s.Push, event), now)
            else:
                slot.take(self, event, now)

    def end(self, error: LinkError | None) -> None:
        """Gives the connection up: at once with an error, else after all was written."""
        self._set_ended(error or LinkBroken("closed by this agent"))
        if self._transport is not None:
            if error is not None:
                self._transport.abort()
            else:
                self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._set_ended(LinkBroken("the engine closed the connection" if error is None else str(error)))
        self.gone.set()
        self._slot.lost(self)

    def _set_ended(self, error: LinkError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
        self.greeted.set()


def _sign(settings: LinkSettings) -> dict[str, str | int] | None:
    if not settings.key:
        return None
    ts, nonce = int(time.time()), secrets.token_hex(16)
    sig = sign_hello(settings.secret, "proxy", settings.key, ts, nonce)
    return {"key": settings.key, "ts": ts, "nonce": nonce, "sig": sig}


class Slot:
    """The link to one worker, over all its connections."""

    def __init__(self, engine: Engine, worker: int) -> None:
        self.engine = engine
        self.worker = worker
        self.outbox = Outbox(self._wake)
        self._loop = asyncio.get_running_loop()
        self.heir: Outbox | None = None
        """Where reports go once the engine has no such worker any more."""
        self._link: _Link | None = None
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_CAP_S)
        self._stopping = False
        self._task = self._loop.create_task(self._keep_up())

    @property
    def serving(self) -> bool:
        """Whether the engine has greeted back and may push."""
        link = self._link
        return link is not None and link.session.state in (LinkState.SERVING, LinkState.DRAINING)

    async def stop(self) -> None:
        """Closes the connection, after what was reported has been written."""
        self._stopping = True
        link = self._link
        if link is not None:
            link.end(None)
            # An engine that does not read shall not keep us.
            await asyncio.wait([self._loop.create_task(link.gone.wait())], timeout=STOP_TIMEOUT_S)
            link.end(LinkBroken("closed by this agent"))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_up(self) -> None:
        while not self._stopping:
            address = self.engine.address()
            wait_s = 0.0
            try:
                await self._serve(address)
            except LinkRefused as error:
                self.engine.refused(self, address, error)
                wait_s = (error.retry_ms or 0) / 1000
            except (LinkError, OSError, TimeoutError) as error:
                self.engine.failed(self, address, error)
            await asyncio.sleep(max(self._backoff.next_s(), min(wait_s, BACKOFF_CAP_S)))

    async def _serve(self, address: tuple[str, int]) -> None:
        """One connection, from its connect to its end. Raises: LinkError, OSError, TimeoutError."""
        link = _Link(self)
        try:
            async with asyncio.timeout(GREET_TIMEOUT_S):
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

    # What the link tells.

    def take(self, link: _Link, event: s.Event, now: float) -> None:
        """Acts on an event that is not a push."""
        match event:
            case s.Greeted():
                self._begin(link, event)
            case s.Refusal(refused):
                link.end(LinkRefused(str(refused), refused.field, refused.retry_ms))
            case s.BadPush(task_id, total, error):
                self.engine.dispatcher.refuse(self.outbox, task_id, total, error, now)
            case s.Cancel(task_ids):
                self.engine.dispatcher.cancel(task_ids)
                self._close_if_drained()
            case s.Drain(to):
                self.engine.redirect(to)
                self.engine.log.info("engine drains", engine=self.engine.name, worker=self.worker, to=to)
                self._close_if_drained()
            case s.Resend(line, wait_s):
                self._loop.call_later(wait_s, self.outbox.restore, [line])
            case s.Complaint(text):
                self.engine.log.sampled(f"link {self.engine.name}", text, engine=self.engine.name)
            case _:
                raise AssertionError(event)

    def _begin(self, link: _Link, greeted: s.Greeted) -> None:
        """The engine took our hello: first what was finished is reported, then new work asked for."""
        old, self._link = self._link, link
        if old is not None and old is not link:
            old.end(LinkBroken("replaced"))
        link.greeted.set()
        self._flush()
        link.write(link.session.ready(self.engine.settings.credit))
        link.set_reading(not self.engine.held)
        self.engine.greeted(self, greeted)

    def lost(self, link: _Link) -> None:
        """A connection ended: reports that were not answered go out again on the next one."""
        if self._link is link:
            self._link = None
        self.outbox.restore(link.session.unanswered())

    # Writing.

    def _wake(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what waits, once a turn of the loop however much was finished in it."""
        link = self._link
        if self.heir is not None:
            self.bequeath()
        if link is None or link.session.state not in (LinkState.SERVING, LinkState.DRAINING):
            return
        kept, active = self.outbox.take(self._loop.time(), link.session.line_max)
        if link.write_size > WRITE_HIGH_BYTES:
            active = []
        if kept or active:
            link.write(link.session.report(kept, active))
        self._close_if_drained()

    def bequeath(self) -> None:
        """Hands to the heir what waits here."""
        if self.heir is not None:
            kept, _ = self.outbox.take(self._loop.time(), LINE_MAX_BYTES)
            self.heir.restore(kept)

    def _close_if_drained(self) -> None:
        link = self._link
        draining = link is not None and link.session.state is LinkState.DRAINING
        if draining and link is not None and not self.outbox.owed and not len(self.outbox):
            link.end(None)

    def beat(self, figures: dict[str, str | int | float | None], now: float) -> None:
        """Tells that we live, and gives up an engine that does not."""
        link = self._link
        if link is None:
            return
        silence_s = self.engine.settings.silence_s
        if link.reading and now - link.heard_at > silence_s:
            link.end(LinkBroken(f"the engine was silent for {silence_s:g} s"))
        elif link.write_size <= WRITE_HIGH_BYTES:
            link.write(link.session.beat(figures))

    def set_reading(self, on: bool) -> None:
        """See `_Link.set_reading`."""
        if self._link is not None:
            self._link.set_reading(on)

    @property
    def flushed(self) -> bool:
        """Whether all that was finished has been written."""
        return not len(self.outbox) and (self._link is None or self._link.write_size == 0)


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
