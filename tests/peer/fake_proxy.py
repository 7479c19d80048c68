"""A proxy on raw sockets: it greets, gives credit, beats, reports, and remembers every push.

Each connection has a thread that connects again, to wherever the engine is by
then, until `stop`. A push is an *effect*: it is written down before it is reported.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable

from tests.peer.raw import Address, Gone, Line, Peer
from tests.peer.waiting import PATIENCE_S, wait_until

BEAT_EVERY_S = 1.0
_RETRY_S = 0.05


class FakeProxy:
    """Use as a context manager.

    `workers` are those it connects to. `answer` makes a report of the pushes that
    came together (None: silence); without it, all of them are done. `on_effect`
    is told each (proxy, task id, targets).
    """

    def __init__(
        self,
        name: str,
        address: Callable[[], Address],
        *,
        workers: Iterable[int] = (0, 1),
        greeting: str = "",
        credit: int = 1000,
        answer: Callable[[list[Line]], str | None] | None = None,
        on_effect: Callable[[str, str, list[str]], None] | None = None,
    ) -> None:
        self.name = name
        self.effects: dict[str, int] = {}
        """Task id → how often it was pushed."""
        self.gone = 0
        """Connections that were lost, or refused."""
        self.faults: list[str] = []
        self._address = address
        self._greeting = greeting
        self._credit = credit
        self._answer = answer or _all_done
        self._on_effect = on_effect
        self._lock = threading.Lock()
        self._reported: set[str] = set()
        """Ids that were reported on any connection: that frees each on which they are outstanding."""
        self._end = threading.Event()
        self._connected: set[int] = set()
        self._peers: dict[int, Peer] = {}
        self._threads = [threading.Thread(target=self._run, args=(worker,)) for worker in workers]

    def start(self) -> FakeProxy:
        """Returns when every connection is greeted."""
        for thread in self._threads:
            thread.start()
        wait_until(lambda: len(self._connected) == len(self._threads), f"{self.name} is connected")
        return self

    def stop(self) -> None:
        self._end.set()
        with contextlib.suppress(OSError):
            for peer in list(self._peers.values()):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        assert not self.faults, self.faults

    def __enter__(self) -> FakeProxy:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, worker: int) -> None:
        while not self._end.is_set():
            try:
                with Peer(self._address(), PATIENCE_S) as peer:
                    self._peers[worker] = peer
                    self._greet(peer, worker)
                    self._serve(peer, worker)
            except (Gone, OSError):
                self.gone += not self._end.is_set()
                self._peers.pop(worker, None)
                self._end.wait(_RETRY_S)
            except Exception as error:
                self.faults.append(repr(error))
                return
            finally:
                self._connected.discard(worker)

    def _greet(self, peer: Peer, worker: int) -> None:
        reply = peer.ask(f"hello v=1 role=proxy name={self.name} worker={worker} {self._greeting}".rstrip())
        if not reply.ok:
            # The worker is being replaced, or a sibling is; or the engine has fewer of them now.
            assert reply.code in ("unavailable", "busy") or reply["field"] == "worker", reply
            raise Gone
        assert reply["worker"] == str(worker), reply
        assert peer.ask(f"ready credit={self._credit}").ok
        self._connected.add(worker)

    def _serve(self, peer: Peer, worker: int) -> None:
        outstanding: dict[str, int] = {}
        beat_at = 0.0
        pushes, peer.pushes = peer.pushes, []
        peer.socket.settimeout(BEAT_EVERY_S / 4)
        while not self._end.is_set():
            if pushes:
                self._take(peer, worker, pushes, outstanding)
            if time.monotonic() >= beat_at:
                peer.write("beat inflight=0")
                beat_at = time.monotonic() + BEAT_EVERY_S
            pushes = _read_pushes(peer)

    def _take(self, peer: Peer, worker: int, pushes: list[Line], outstanding: dict[str, int]) -> None:
        tasks = [push for push in pushes if push.verb == "!task"]
        for push in pushes:
            if push.verb == "!task":
                self._do(push, outstanding)
            elif push.verb == "!cancel":
                for task_id in push.items:
                    outstanding.pop(task_id, None)
        targets = sum(count for task_id, count in outstanding.items() if task_id not in self._reported)
        if targets > self._credit:
            self.faults.append(f"{targets} targets at {worker}, credit {self._credit}: {outstanding}")
        report = self._answer(tasks) if tasks else None
        if report is not None:
            # Before it is written: the engine may take it as free before this goes on.
            self._reported |= outstanding.keys()
            outstanding.clear()
            peer.write(report)

    def _do(self, push: Line, outstanding: dict[str, int]) -> None:
        task_id = push.fields["task_id"]
        outstanding[task_id] = len(push.items)
        with self._lock:
            self.effects[task_id] = self.effects.get(task_id, 0) + 1
        if self._on_effect is not None:
            self._on_effect(self.name, task_id, push.items)


def _read_pushes(peer: Peer) -> list[Line]:
    """The pushes that are there; replies are passed over. Empty when nothing comes for a moment."""
    pushes = []
    try:
        line = peer.line()
        while True:
            assert line.verb in ("ok", "!task", "!cancel", "!drain"), line
            if line.verb.startswith("!"):
                pushes.append(line)
            if not peer.has_line():
                return pushes
            line = peer.line()
    except TimeoutError:
        return pushes


def _all_done(pushes: list[Line]) -> str:
    return "report state=done -- " + " ".join(push.fields["task_id"] for push in pushes)
