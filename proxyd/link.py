"""One connection to one worker of an engine: bytes to the session, events to whom they concern."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Protocol, cast

import msgspec

from proxyd import session as s
from proxyd.dispatch import Dispatcher
from proxyd.errors import LinkBroken, LinkError
from proxyd.outbox import Outbox
from proxyd.session import Identity, LinkSession, LinkState
from wire.signatures import sign_hello


class LinkSettings(msgspec.Struct, frozen=True):
    """What a link greets with. `key` is empty where the engines ask for none.

    `drop_after_s`: after how long an absence the whole cache may be dropped; None: never. `receipt_key`: what
    receipts are signed with, where a file says that.
    """

    who: Identity
    credit: int
    key: str = ""
    secret: bytes = b""
    drop_after_s: int | None = None
    receipt_key: str = ""


class Owner(Protocol):
    """Whose connection it is, see `slot.py`."""

    worker: int
    outbox: Outbox

    @property
    def settings(self) -> LinkSettings:
        """How to greet."""

    @property
    def receipt_key(self) -> str:
        """What receipts are signed with, as far as that is known."""

    @property
    def dispatcher(self) -> Dispatcher:
        """Who takes what is pushed."""

    @property
    def refusing(self) -> bool:
        """Whether pushes are left to be pushed again, elsewhere or later."""

    def take(self, link: Link, event: s.Event, now: float) -> None:
        """Acts on an event that is not a push."""

    def resumed(self, link: Link) -> None:
        """A connection that was greeted by the code before this is in our hands."""

    def heard(self, link: Link) -> None:
        """The engine that drains has sent something, maybe the last reply."""

    def lost(self, link: Link) -> None:
        """The connection has ended."""


class Link(asyncio.Protocol):
    """One connection, from its greeting to its end. `ended` tells why it ended.

    With a `session` that is thawed, it goes on where that was frozen.
    """

    def __init__(self, owner: Owner, session: LinkSession | None = None) -> None:
        self._owner = owner
        self._dispatcher = owner.dispatcher
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.session = LinkSession() if session is None else session
        self.heard_at = self._loop.time()
        self.greeted_at = self.heard_at
        """When the engine took the hello, or when the connection was taken over."""
        self.reading = True
        self.greeted = asyncio.Event()
        """Set when the engine has answered the hello, or will not."""
        self.ended: asyncio.Future[LinkError] = self._loop.create_future()
        """Why the connection ended, or is about to."""
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.session.greeted:
            self.greeted.set()
            self._owner.resumed(self)
            return
        settings = self._owner.settings
        signature = sign(settings, "proxy")
        owner = self._owner
        self.write(
            self.session.greet(
                settings.who, owner.worker, signature, settings.drop_after_s, owner.receipt_key
            )
        )

    def write(self, data: bytes) -> None:
        """Sends, unless the connection is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def duplicate(self) -> int | None:
        """Another descriptor of the connection; None if it is ending, or something waits to be written."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return None
        return os.dup(transport.get_extra_info("socket").fileno())

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
        owner = self._owner
        outbox = owner.outbox
        push = self._dispatcher.push
        for event in events:
            if type(event) is tuple:
                if not owner.refusing:
                    push(outbox, *cast(s.Push, event), now)
            else:
                owner.take(self, event, now)
        if self.session.state is LinkState.DRAINING:
            owner.heard(self)

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
        self._owner.lost(self)

    def _set_ended(self, error: LinkError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
        self.greeted.set()


def sign(settings: LinkSettings, role: str) -> dict[str, str | int] | None:
    """The fields of a hello that prove who greets, where the engines want that."""
    if not settings.key:
        return None
    ts, nonce = int(time.time()), secrets.token_hex(16)
    sig = sign_hello(settings.secret, role, settings.key, ts, nonce)
    return {"key": settings.key, "ts": ts, "nonce": nonce, "sig": sig}
