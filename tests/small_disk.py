"""Disks that are full: a small tmpfs that only one program and its children see."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def own_mounts() -> list[str]:
    """The command that gives a program its own mounts, root or not. Skips the test where none may."""
    if shutil.which("unshare") is not None:
        for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
            tried = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
            if tried.returncode == 0:
                return command
    pytest.skip("no mount namespace allowed here")


def on_small_disk(
    folder: Path,
    size_mib: int,
    command: Sequence[str] = (),
    *,
    filled_from: Path | None = None,
    read_only: bool = False,
) -> list[str]:
    """`command`, for which `folder` is a disk of its own; `filled_from`: what is copied there first."""
    mount = f'mount -t tmpfs -o size={size_mib}m{",ro" if read_only else ""} tmpfs "{folder}"'
    # Files with holes would run out of disk where nobody expects it.
    copy = f' && cp -r --sparse=never "{filled_from}/." "{folder}"' if filled_from is not None else ""
    return [*own_mounts(), "sh", "-c", f'{mount}{copy} && exec "$@"', "sh", *command]


def seen_by(pid: int, path: Path) -> Path:
    """A path as a process with mounts of its own sees it."""
    return Path(f"/proc/{pid}/root{path}")


def fill(path: Path) -> None:
    """Makes a file that takes all the room that is left."""
    with path.open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
