"""The agent's log: JSON lines on stderr, few of them, and never more than a bound.

What can happen once a task is counted, not logged: `Sampler` lets the first
through and then one every ten seconds, with the number that was left out.

The lines are those that the engine's structlog writes, made by hand: structlog takes 90 ms to
import and 9 MiB to keep, which at an upgrade is a third of the pause (docs/agent.md).
"""

from __future__ import annotations

import datetime
import sys
import time
import traceback

import msgspec

from proxyd.settings import LOG_LEVELS

# One line a kind of event in this time ...
SAMPLE_EVERY_S = 10.0
# ... and so many kinds: keys beyond it share one.
SAMPLED_KEYS_MAX = 256
# Of a traceback: its end tells what it was.
TRACEBACK_MAX_CHARS = 4000


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

    def __init__(self, level: str) -> None:
        self._sampler = Sampler()
        self._least = 0
        self.set_level(level)

    def set_level(self, level: str) -> None:
        """Logs what is at or above `level` from now on."""
        self._least = LOG_LEVELS.index(level)

    def info(self, event: str, **fields: object) -> None:
        """Something an operator wants to see happen."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something an operator may have to act on."""
        self._write("warning", event, fields)

    def fault(self, event: str, error: BaseException) -> None:
        """A fault of the agent itself, with where it happened."""
        where = "".join(traceback.format_exception(error))[-TRACEBACK_MAX_CHARS:]
        self._write("error", event, {"error": repr(error), "traceback": where})

    def sampled(self, key: str, event: str, **fields: object) -> None:
        """A warning that can come often; events with one `key` are sampled together."""
        left_out = self._sampler.admit(key, time.monotonic())
        if left_out is not None:
            if left_out:
                fields["left_out"] = left_out
            self._write("warning", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LOG_LEVELS.index(level) < self._least:
            return
        now = datetime.datetime.now(datetime.UTC)
        # What it is stands first, whatever a caller added.
        line = {"ts": now.isoformat().replace("+00:00", "Z"), "level": level, "event": event} | fields
        try:
            print(msgspec.json.encode(line, enc_hook=str).decode(), file=sys.stderr, flush=True)
        except OSError:
            # Nobody reads the log any more; the work goes on.
            pass
