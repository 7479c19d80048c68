"""The link to one worker of an engine, over all its connections.

It connects, greets, serves, and when the connection ends connects again, with backoff. What was finished
meanwhile waits in its outbox.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd import session as s
from proxyd.backoff import Backoff
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkBroken, LinkError, LinkRefused
from proxyd.link import Link, LinkSettings
from proxyd.outbox import LINE_MAX_BYTES, Outbox
from proxyd.session import LinkState

if TYPE_CHECKING:
    from proxyd.links import Engine

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


class Slot:
    """Keeps one connection up for as long as the engine has this worker."""

    def __init__(self, engine: Engine, worker: int) -> None:
        self.engine = engine
        self.worker = worker
        self.outbox = Outbox(self._wake)
        self._loop = asyncio.get_running_loop()
        self.heir: Outbox | None = None
        """Where reports go once the engine has no such worker any more."""
        self._link: Link | None = None
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_CAP_S)
        self._stopping = False
        self._task = self._loop.create_task(self._keep_up())

    @property
    def settings(self) -> LinkSettings:
        """See `link.Owner`."""
        return self.engine.settings

    @property
    def dispatcher(self) -> Dispatcher:
        """See `link.Owner`."""
        return self.engine.dispatcher

    @property
    def stopping(self) -> bool:
        """See `link.Owner`."""
        return self.engine.stopping

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
        link = Link(self)
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

    def take(self, link: Link, event: s.Event, now: float) -> None:
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

    def _begin(self, link: Link, greeted: s.Greeted) -> None:
        """The engine took our hello: first what was finished is reported, then new work asked for."""
        old, self._link = self._link, link
        if old is not None and old is not link:
            old.end(LinkBroken("replaced"))
        link.greeted.set()
        self._flush()
        link.write(link.session.ready(self.engine.settings.credit))
        link.set_reading(not self.engine.held)
        self.engine.greeted(self, greeted)

    def lost(self, link: Link) -> None:
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
        """See `Link.set_reading`."""
        if self._link is not None:
            self._link.set_reading(on)

    @property
    def flushed(self) -> bool:
        """Whether all that was finished has been written."""
        return not len(self.outbox) and (self._link is None or self._link.write_size == 0)
