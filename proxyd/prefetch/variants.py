"""Header variants of one URL: which are worth asking for, and how. Pure.

After each answer `Vary` says which headers make a difference. A variant that differs from those that were
fetched in none of them is the same object to the cache: nothing to warm.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyd.prefetch.limits import Variant


def with_headers(request: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The request with these headers in place of its own of the same names."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = list(headers)
    names = {name.lower() for name, _ in headers}
    kept = [line for line in lines if line.partition(b":")[0].lower() not in names]
    added = [b"%b: %b" % header for header in headers]
    return b"\r\n".join([first, *kept, *added, b"", body])


def with_method(request: bytes, method: bytes) -> bytes:
    """The request with another method."""
    return method + b" " + request.partition(b" ")[2]


class Variants:
    """The variants of one URL that are still to be asked for. The first always is."""

    __slots__ = ("_left", "_sent", "_vary", "asked", "request")

    def __init__(self, request: bytes, variants: tuple[Variant, ...]) -> None:
        self.request = with_headers(request, variants[0])
        """That of the variant at hand."""
        self._left = [with_headers(request, variant) for variant in reversed(variants[1:])]
        self._sent = [_headers(self.request)]
        self._vary: set[bytes] = set()
        self.asked = 1
        """How many so far."""

    def advance(self, vary: bytes) -> bool:
        """The variant at hand was answered with this `Vary`; whether there is another one to ask for."""
        self._vary |= {name.strip().lower() for name in vary.split(b",") if name.strip()}
        if b"*" in self._vary:
            # Nobody's answer fits anybody else.
            return False
        while self._left:
            request = self._left.pop()
            headers = _headers(request)
            if not any(self._is_same(headers, sent) for sent in self._sent):
                self.request = request
                self._sent.append(headers)
                self.asked += 1
                return True
        return False

    def _is_same(self, one: dict[bytes, bytes], other: dict[bytes, bytes]) -> bool:
        return all(one.get(name) == other.get(name) for name in self._vary)


def _headers(request: bytes) -> dict[bytes, bytes]:
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
