"""The master's own socket to its service manager."""

import os
import socket
from pathlib import Path

import pytest

from refreshd.master.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(str(tmp_path / "notify"))
        yield sock


def test_it_is_sent(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.send(READY="1", STATUS="up")
    assert manager.recv(4096) == b"READY=1\nSTATUS=up"
    notifier.close()


def test_an_abstract_name() -> None:
    name = f"refreshd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        manager.bind(f"\0{name}")
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.send(STOPPING="1")
        assert manager.recv(4096) == b"STOPPING=1"
        notifier.close()


def test_a_full_manager_is_not_waited_for(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"})
    for _ in range(10_000):
        notifier.send(WATCHDOG="1")
    assert (manager.recv(4096), notifier.watchdog_s) == (b"WATCHDOG=1", 1.0)
    notifier.close()


@pytest.mark.parametrize("name", ["/nobody/there", "/" + "x" * 200])
def test_a_manager_that_is_not_there(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.send(READY="1")
    notifier.close()
