"""The page of shared memory in which workers show how they are."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from refreshd.scoreboard import SIZE_BYTES, WORKERS_MAX, Row, Scoreboard


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
