"""One connection: moves bytes between a transport and a `Dialogue`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from wire.client.call import Call
from wire.dialogue import Dialogue
from wire.errors import ConnectionLost, WireError
from wire.sessions import Push, Reply

if TYPE_CHECKING:
    from wire.client.watcher import Watcher


class LinkOwner(Protocol):
    """Who is told what happens on a link."""

    def replied(self, link: Link, reply: Reply[Call]) -> None:
        """A request was answered."""

    def pushed(self, link: Link, push: Push) -> None:
        """The engine pushed a line."""

    def idle(self, link: Link) -> None:
        """Nothing came for a while, and nothing was asked."""

    def lost(self, link: Link, error: WireError) -> None:
        """The connection is gone; what it did not answer is in `link.dialogue`."""


class Link(asyncio.Protocol):
    """One connection: moves bytes between a transport and a `Dialogue`."""

    def __init__(self, owner: LinkOwner, address: str, dialogue: Dialogue[Call]) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self.address = address
        self.dialogue = dialogue
        self.transport: asyncio.Transport | None = None
        self.watchers: set[Watcher] = set()
        self.greeted: asyncio.Future[WireError | None] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._outbox: list[bytes] = []
        self._error: WireError | None = None
        self._retired = False
        self._heard_s = self._asked_s = self._loop.time()

    @property
    def usable(self) -> bool:
        """Whether requests may be sent."""
        return self.dialogue.open and not self._retired and self.transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.dialogue.begin())
        if self.dialogue.open:
            self.greeted.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        try:
            for event in self.dialogue.feed(data):
                if isinstance(event, Push):
                    self._owner.pushed(self, event)
                else:
                    self._owner.replied(self, event)
        except WireError as error:
            self.give_up(error)
            return
        if self.dialogue.fault is not None:
            self.give_up(self.dialogue.fault)
            return
        if self.dialogue.open and not self.greeted.done():
            self.greeted.set_result(None)
        if self._retired and not self.dialogue.unanswered:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._error or ConnectionLost(
            f"{self.address} closed the connection" + (f" ({exc})" if exc is not None else "")
        )
        self.transport = None
        self._stop(error)
        self._owner.lost(self, error)
        self.gone.set_result(None)

    def send(self, call: Call) -> None:
        """Sends a request; those of one turn of the loop go out in one write."""
        if not self.dialogue.unanswered:
            self._asked_s = self._loop.time()
        self.dialogue.sent(call, call.verb)
        call.on_link = True
        call.lane = None
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(call.line)

    def _flush(self) -> None:
        lines, self._outbox = b"".join(self._outbox), []
        # What is not written is answered by connection_lost, which is under way then.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(self.dialogue.pack(lines))

    def check_alive(self, now_s: float, silence_s: float) -> None:
        """Ends a link that owes an answer for too long; tells of one that is idle."""
        if not self.dialogue.open or self.transport is None:
            return
        if self.dialogue.unanswered:
            if now_s - max(self._heard_s, self._asked_s) > silence_s:
                self.give_up(ConnectionLost(f"{self.address} was silent for {silence_s:.0f} s"))
        elif now_s - self._heard_s > silence_s / 2 and self.usable:
            self._owner.idle(self)

    def retire(self) -> None:
        """Sends no more; closes once all is answered."""
        self._stop(ConnectionLost(f"{self.address} is draining"))
        if not self.dialogue.unanswered:
            self.close()

    def give_up(self, error: WireError) -> None:
        """Ends the connection now; what is unanswered meets `error`."""
        self._error = error
        self._stop(error)
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Ends the connection once what was written is sent."""
        self._stop(ConnectionLost(f"the connection to {self.address} was closed"))
        if self.transport is not None:
            self.transport.close()

    def _stop(self, error: WireError) -> None:
        self._retired = True
        if not self.greeted.done():
            self.greeted.set_result(error)
        for watcher in self.watchers:
            watcher.lose()
        self.watchers.clear()
