"""What is checked of each task that is read."""

from __future__ import annotations

from zlib import crc32

from refreshd.errors import StoreDamaged


def check_body(serial: int, body: bytes, crc: int, remedy: str = "restore the data folder") -> None:
    """Raises: StoreDamaged for a request line that is not what was written."""
    if crc32(body) != crc:
        raise StoreDamaged(
            f"the store is damaged: the request line of task {serial} is not what was written; "
            f"stop the engine and {remedy}"
        )
