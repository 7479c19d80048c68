"""What a worker and its successor say to each other on the mesh stream between them (docs/handover.md).

Each is one HAND frame of the mesh: msgpack, an array with the name in front. In the
order in which they come:

    Begin                      O → N
    Copy, Copy, …              tasks; they are O's still
    Copy, Sync;  Synced        O → N; N → O: N has worked off what came before
    Copy, Shards, Owned        a step: the state of its tasks, then N owns the shards
    …                          step by step, a Sync before each
    State                      no sibling sends to O any more
    Moving;  Go                O → N; N → O
    End;  Ended                O → N; N → O
"""

from __future__ import annotations

from typing import Any

import msgspec

from refreshd.store.base import IdEntry

# Of these frames. A successor that does not know it says so, and the predecessor goes on.
VERSION = 1


class Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin"):
    """The hand-over begins. `links`: the proxies that O reaches, and through which sibling if not itself."""

    version: int
    release: str
    last_serial: int
    links: list[tuple[str, int | None]]


class Link(msgspec.Struct, frozen=True, array_like=True, tag="link"):
    """O reaches a proxy in another way now, or (`up` false) no more."""

    name: str
    via: int | None
    up: bool


class Copy(msgspec.Struct, frozen=True, array_like=True, tag="copy"):
    """Tasks as they were accepted: (serial, plan number, body). `plans` has those not sent before."""

    plans: dict[int, str]
    tasks: list[tuple[int, int, bytes]]


TaskState = tuple[bytes, bool, int, int, bytes | None, bytes | None, int, dict[int, tuple[int, int]] | None]
"""(id, pushed to some proxy, updated_ms, deadline_ms, mask, marks, failed, progress); see task.Task."""


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Tasks that follow each other in one log, and that were pushed to the same proxies.

    `layer` is the layer's place in the plan; `given` has a bit for each proxy of the
    layer, little-endian.
    """

    plan: int
    layer: int
    given: bytes
    tasks: list[TaskState]


class Shards(msgspec.Struct, frozen=True, array_like=True, tag="shards"):
    """The state of tasks that were copied. `waiting` are the ids of those whose due time has not come."""

    groups: list[Group]
    waiting: list[bytes]


class Owned(msgspec.Struct, frozen=True, array_like=True, tag="owned"):
    """From here N owns the shards: their tasks came before it, their requests come behind it.

    `ids` are those of finished tasks that are not in the store's index; `watches`
    has the watchers (slot, connection) by task.
    """

    shards: list[int]
    ids: list[IdEntry]
    watches: list[tuple[bytes, list[tuple[int, int]]]]


class Sync(msgspec.Struct, frozen=True, array_like=True, tag="sync"):
    """Is answered with Synced once all that came before it is done."""


class Synced(msgspec.Struct, frozen=True, array_like=True, tag="synced"):
    """The answer to Sync."""


class Nonces(msgspec.Struct, frozen=True, array_like=True, tag="nonces"):
    """(monotonic seconds, key, nonce) of greetings: with another number of workers others keep them."""

    entries: list[tuple[float, str, str]]


class SiblingGone(msgspec.Struct, frozen=True, array_like=True, tag="sibling_gone"):
    """A sibling has died: nobody is at its connections any more."""

    slot: int


class State(msgspec.Struct, frozen=True, array_like=True, tag="state"):
    """What belongs to no shard and no connection. All that siblings sent O was passed on before it:
    N reads what they send from here on.

    `nonces`: (monotonic seconds, key, nonce); `ways`: proxy → siblings that are connected
    to it; `relays`: what is outstanding at proxies that are reached through a sibling;
    `joined`: (name, group, layer) of proxies that every sibling has taken in.
    """

    nonces: list[tuple[float, str, str]]
    ways: dict[str, list[int]]
    heard: dict[str, int]
    relays: dict[str, int]
    joined: list[tuple[str, str, int]]


class Moving(msgspec.Struct, frozen=True, array_like=True, tag="moving"):
    """Connections will come from here on: N keeps what is to be pushed on them."""


class Go(msgspec.Struct, frozen=True, array_like=True, tag="go"):
    """The answer to Moving: all that N pushed through O stands before it."""


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Everything was handed over; `connections` came on the packet socket. Counts since O started.

    `lead`: the engine's part in its cluster, in the words of leases.py, that N goes on with. A release that
    does not know it passes over it, and one that does not send it leaves it empty: it stands last.
    """

    connections: int
    accepted: int
    pairs: int
    finished: dict[int, int]
    rates: list[dict[str, Any]]
    lead: bytes = b""


class Ended(msgspec.Struct, frozen=True, array_like=True, tag="ended"):
    """N has everything; O may end."""


Frame = (
    Begin
    | Link
    | Copy
    | Shards
    | Owned
    | Sync
    | Synced
    | Nonces
    | SiblingGone
    | State
    | Moving
    | Go
    | End
    | Ended
)

_decoder = msgspec.msgpack.Decoder(Frame)
_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """The payload of a HAND frame."""
    return _encoder.encode(frame)


def decode(payload: bytes) -> Frame:
    """Raises: msgspec.DecodeError for what another version sent."""
    return _decoder.decode(payload)
