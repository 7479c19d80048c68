"""The scoreboard: one page of shared memory in which each worker shows how it is.

The master makes it (a memfd) and only reads it; each worker writes its own row
and reads the others' connection counts to balance fresh connections. Rows are
made of aligned 64-bit words, each written by one process only, so a reader sees
whole values without a lock.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

WORKERS_MAX = 64
_WORDS = 8
_ROW_BYTES = _WORDS * 8
SIZE_BYTES = WORKERS_MAX * _ROW_BYTES


class Row(NamedTuple):
    """How a worker is. `heartbeat_ns` is the monotonic clock when its loop last turned."""

    heartbeat_ns: int
    pid: int
    connections: int
    tasks: int
    accepting: int


class Scoreboard:
    """Access to the page behind `fd`."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE_BYTES)
        self._words = memoryview(self._map).cast("Q")

    @staticmethod
    def create() -> int:
        """Makes the page; returns a descriptor that children may inherit."""
        fd = os.memfd_create("refreshd-scoreboard", 0)
        os.ftruncate(fd, SIZE_BYTES)
        return fd

    def write(self, slot: int, row: Row) -> None:
        """Shows `row` for `slot`; only the worker in that slot may."""
        at = slot * _WORDS
        for offset, value in enumerate(row):
            self._words[at + offset] = value

    def set_connections(self, slot: int, connections: int) -> None:
        """Shows how many connections the worker in `slot` serves."""
        self._words[slot * _WORDS + 2] = connections

    def read(self, slot: int) -> Row:
        """The row of `slot`; all zero while no worker has written there."""
        at = slot * _WORDS
        return Row(*self._words[at : at + len(Row._fields)])

    def clear(self, slot: int) -> None:
        """Empties a row whose worker is gone; only the master may."""
        self.write(slot, Row(0, 0, 0, 0, 0))

    def close(self) -> None:
        """Unmaps the page."""
        self._words.release()
        self._map.close()
