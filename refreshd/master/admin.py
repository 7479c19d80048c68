"""The admin socket: who may connect, how many, for how long; the thinking is in `admin_session`.

However a client behaves, it costs the master little: reads, replies and the number
of connections are bounded, nothing is read while a reply waits to be taken, and a
connection without a finished request ends after a while.
"""

from __future__ import annotations

import enum
import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from refreshd import logs
from refreshd.master.admin_session import AdminSession, Ask, Bad, HandOver
from refreshd.master.loop import READ, WRITE, Loop
from wire.errors import Refused
from wire.lines import Line, format_refused

# Operators and their scripts; a connection that asks for more than the master's own verbs leaves at once.
CONNECTIONS_MAX = 64
IDLE_S = 30.0
_READ_BYTES = 16 * 1024
# Reached only by pipelining; then requests wait until replies were taken.
_REPLIES_MAX_BYTES = 64 * 1024
_ACCEPTS_A_TURN = 16
# After the descriptors were used up: the listener would be ready all the time.
_ACCEPT_PAUSE_S = 0.5
_CREDENTIALS = struct.Struct("3i")

log = logs.get()


class Backend(Protocol):
    """What the admin socket needs of the master."""

    def answer(self, line: Line) -> bytes:
        """The whole reply to one of `MASTER_VERBS`."""

    def hand_over(self, sock: socket.socket, peer: str, rest: bytes) -> Refused | None:
        """Gives the connection to a worker; or says why there is none that takes it."""


class AdminServer:
    """Serves connections to `listener`, which it owns. `close` it at the end."""

    def __init__(self, loop: Loop, listener: socket.socket, backend: Backend) -> None:
        self.backend = backend
        self.loop = loop
        self._listener = listener
        self._path = str(listener.getsockname())
        self._inode = os.lstat(self._path).st_ino if _is_ours(listener) else None
        self._connections: set[_Connection] = set()
        self._accept_at: float | None = None
        loop.watch(listener.fileno(), READ, self._on_connects)

    def __repr__(self) -> str:
        return f"<AdminServer {self._path} {len(self._connections)} connections>"

    def _on_connects(self, _: int) -> None:
        for _attempt in range(_ACCEPTS_A_TURN):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self.loop.forget(self._listener.fileno())
                    self._accept_at = time.monotonic() + _ACCEPT_PAUSE_S
                return
            self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        pid, uid, _gid = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        refused = self._refuse_at_once(uid)
        if refused is None:
            self._connections.add(
                _Connection(self, sock, f"unix:pid={pid},uid={uid}", self._connections.discard)
            )
            return
        try:
            sock.send(format_refused(refused))
        except OSError:
            pass
        sock.close()

    def _refuse_at_once(self, uid: int) -> Refused | None:
        if uid not in (0, os.geteuid()):
            return Refused(
                "denied", f"the admin socket is for uid {os.geteuid()} and root, this is uid {uid}"
            )
        if len(self._connections) >= CONNECTIONS_MAX:
            return Refused("busy", f"{CONNECTIONS_MAX} connections are open already", retry_ms=1000)
        return None

    def tick(self, now: float) -> None:
        """Ends who is idle, and accepts again after a pause; at least once a second."""
        for connection in [connection for connection in self._connections if now >= connection.deadline]:
            connection.close()
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            self.loop.watch(self._listener.fileno(), READ, self._on_connects)

    def close(self) -> None:
        """Ends all connections and takes the socket's file away, if it is still ours."""
        for connection in list(self._connections):
            connection.close()
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        try:
            if self._inode is not None and os.lstat(self._path).st_ino == self._inode:
                Path(self._path).unlink()
        except OSError:
            pass


def _is_ours(listener: socket.socket) -> bool:
    """Whether this process bound it: the kernel notes who called listen (unix(7)). Another keeps its file."""
    pid, _uid, _gid = _CREDENTIALS.unpack(
        listener.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return bool(pid == os.getpid())


class _Next(enum.Enum):
    """What a connection waits for."""

    BYTES = "bytes"
    ROOM = "room for replies"
    NOTHING = "nothing: it has left"


class _Connection:
    """One connection. It is closed, or handed over, and forgotten in one step."""

    def __init__(
        self, server: AdminServer, sock: socket.socket, peer: str, forget: Callable[[_Connection], None]
    ) -> None:
        self._server = server
        self._sock = sock
        self._peer = peer
        self._forget = forget
        self._session = AdminSession()
        self._replies = bytearray()
        self._at_end = False
        """Nothing more will come, or may: what is left to be sent is sent, then it is closed."""
        self.deadline = time.monotonic() + IDLE_S
        self._server.loop.watch(sock.fileno(), READ, self._on_ready)

    def __repr__(self) -> str:
        return f"<_Connection {self._peer} {self._session}>"

    def close(self) -> None:
        self._server.loop.forget(self._sock.fileno())
        self._sock.close()
        self._forget(self)

    def _on_ready(self, events: int) -> None:
        try:
            if events & READ:
                self._read()
            self._work()
        except OSError:
            self.close()
        except Exception:
            # A fault of ours in serving one operator must not end the engine.
            log.exception("admin connection closed", peer=self._peer)
            self.close()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        self._at_end = not data
        self._session.feed(data)

    def _work(self) -> None:
        """Answers what was read, as far as the replies are taken; then waits for what is needed next."""
        wanted = self._answer()
        self._send()
        if self._replies or wanted is _Next.ROOM:
            self._server.loop.watch(self._sock.fileno(), WRITE, self._on_ready)
        elif wanted is _Next.NOTHING:
            return
        elif self._at_end:
            self.close()
        else:
            self._server.loop.watch(self._sock.fileno(), READ, self._on_ready)

    def _answer(self) -> _Next:
        """Answers until nothing is left, the replies are too many, or the connection has left."""
        while len(self._replies) < _REPLIES_MAX_BYTES:
            event = self._session.next_event()
            match event:
                case None:
                    return _Next.BYTES
                case Ask(line):
                    self._reply(self._server.backend.answer(line))
                case Bad(refused, fatal):
                    self._reply(format_refused(refused))
                    if fatal:
                        return self._end()
                case HandOver():
                    wanted = self._hand_over()
                    if wanted is not None:
                        return wanted
        return _Next.ROOM

    def _reply(self, reply: bytes) -> None:
        self._replies += reply
        self.deadline = time.monotonic() + IDLE_S

    def _end(self) -> _Next:
        self._at_end = True
        self._session.take_rest()
        return _Next.BYTES

    def _hand_over(self) -> _Next | None:
        """None: the line was refused, go on with the next one."""
        self._send()
        if self._replies:
            # Replies keep the order of requests, and a worker cannot send ours.
            return _Next.ROOM
        rest = self._session.take_rest()
        refused = self._server.backend.hand_over(self._sock, self._peer, rest)
        if refused is None:
            self.close()
            return _Next.NOTHING
        self._session.feed(rest)
        skipped = self._session.skip_line()
        if skipped is False:
            return _Next.BYTES
        self._reply(format_refused(refused))
        return None if skipped else self._end()

    def _send(self) -> None:
        if self._replies:
            try:
                del self._replies[: self._sock.send(self._replies)]
            except BlockingIOError:
                pass
