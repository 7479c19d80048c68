"""A service manager's end of NOTIFY_SOCKET."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple, Self

from tests.peer.waiting import wait_until


class Told(NamedTuple):
    """One `NAME=VALUE`, and when its datagram came (monotonic seconds)."""

    text: str
    at: float


class Manager:
    """Notes all that it is told. `environment` is what the service needs to tell it."""

    def __init__(self, folder: Path, watchdog_s: float = 0.0) -> None:
        self._path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._told: list[Told] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.environment = {"NOTIFY_SOCKET": self._path}
        if watchdog_s:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1_000_000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # It wakes the reader, and whoever sends from now on is refused.
        self._socket.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._socket.close()

    def _read(self) -> None:
        while datagram := self._socket.recv(65536):
            now = time.monotonic()
            self._told += [Told(line, now) for line in datagram.decode().split("\n")]

    def told(self, name: str = "") -> list[Told]:
        """What it was told so far; of one name only."""
        return [told for told in list(self._told) if told.text.startswith(f"{name}=" if name else "")]

    def states(self) -> list[str]:
        """The states that it was told, in order."""
        names = ("READY", "RELOADING", "STOPPING")
        return [told.text for told in self.told() if told.text.partition("=")[0] in names]

    def wait_for(self, name: str, count: int = 1) -> list[Told]:
        """Waits until it was told so many times."""
        return wait_until(lambda: (told := self.told(name))[count - 1 :] and told, f"{count} × {name}")
