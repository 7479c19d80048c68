"""The demo's folder: the same each time, so that it can be written down, empty at the start. While another
demo holds it, a new one gets a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder under PARENT, held until the end: PARENT/NAME, or PARENT/NAME-… if that is in use."""
    parent.mkdir(exist_ok=True)
    lock = os.open(parent / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
            return
        folder = parent / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        yield folder
    finally:
        os.close(lock)
