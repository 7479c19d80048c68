"""What the agent tells its service manager, heard at a socket that stands in for it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine
from tools.servers import Agent, wait_until
from tools.servers.waiting import free_port

TIMEOUT_S = 20.0


class Manager:
    """Reads NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self, name: str) -> list[dict[str, str]]:
        """The datagrams that say `name`."""
        try:
            while True:
                lines = self._socket.recv(4096).decode().split("\n")
                self.states.append(dict(line.split("=", 1) for line in lines))
        except BlockingIOError:
            return [state for state in self.states if name in state]

    def wait(self, name: str, count: int = 1) -> dict[str, str]:
        """The last of that many datagrams that say `name`."""
        wait_until(lambda: len(self.heard(name)) >= count, TIMEOUT_S, f"{name} ({count})")
        return self.heard(name)[count - 1]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def agent_for(address: str, cache: FakeCache, manager: Manager, **more: str) -> Agent:
    environment = {"NOTIFY_SOCKET": str(manager.path), **more}
    return Agent([address], [("v1", "varnish", cache.address)], environment=environment)


def test_each_state_is_told(cache: FakeCache, manager: Manager) -> None:
    with FakeEngine() as engine, agent_for(engine.address, cache, manager) as agent:
        assert manager.wait("READY")["STATUS"] == "serves 1 engine; generation 1"
        agent.signal(signal.SIGHUP)
        assert int(manager.wait("RELOADING")["MONOTONIC_USEC"]) > 0
        assert manager.wait("READY", 2)["STATUS"] == "serves 1 engine; generation 2"
        agent.signal(signal.SIGUSR2)
        manager.wait("RELOADING", 2)
        assert manager.wait("READY", 3)["STATUS"] == "serves 1 engine; generation 3"
        agent.configure(("layer = 0", "layer = 99"))
        for number in (signal.SIGHUP, signal.SIGUSR2):
            count = len(manager.heard("READY"))
            agent.signal(number)
            assert manager.wait("READY", count + 1)["STATUS"] == "serves 1 engine; generation 3"
        agent.signal(signal.SIGTERM)
        manager.wait("STOPPING")
        assert agent.wait() == 0
        # A rehearsal says nothing: what was heard is the agent's own.
        assert len(manager.heard("STOPPING")) == 1
        assert len(manager.heard("READY")) == len(manager.heard("RELOADING")) + 1


def test_an_agent_without_engines_is_ready_all_the_same(cache: FakeCache, manager: Manager) -> None:
    with agent_for(f"127.0.0.1:{free_port()}", cache, manager):
        status = manager.wait("READY")["STATUS"]
        assert status.startswith("waits for an engine; generation 1; behind: 127.0.0.1:")


def test_the_watchdog_is_fed_also_by_the_next_code(cache: FakeCache, manager: Manager) -> None:
    with (
        FakeEngine() as engine,
        agent_for(engine.address, cache, manager, WATCHDOG_USEC="200000") as agent,
    ):
        engine.wait_link()
        manager.wait("WATCHDOG", 3)
        agent.signal(signal.SIGUSR2)
        manager.wait("READY", 2)
        manager.wait("WATCHDOG", len(manager.heard("WATCHDOG")) + 3)
