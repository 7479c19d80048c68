"""What the demo prints: plain lines, coloured only on a terminal (and not if NO_COLOR is set)."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

BOLD, DIM, RED, GREEN = "1", "2", "31", "32"
#: Steps are padded to this many columns, so that their times stand in one column.
STEP_WIDTH = 68


class Show:
    """Prints to STREAM; each call flushes, so that a pipe sees the story as it goes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="replace")  # a terminal that knows no check mark gets a "?"
        self._colours = self._stream.isatty() and not os.environ.get("NO_COLOR")

    def line(self, text: str = "", style: str = "") -> None:
        """One line as it is."""
        print(self._styled(text, style), file=self._stream, flush=True)

    def done(self, title: str, took_s: float, details: list[str]) -> None:
        """A step that worked, with its time and what was seen."""
        mark, time = self._styled("✓", GREEN), self._styled(f"{took_s * 1000:7.1f} ms", DIM)
        self.line(f"  {mark} {title:<{STEP_WIDTH}}{time}")
        for detail in details:
            self.line(f"      {detail}", DIM)

    def failed(self, title: str, why: str) -> None:
        """A step that did not."""
        self.line(f"  {self._styled('✗', RED)} {title}")
        for detail in why.splitlines():
            self.line(f"      {detail}")

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._colours else text
