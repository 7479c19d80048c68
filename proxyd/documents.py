"""JSON that goes into a line. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


def encode(value: Any) -> bytes:
    """JSON in UTF-8, with nothing in it that a line cannot carry.

    Control characters JSON escapes by itself, but for 0x7f; that can only stand within a string of it.
    """
    return msgspec.json.encode(value).replace(b"\x7f", b"\\u007f")
