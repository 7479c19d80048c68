"""A progress bar on stderr, where a person is looking; else nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Told how far the work is."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


def _tell_nobody(done: int, total: int | None = None) -> None:
    pass


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Progress]:
    """A bar named `what`; call what it yields with the steps done so far."""
    if not sys.stderr.isatty():
        yield _tell_nobody
        return
    # Only here: loading rich takes longer than most commands.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done, total=None: shown.update(task, completed=done, total=total)
