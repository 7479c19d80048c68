"""What master and workers say to each other, and workers when they hand a connection on.

Both run over Unix SOCK_SEQPACKET pairs: one packet is one message, and file
descriptors travel with the message they belong to. A packet is a JSON object,
a LF, and raw bytes where the message has any (the unread bytes of a connection).

    master → worker   start     the first message: the checked configuration and the slot
                      peer      a sibling (re)started: [mesh stream, hand-over packets] to it
                      adopt     serve this connection from now on: [socket], unread bytes
                      stop      stop gracefully, within `deadline_s`
                      configure settings that take effect in place
                      drain     take no new tasks, or take them again
                      hand_over give everything to your successor: [mesh stream, packets] to it
                      take_over take everything from your predecessor: [mesh stream, packets] to it
                      resume    the successor is gone: take everything back
                      inherit   the predecessor is gone: take the rest from the store
                      remap     there will be another number of workers: give each shard to its owner then
                      route     every shard is at its new owner: ask that one
                      retire    give the connections to the others
                      left      a worker is no more, and has no successor
    worker → master   ready     the shards are loaded, connections are served; or it can take over
                      failed    could not start, and why; the process ends
                      stopping  it is on its way out
                      configured what became of `configure`
                      given     every shard was handed over
                      moved     everything was handed over; `stop` may come
                      declined  the hand-over cannot go on, and why; `resume` may come
                      resumed   what `resume` or `inherit` asked for is done
                      remapped, routed: what `remap` and `route` asked for is done
    worker → worker   adopt     as above
                      move      a connection in the middle of its life, see handover/connections.py

docs/handover.md shows in which order those of a hand-over come.
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
# Of these messages and what they mean. Master and workers of two versions meet during an upgrade:
# each tells its own, and the master hands over only between workers whose version is its own.
VERSION = 2


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Who the worker is. `config` is a `refreshd.config.Config` as plain values.

    `side` is 0 or 1, other than that of any process that lives in the same slot: it
    names the scoreboard's row and the half of the serials. `standby`: load nothing and
    serve nothing, a predecessor will hand over.
    """

    slot: int
    workers: int
    generation: int
    lanes: int
    config: dict[str, Any]
    side: int = 0
    standby: bool = False
    draining: bool = False
    version: int = VERSION


class Peer(msgspec.Struct, frozen=True, tag="peer"):
    """A sibling can be reached over the two descriptors that come with this.

    `succeeds`: its predecessor has handed over to it and still lives; without it, the
    predecessor is gone or there was none.
    """

    slot: int
    generation: int
    side: int = 0
    succeeds: bool = False
    version: int = VERSION


class Adopt(msgspec.Struct, frozen=True, tag="adopt"):
    """Serve the connection whose descriptor comes with this; the packet's bytes were read from it.

    `role` is "client" or "admin"; `peer` is the remote address as text. `in_file`:
    the bytes are in a memory file, see `send`.
    """

    role: str
    peer: str = ""
    in_file: bool = False


class Move(msgspec.Struct, frozen=True, tag="move"):
    """As `Adopt`, for a connection in the middle of its life: the bytes are a
    `worker.handover.connections.Moved`, in msgpack."""

    in_file: bool = False


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Finish what is in flight and end."""

    deadline_s: float


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Settings that take effect in place have changed; `config` is as in `Start`."""

    number: int
    config: dict[str, Any]


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Whether the engine takes no new tasks."""

    on: bool


class HandOver(msgspec.Struct, frozen=True, tag="hand_over"):
    """Give everything to the process of this generation, which is ready to take over."""

    generation: int


class TakeOver(msgspec.Struct, frozen=True, tag="take_over"):
    """Take everything from the process of this generation."""

    generation: int


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """The successor is gone for good."""


class Inherit(msgspec.Struct, frozen=True, tag="inherit"):
    """The predecessor is gone for good."""


class Remap(msgspec.Struct, frozen=True, tag="remap"):
    """There will be this many workers: shards go to whom they belong then."""

    workers: int


class Route(msgspec.Struct, frozen=True, tag="route"):
    """Every worker has given what it had to: who owns what is as `workers` says."""

    workers: int


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """This worker is one too many: its connections go to those below `workers`."""

    workers: int


class Left(msgspec.Struct, frozen=True, tag="left"):
    """The worker of this slot is no more."""

    slot: int


class Remapped(msgspec.Struct, frozen=True, tag="remapped"):
    """What `Remap` asked for is done."""

    tasks: int
    ms: int


class Routed(msgspec.Struct, frozen=True, tag="routed"):
    """What `Route` asked for is done."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker serves (`unfinished` tasks were loaded in `load_ms`), or stands by to take over."""

    unfinished: int = 0
    load_ms: int = 0
    version: int = 1
    """What a worker speaks that does not say it: the first version had no such field."""
    release: str = ""


class Configured(msgspec.Struct, frozen=True, tag="configured"):
    """`Configure` with this number took effect, unless `why` says why not."""

    number: int
    why: str = ""


class Given(msgspec.Struct, frozen=True, tag="given"):
    """Every shard was handed over: siblings may be introduced to the successor."""

    tasks: int
    ms: int
    longest_freeze_ms: int


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """Everything was handed over. `closed` connections did not become quiet in time."""

    connections: int
    closed: int
    ms: int


class Declined(msgspec.Struct, frozen=True, tag="declined"):
    """The hand-over cannot go on."""

    why: str


class Resumed(msgspec.Struct, frozen=True, tag="resumed"):
    """What was given, or left behind, was taken from the store, and is served."""

    tasks: int
    ms: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot start and says why in one line."""

    why: str


class Stopping(msgspec.Struct, frozen=True, tag="stopping"):
    """The worker ends by itself, for a reason of its own ("" when it was asked to)."""

    why: str = ""


Message = (
    Start
    | Peer
    | Adopt
    | Move
    | Stop
    | Configure
    | Drain
    | HandOver
    | TakeOver
    | Resume
    | Inherit
    | Remap
    | Route
    | Retire
    | Left
    | Remapped
    | Routed
    | Ready
    | Failed
    | Stopping
    | Configured
    | Given
    | Moved
    | Declined
    | Resumed
)

_decoder = msgspec.json.Decoder(Message)
_encoder = msgspec.json.Encoder()


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = (), rest: bytes = b"") -> None:
    """Sends one message; the descriptors stay open on this side.

    Raises: ValueError for a packet that is too large; BlockingIOError when the
    socket is non-blocking and full; OSError when the other side is gone.
    """
    if len(rest) > _REST_INLINE_BYTES and isinstance(message, Adopt | Move):
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
    if isinstance(message, Adopt | Move) and message.in_file:
        with os.fdopen(fds.pop(), "rb") as file:
            file.seek(0)
            rest = file.read()
    return message, list(fds), rest
