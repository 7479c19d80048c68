"""What crosses an upgrade: all of it, and what is not understood leaves nothing open."""

from __future__ import annotations

import math
import os
import socket

import msgspec
import pytest

from proxyd import carry
from proxyd.caches import KINDS
from proxyd.carry import (
    CARRIED_FDS,
    Carried,
    CarriedEngine,
    CarriedLink,
    CarriedMemory,
    CarriedSettings,
    CarriedSlot,
    Unreadable,
    ground_of,
)
from proxyd.catching_up import CarriedCatchingUp, CarriedLinkAge
from proxyd.config import CacheConfig, default_config
from proxyd.link import LinkSettings
from proxyd.outbox import Outbox
from proxyd.session import FrozenSession, Identity
from proxyd.tasks import Exchange, Task, carry_tasks, resume_task
from wire.tasks import PushHead

PREFETCH = KINDS["varnish"].deeds["prefetch"]
SETTINGS = LinkSettings(Identity("pop1", "eu", 2), 100, "k1", b"s3cret")
HEAD = PushHead(type="prefetch", ttl_s=60, priority=9, force=True)


def task(task_id: bytes, *open_targets: bytes, total: int, expires_at: float = math.inf) -> list[Exchange]:
    """The exchanges that are left of a task."""
    made = Task(task_id, Outbox(lambda: None), total, HEAD, 5.0, expires_at)
    made.open = len(open_targets)
    return [Exchange(made, target, b"", PREFETCH, None) for target in open_targets]


def carried(fd: int, *, reports: int = 1) -> Carried:
    """One link with everything."""
    session = FrozenSession(4096, True, b"!task tas", [b"beat", b"report state=done -- a\n"])
    exchanges = task(b"t", b"http://h/\xc3\xa9", b"http://h/2", total=3, expires_at=70.0)
    tasks = [each for _, each in carry_tasks(exchanges, 10.0)]
    slot = CarriedSlot(
        ("127.0.0.1", 7070), 3, CarriedSettings.of(SETTINGS), CarriedLink(fd, session),
        [b"report state=done -- b\n"] * reports, tasks, "e1", "s1",
    )  # fmt: skip
    memory = CarriedMemory(b"ground", 3, [(b"\0key", "url", False, b"\xff", 1.5)] * 3)
    engine = CarriedEngine(("127.0.0.1", 7070), True, "e1", "s1", False, [("::1", 1)])
    catching_up = CarriedCatchingUp(3.5, [CarriedLinkAge("127.0.0.1:7070", 1, 4.5)], {"127.0.0.1:7070": 5.5})
    return Carried("0.1.0", 7, 12.5, [slot], memory, [engine], catching_up, (8, 9))


@pytest.fixture
def sock() -> socket.socket:
    """A socket whose descriptor may be given away."""
    made, other = socket.socketpair()
    other.close()
    return made


def test_all_of_it_crosses(sock: socket.socket) -> None:
    environ: dict[str, str] = {}
    sent = carried(sock.detach())
    [fd] = sent.fds
    inherited = carry.write(sent, environ)
    assert inherited[1:] == [fd]
    assert all(os.get_inheritable(each) for each in inherited)
    assert carry.read(environ) == sent
    assert environ == {}
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(inherited[0])


def test_there_may_be_nothing() -> None:
    assert carry.read({}) is None


@pytest.mark.parametrize("data", [b"", b"\x00", b"not msgpack at all"])
def test_what_is_not_understood_is_closed(sock: socket.socket, data: bytes) -> None:
    fd = sock.detach()
    memory = os.memfd_create("test")
    os.write(memory, data)
    with pytest.raises(Unreadable):
        carry.read({CARRIED_FDS: f"{memory},{fd}"})
    for each in (memory, fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)


def test_another_version_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = carry.encode(carried(7))
    monkeypatch.setattr(carry, "VERSION", 9)
    with pytest.raises(Unreadable, match="of version 1; this code reads 9"):
        carry.decode(data)


def test_a_field_that_is_new_is_passed_over() -> None:
    sent = carried(7)
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(sent))
    plain["later"] = plain["slots"][0]["later"] = 1
    body = msgspec.Raw(msgspec.msgpack.encode(plain))
    assert carry.decode(msgspec.msgpack.encode(carry._Envelope(carry.VERSION, body))) == sent


def test_what_older_code_left_is_read() -> None:
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(carried(7)))
    del plain["memory"], plain["engines"]
    for key in ("engine_id", "store"):
        del plain["slots"][0][key]
    for key in ("content", "era"):
        del plain["slots"][0]["tasks"][0][key]
    body = msgspec.Raw(msgspec.msgpack.encode(plain))
    read = carry.decode(msgspec.msgpack.encode(carry._Envelope(carry.VERSION, body)))
    assert (read.memory, read.engines, read.newest_era) == (None, [], 0)


def test_first_what_is_remembered_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, sock: socket.socket
) -> None:
    sent = carried(sock.fileno())
    monkeypatch.setattr(carry, "CARRIED_MAX_BYTES", len(carry.encode(sent)) - 1)
    environ: dict[str, str] = {}
    assert len(carry.write(sent, environ)) == 2
    assert carry.read(environ) == sent.without_memory()
    sock.close()


def test_what_remembering_rests_on() -> None:
    config = default_config()
    caches = [*config.caches, CacheConfig("v2", "varnish", ("a", 1))]
    others = [
        msgspec.structs.replace(config, caches=caches),
        msgspec.structs.replace(config, caches=[CacheConfig("v1", "varnish", ("a", 1))]),
        msgspec.structs.replace(config, name="other"),
        msgspec.structs.replace(config, layer=1),
    ]
    assert len({ground_of(each) for each in (config, *others)}) == 5
    turned = msgspec.structs.replace(others[0], caches=caches[::-1], credit=7)
    assert ground_of(turned) == ground_of(others[0])


def test_too_much_is_handed_back(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    monkeypatch.setattr(carry, "CARRIED_MAX_BYTES", 1)
    environ: dict[str, str] = {}
    [memory] = carry.write(carried(sock.fileno()), environ)
    read = carry.read(environ)
    assert read is not None
    [slot] = read.slots
    assert (slot.link, slot.tasks, len(slot.reports)) == (None, [], 1)
    assert memory >= 0
    sock.close()


def test_a_secret_does_not_cross() -> None:
    data = carry.encode(carried(7))
    assert b"s3cret" not in data
    settings = carry.decode(data).slots[0].settings
    assert settings.read(b"s3cret") == SETTINGS
    assert settings.read(b"another") != SETTINGS


def test_a_task_goes_on_where_it_was() -> None:
    exchanges = task(b"a", b"1", b"2", b"2", total=6, expires_at=65.0)
    made = exchanges[0].task
    made.failed, made.error, made.failed_targets = 1, "why", [b"0"]
    gone = task(b"gone", b"1", total=1)
    gone[0].task.expires_at = 0.0
    [(home, left)] = carry_tasks(exchanges + gone, 35.0)
    assert home is made.home
    assert (left.ttl_left_s, left.age_s, left.targets) == (30.0, 30.0, [b"1", b"2"])
    again = resume_task(home, left, 1000.0)
    assert (again.received_at, again.expires_at) == (970.0, 1030.0)
    # What stood there twice stands there once.
    assert (again.total, again.open, again.failed, again.done) == (6, 2, 1, 3)
    assert (again.error, again.failed_targets, again.head) == ("why", [b"0"], HEAD)


def test_a_task_without_end_has_none() -> None:
    [(home, left)] = carry_tasks(task(b"a", b"1", total=1), 35.0)
    assert left.ttl_left_s is None
    assert resume_task(home, left, 1.0).expires_at == math.inf
