"""The page of shared memory in which workers show how they are."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from refreshd.limits import Limits, Usage
from refreshd.scoreboard import SIZE_BYTES, WORKERS_MAX, Row, Scoreboard, quota_row_of


@pytest.fixture
def fd() -> Iterator[int]:
    fd = Scoreboard.create()
    yield fd
    os.close(fd)


@pytest.fixture
def board(fd: int) -> Iterator[Scoreboard]:
    board = Scoreboard(fd)
    yield board
    board.close()


def test_rows_are_empty_until_written(board: Scoreboard) -> None:
    assert {board.read(slot) for slot in range(WORKERS_MAX)} == {Row(0, 0, 0, 0, 0)}


def test_every_slot_has_a_row_of_its_own(board: Scoreboard, fd: int) -> None:
    rows = [Row((1 << 64) - 1 - slot, slot, slot + 1, slot + 2, slot % 2) for slot in range(WORKERS_MAX)]
    for slot, row in enumerate(rows):
        board.write(slot, row)
    assert [board.read(slot) for slot in range(WORKERS_MAX)] == rows
    assert os.fstat(fd).st_size == SIZE_BYTES


def test_one_figure_can_be_set_alone(board: Scoreboard) -> None:
    board.write(5, Row(1, 2, 3, 4, 1))
    board.set_connections(5, 99)
    assert board.read(5) == Row(1, 2, 99, 4, 1)


def test_clear_empties_one_row(board: Scoreboard) -> None:
    board.write(1, Row(1, 2, 3, 4, 1))
    board.write(2, Row(1, 2, 3, 4, 1))
    board.clear(1)
    assert (board.read(1), board.read(2)) == (Row(0, 0, 0, 0, 0), Row(1, 2, 3, 4, 1))


def test_what_another_process_writes_is_seen(board: Scoreboard, fd: int) -> None:
    code = f"from refreshd.scoreboard import *; Scoreboard({fd}).write(63, Row(1, 2, 3, 4, 5))"
    subprocess.run([sys.executable, "-c", code], pass_fds=[fd], check=True)
    assert board.read(63) == Row(1, 2, 3, 4, 5)


def test_there_is_no_row_beyond_the_last(board: Scoreboard) -> None:
    with pytest.raises(IndexError):
        board.set_connections(2 * WORKERS_MAX, 1)


def test_a_page_of_an_earlier_version_grows(fd: int) -> None:
    os.ftruncate(fd, 8192)
    Scoreboard(fd).write(3, Row(1, 2, 3, 4, 1))
    again = Scoreboard(fd)
    assert again.read(3) == Row(1, 2, 3, 4, 1)
    assert os.fstat(fd).st_size == SIZE_BYTES
    again.close()


def test_processes_have_rows_of_their_own_for_quotas() -> None:
    rows = [quota_row_of(slot, side) for slot in range(WORKERS_MAX) for side in (0, 1)]
    assert rows == list(range(2 * WORKERS_MAX))


_TAKERS = """
import sys, time
from refreshd.limits import Book, Limits, Usage
from refreshd.scoreboard import Scoreboard
from wire.errors import Refused

board = Scoreboard(int(sys.argv[1]))
book = Book(board.quotas, int(sys.argv[2]))
usage = book.usage("acme")
usage.configure(Limits(rate_milli=1, burst=20_000))
board.write(int(sys.argv[2]), (1, 1, 1, 1, 1))
while sum(board.read(row).pid for row in range(4)) < 4:
    pass
taken = 0
try:
    while True:
        usage.take(0, 1, time.monotonic_ns() // 1_000_000, 0)
        taken += 1
except Refused:
    print(taken)
"""


def test_processes_share_one_quota(fd: int) -> None:
    """Four at full speed: all of the burst is taken, and too many only by what others had set aside.

    That is an eighth for each of what was left when it looked, for a millisecond (`Usage._look`): here a
    few hundred at most, however the processes are scheduled. It is a debt that time pays.
    """
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKERS, str(fd), str(row)], pass_fds=[fd], stdout=subprocess.PIPE
        )
        for row in range(4)
    ]
    taken = [int(taker.communicate(timeout=60)[0]) for taker in takers]
    assert 20_000 <= sum(taken) <= 1.05 * 20_000
    board = Scoreboard(fd)
    usage = Usage("acme", board.quotas, 4, Limits(rate_milli=1, burst=20_000))
    assert usage.spent(0).taken == sum(taken)
    assert usage.spare(time.monotonic_ns() // 1_000_000) == 20_000 - sum(taken)
    board.close()
