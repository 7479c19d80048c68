"""What the engine listens on, and what is said when it cannot."""

import os
import socket
from pathlib import Path

import pytest

from refreshd.errors import BootError
from refreshd.master.listeners import BACKLOG, listen_tcp, listen_unix
from refreshd.sockets import address_of


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_it_listens_and_tells_where(address: str) -> None:
    if "::" in address and not has_ipv6():
        pytest.skip("no IPv6 on loopback here")
    with listen_tcp(address) as sock:
        host, _, port = address_of(sock).rpartition(":")
        assert (host, port != "0") == (address.rpartition(":")[0].replace("localhost", "127.0.0.1"), True)
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        with socket.create_connection(sock.getsockname()[:2]):
            pass


def test_a_port_in_use_is_told() -> None:
    with listen_tcp("127.0.0.1:0") as sock:
        address = address_of(sock)
        with pytest.raises(BootError, match=rf"cannot listen on {address}: Address already in use; end what"):
            listen_tcp(address)


def test_a_port_can_be_used_again_at_once() -> None:
    with listen_tcp("127.0.0.1:0") as sock:
        address = address_of(sock)
        with socket.create_connection(sock.getsockname()) as client:
            served, _ = wait_accept(sock)
            served.close()
            client.recv(1)
    listen_tcp(address).close()


def wait_accept(sock: socket.socket) -> tuple[socket.socket, object]:
    sock.settimeout(10)
    return sock.accept()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(BootError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address$"):
        listen_tcp("192.0.2.1:0")


def test_the_backlog_holds_a_burst() -> None:
    assert BACKLOG == 4096


def test_the_admin_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    umask = os.umask(0o022)
    try:
        with listen_unix(str(path)) as sock:
            assert path.stat().st_mode & 0o777 == 0o600
            assert not sock.getblocking()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)


def test_what_a_killed_engine_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "a.sock")
    listen_unix(path).close()
    assert os.path.exists(path)
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize("full", [False, True])
def test_a_socket_somebody_listens_on_is_left_alone(tmp_path: Path, full: bool) -> None:
    path = str(tmp_path / "a.sock")
    clients = []
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(0)
        for _ in range(3 if full else 0):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].setblocking(False)
            try:
                clients[-1].connect(path)
            except BlockingIOError:
                pass
        with pytest.raises(BootError, match=r"somebody listens there; set engine\.admin"):
            listen_unix(path)
        assert os.path.exists(path)
    for client in clients:
        client.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("precious")
    with pytest.raises(BootError, match="is there and is no socket"):
        listen_unix(str(path))
    assert path.read_text() == "precious"


def test_a_path_no_socket_can_have(tmp_path: Path) -> None:
    with pytest.raises(BootError, match=r"the path is 108 bytes, a Unix socket's has at most 107"):
        listen_unix("x" * 108)
    with pytest.raises(BootError, match="No such file or directory"):
        listen_unix(str(tmp_path / "no" / "a.sock"))
