"""Durations and points in time, as people write them."""

from __future__ import annotations

import datetime
import re

from tools.refreshctl.exits import usage

_DURATION = re.compile(r"([0-9]{1,9})([smhd]?)").fullmatch
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str, flag: str) -> int:
    """`90`, `90s`, `5m`, `2h` or `1d` in seconds. Raises: Failure."""
    match = _DURATION(text)
    if match is None:
        raise usage(f"{flag}: got {text!r}, wanted a time such as 90, 5m, 2h or 1d")
    return int(match[1]) * _UNITS_S[match[2]]


def unix_seconds(text: str, now_s: float) -> int:
    """`+5m`, Unix seconds, or an ISO date and time (local without a zone). Raises: Failure."""
    if text.startswith("+"):
        return int(now_s) + seconds(text[1:], "--due")
    if text.isascii() and text.isdecimal():
        # Also what is far too large: an engine's limit says so better than a date of 13 digits.
        return int(text[:18])
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        raise usage(f"--due: got {text!r}, wanted +5m, Unix seconds, or 2026-12-01T10:00") from None
