"""What a `LocalClient` asks of those who do its work: the seam between agent and files. No I/O."""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TakeAlong(enum.Enum):
    """Instead of a result: this wants a sweep."""

    TAKE_ALONG = 1


TAKE_ALONG = TakeAlong.TAKE_ALONG


class Work(NamedTuple):
    """What a deed is done to; of a drop of the whole cache there is neither host nor path."""

    verb: bytes
    host: bytes
    path: bytes


class Pulse:
    """What the thread that works and the loop tell each other."""

    def __init__(self) -> None:
        self.beats = 0
        """Counted up by who works: it goes on."""
        self.stop = threading.Event()
        """Set by the loop: nobody waits for it any more."""


class Hands(Protocol):
    """Does the work. Both are called in threads, may block, and give a result for each.

    A result is None if it is done, or what was wrong.
    """

    def act(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | TakeAlong | None]:
        """What takes microseconds each."""

    def sweep(self, works: Sequence[Work], pulse: Pulse) -> Sequence[str | None]:
        """What takes a look at everything, once for all of these."""
