"""Messages between master and workers, with descriptors and bytes."""

import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from refreshd import control

Pair = tuple[socket.socket, socket.socket]

MESSAGES: list[control.Message] = [
    control.Start(
        slot=3, workers=4, generation=2, lanes=8, config={"engine": {"id": "e1", "n": [1, 2.5, None]}}
    ),
    control.Peer(slot=1, generation=7),
    control.Adopt(role="client", peer="127.0.0.1:9"),
    control.Adopt(role="admin"),
    control.Stop(deadline_s=2.5),
    control.Ready(unfinished=5, load_ms=7),
    control.Ready(),
    control.Failed(why="a\nb"),
    control.Stopping(),
]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.setblocking(False)
    with one, other:
        yield one, other


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("rest", [b"", b"a\n\nb\x00\xff\n"])
def test_a_message_arrives_as_it_was_sent(pair: Pair, message: control.Message, rest: bytes) -> None:
    control.send(pair[0], message, rest=rest)
    assert control.receive(pair[1]) == (message, [], rest)


def test_messages_keep_their_bounds(pair: Pair) -> None:
    for message in MESSAGES:
        control.send(pair[0], message)
    assert [control.receive(pair[1]) for _ in MESSAGES] == [(message, [], b"") for message in MESSAGES]


def test_descriptors_travel(pair: Pair) -> None:
    reader, writer = os.pipe()
    control.send(pair[0], control.Adopt("client"), (writer, reader), b"rest")
    os.close(writer)
    os.close(reader)
    received = control.receive(pair[1])
    assert received is not None
    message, (writer, reader), rest = received
    assert (message, rest) == (control.Adopt("client"), b"rest")
    os.write(writer, b"x")
    os.close(writer)
    assert os.read(reader, 2) == b"x"
    os.close(reader)


def test_a_packet_has_a_bound(pair: Pair) -> None:
    def start(padding: int) -> control.Start:
        return control.Start(slot=0, workers=1, generation=1, lanes=1, config={"x": "x" * padding})

    room = control.PACKET_MAX_BYTES - len(msgspec.json.encode(start(0))) - 1
    control.send(pair[0], start(room))
    assert control.receive(pair[1]) == (start(room), [], b"")
    with pytest.raises(ValueError, match=f"at most {control.PACKET_MAX_BYTES} fit"):
        control.send(pair[0], start(room + 1))


@pytest.mark.parametrize("length", [0, 65_535, 65_536, 65_537, 3_000_000])
def test_any_number_of_unread_bytes_travels(pair: Pair, length: int) -> None:
    before = open_fds()
    rest = os.urandom(length)
    control.send(pair[0], control.Adopt("client", "p"), (0,), rest)
    received = control.receive(pair[1])
    assert received is not None
    message, fds, got = received
    assert isinstance(message, control.Adopt)
    assert (message.role, message.peer, len(fds), got == rest) == ("client", "p", 1, True)
    os.close(fds[0])
    assert open_fds() == before


def test_nothing_there(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        control.receive(pair[1])


def test_the_other_side_is_gone(pair: Pair) -> None:
    control.send(pair[0], control.Failed("said before"))
    pair[0].close()
    assert control.receive(pair[1]) == (control.Failed("said before"), [], b"")
    assert control.receive(pair[1]) is None
    with pytest.raises(BrokenPipeError):
        control.send(pair[1], control.Ready())


@pytest.mark.parametrize(
    "packet", [b'{"type":"later"}\n', b"{}", b"\xff\n", b'{"type":"peer","slot":"x"}\nrest']
)
def test_a_message_of_another_version_leaks_no_descriptor(pair: Pair, packet: bytes) -> None:
    before = open_fds()
    socket.send_fds(pair[0], [packet], [0, 1])
    with pytest.raises(msgspec.DecodeError):
        control.receive(pair[1])
    assert open_fds() == before


def test_fields_of_a_later_version_are_ignored(pair: Pair) -> None:
    pair[0].send(b'{"type":"stop","deadline_s":1,"later":true}\n')
    assert control.receive(pair[1]) == (control.Stop(1.0), [], b"")
