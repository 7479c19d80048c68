"""What crosses an upgrade: values, and a memory file with them that the new code is given.

    old code ── Carried, msgpack ──► memory file ── CARRIED_FDS ──► new code

Every socket crosses as an open descriptor; all else is here. VERSION changes when what a field means does;
a field that is new needs a default. Code that does not know the version starts with nothing, closes the
sockets, and is pushed everything again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, MutableMapping

import msgspec

from proxyd.catching_up import CarriedCatchingUp
from proxyd.config import AgentConfig
from proxyd.done import CarriedDone
from proxyd.link import LinkSettings
from proxyd.session import FrozenSession, Identity
from proxyd.tasks import CarriedTask

VERSION = 1
CARRIED_FDS = "PROXYD_CARRIED_FDS"
"""The environment variable: the memory file's descriptor, then those of the sockets."""
# The targets in hand are bounded in number, not in bytes: beyond this they are not worth the pause.
CARRIED_MAX_BYTES = 64 << 20


class CarriedLink(msgspec.Struct, frozen=True):
    """A connection in the middle of a line: its descriptor and its session."""

    fd: int
    session: FrozenSession
    granted: int = 0


class CarriedSettings(msgspec.Struct, frozen=True):
    """What a link greeted with; of the secret, only what tells whether it is another now."""

    who: Identity
    credit: int
    key: str
    secret_sha256: bytes
    drop_after_s: int | None = None
    receipt_key: str = ""

    @classmethod
    def of(cls, settings: LinkSettings) -> CarriedSettings:
        """The settings without their secret."""
        digest = _digest(settings.secret)
        return cls(
            settings.who, settings.credit, settings.key, digest, settings.drop_after_s, settings.receipt_key
        )

    def read(self, secret: bytes) -> LinkSettings:
        """The settings, where `secret` is what the configuration says now."""
        known = secret if _digest(secret) == self.secret_sha256 else b""
        return LinkSettings(self.who, self.credit, self.key, known, self.drop_after_s, self.receipt_key)


class CarriedSlot(msgspec.Struct, frozen=True):
    """The link to one worker of one engine; what it owes, and what it will."""

    engine: tuple[str, int]
    worker: int
    settings: CarriedSettings
    link: CarriedLink | None
    reports: list[bytes]
    tasks: list[CarriedTask]
    engine_id: str = ""
    store: str = ""
    said: bool = True
    """Whether all that waited was pushed on this link. (Older code never asked to be told.)"""
    receipts: bool = False
    """Whether the engine takes receipts."""


class CarriedHealth(msgspec.Struct, frozen=True):
    """The sockets at which the caches' health check asks; `listen` as the configuration says it."""

    listen: str
    fds: list[int]


class CarriedEngine(msgspec.Struct, frozen=True):
    """An engine: who it said that it is, whether it is parked, and what engines it has named."""

    address: tuple[str, int]
    learned: bool
    id: str
    store: str
    parked: bool
    named: list[tuple[str, int]]


class CarriedMemory(msgspec.Struct, frozen=True):
    """What was done well, and in which era; `ground` stands for what that rests on (`ground_of`)."""

    ground: bytes
    era: int
    done: list[CarriedDone]


class Carried(msgspec.Struct, frozen=True):
    """All of it. `paused_at` is monotonic: from then on nothing was read."""

    code: str
    generation: int
    paused_at: float
    slots: list[CarriedSlot]
    memory: CarriedMemory | None = None
    engines: list[CarriedEngine] = []
    catching_up: CarriedCatchingUp | None = None
    replayed: tuple[int, int] = (0, 0)
    """Tasks that ended, and requests that were saved by merging, while the agent is behind."""
    health: CarriedHealth | None = None
    receipt_seed: bytes = b""
    """What receipts are signed with, where no file has it."""

    @property
    def fds(self) -> list[int]:
        """The sockets."""
        asked = [] if self.health is None else self.health.fds
        return [*(slot.link.fd for slot in self.slots if slot.link is not None), *asked]

    @property
    def newest_era(self) -> int:
        """The newest era that a task was begun in."""
        return max((task.era for slot in self.slots for task in slot.tasks), default=0)

    def without_links(self) -> Carried:
        """What is left when everything in hand is handed back: the reports."""
        slots = [msgspec.structs.replace(slot, link=None, tasks=[]) for slot in self.slots]
        return msgspec.structs.replace(self, slots=slots, memory=None)

    def without_memory(self) -> Carried:
        """What is left when tasks that were done are done again if they are pushed again."""
        return msgspec.structs.replace(self, memory=None)


class Unreadable(Exception):
    """What the old code wrote is not what this code reads."""


class _Envelope(msgspec.Struct):
    version: int
    carried: msgspec.Raw


def encode(carried: Carried) -> bytes:
    """The bytes of it, with the version in front."""
    return msgspec.msgpack.encode(_Envelope(VERSION, msgspec.Raw(msgspec.msgpack.encode(carried))))


def decode(data: bytes) -> Carried:
    """The inverse of `encode`. Raises: Unreadable."""
    try:
        envelope = msgspec.msgpack.decode(data, type=_Envelope)
        if envelope.version == VERSION:
            return msgspec.msgpack.decode(envelope.carried, type=Carried)
    except msgspec.MsgspecError as error:
        raise Unreadable(str(error)) from None
    raise Unreadable(f"it is of version {envelope.version}; this code reads {VERSION}")


def write(carried: Carried, environ: MutableMapping[str, str]) -> list[int]:
    """Puts it where a program that is executed now finds it; returns the descriptors that it inherits.

    Raises: OSError.
    """
    data = encode(carried)
    for lighter in (carried.without_memory, carried.without_links):
        if len(data) > CARRIED_MAX_BYTES:
            carried = lighter()
            data = encode(carried)
    memory = os.memfd_create("proxyd-carried")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
    except OSError:
        os.close(memory)
        raise
    inherited = [memory, *carried.fds]
    for fd in inherited:
        os.set_inheritable(fd, True)
    environ[CARRIED_FDS] = ",".join(map(str, inherited))
    return inherited


def read(environ: MutableMapping[str, str]) -> Carried | None:
    """What the code before this has left; None if there is none. Nothing is inherited further.

    Raises: Unreadable, with every socket closed.
    """
    names = environ.pop(CARRIED_FDS, "")
    if not names:
        return None
    memory, *sockets = map(int, names.split(","))
    for fd in sockets:
        os.set_inheritable(fd, False)
    with open(memory, "rb") as file:
        file.seek(0)
        data = file.read()
    try:
        return decode(data)
    except Unreadable:
        close(sockets)
        raise


def close(fds: Iterable[int]) -> None:
    """Closes descriptors that nobody takes."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


def ground_of(config: AgentConfig) -> bytes:
    """Stands for what must be as it was, that what was done be remembered: the caches, and who we are."""
    caches = sorted((cache.name, cache.kind, *cache.address) for cache in config.caches)
    return _digest(msgspec.msgpack.encode((config.name, config.group, config.layer, caches)))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
