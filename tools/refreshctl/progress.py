"""A progress bar on stderr, for work that takes long while a person is looking; else nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol

# Work that ends sooner shows no bar, and does not pay for loading rich.
SHOW_AFTER_S = 0.5


class Progress(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Progress]:
    """A bar named `what`; call what it yields with the steps done so far. In a running loop only."""
    made = _Bar(what, total)
    timer = asyncio.get_running_loop().call_later(SHOW_AFTER_S, made.show) if sys.stderr.isatty() else None
    try:
        yield made
    finally:
        if timer is not None:
            timer.cancel()
        made.stop()


class _Bar:
    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._done, self._total = 0, total
        self._shown: Any = None

    def __call__(self, done: int, total: int | None = None) -> None:
        self._done = done
        self._total = self._total if total is None else total
        if self._shown is not None:
            bar, task = self._shown
            bar.update(task, completed=self._done, total=self._total)

    def show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._shown = bar, bar.add_task(self._what, total=self._total, completed=self._done)
        bar.start()

    def stop(self) -> None:
        if self._shown is not None:
            self._shown[0].stop()
