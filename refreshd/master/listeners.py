"""Binding what the engine listens on. The sockets live as long as the master."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from refreshd.errors import BootError
from refreshd.settings import SOCKET_PATH_MAX_BYTES, split_address

# A burst of connects waits here while workers are busy or being replaced, unless net.core.somaxconn is less.
BACKLOG = 4096
_ADMIN_BACKLOG = 64


def listen_tcp(address: str) -> socket.socket:
    """Listens on HOST:PORT, non-blocking. Raises: BootError."""
    host, port = split_address(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hint = "; end what listens there, or set engine.listen" if error.errno == errno.EADDRINUSE else ""
        raise BootError(f"cannot listen on {address}: {error.strerror}{hint}") from None
    sock.setblocking(False)
    return sock


def listen_unix(path: str) -> socket.socket:
    """Listens on a Unix socket that only this user may connect to, non-blocking.

    What a killed engine left behind is replaced; what somebody listens on is not,
    nor is a file that is no socket. Raises: BootError.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX_BYTES:
        raise BootError(
            f"cannot listen on {path}: the path is {length} bytes, a Unix socket's has at most "
            f"{SOCKET_PATH_MAX_BYTES}; set a shorter engine.admin"
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode must be right from the first moment; there are no other threads that this could surprise.
    umask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(_ADMIN_BACKLOG)
    except OSError as error:
        sock.close()
        raise BootError(f"cannot listen on {path}: {error.strerror}") from None
    finally:
        os.umask(umask)
    sock.setblocking(False)
    return sock


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise BootError(
            f"cannot listen on {path}: it is there and is no socket; remove it, or set engine.admin"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # One that listens but has its backlog full must not make us wait.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise BootError(f"cannot listen on {path}: {error.strerror}") from None
    raise BootError(f"cannot listen on {path}: somebody listens there; set engine.admin")
