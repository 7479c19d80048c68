"""The scoreboard: one page of shared memory in which each worker shows how it is.

The master makes it (a memfd) and only reads it; each worker writes its own row
and reads the others' connection counts to balance fresh connections. Rows are
made of aligned 64-bit words, each written by one process only, so a reader sees
whole values without a lock.

Behind the rows is the page on which workers count what keys use, see `limits.py`.
It outlives them, so a worker's successor goes on where that ended.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import NamedTuple

from refreshd import limits

WORKERS_MAX = 64
_WORDS = 8
_ROW_BYTES = _WORDS * 8
# Two processes live in a slot while one hands over to the other: `row_of` says which row is whose.
_ROWS_BYTES = 2 * WORKERS_MAX * _ROW_BYTES
SIZE_BYTES = _ROWS_BYTES + 8 * limits.page_words(limits.COLUMNS)


def row_of(slot: int, side: int) -> int:
    """The row of the process on `side` (0 or 1, see control.Start) of a slot."""
    return slot + WORKERS_MAX * side


def quota_row_of(slot: int, side: int) -> int:
    """The row of the process on `limits.Page`: those in use are the first ones."""
    return 2 * slot + side


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
        if os.fstat(fd).st_size < SIZE_BYTES:
            # An earlier version made it.
            os.ftruncate(fd, SIZE_BYTES)
        self._map = mmap.mmap(fd, SIZE_BYTES)
        whole = memoryview(self._map)
        self._words = whole[:_ROWS_BYTES].cast("Q")
        self._quota_words = whole[_ROWS_BYTES:].cast("q")
        self.quotas = limits.Page(self._quota_words, limits.COLUMNS, _Lock(fd))
        """What keys use."""

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
        try:
            self._quota_words.release()
            self._map.close()
        except BufferError:
            # Somebody counts on it to the end of the process.
            return


class _Lock:
    """Between processes that have the page. It ends with the process that has it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
