"""The master's loop and its signals."""

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from refreshd.master.loop import READ, WRITE, Loop, Signals


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_what_is_ready_is_called_back(loop: Loop) -> None:
    seen: list[int] = []
    one, other = socket.socketpair()
    with one, other:
        loop.watch(one.fileno(), READ, seen.append)
        loop.turn(0)
        assert seen == []
        other.send(b"x")
        loop.turn(0)
        loop.watch(one.fileno(), WRITE, lambda _: seen.append(99))
        loop.turn(0)
        loop.forget(one.fileno())
        loop.forget(one.fileno())
        loop.turn(0)
        assert seen == [READ, 99]


def test_who_is_forgotten_or_replaced_within_a_turn_is_not_called(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called = []

    def close_all(_: int) -> None:
        called.append("first")
        for one, _other in pairs:
            loop.forget(one.fileno())
            one.close()
        # Their numbers are free and may serve another connection by now.
        again = [os.dup(0) for _ in range(2)]
        for fd in again:
            os.close(fd)

    for one, other in pairs:
        other.send(b"x")
        loop.watch(one.fileno(), READ, close_all)
    loop.turn(0)
    assert called == ["first"]
    for _, other in pairs:
        other.close()


def test_signals_are_noted_in_order_and_wake_the_loop(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    signals = Signals([signal.SIGUSR2, signal.SIGHUP])
    seen: list[int] = []
    loop.watch(signals.fd, READ, lambda _: seen.extend(signals.take()))
    try:
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
            signal.raise_signal(number)
        loop.turn(10)
        assert seen == [signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP]
        assert signals.take() == []
    finally:
        loop.forget(signals.fd)
        signals.close()
    assert signal.getsignal(signal.SIGUSR2) is before
