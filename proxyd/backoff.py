"""How long to wait before the next try: doubling, capped, with jitter."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waits of `first_s`, twice that, and so on up to `cap_s`, each shortened by up to half.

    The jitter keeps a fleet from coming back in one moment.
    """

    __slots__ = ("_cap_s", "_first_s", "_next_s", "_random")

    def __init__(
        self, first_s: float, cap_s: float, random_source: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._next_s = first_s
        self._random = random_source

    def next_s(self) -> float:
        """Seconds to wait now."""
        wait_s = self._next_s * (1 - self._random() / 2)
        self._next_s = min(self._next_s * 2, self._cap_s)
        return wait_s

    def reset(self) -> None:
        """It worked: the next trouble begins with the first wait again."""
        self._next_s = self._first_s
