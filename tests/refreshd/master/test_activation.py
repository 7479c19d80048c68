"""What the engine takes of the sockets that systemd passes, and what it refuses."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from refreshd.errors import BootError
from refreshd.master import activation
from refreshd.master.activation import Activation

#: In place of 3, which is somebody else's in a process that runs tests.
FIRST = 300
Pass = Callable[..., dict[str, str]]


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pass]:
    """`passed(name=socket…)`: puts sockets where systemd would, and gives the environment with them."""
    monkeypatch.setattr(activation, "_FIRST_FD", FIRST)
    fds: list[int] = []

    def put(**sockets: socket.socket) -> dict[str, str]:
        for sock in sockets.values():
            fds.append(os.dup2(sock.fileno(), FIRST + len(fds)))
            sock.close()
        names = ":".join(name.rstrip("_") for name in sockets)
        return {
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDNAMES": names,
            "HOME": "/",
        }

    yield put
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def tcp(address: str = "127.0.0.1", *, listens: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_INET)
    sock.bind((address, 0))
    if listens:
        sock.listen()
    return sock


def unix(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def test_both_are_taken_and_the_variables_are_gone(passed: Pass, tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    environ = passed(admin=unix(path), refreshd=tcp())
    with Activation(environ) as given:
        assert environ == {"HOME": "/"}
        for sock in (given.tcp("127.0.0.1:0"), given.admin(str(path))):
            assert sock is not None
            assert (sock.getblocking(), sock.get_inheritable()) == (False, False)


@pytest.mark.parametrize("names", ["", "refreshd.socket", "unknown:x:y"])
def test_the_first_tcp_socket_needs_no_name(passed: Pass, names: str) -> None:
    with Activation(passed(it=tcp()) | {"LISTEN_FDNAMES": names}) as given:
        assert given.tcp("127.0.0.1:0") is not None
        assert given.admin("/nowhere") is None


@pytest.mark.parametrize("pid", ["", "1", str(os.getppid()), "x"])
def test_what_is_meant_for_another_process_is_left_alone(passed: Pass, pid: str) -> None:
    environ = passed(it=tcp()) | {"LISTEN_PID": pid}
    given = Activation(environ)
    assert environ == {"HOME": "/"}
    assert (given.tcp("127.0.0.1:0"), given.admin("/nowhere")) == (None, None)
    os.fstat(FIRST)


def test_nothing_is_passed() -> None:
    given = Activation({})
    assert (given.tcp("127.0.0.1:0"), given.admin("/nowhere")) == (None, None)


@pytest.mark.parametrize("fds", ["", "-1", "x", "65", "1e3", "²"])
def test_no_number_of_descriptors(fds: str) -> None:
    with pytest.raises(BootError, match=r"LISTEN_FDS is .*; wanted a number up to 64"):
        Activation({"LISTEN_FDS": fds, "LISTEN_PID": str(os.getpid())})


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            r"SOCK_DGRAM.* that does not listen",
        ),
        (
            lambda: tcp(listens=False),
            r"descriptor 300 \(it\) .* is a .*SOCK_STREAM.* does not",
        ),
        (lambda: unix(f"\0refreshd-test-{os.getpid()}"), r"has no use; wanted at most one TCP socket"),
    ],
)
def test_a_wrong_kind_is_refused(passed: Pass, make: Callable[[], socket.socket], fault: str) -> None:
    with pytest.raises(BootError, match=fault):
        Activation(passed(it=make()))


def test_a_seqpacket_socket_listens_and_is_refused(passed: Pass, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(tmp_path / "a"))
    sock.listen()
    with pytest.raises(BootError, match=r"SOCK_SEQPACKET.* that listens; wanted one of ListenStream="):
        Activation(passed(admin=sock))


def test_a_tcp_socket_is_no_admin_socket(passed: Pass) -> None:
    with pytest.raises(BootError, match="has no use"):
        Activation(passed(admin=tcp()))


def test_a_second_tcp_socket_would_be_nobodys(passed: Pass) -> None:
    given = passed(refreshd=tcp(), refreshd_=tcp())
    with pytest.raises(BootError, match=r"descriptor 301 \(refreshd\).* has no use"):
        Activation(given)


def test_what_is_no_socket(passed: Pass, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = passed(it=tcp())
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    os.dup2(fd, FIRST)
    os.close(fd)
    with pytest.raises(BootError, match=r"descriptor 300 \(it\) that systemd passes is no socket"):
        Activation(environ)


def test_an_open_socket_behind_a_loopback_configuration_is_refused(passed: Pass) -> None:
    fault = r"which other machines can reach, but engine\.listen is 127\.0\.0\.1:7070; set"
    with Activation(passed(refreshd=tcp("0.0.0.0"))) as given:
        with pytest.raises(BootError, match=fault):
            given.tcp("127.0.0.1:7070")
        assert given.tcp("0.0.0.0:7070") is not None


def test_an_admin_socket_needs_a_path(passed: Pass) -> None:
    with (
        Activation(passed(admin=unix(f"\0refreshd-test-{os.getpid()}"))) as given,
        pytest.raises(BootError, match="wanted one with a path"),
    ):
        given.admin("/run/refreshd/admin.sock")
