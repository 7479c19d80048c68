"""One request, from the caller's wish to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wire.errors import WireError
from wire.sessions import Reply

if TYPE_CHECKING:
    from wire.client.lanes import Lane
    from wire.client.watcher import Watcher


class Call:
    """One request, until it is answered, refused for good, or too late."""

    __slots__ = (
        "attempts", "deadline", "done", "error", "expiry", "future", "lane", "line", "on_link", "retry",
        "task_id", "verb", "watcher",
    )  # fmt: skip

    def __init__(
        self,
        verb: str,
        line: bytes,
        task_id: str | None,
        deadline: float,
        future: asyncio.Future[Reply[Call] | WireError],
        watcher: Watcher | None = None,
    ) -> None:
        self.verb = verb
        self.line = line
        self.task_id = task_id
        self.deadline = deadline
        self.future = future
        self.watcher = watcher
        self.attempts = 0
        self.error: WireError | None = None
        self.on_link = False
        self.done = False
        self.lane: Lane | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.retry: asyncio.TimerHandle | None = None
