"""Reports that wait to be sent to one worker of one engine. Pure.

It outlives connections: what was finished while the link was down is reported
when it is back. Many finished tasks make one line. It holds no more than was
pushed by that worker, for which there is credit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from proxyd.scope import UNKNOWN, Scope
from proxyd.tasks import Task
from wire.errors import LocalError
from wire.heads import ID_MAX_BYTES
from wire.lines import format_line

# A line of reports stays far below any line_max, and is one write of the loop.
LINE_MAX_BYTES = 64 * 1024
# "report state=done ms=N --" and the LF.
_DONE_OVERHEAD_BYTES = 64
ERROR_MAX_CHARS = 300


class Outbox:
    """`wake` is called when there is something to send again; `take` then gives the lines.

    `name` is the proxy that reports, `layer` its layer, `engine` the engine that is told, whichever of its
    workers; `owed` counts the tasks that will be reported here.
    """

    __slots__ = (
        "_active", "_done", "_kept", "_oldest", "_wake", "_woken",
        "certify", "engine", "layer", "live", "name", "owed", "scope", "trusted",
    )  # fmt: skip

    def __init__(self, wake: Callable[[], None], name: str = "", *, engine: str = "", layer: int = 0) -> None:
        self._wake = wake
        self.name = name
        self.engine = engine
        self.layer = layer
        self.scope: Scope = UNKNOWN
        """Whose ids are pushed and reported here."""
        self.live = False
        """Whether its link is up: one that comes up is pushed again what was not reported."""
        self.trusted = False
        """Whether what was done well may be known by its id when it is pushed again, see `done.py`."""
        self.certify: Callable[[Task], bytes] | None = None
        """Makes the receipt line of a task that has evidence, or b"" if it cannot; None where the engine
        takes none."""
        self._woken = False
        self._done: list[bytes] = []
        self._oldest = 0.0
        self._kept: list[bytes] = []
        self._active: list[bytes] = []
        self.owed = 0

    def __len__(self) -> int:
        return len(self._done) + len(self._kept) + len(self._active)

    def add_done(self, task_id: bytes, received_at: float) -> None:
        """A task is done, all targets well."""
        if not self._done or received_at < self._oldest:
            self._oldest = received_at
        self._done.append(task_id)
        self.owed -= 1
        if not self._woken:
            self._woken = True
            self._wake()

    def add_failed(self, task: Task) -> None:
        """A task ended, some of its targets failed."""
        self.owed -= 1
        self._add(self._kept, format_failed(task))

    def add_evidence(self, task: Task) -> None:
        """What is about to be reported has evidence: a receipt goes before the report."""
        line = b"" if self.certify is None else self.certify(task)
        if line:
            self._add(self._kept, line)

    def add_active(self, task: Task) -> None:
        """A task is under way."""
        counts = (task.id, task.done, task.failed)
        self._add(self._active, b"report state=active task_id=%b done=%d failed=%d\n" % counts)

    def restore(self, lines: Iterable[bytes]) -> None:
        """Takes back lines that `take` gave out and that no reply came for."""
        for line in lines:
            self._add(self._kept, line)

    def clear(self) -> None:
        """Drops what waits to be reported."""
        self._done, self._kept, self._active = [], [], []

    def _add(self, to: list[bytes], line: bytes) -> None:
        to.append(line)
        if not self._woken:
            self._woken = True
            self._wake()

    def take(self, now: float, line_max: int) -> tuple[list[bytes], list[bytes]]:
        """Empties it: (lines that must arrive, lines that may be lost), each shorter than `line_max`."""
        self._woken = False
        kept, active, done = self._kept, self._active, self._done
        self._kept, self._active, self._done = [], [], []
        if done:
            ms = max(0, int((now - self._oldest) * 1000))
            limit = min(line_max, LINE_MAX_BYTES) - _DONE_OVERHEAD_BYTES
            step = max(1, limit // (ID_MAX_BYTES + 1))
            for start in range(0, len(done), step):
                kept.append(b"report state=done ms=%d -- %b\n" % (ms, b" ".join(done[start : start + step])))
        if max(map(len, kept), default=0) >= line_max:
            # (A receipt was made for another connection then: one that took longer lines.)
            kept = [
                line if len(line) < line_max else _shorten(line)
                for line in kept
                if len(line) < line_max or not line.startswith(b"receipt ")
            ]
        return kept, active

    def __repr__(self) -> str:
        return f"<Outbox {len(self._done)} done, {len(self._kept)} lines, {self.owed} owed>"


def format_failed(task: Task) -> bytes:
    """The report of a task that ended with failures."""
    error = (task.error or "failed")[:ERROR_MAX_CHARS]
    fields: dict[str, str | int | float | None] = {
        "state": "failed",
        "task_id": task.id.decode(),
        "done": task.done,
        "failed": task.failed,
        "error": error,
    }
    try:
        return format_line("report", fields, [target.decode() for target in task.failed_targets] or None)
    except (LocalError, UnicodeDecodeError):
        # A target that no line can carry was refused for that; its text is not repeated.
        fields["error"] = error.encode("ascii", "replace").decode()
        return format_line("report", fields)


def _shorten(line: bytes) -> bytes:
    """A line without its items, for an engine that takes short lines only."""
    return line.partition(b" -- ")[0].rstrip(b"\n") + b"\n"
