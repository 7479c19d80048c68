"""The worker processes, by seat: starting them, talking to them, listening to them, burying them.

It decides nothing: what a worker says, and that it has ended, is told to `Ears`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

import msgspec

from refreshd import control, logs
from refreshd.master.children import Child, Inherited, spawn
from refreshd.master.introductions import pairs
from refreshd.master.loop import READ, Loop
from refreshd.master.processes import IllegalTransition, Seat

# What a worker says is a few messages in its life; one that floods must not keep the loop.
_MESSAGES_A_TURN = 64

log = logs.get()


class Ears(Protocol):
    """Who hears of workers."""

    def heard(self, child: Child, message: control.Message) -> None:
        """It said something. Raises: IllegalTransition when that makes no sense."""

    def misbehaved(self, child: Child, why: str) -> None:
        """It makes no sense, or cannot be talked to."""

    def lost(self, child: Child) -> None:
        """It closed its control socket."""

    def ended(self, child: Child, status: int) -> None:
        """It is gone and reaped, and what it had said before was heard; see `children.describe_exit`."""


class Crew:
    """All worker processes that live, in `children`."""

    def __init__(self, loop: Loop, ears: Ears, module: str, inherited: Inherited, cpus: list[int]) -> None:
        self.children: dict[Seat, Child] = {}
        self._loop = loop
        self._ears = ears
        self._module = module
        self._inherited = inherited
        self._cpus = cpus

    def __repr__(self) -> str:
        return f"<Crew {list(self.children.values())}>"

    # Starting

    def start(self, seat: Seat, generation: int) -> Child:
        """Starts a process. Raises: OSError."""
        child = spawn(seat, generation, self._module, self._inherited)
        self.take(child)
        return child

    def take(self, child: Child) -> None:
        """Takes in a process that lives, and listens to it."""
        self.children[child.seat] = child
        if child.control is not None:
            self._loop.watch(child.control.fileno(), READ, lambda _: self._listen(child))

    def pin(self, child: Child) -> int | None:
        """Lets it run on its slot's CPU only; returns which, None if that could not be done."""
        cpu = self._cpus[child.seat.slot % len(self._cpus)]
        try:
            child.pin(cpu)
        except OSError as error:
            log.warning("worker not pinned", slot=child.seat.slot, cpu=cpu, why=error.strerror)
            return None
        return cpu

    # Talking

    def send(self, child: Child, message: control.Message, fds: tuple[int, ...] = ()) -> None:
        """Tells it, unless it is on its way out."""
        try:
            child.send(message, fds)
        except (BrokenPipeError, ConnectionResetError):
            # It is ending; that it has ended is told elsewhere.
            pass
        except (OSError, ValueError) as error:
            self._ears.misbehaved(child, f"cannot be talked to: {error}")

    def send_all(self, message: control.Message) -> None:
        """Tells every process that lives."""
        for child in list(self.children.values()):
            self.send(child, message)

    def introduce(self, newcomer: Child, siblings: Iterable[Seat], *, succeeds: bool = False) -> None:
        """Gives it and each sibling a mesh stream and a hand-over socket to the other.

        `succeeds`: the newcomer's predecessor still lives and has handed over to it.
        """
        for seat in siblings:
            sibling = self.children[seat]
            try:
                with pairs() as (ends, ends_too):
                    self.send(newcomer, _peer(sibling, succeeds), ends)
                    self.send(sibling, _peer(newcomer, succeeds), ends_too)
            except OSError as error:
                self._ears.misbehaved(newcomer, f"no sockets for it: {error.strerror}")
                return

    def hand_over(self, old: Child, new: Child) -> None:
        """Gives the two a mesh stream and a hand-over socket to each other, and says what these are for."""
        try:
            with pairs() as (ends, ends_too):
                self.send(new, control.TakeOver(old.generation), ends)
                self.send(old, control.HandOver(new.generation), ends_too)
        except OSError as error:
            self._ears.misbehaved(new, f"no sockets for it: {error.strerror}")

    # Listening

    def _listen(self, child: Child) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if child.control is None:
                return
            try:
                received = control.receive(child.control)
            except BlockingIOError:
                return
            except msgspec.DecodeError as error:
                self._ears.misbehaved(child, f"said what is no message: {error}")
                return
            except ConnectionResetError:
                # It ended before it had read all of ours. The kernel says so once, ahead of its last words.
                continue
            except OSError:
                received = None
            if received is None:
                self._forget_control(child)
                self._ears.lost(child)
                return
            message, fds, _rest = received
            for fd in fds:
                os.close(fd)
            try:
                self._ears.heard(child, message)
            except IllegalTransition as error:
                self._ears.misbehaved(child, f"spoke out of turn: {error}")

    def _forget_control(self, child: Child) -> None:
        if child.control is not None:
            self._loop.forget(child.control.fileno())
            child.close_control()

    # Their end

    def reap(self) -> None:
        """Buries who has ended."""
        for child in list(self.children.values()):
            status = child.poll()
            if status is not None:
                # Its last words may not have been read yet.
                self._listen(child)
                self._forget_control(child)
                del self.children[child.seat]
                self._ears.ended(child, status)

    def leave_nobody(self) -> None:
        """Whatever ended the loop: no worker outlives it. (Those of a killed master end by themselves.)"""
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()
            self._forget_control(child)
        self.children.clear()

    def measure(self) -> None:
        """Notes CPU and memory of each."""
        for child in self.children.values():
            child.measure()


def _peer(child: Child, succeeds: bool) -> control.Peer:
    seat = child.seat
    return control.Peer(seat.slot, child.generation, seat.side, succeeds, child.version)
