"""The checker of FAULTS.md: every acknowledgement and every effect is written down, and compared at the end.

    acknowledged, but the engine does not know it          lost
    acknowledged, and not final                            unfinished
    complete, and a proxy was never pushed it              untrue

An effect that is repeated is harmless.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.peer.raw import Address, Gone, Peer, Reply
from tests.peer.waiting import UNIT_S, wait_until

_ASKED_AT_ONCE = 200
_RETRY_S = 0.05
# An engine answers within seconds whatever is away. A disk of CI that stalls can keep a commit for 20 s.
_ANSWER_S = 60 * UNIT_S
FINAL = ("complete", "failed", "expired", "cancelled")


class Verdict(NamedTuple):
    """What does not fit. Empty lists: all is well."""

    lost: list[str]
    unfinished: list[str]
    untrue: list[str]


class Ledger:
    """Filled from any thread. `proxies` are those that every task is for."""

    def __init__(self, proxies: Iterable[str] = ("p1",)) -> None:
        self.proxies = frozenset(proxies)
        self.acknowledged: dict[str, str] = {}
        """Task id → the reply's state."""
        self.refused: dict[str, int] = {}
        """Code → how often."""
        self._effects: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def reply(self, task_id: str, reply: Reply) -> None:
        """What the engine answered to a `post_task`."""
        with self._lock:
            if reply.ok:
                assert reply["task_id"] == task_id, f"asked for {task_id}, answered {reply.fields}"
                self.acknowledged[task_id] = reply["state"]
            else:
                self.refused[reply.code] = self.refused.get(reply.code, 0) + 1

    def effect(self, proxy: str, task_id: str, targets: list[str]) -> None:
        """A proxy was pushed a task; to be given to `FakeProxy(on_effect=)`."""
        with self._lock:
            self._effects.setdefault(task_id, set()).add(proxy)

    def wait_for(self, more: int) -> None:
        """Waits until that many more tasks were acknowledged."""
        goal = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) >= goal, f"{more} more acknowledgements", 40)

    def compare(self, peer: Peer) -> Verdict:
        """Compares with what the engine says now."""
        verdict = Verdict([], [], [])
        ids = list(self.acknowledged)
        for at in range(0, len(ids), _ASKED_AT_ONCE):
            some = ids[at : at + _ASKED_AT_ONCE]
            peer.write(*[f"get_task task_id={task_id}" for task_id in some])
            for task_id, reply in zip(some, peer.replies(len(some)), strict=True):
                if reply.code == "not_found":
                    verdict.lost.append(task_id)
                elif not reply.ok or reply["state"] not in FINAL:
                    verdict.unfinished.append(task_id)
                elif reply["state"] == "complete" and self._effects.get(task_id, set()) != self.proxies:
                    verdict.untrue.append(task_id)
        return verdict

    def settle(self, address: Callable[[], Address]) -> None:
        """Waits until every acknowledged task is final; then all must fit."""
        assert self.acknowledged, f"nothing was acknowledged; refused: {self.refused}"

        def all_final() -> bool:
            with Peer(address()) as peer:
                verdict = self.compare(peer)
            assert not verdict.lost, f"{len(verdict.lost)} lost, such as {verdict.lost[:5]}"
            assert not verdict.untrue, f"{len(verdict.untrue)} untrue, such as {verdict.untrue[:5]}"
            return not verdict.unfinished

        wait_until(all_final, f"{len(self.acknowledged)} acknowledged tasks are final", 30)


class Load:
    """Clients that post in batches without end, and go on after whatever happens. A context manager.

    A batch whose connection ended before its replies is sent again, with the same ids; one that is just
    not answered is a fault. `pause_s`: between two batches. Ids begin with `stem`: two loads of one engine
    need two.
    """

    def __init__(
        self,
        address: Callable[[], Address],
        ledger: Ledger,
        *,
        clients: int = 3,
        batch: int = 20,
        terms: str = "type=url",
        pause_s: float = 0.0,
        stem: str = "l",
    ) -> None:
        self.served: set[int] = set()
        """Clients that were answered."""
        self.gone = 0
        """Connections that were lost."""
        self.why_gone: list[str] = []
        self.faults: list[str] = []
        self._address = address
        self._ledger = ledger
        self._batch = batch
        self._terms = terms
        self._clients = clients
        self._pause_s = pause_s
        self._stem = stem
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        assert not self.faults, self.faults

    def wait_for_all(self) -> None:
        """Waits until every client has a connection and is served."""
        wait_until(lambda: len(self.served) == self._clients, "every client is served")

    def _run(self, client: int) -> None:
        number = 0
        while not self._end.is_set():
            try:
                with Peer(self._address(), _ANSWER_S) as peer:
                    while not self._end.is_set():
                        self._post(peer, [f"{self._stem}{client}.{number}.{i}" for i in range(self._batch)])
                        number += 1
                        self.served.add(client)
                        self._end.wait(self._pause_s)
            except TimeoutError:
                self.faults.append(f"client {client} waited {_ANSWER_S:g} s in vain")
                return
            except (Gone, OSError) as error:
                self.gone += 1
                self.why_gone.append(repr(error))
                self._end.wait(_RETRY_S)
            except Exception as error:
                self.faults.append(repr(error))
                return

    def _post(self, peer: Peer, ids: list[str]) -> None:
        peer.write(*[f"post_task task_id={i} {self._terms} -- http://example.com/{i}" for i in ids])
        for task_id in ids:
            reply = peer.reply()
            self._ledger.reply(task_id, reply)
            if not reply.ok:
                assert reply.code in ("unavailable", "busy", "draining"), reply
