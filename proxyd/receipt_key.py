"""The file that has the key that receipts are signed with: 64 hex digits, which only the agent may read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from wire.receipts import SEED_BYTES, new_seed

_SEED = re.compile(rb"[0-9a-f]{64}").fullmatch


def read_seed(path: Path) -> bytes:
    """The key in a file; b"" where there is none yet. Raises: ValueError, saying what is wrong; OSError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).strip()
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ValueError("is not there, and cannot be made in that folder") from None
        return b""
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"may be read by others (mode {stat.S_IMODE(mode):o}); chmod 600, or make a new key")
    if not _SEED(text):
        raise ValueError(f"is not {2 * SEED_BYTES} lower-case hex digits; another file?")
    return bytes.fromhex(text.decode())


def make_seed(path: Path) -> bytes:
    """A fresh key, in a file that only we may read; one that somebody else has just made counts.

    Raises: OSError, ValueError.
    """
    seed = new_seed()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_seed(path)
    with os.fdopen(file, "w") as stream:
        stream.write(seed.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return seed
