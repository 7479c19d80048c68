"""The way in: calls wait here, in order, until the window has room for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from wire.errors import ConnectionLost, TimedOut
from wire.retry import Window


class Gate:
    """A `Window`, and those who wait for it."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._closed = False

    async def enter(self, size: int, deadline: float) -> None:
        """Takes room for a request. Raises: TimedOut, ConnectionLost."""
        if not self.waiting and self.window.fits(size):
            self.window.add(size)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (waiter, size)
        self.waiting.append(entry)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.leave(size)
            else:
                with contextlib.suppress(ValueError):
                    self.waiting.remove(entry)
            if self._closed:
                raise ConnectionLost("the client was closed") from None
            if isinstance(error, TimeoutError):
                raise TimedOut(
                    f"the deadline passed behind {self.window.requests} requests in flight; send fewer"
                ) from None
            raise

    def leave(self, size: int) -> None:
        """Gives room back, to the first who waits."""
        self.window.remove(size)
        while self.waiting and self.window.fits(self.waiting[0][1]):
            waiter, waiting_size = self.waiting.popleft()
            if not waiter.done():
                self.window.add(waiting_size)
                waiter.set_result(None)

    def close(self) -> None:
        """Turns away all who wait."""
        self._closed = True
        for waiter, _ in self.waiting:
            if not waiter.done():
                waiter.cancel()
