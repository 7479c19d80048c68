"""Socket activation: listeners that systemd bound, and keeps while no engine runs (sd_listen_fds(3)).

The engine takes one TCP socket, named `refreshd` or not named like the other one,
and a Unix socket named `admin` (FileDescriptorName= in the .socket unit). What else
is passed is refused: nobody would accept on it, and who connects would hang.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple, Self

from refreshd import logs
from refreshd.errors import BootError
from refreshd.settings import is_loopback, split_address
from refreshd.sockets import address_of

_FIRST_FD = 3
# Two can be used. Many more are a mistake, and would be looked at one by one.
_FDS_MAX = 64
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES")
_INET = (socket.AF_INET, socket.AF_INET6)

log = logs.get()


class _Passed(NamedTuple):
    fd: int
    name: str


class Activation:
    """Takes what was passed to this process out of `environ`, so that no child sees it.

    Each of `tcp` and `admin` gives its socket, non-blocking, or None: the engine
    binds it itself. Both are closed at the end of the `with`. Raises: BootError when
    something passed cannot be used.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._tcp: socket.socket | None = None
        self._admin: socket.socket | None = None
        told = {name: environ.pop(name, "") for name in _VARIABLES}
        for passed in _passed(told["LISTEN_FDS"], told["LISTEN_PID"], told["LISTEN_FDNAMES"]):
            try:
                self._take(passed)
            except BootError:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<Activation tcp={self._tcp} admin={self._admin}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """This process listens there no more; systemd does."""
        for sock in (self._tcp, self._admin):
            if sock is not None:
                sock.close()

    def _take(self, passed: _Passed) -> None:
        sock = _listener(passed)
        if sock.family in _INET and self._tcp is None and passed.name != "admin":
            self._tcp = sock
        elif sock.family == socket.AF_UNIX and self._admin is None and passed.name == "admin":
            self._admin = sock
        else:
            name = sock.getsockname()
            sock.close()
            raise BootError(
                f"{_called(passed)}, {name}, has no use; wanted at most one TCP socket, and a "
                "Unix socket with FileDescriptorName=admin; mend the .socket unit"
            )

    def tcp(self, configured: str) -> socket.socket | None:
        """The socket of the text RPC. It is used even where `engine.listen` says another address.

        Raises: BootError when it is open to other machines and `engine.listen` is not:
        what holds by default on loopback (no authentication) would hold for them.
        """
        if self._tcp is None:
            return None
        address = address_of(self._tcp)
        host, port = self._tcp.getsockname()[:2]
        if is_loopback(configured) and not ipaddress.ip_address(host).is_loopback:
            raise BootError(
                f"systemd passes a socket at {address}, which other machines can reach, but engine.listen "
                f"is {configured}; set engine.listen as in the .socket unit, as engine.auth depends on it"
            )
        wanted_host, wanted_port = split_address(configured)
        if host != wanted_host or wanted_port not in (0, port):
            log.warning("systemd listens elsewhere", address=address, configured=configured)
        return self._tcp

    def admin(self, configured: str) -> socket.socket | None:
        """The admin socket. Its file belongs to who bound it. Raises: BootError if it has none."""
        if self._admin is None:
            return None
        path = self._admin.getsockname()
        if not isinstance(path, str) or not path.startswith("/"):
            raise BootError(f"systemd passes an admin socket named {path!r}; wanted one with a path")
        if os.path.realpath(path) != os.path.realpath(configured):
            log.warning("systemd listens elsewhere", admin=path, configured=configured)
        return self._admin


def _passed(fds: str, pid: str, names: str) -> Iterator[_Passed]:
    if pid != str(os.getpid()):
        # Meant for a parent that forgot to take it away.
        return
    if not (fds.isascii() and fds.isdigit() and int(fds) <= _FDS_MAX):
        raise BootError(f"LISTEN_FDS is {fds[:32]!r}; wanted a number up to {_FDS_MAX}")
    named = names.split(":") if names else []
    for number in range(int(fds)):
        yield _Passed(_FIRST_FD + number, named[number] if number < len(named) else "")


def _listener(passed: _Passed) -> socket.socket:
    """Raises: BootError when it is no listening stream socket."""
    try:
        sock = socket.socket(fileno=passed.fd)
    except OSError as error:
        raise BootError(f"{_called(passed)} is no socket: {error.strerror}") from None
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens:
        got = f"{sock.type!r} that {'listens' if listens else 'does not listen'}"
        sock.close()
        raise BootError(f"{_called(passed)} is a {got}; wanted one of ListenStream=")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def _called(passed: _Passed) -> str:
    name = f" ({passed.name})" if passed.name else ""
    return f"descriptor {passed.fd}{name} that systemd passes"
