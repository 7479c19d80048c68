"""LISTEN_FDS with real engines: this process holds the sockets, as systemd does."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import ROOT, Engine, Peer
from tests.peer.waiting import PATIENCE_S

PASS_FDS = Path(__file__).with_name("pass_fds.py")


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def passing(**sockets: socket.socket) -> list[str]:
    """What stands before a command so that it is passed these sockets by name."""
    pairs = [f"{sock.fileno()}:{name}" for name, sock in sockets.items()]
    return [sys.executable, str(PASS_FDS), *pairs, "--"]


def activated(listen: str = "127.0.0.1:0", settings: str = "", **sockets: socket.socket) -> Engine:
    """An engine that is passed these sockets by name."""
    fds = [sock.fileno() for sock in sockets.values()]
    return Engine(listen=listen, settings=settings, before=passing(**sockets), fds=fds)


def test_it_serves_what_it_is_passed_and_who_comes_while_it_restarts_waits(
    tcp: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "admin.sock")
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(path)
        admin.listen()
        with activated(settings=f'admin = "{path}"', admin=admin, refreshd=tcp) as engine:
            assert engine.address() == tcp.getsockname()
            with engine.peer() as peer, Peer(path) as operator:
                assert peer.ask("ping").ok
                assert len(operator.ask("list_workers").rows) == 2
            assert engine.stop() == 0
            # It is systemd's file; and who connects now is served by the next engine.
            assert os.path.exists(path)
            with Peer(tcp.getsockname()) as early, Peer(path) as operator:
                engine.start()
                assert early.ask("ping").ok
                assert operator.ask("ping").ok


def test_another_address_than_configured_is_told_and_the_given_socket_wins(tcp: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # It would be an error to bind it once more.
        configured = f"127.0.0.1:{taken.getsockname()[1]}"
        with activated(listen=configured, refreshd=tcp) as engine, engine.peer() as peer:
            (told,) = engine.logged("systemd listens elsewhere")
            assert (told["level"], told["configured"]) == ("warning", configured)
            assert peer.ask("ping").ok


def test_a_wrong_kind_is_said_and_nothing_is_served() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        engine = activated(refreshd=sock)
        process = engine.run()
        assert process.wait(PATIENCE_S) == 71
        assert "SOCK_DGRAM" in engine.logged("not started")[0]["why"]
        engine.__exit__()


def test_check_does_not_even_look_at_them() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        command = [sys.executable, "-m", "refreshd", "--check"]
        ran = subprocess.run(
            [*passing(refreshd=sock), *command], pass_fds=[sock.fileno()], capture_output=True, cwd=ROOT
        )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"ok\n", b"")
