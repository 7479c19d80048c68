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
# Two processes live in a slot while one hands over to the other: `row_of` says which row is whose.
SIZE_BYTES = 2 * WORKERS_MAX * _ROW_BYTES


def row_of(slot: int, side: int) -> int:
    """The row of the process on `side` (0 or 1, see control.Start) of a slot."""
    return slot + WORKERS_MAX * side


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

    def write(self, number: int, row: Row) -> None:
        """Shows `row` in the row of this `number` (`row_of`); only the worker whose it is may."""
        at = number * _WORDS
        for offset, value in enumerate(row):
            self._words[at + offset] = value

    def set_connections(self, number: int, connections: int) -> None:
        """Shows how many connections the worker of that row serves."""
        self._words[number * _WORDS + 2] = connections

    def read(self, number: int) -> Row:
        """The row of this number; all zero while no worker has written there."""
        at = number * _WORDS
        return Row(*self._words[at : at + len(Row._fields)])

    def clear(self, number: int) -> None:
        """Empties a row whose worker is gone; only the master may."""
        self.write(number, Row(0, 0, 0, 0, 0))

    def close(self) -> None:
        """Unmaps the page."""
        self._words.release()
        self._map.close()
