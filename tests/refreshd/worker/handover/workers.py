"""Real worker processes without a master: the test says what a master would.

    with Workers() as workers:
        workers.start_all()
        old, new = workers.roll(0)

`roll` goes through docs/handover.md; its steps can be called one by one.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Self, TypeVar

from refreshd import config, control
from refreshd.master.children import Child, Inherited, spawn
from refreshd.master.listeners import listen_tcp
from refreshd.master.processes import Seat
from refreshd.scoreboard import Scoreboard
from refreshd.store import layout
from tests.peer.waiting import wait_until

Message = TypeVar("Message", bound=control.Message)


class Workers:
    """Some slots, each with a worker; `proxies` is the listed fleet."""

    def __init__(self, workers: int = 2, proxies: tuple[str, ...] = (), settings: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="refreshd-test-"))
        listed = "".join(f'[[proxy]]\nname = "{name}"\n' for name in proxies)
        text = f'[engine]\nlisten = "127.0.0.1:0"\ndata = "{self.folder}"\nworkers = {workers}\n'
        self.config = config.parse(f"{text}{settings}\n{listed}")
        self.slots = workers
        self.serving: dict[int, Child] = {}
        self.heard: dict[int, list[control.Message]] = {}
        """Pid → what it said."""
        self._lanes = layout.read_or_create(self.folder, workers)
        self._listener = listen_tcp("127.0.0.1:0")
        self._scoreboard_fd = Scoreboard.create()
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        self._children: list[Child] = []
        self._generation = 0
        self._side: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait()
            child.close_control()
        self._listener.close()
        os.close(self._scoreboard_fd)
        os.close(self._lock)
        rmtree(self.folder, ignore_errors=True)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return str(host), int(port)

    # ── starting ──────────────────────────────────────────────────────────────────────────

    def start_all(self) -> None:
        """Starts a worker in each slot, as at the start of an engine."""
        for slot in range(self.slots):
            self.serving[slot] = self.start(slot)
        for child in self.serving.values():
            self.wait_for(child, control.Ready)

    def start(self, slot: int, *, standby: bool = False) -> Child:
        """Starts a worker; one that serves is introduced to those that do."""
        self._generation += 1
        side = self._side[slot] = 1 - self._side.get(slot, 1)
        inherited = Inherited(self._listener.fileno(), self._scoreboard_fd, self._lock)
        child = spawn(Seat(slot, side), self._generation, "refreshd.worker", inherited)
        self._children.append(child)
        self.heard[child.pid] = []
        plain = config.to_plain(self.config)
        child.send(
            control.Start(slot, self.slots, self._generation, self._lanes, plain, side=side, standby=standby)
        )
        if not standby:
            for other in self.serving.values():
                if other.seat.slot != slot:
                    self.introduce(child, other)
        return child

    def introduce(self, one: Child, other: Child, *, succeeds: bool = False) -> None:
        """Each gets a stream and a packet socket to the other."""
        self._join(
            (one, control.Peer(other.seat.slot, other.generation, self._side[other.seat.slot], succeeds)),
            (other, control.Peer(one.seat.slot, one.generation, self._side[one.seat.slot], succeeds)),
        )

    def _join(self, *ends: tuple[Child, control.Message]) -> None:
        pairs = [
            socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        ]
        for (child, message), *socks in zip(ends, *pairs, strict=True):
            child.send(message, tuple(sock.fileno() for sock in socks))
        for pair in pairs:
            for sock in pair:
                sock.close()

    # ── the hand-over ─────────────────────────────────────────────────────────────────────

    def roll(self, slot: int) -> tuple[Child, Child]:
        """The whole hand-over of a slot. The old worker, which has ended, and the new one."""
        old = self.serving[slot]
        new = self.begin(slot)
        self.wait_for(old, control.Given)
        self.switch(new)
        self.wait_for(old, control.Moved)
        self.end(old)
        return old, new

    def begin(self, slot: int) -> Child:
        """Starts a successor and lets the slot's worker hand over to it."""
        new = self.start(slot, standby=True)
        self.wait_for(new, control.Ready)
        self.pair(self.serving[slot], new)
        return new

    def pair(self, old: Child, new: Child) -> None:
        self._join((new, control.TakeOver(old.generation)), (old, control.HandOver(new.generation)))

    def switch(self, new: Child) -> None:
        """Every sibling gets a stream to the new worker, which is the slot's from here on."""
        for other in self.serving.values():
            if other.seat.slot != new.seat.slot:
                self.introduce(new, other, succeeds=True)
        self.serving[new.seat.slot] = new

    def end(self, old: Child) -> None:
        """Lets the old worker go; it must end well."""
        old.send(control.Stop(0.0))
        status = wait_until(lambda: (old.poll(),) if old.poll() is not None else None, "the old worker's end")
        assert status == (0,), f"it ended with {status}"

    # ── another number of workers ─────────────────────────────────────────────────────────

    def resize(self, workers: int) -> None:
        """More slots, or fewer: shards move to where they belong then."""
        before = self.slots
        for slot in range(before, workers):
            child = self.serving[slot] = self.start(slot)
            self.wait_for(child, control.Ready)
        for message, answer in (
            (control.Remap(workers), control.Remapped),
            (control.Route(workers), control.Routed),
        ):
            for child in self.serving.values():
                child.send(message)
            for child in self.serving.values():
                self.wait_for(child, answer)
        self.slots = workers
        for slot in range(workers, before):
            child = self.serving.pop(slot)
            child.send(control.Retire(workers))
            self.wait_for(child, control.Moved)
            self.end(child)
            for other in self.serving.values():
                other.send(control.Left(slot))

    # ── what they say ─────────────────────────────────────────────────────────────────────

    def wait_for(self, child: Child, kind: type[Message]) -> Message:
        """The next message of a kind. Raises: AssertionError if it says that it cannot go on."""

        def look() -> Message | None:
            self._listen(child)
            for message in self.heard[child.pid]:
                if isinstance(message, kind):
                    self.heard[child.pid].remove(message)
                    return message
                declined = isinstance(message, control.Declined) and kind is not control.Resumed
                assert not isinstance(message, control.Failed), message
                assert not declined, message
            assert child.poll() is None, f"it ended; it had said {self.heard[child.pid]}"
            return None

        return wait_until(look, f"{kind.__name__} from {child}")

    def _listen(self, child: Child) -> None:
        while child.control is not None:
            try:
                received = control.receive(child.control)
            except BlockingIOError:
                return
            if received is None:
                child.close_control()
                return
            self.heard[child.pid].append(received[0])

    # ── faults ────────────────────────────────────────────────────────────────────────────

    def kill(self, child: Child) -> None:
        """kill -9, and the end of it."""
        child.kill()
        child.wait()
        child.close_control()

    def resume(self, old: Child, *, switched: bool) -> None:
        """The successor is dead: the old worker takes everything back."""
        old.send(control.Resume())
        if switched:
            self.serving[old.seat.slot] = old
        self._introduce_anew(old)
        self.wait_for(old, control.Resumed)
        # Who has lost its successor may say so.
        self.heard[old.pid] = [m for m in self.heard[old.pid] if not isinstance(m, control.Declined)]

    def inherit(self, new: Child) -> None:
        """The predecessor is dead: the new worker takes the rest."""
        new.send(control.Inherit())
        self.serving[new.seat.slot] = new
        self._introduce_anew(new)
        self.wait_for(new, control.Resumed)

    def _introduce_anew(self, child: Child) -> None:
        for other in self.serving.values():
            if other.seat.slot != child.seat.slot:
                self.introduce(child, other)
