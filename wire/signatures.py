"""Signed greetings (PROTOCOL.md, "Greeting").

`sig` is the lower-case hex HMAC-SHA256, keyed with the secret, of
`hello LF ROLE LF KEY LF TS LF NONCE`. A time is off by 300 s at the most and a
(key, nonce) pair is good once, so a greeting that was overheard is worth nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Iterable

from wire.errors import Refused

CLOCK_SKEW_MAX_S = 300
# One nonce is 100 to 200 bytes here. 200,000 greetings in ten minutes are 333 a
# second: a client that makes more should keep its connections.
NONCES_MAX = 200_000
NONCE_MAX_CHARS = 128


def sign_hello(secret: bytes, role: str, key: str, ts: int, nonce: str) -> str:
    """The `sig` of a greeting; `ts` in Unix seconds."""
    text = f"hello\n{role}\n{key}\n{ts}\n{nonce}".encode()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()


def check_hello(secret: bytes, role: str, key: str, ts: int, nonce: str, sig: str, now_s: float) -> None:
    """Checks signature and time; whether the nonce is fresh is `NonceBook`'s to say.

    Raises: Refused with code `auth`.
    """
    if not hmac.compare_digest(sign_hello(secret, role, key, ts, nonce).encode(), sig.encode()):
        raise Refused(
            "auth", f"the signature for key {key} does not hold; check the secret and what is signed"
        )
    skew_s = ts - now_s
    if abs(skew_s) > CLOCK_SKEW_MAX_S:
        raise Refused(
            "auth",
            f"ts is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} this engine's clock, "
            f"at most {CLOCK_SKEW_MAX_S} s is allowed; set the clock",
        )


class NonceBook:
    """Remembers which (key, nonce) pairs were used while they could still be replayed."""

    def __init__(self) -> None:
        self._used: set[tuple[str, str]] = set()
        self._by_age: deque[tuple[float, tuple[str, str]]] = deque()

    def use(self, key: str, nonce: str, now_s: float) -> None:
        """Marks the pair as used, once its signature was checked. `now_s` is monotonic.

        Raises: Refused, `auth` for a pair that was used, `busy` when the book is full.
        """
        self._forget(now_s)
        pair = (key, nonce)
        if pair in self._used:
            raise Refused("auth", "this nonce was used before; make a new one for each hello")
        if len(self._used) >= NONCES_MAX:
            raise Refused("busy", "too many greetings; keep connections open", retry_ms=1000)
        self._used.add(pair)
        self._by_age.append((now_s, pair))

    def entries(self) -> list[tuple[float, str, str]]:
        """(when it was used, key, nonce) of every pair, for another book on the same machine."""
        return [(used_s, *pair) for used_s, pair in self._by_age]

    def add(self, entries: Iterable[tuple[float, str, str]]) -> None:
        """Takes in what another book has."""
        for used_s, key, nonce in entries:
            if (key, nonce) not in self._used:
                self._used.add((key, nonce))
                self._by_age.append((used_s, (key, nonce)))

    def _forget(self, now_s: float) -> None:
        # A greeting may be signed up to 300 s ahead and is good for 300 s after that.
        oldest = now_s - 2 * CLOCK_SKEW_MAX_S
        while self._by_age and self._by_age[0][0] < oldest:
            self._used.discard(self._by_age.popleft()[1])

    def __len__(self) -> int:
        return len(self._used)
