"""One reader of a task's states."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from wire.answers import TaskState

if TYPE_CHECKING:
    from wire.client.link import Link

# States of one task that a slow reader has not fetched; older ones are dropped.
WATCH_EVENTS_MAX = 64


class Watcher:
    """One reader of `Client.watch`: the states it has not fetched, and the link they come from."""

    __slots__ = ("_wake", "events", "link")

    def __init__(self) -> None:
        self.events: deque[TaskState] = deque(maxlen=WATCH_EVENTS_MAX)
        self.link: Link | None = None
        self._wake: asyncio.Future[None] | None = None

    def begin(self, link: Link, state: TaskState) -> None:
        """The engine answered `watch_task`; what came before is older."""
        self.events.clear()
        self.events.append(state)
        self.link = link
        link.watchers.add(self)

    def put(self, state: TaskState) -> None:
        self.events.append(state)
        self._rouse()

    def lose(self) -> None:
        """The link is gone; whoever reads must watch again."""
        self.link = None
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def next(self, deadline: float) -> TaskState | None:
        """The next state, or None if the link is gone. Raises: TimeoutError."""
        while not self.events and self.link is not None:
            self._wake = asyncio.get_running_loop().create_future()
            async with asyncio.timeout_at(deadline):
                await self._wake
        return self.events.popleft() if self.events else None
