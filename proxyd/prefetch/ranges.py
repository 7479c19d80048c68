"""Byte ranges of one object, asked for one after the other (RFC 9110, 14). Pure."""

from __future__ import annotations

import re

_CONTENT_RANGE = re.compile(rb"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE).fullmatch


def range_header(first: int, length: int) -> tuple[bytes, bytes]:
    """Asks for `length` bytes from byte `first` on."""
    return b"Range", b"bytes=%d-%d" % (first, first + length - 1)


def next_first(first: int, content_range: bytes) -> int | None:
    """The first byte that is still missing after an answer to a range from `first`; None if there is none.

    Raises: ValueError where it is another range, or of an unknown length.
    """
    match = _CONTENT_RANGE(content_range)
    if match is None:
        raise ValueError(f"206 with Content-Range {content_range[:80]!r}, wanted bytes FIRST-LAST/LENGTH")
    got_first, last, total = map(int, match.groups())
    if got_first != first or not first <= last < total:
        raise ValueError(f"206 with bytes {got_first}-{last}/{total}, wanted some from {first} on")
    return last + 1 if last + 1 < total else None
