"""Taking connections in, and handing fresh ones on to a sibling.

All workers accept from one listener; the kernel wakes them unevenly, so a worker
with clearly more than its share gives a fresh connection to the one that has
fewest. So does a worker that is greeted with `worker=I`. A connection travels as
its descriptor with the bytes that were read and not answered.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import termios
from typing import TYPE_CHECKING

import msgspec
import structlog

from refreshd import control
from refreshd.shard import PREDECESSOR
from refreshd.worker.connection import Connection
from refreshd.worker.handover.connections import Moved, decode
from wire.errors import Refused
from wire.lines import format_refused

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

# Connections that are taken in before other work gets its turn.
_ACCEPT_BURST = 64
# How far above the lowest sibling a worker may be: handing one on costs 20 µs, so small differences stay.
_SLACK = 4
# When descriptors are used up, accepting rests this long; the backlog keeps who comes meanwhile.
_REST_S = 0.2
# Descriptors that are not given to whoever connects: for what siblings hand on, for operators, for a
# sibling's successor. One that comes when there is none for it is lost.
_KEPT = 16
# Of these, what siblings hand on leaves so many: it can wait in their sockets, what the master sends cannot.
_KEPT_FOR_MASTER = 8
# How long a greeted connection waits for the worker it asked for, while that is being replaced.
_PATIENCE_S = 5.0
_RETRY_S = 0.02


class Handing:
    """The listener, and the packet sockets to the siblings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._listener: socket.socket | None = None
        self._packets: dict[int, socket.socket] = {}
        """The socket on which each sibling is sent what is for it."""
        self._handed_on: dict[int, tuple[int, int]] = {}
        """Sibling → (connections it showed when none was on its way to it, how many it was handed since)."""
        self._leaving: list[socket.socket] = []
        """Sockets of siblings' predecessors: only read."""
        self._listens = False
        self.is_short = False
        """Whether descriptors were used up when last looked at."""

    # ── the listener ──────────────────────────────────────────────────────────────────────

    def listen(self, listener: socket.socket | None = None) -> None:
        """Begins to accept, or does so again."""
        listener = listener or self._listener
        if listener is None:
            return
        listener.setblocking(False)
        self._listener = listener
        self._listens = True
        self._hub.loop.add_reader(listener.fileno(), self._on_connects)

    def stop_listening(self) -> None:
        """Accepts no more; the listener stays open for the siblings."""
        self._listens = False
        if self._listener is not None:
            self._hub.loop.remove_reader(self._listener.fileno())

    def _on_connects(self) -> None:
        listener = self._listener
        if listener is None:
            return
        for _ in range(_ACCEPT_BURST):
            if self._look_short(listener):
                self._rest()
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("accept failed", error=str(error))
                self._rest()
                return
            self._take_in(sock, f"{address[0]}:{address[1]}")

    def _look_short(self, sock: socket.socket, kept: int = _KEPT) -> bool:
        """Whether no more than `kept` descriptors are left; those who hand on see whether it is `_KEPT`."""
        left = _descriptors_left(sock)
        short = left <= _KEPT
        if short and not self.is_short:
            log.warning("no descriptors left, accepting rests", kept=_KEPT)
        elif self.is_short and not short:
            log.info("descriptors are free again, accepting goes on")
        if short != self.is_short:
            self.is_short = short
            # Siblings see at once whether connections may be handed on to this worker.
            self._hub.show()
        return left <= kept

    def _rest(self) -> None:
        """Stop asking for a while, instead of being woken again at once."""
        listener = self._listener
        if listener is not None:
            self._hub.loop.remove_reader(listener.fileno())
            self._hub.loop.call_later(_REST_S, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        # Another may have told it meanwhile to stop for good.
        if self._listens and not self._hub.stopping:
            self._hub.loop.add_reader(listener.fileno(), self._on_connects)

    def _take_in(self, sock: socket.socket, peer: str) -> None:
        with sock:
            if len(self._hub.connections) >= self._hub.config.engine.connections_max:
                _refuse(sock)
                return
            slot = self._emptier_sibling()
            if slot is not None and self.send(slot, control.Adopt("client", peer), sock.fileno(), b""):
                self._note_handed_on(slot)
                return
            self.serve(sock.detach(), admin=False, rest=b"")

    def _emptier_sibling(self) -> int | None:
        """A sibling that has clearly fewer connections than this worker."""
        hub = self._hub
        rows = {slot: hub.scoreboard.read(hub.rows[slot]) for slot in self._packets if slot in hub.rows}
        accepting = {
            slot: row.connections + self._on_their_way(slot, row.connections)
            for slot, row in rows.items()
            if row.accepting
        }
        if not accepting:
            return None
        slot = min(accepting, key=accepting.__getitem__)
        own = len(hub.connections)
        return slot if own > accepting[slot] + max(_SLACK, own // 8) else None

    def _on_their_way(self, slot: int, shown: int) -> int:
        """Connections that were handed on to a sibling, and that it does not show yet.

        One that is busy would else be given all that come, and more than it has descriptors for.
        """
        before, sent = self._handed_on.get(slot, (shown, 0))
        if not sent or _is_all_read(self._packets[slot]):
            self._handed_on[slot] = (shown, 0)
            return 0
        return max(sent - max(shown - before, 0), 0)

    def _note_handed_on(self, slot: int) -> None:
        before, sent = self._handed_on[slot]
        self._handed_on[slot] = (before, sent + 1)

    def serve(self, fd: int, *, admin: bool, rest: bytes) -> None:
        """Serves the connection behind a descriptor, beginning with bytes that were read from it."""
        if self._hub.moves.giver is not None and self._hub.moves.giver.pass_on(fd, admin=admin, rest=rest):
            os.close(fd)
            return
        self._hub.background(self.connect(fd, self._hub.new_connection(admin=admin, unread=rest)))

    async def _adopt(self, fd: int, moved: Moved) -> None:
        """A connection of a sibling that retires."""
        connection = self._hub.new_connection(admin=moved.role == "admin", unread=b"")
        connection.arrive(moved)
        await self.connect(fd, connection)
        self._hub.watching.everywhere(connection)

    async def connect(self, fd: int, connection: Connection) -> None:
        """Connects a descriptor with what serves it."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            await self._hub.loop.connect_accepted_socket(lambda: connection, sock)
        except OSError as error:
            log.info("a connection was gone before it was served", error=str(error))
            sock.close()

    # ── handing on ────────────────────────────────────────────────────────────────────────

    def sibling(self, slot: int, packets: socket.socket, *, succeeds: bool = False) -> None:
        """A sibling (or its successor) can be handed connections over this socket.

        `succeeds`: its predecessor lives, and may still hand some on to this worker.
        """
        before = self._packets.get(slot)
        if succeeds and before is not None:
            # It reads to the end what it was sent; then it knows that nothing more comes.
            before.shutdown(socket.SHUT_WR)
            self._leaving.append(before)
        else:
            self.forget(slot)
        packets.setblocking(False)
        self._packets[slot] = packets
        self._hub.loop.add_reader(packets.fileno(), self._on_packet, slot, packets)

    def forget(self, slot: int) -> None:
        """A sibling is gone."""
        packets = self._packets.pop(slot, None)
        if packets is not None:
            self._close(packets)

    def _close(self, packets: socket.socket) -> None:
        self._hub.loop.remove_reader(packets.fileno())
        packets.close()

    def _ended(self, slot: int, packets: socket.socket) -> None:
        """The other side has closed its end."""
        if self._packets.get(slot) is packets:
            self.forget(slot)
        elif packets in self._leaving:
            self._leaving.remove(packets)
            self._close(packets)

    def _on_packet(self, slot: int, packets: socket.socket) -> None:
        # A predecessor hands on no more than it had descriptors for.
        if slot != PREDECESSOR and self._look_short(packets, _KEPT_FOR_MASTER):
            self._hub.loop.remove_reader(packets.fileno())
            self._hub.loop.call_later(_REST_S, self._read_on, slot, packets)
            return
        try:
            received = control.receive(packets)
        except (BlockingIOError, ConnectionResetError):
            # A sibling that died with packets of ours unread: its last ones come after the reset.
            return
        except msgspec.DecodeError as error:
            log.error("a sibling of another version hands something on", slot=slot, error=str(error))
            return
        except OSError:
            received = None
        if received is None:
            self._ended(slot, packets)
            return
        message, fds, rest = received
        if isinstance(message, control.Adopt) and len(fds) == 1:
            self.serve(fds[0], admin=message.role == "admin", rest=rest)
            return
        if isinstance(message, control.Move) and len(fds) == 1:
            if self._hub.moves.taker is not None and slot == PREDECESSOR:
                self._hub.moves.taker.arrive(fds[0], rest)
            else:
                self._hub.background(self._adopt(fds[0], decode(rest)))
            return
        for fd in fds:
            os.close(fd)

    def _read_on(self, slot: int, packets: socket.socket) -> None:
        if packets.fileno() >= 0:
            self._hub.loop.add_reader(packets.fileno(), self._on_packet, slot, packets)

    def send(self, slot: int, message: control.Adopt | control.Move, fd: int, rest: bytes) -> bool:
        """Hands a descriptor on; it stays open here. False: the sibling cannot take it now."""
        packets = self._packets.get(slot)
        if packets is None:
            return False
        try:
            control.send(packets, message, (fd,), rest)
        except OSError:
            return False
        return True

    async def hand_over(
        self, connection: Connection, slot: int, hello: bytes, held: list[bytes]
    ) -> Refused | None:
        """Gives a connection that nothing is owed to a sibling. Returns why not, if it could not."""
        end = self._hub.loop.time() + _PATIENCE_S
        while self._hub.loop.time() < end:
            transport = connection.transport
            if transport is None:
                return None
            sock = transport.get_extra_info("socket")
            # `held` may still grow until the descriptor is sent: reading has stopped, but not what was read.
            if self.send(slot, control.Adopt("client"), sock.fileno(), hello + b"".join(held)):
                # Only this process's copy is closed; the connection lives on.
                connection.abort()
                return None
            await asyncio.sleep(_RETRY_S)
        return Refused("unavailable", f"worker {slot} is being replaced; greet again", retry_ms=500)

    def close(self) -> None:
        """Lets go of everything."""
        self.stop_listening()
        for slot in list(self._packets):
            self.forget(slot)
        for packets in self._leaving:
            self._close(packets)


def _descriptors_left(sock: socket.socket) -> int:
    """How many more this process may open, at least: the kernel gives the lowest that is free."""
    try:
        lowest = os.dup(sock.fileno())
        os.close(lowest)
    except OSError:
        return 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - lowest


def _is_all_read(packets: socket.socket) -> bool:
    """Whether the other side has read every packet: the kernel counts those that it has not (SIOCOUTQ)."""
    return not any(fcntl.ioctl(packets, termios.TIOCOUTQ, bytes(4)))


def _refuse(sock: socket.socket) -> None:
    """More connections than may be: said, not just closed."""
    try:
        sock.send(format_refused(Refused("busy", "too many connections to this worker", retry_ms=1000)))
    except OSError:
        pass
