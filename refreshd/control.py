"""What master and workers say to each other, and workers when they hand a connection on.

Both run over Unix SOCK_SEQPACKET pairs: one packet is one message, and file
descriptors travel with the message they belong to. A packet is a JSON object,
a LF, and raw bytes where the message has any (the unread bytes of a connection).

    master → worker   start    the first message: the checked configuration and the slot
                      peer     a sibling (re)started: [mesh stream, hand-over packets] to it
                      adopt    serve this connection from now on: [socket], unread bytes
                      stop     stop gracefully, within `deadline_s`
    worker → master   ready    the shards are loaded, connections are served
                      failed   could not start, and why; the process ends
                      stopping it is on its way out
    worker → worker   adopt    as above
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

import msgspec

# Under the kernel's default send buffer (212,992), with room for the JSON part.
PACKET_MAX_BYTES = 160 * 1024
# More unread bytes than this travel as a memory file, whose descriptor comes last.
_REST_INLINE_BYTES = 64 * 1024
_FDS_MAX = 4
_INT = array.array("i").itemsize


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Who the worker is. `config` is a `refreshd.config.Config` as plain values."""

    slot: int
    workers: int
    generation: int
    lanes: int
    config: dict[str, Any]


class Peer(msgspec.Struct, frozen=True, tag="peer"):
    """A sibling can be reached over the two descriptors that come with this."""

    slot: int
    generation: int


class Adopt(msgspec.Struct, frozen=True, tag="adopt"):
    """Serve the connection whose descriptor comes with this; the packet's bytes were read from it.

    `role` is "client" or "admin"; `peer` is the remote address as text. `in_file`:
    the bytes are in a memory file, see `send`.
    """

    role: str
    peer: str = ""
    in_file: bool = False


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Finish what is in flight and end."""

    deadline_s: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker serves. `unfinished` tasks were loaded in `load_ms`."""

    unfinished: int = 0
    load_ms: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot start and says why in one line."""

    why: str


class Stopping(msgspec.Struct, frozen=True, tag="stopping"):
    """The worker ends by itself, for a reason of its own ("" when it was asked to)."""

    why: str = ""


Message = Start | Peer | Adopt | Stop | Ready | Failed | Stopping

_decoder = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = (), rest: bytes = b"") -> None:
    """Sends one message; the descriptors stay open on this side.

    Raises: ValueError for a packet that is too large; BlockingIOError when the
    socket is non-blocking and full; OSError when the other side is gone.
    """
    if len(rest) > _REST_INLINE_BYTES and isinstance(message, Adopt):
        with os.fdopen(os.memfd_create("refreshd-rest"), "wb") as file:
            file.write(rest)
            file.flush()
            message = msgspec.structs.replace(message, in_file=True)
            _send(sock, _encoder.encode(message) + b"\n", (*fds, file.fileno()))
    else:
        _send(sock, _encoder.encode(message) + b"\n" + rest, fds)


def _send(sock: socket.socket, packet: bytes, fds: tuple[int, ...]) -> None:
    if len(packet) > PACKET_MAX_BYTES:
        raise ValueError(f"a control packet of {len(packet)} bytes; at most {PACKET_MAX_BYTES} fit")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], ancillary)


def receive(sock: socket.socket) -> tuple[Message, list[int], bytes] | None:
    """Receives one message with its descriptors and bytes; None when the other side is gone.

    Raises: BlockingIOError when nothing is there; msgspec.DecodeError for a
    message of another version (its descriptors are closed).
    """
    packet, ancillary, _, _ = sock.recvmsg(
        PACKET_MAX_BYTES, socket.CMSG_SPACE(_FDS_MAX * _INT), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    if not packet and not fds:
        return None
    head, _, rest = packet.partition(b"\n")
    try:
        message = _decoder.decode(head)
    except msgspec.DecodeError:
        for fd in fds:
            os.close(fd)
        raise
    if isinstance(message, Adopt) and message.in_file:
        with os.fdopen(fds.pop(), "rb") as file:
            file.seek(0)
            rest = file.read()
    return message, list(fds), rest
