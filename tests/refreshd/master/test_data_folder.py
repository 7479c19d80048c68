"""One engine at a time in a data folder, whoever was killed before."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from refreshd.errors import BootError
from refreshd.master import data_folder
from refreshd.master.data_folder import DataFolder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a" / "data"


@contextmanager
def opened(path: Path) -> Iterator[DataFolder]:
    folder = DataFolder(str(path))
    try:
        yield folder
    finally:
        folder.close()


def test_it_is_made_for_its_owner_alone(path: Path) -> None:
    with opened(path) as folder:
        assert path.stat().st_mode & 0o777 == 0o700
        assert (path / "lock").stat().st_mode & 0o777 == 0o600
        assert (path / "refreshd.pid").read_text() == f"{os.getpid()}\n"
        folder.write_address("127.0.0.1:7070")
        assert (path / "refreshd.addr").read_text() == "127.0.0.1:7070\n"
    assert os.listdir(path) == ["lock"]


def test_nothing_is_inherited_by_chance(path: Path) -> None:
    with opened(path) as folder:
        assert not os.get_inheritable(folder.lock_fd)


def test_a_second_engine_is_told_the_pid_of_the_first(path: Path) -> None:
    with opened(path):
        fds = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BootError, match=f"in use by the engine with pid {os.getpid()}$"):
            DataFolder(str(path))
        assert len(os.listdir("/proc/self/fd")) == fds
        assert (path / "refreshd.pid").exists()


def test_it_can_be_used_again(path: Path) -> None:
    for _ in range(3):
        with opened(path):
            pass


def test_what_a_killed_master_left_stops_nobody(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "lock").touch()
    (path / "refreshd.pid").write_text("4194304999\n")
    (path / "refreshd.addr").write_text("127.0.0.1:1\n")
    with opened(path) as folder:
        folder.write_address("127.0.0.1:2")
        assert (path / "refreshd.pid").read_text() == f"{os.getpid()}\n"


def test_workers_that_outlive_their_master_are_waited_for(path: Path) -> None:
    path.mkdir(parents=True)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Its pid is in use, by us, but no master holds the pid file: it is gone.
    (path / "refreshd.pid").write_text(f"{os.getpid()}\n")
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    os.close(lock)
    with worker:
        with pytest.raises(
            BootError, match=f"still held by workers of the engine with pid {os.getpid()}, which"
        ):
            DataFolder(str(path), wait_s=0.0)
        assert worker.stdin is not None
        # It ends while the next engine waits, or just before: either way the wait ends with it.
        worker.stdin.close()
        with opened(path):
            pass
        worker.wait()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BootError, match=r"cannot use the data folder .*/file/data: Not a directory"):
        DataFolder(str(tmp_path / "file" / "data"))


def test_files_that_cannot_be(path: Path) -> None:
    (path / "refreshd.pid").mkdir(parents=True)
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BootError, match=r"cannot write .*/refreshd.pid: Is a directory"):
        DataFolder(str(path))
    (path / "refreshd.pid").rmdir()
    (path / "refreshd.addr").mkdir()
    with opened(path) as folder, pytest.raises(BootError, match=r"cannot write .*/refreshd.addr: Is a dir"):
        folder.write_address("127.0.0.1:1")
    assert len(os.listdir("/proc/self/fd")) == fds


def test_the_wait_is_longer_than_workers_may_take() -> None:
    assert data_folder.LEFTOVERS_WAIT_S > 5
