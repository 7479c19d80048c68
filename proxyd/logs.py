"""The agent's log: JSON lines on stderr, few of them, and never more than a bound.

What can happen once a task is counted, not logged: `Sampler` lets the first
through and then one every ten seconds, with the number that was left out.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec
import structlog

# One line a kind of event in this time ...
SAMPLE_EVERY_S = 10.0
# ... and so many kinds: keys beyond it share one.
SAMPLED_KEYS_MAX = 256


def set_up(level: str) -> None:
    """Sends what is at or above `level` to stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _to_json(event: dict[str, Any], **_: object) -> str:
    # What it is stands first, whatever a caller added.
    first = {key: event.pop(key) for key in ("ts", "level", "event")}
    return msgspec.json.encode(first | event, enc_hook=str).decode()


class Sampler:
    """Decides which of many like events are logged."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def admit(self, key: str, now: float) -> int | None:
        """None: leave it out. Else log it, with the number of those left out since the last one."""
        if key not in self._last and len(self._last) >= SAMPLED_KEYS_MAX:
            key = "others"
        last = self._last.get(key)
        if last is not None and now - last < SAMPLE_EVERY_S:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return None
        self._last[key] = now
        return self._left_out.pop(key, 0)


class Log:
    """The agent's voice."""

    def __init__(self) -> None:
        self._logger = structlog.get_logger()
        self._sampler = Sampler()

    def info(self, event: str, **fields: object) -> None:
        """Something an operator wants to see happen."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something an operator may have to act on."""
        self._logger.warning(event, **fields)

    def sampled(self, key: str, event: str, **fields: object) -> None:
        """A warning that can come often; events with one `key` are sampled together."""
        left_out = self._sampler.admit(key, time.monotonic())
        if left_out is not None:
            if left_out:
                fields["left_out"] = left_out
            self._logger.warning(event, **fields)
