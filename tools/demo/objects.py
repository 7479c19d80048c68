"""What the little cache holds, and how long: pure, the clock is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tools.demo.http1 import Response

#: Least recently used ones go when there are more. With http1.BODY_MAX_BYTES this bounds the memory.
OBJECTS_MAX = 256

#: The host, lower case (RFC 9110, 4.2.3), and the request target, byte for byte: `/a%2Fb` is not `/a/b`.
Key = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response with the moments it was stored and goes stale, in seconds of the caller's clock."""

    response: Response
    stored_s: float
    stale_s: float


class Objects:
    """The fresh responses by key.

    A fetch that began before a purge must not bring the old object back when it ends after it, so `epoch`
    grows with every purge and ban, and `store` takes the epoch at which the fetch began.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._stored: OrderedDict[Key, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def look_up(self, key: Key, now_s: float) -> Stored | None:
        """The fresh object of KEY, or None."""
        stored = self._stored.get(key)
        if stored is None:
            return None
        if now_s >= stored.stale_s:
            del self._stored[key]
            return None
        self._stored.move_to_end(key)
        return stored

    def store(self, key: Key, response: Response, *, now_s: float, fresh_s: float, epoch: int) -> bool:
        """Keep RESPONSE for `fresh_s`; False if a purge or ban came since `epoch`, so that it may be old."""
        if epoch != self.epoch or fresh_s <= 0:
            return False
        self._stored[key] = Stored(response, now_s, now_s + fresh_s)
        self._stored.move_to_end(key)
        if len(self._stored) > OBJECTS_MAX:
            self._stored.popitem(last=False)
        return True

    def purge(self, key: Key) -> int:
        """Forget KEY; how many objects went."""
        self.epoch += 1
        return 0 if self._stored.pop(key, None) is None else 1

    def ban(self, host: str, prefix: bytes) -> int:
        """Forget each object of HOST whose target begins with PREFIX; how many went."""
        self.epoch += 1
        gone = [key for key in self._stored if key[0] == host and key[1].startswith(prefix)]
        for key in gone:
            del self._stored[key]
        return len(gone)
