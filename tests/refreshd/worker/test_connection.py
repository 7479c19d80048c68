"""What a connection decides by itself; the rest is tested through sockets, in tests/peer and tests/faults."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from refreshd.worker.connection import LINE_PATIENCE_S, PENDING_MAX, Connection
from refreshd.worker.turns import Turn


class Transport(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reads = True
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        self.closed = True


class Hub(SimpleNamespace):
    """As much of a hub as a connection needs; every request waits until `answer`."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.asked: list[tuple[Turn, int]] = []
        super().__init__(
            shards=SimpleNamespace(slot=0),
            config=SimpleNamespace(engine=SimpleNamespace(auth="none", line_max=4096)),
            engine=SimpleNamespace(clock=SimpleNamespace(turn=lambda: None)),
            loop=SimpleNamespace(time=lambda: self.now_s, call_later=lambda *_: None),
            rate_boss=SimpleNamespace(count=0),
            requests=SimpleNamespace(run=self._run),
            connected=lambda _: None,
        )

    def _run(self, caller: object, turn: Turn, lines: list[bytes], plain: bool) -> None:
        self.asked += [(turn, turn.hold()) for _ in lines]

    def answer(self) -> None:
        asked, self.asked = self.asked, []
        for turn, place in asked:
            turn.fill(place, b"ok\n")


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def connection(hub: Hub, transport: Transport) -> Connection:
    connection = Connection(cast("Any", hub), 1)
    connection.connection_made(transport)
    return connection


def test_half_a_line_has_so_long(hub: Hub, connection: Connection, transport: Transport) -> None:
    connection.data_received(b"ping\npi")
    hub.answer()
    hub.now_s += LINE_PATIENCE_S - 1
    connection.sweep(hub.now_s)
    assert transport.written == b"ok\n"
    hub.now_s += 2
    connection.sweep(hub.now_s)
    assert b"code=bad_line" in transport.written


def test_half_a_line_is_not_late_while_nobody_reads(
    hub: Hub, connection: Connection, transport: Transport
) -> None:
    """The peer has sent the rest, perhaps: it is the engine that is behind."""
    connection.data_received(b"ping\n" * (PENDING_MAX + 1) + b"pi")
    assert not transport.reads
    hub.now_s += 2 * LINE_PATIENCE_S
    connection.sweep(hub.now_s)
    hub.answer()
    assert transport.reads
    connection.sweep(hub.now_s)
    connection.data_received(b"ng\n")
    hub.answer()
    assert transport.written == b"ok\n" * (PENDING_MAX + 2)


def test_one_that_hears_just_now_what_became_of_what_it_watches_does_not_move(
    connection: Connection,
) -> None:
    assert connection.is_quiet
    connection.rewatches += 1
    assert not connection.is_quiet
