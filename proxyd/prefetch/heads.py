"""What is looked at of an answer: its status and a few of its header fields. Pure.

A head is kept as it came, and a field is looked for when it is asked for: 0.4 µs each, and most answers are
asked for two. Taking all their dozen from the parser costs 4 µs (tools/bench/prefetch.py shows the sum).
"""

from __future__ import annotations

import re

_VALUE = re.compile(rb"[ \t]*([^\r\n]*)").match


class Head:
    """The head of one answer; `raw` is all of it from the status line on, and maybe something behind it."""

    __slots__ = ("_lower", "_raw", "hit", "status")

    def __init__(self, status: int, raw: bytes) -> None:
        self.status = status
        self._raw = raw
        self._lower = raw.lower()
        self.hit = False
        """Whether it says that the cache had it, see `hits.py`."""

    def get(self, name: bytes) -> bytes:
        """A field's value by its name in lower case; of one that is there twice both, parted by a comma."""
        mark = b"\n" + name + b":"
        at = self._lower.find(mark)
        value = b""
        while at >= 0:
            match = _VALUE(self._raw, at + len(mark))
            if match is not None:
                more = match[1].rstrip()
                value = value + b", " + more if value else more
            at = self._lower.find(mark, at + 1)
        return value

    @property
    def length(self) -> int | None:
        """How long the body is; None where the head does not say."""
        text = self.get(b"content-length")
        return int(text) if text.isdigit() and not self.get(b"transfer-encoding") else None

    def __repr__(self) -> str:
        return f"<Head {self._raw[:200]!r}>"


def cut_head(raw: bytes, interim: int) -> bytes:
    """The head in what has come so far, behind so many interim ones; empty if it is not all there."""
    start = 0
    end = raw.find(b"\r\n\r\n")
    while interim and end >= 0:
        start = end + 4
        end = raw.find(b"\r\n\r\n", start)
        interim -= 1
    return raw[start : end + 2] if end >= 0 else b""
