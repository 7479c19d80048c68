"""Logs: one JSON object a line on stderr, for the master and the workers alike.

`configure` once at the start of a process, then `logs.get().info("event", key=value)`.
Events are fixed texts; what varies stands in the keys. Nothing is logged per task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog

_STDERR = 2
_encode = msgspec.json.Encoder(enc_hook=repr).encode


class _StderrWriter:
    """Writes each line in one go, so that lines of several processes do not mix.

    A line that cannot be written is dropped: an engine whose log reader is gone
    goes on serving.
    """

    def write(self, line: bytes) -> None:
        try:
            os.write(_STDERR, line + b"\n")
        except OSError:
            pass

    debug = info = warning = error = critical = write


def configure(**always: Any) -> None:
    """Sets logging up for this process; `always` stands in every line (role, engine, slot)."""

    def with_always(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            "ts": event.pop("timestamp"),
            "level": event.pop("level"),
            "event": event.pop("event"),
            **always,
            **event,
        }

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            with_always,
            structlog.processors.JSONRenderer(serializer=lambda event, **_: _encode(event)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _StderrWriter(),
        cache_logger_on_first_use=True,
    )


def get() -> Any:
    """The logger of this process: `.info`, `.warning`, `.error`, `.exception`."""
    return structlog.get_logger()
