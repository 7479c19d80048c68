"""Connections that are older than the processes that serve them: all live through ten upgrades."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.driver import PATIENCE_S, Engine, Peer, wait_until
from tests.peer.raw import owned_by
from tests.peer.snappy_frames import IDENTIFIER, SnappyPeer, frame

UPGRADES = 10


@contextmanager
def _nc(engine: Engine, text: str, *, half_closed: bool) -> Iterator[subprocess.Popen[str]]:
    """nc that has sent `text`; with `half_closed` it has ended its side."""
    host, port = engine.address()
    command = ["nc", *(["-N"] if half_closed else []), host, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nc:
        assert nc.stdin is not None
        nc.stdin.write(text)
        nc.stdin.flush()
        if half_closed:
            nc.stdin.close()
        try:
            yield nc
        finally:
            nc.kill()


class Pipeliner:
    """Posts without ever waiting for what it posted before, on one connection; a thread reads."""

    BATCH = 20
    AHEAD = 2_000

    def __init__(self, engine: Engine) -> None:
        self.answered = 0
        self.faults: list[str] = []
        self._peer = engine.peer()
        self._sent = 0
        self._end = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._write, self._read)]

    def __enter__(self) -> Pipeliner:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._peer.close()

    def goes_on(self) -> None:
        """Waits until more was answered."""
        before = self.answered
        wait_until(lambda: self.answered > before or self.faults, "the pipeline goes on")
        assert not self.faults

    def _write(self) -> None:
        try:
            while not self._end.wait(0.01):
                if self._sent - self.answered < self.AHEAD:
                    ids = [f"pipe{self._sent + number}" for number in range(self.BATCH)]
                    self._peer.write(*[f"post_task task_id={i} type=url -- http://a.example/" for i in ids])
                    self._sent += self.BATCH
        except Exception as error:
            self.faults.append(repr(error))

    def _read(self) -> None:
        try:
            while True:
                if self.answered == self._sent:
                    # The other thread has written nothing more, or will never.
                    if self._end.wait(0.005):
                        return
                    continue
                reply = self._peer.reply()
                assert reply.ok, reply
                assert reply["task_id"] == f"pipe{self.answered}", f"{reply} after {self.answered} replies"
                self.answered += 1
        except Exception as error:
            self.faults.append(repr(error))


class Proxy:
    """Both connections of a proxy, by hand, each in the middle of a task; another task waits for credit."""

    def __init__(self, engine: Engine, stack: ExitStack, peer: Peer) -> None:
        self._middle, self._following = _one_each("middle"), _one_each("following")
        self._links = [stack.enter_context(engine.proxy_peer("p1", worker)) for worker in (0, 1)]
        for slot, link in enumerate(self._links):
            link.ok("ready credit=1")
            peer.post(self._middle[slot], "type=url scope=p1")
            self._take(slot, self._middle[slot])
            peer.post(self._following[slot], "type=url scope=p1")
            link.ok(f"report state=active task_id={self._middle[slot]} done=0 failed=0")

    def beat(self) -> None:
        for link in self._links:
            link.ok("beat inflight=1")

    def _take(self, slot: int, task_id: str) -> None:
        """The push of this task, and no other, is there."""
        push = self._links[slot].push()
        assert (push.verb, push.fields["task_id"]) == ("!task", task_id)

    def finish(self, peer: Peer) -> None:
        """Reports frees credit, and what waited comes."""
        for slot, link in enumerate(self._links):
            link.ok(f"report state=done -- {self._middle[slot]}")
            self._take(slot, self._following[slot])
            link.ok(f"report state=done -- {self._following[slot]}")
        for task_id in self._middle + self._following:
            wait_until(lambda task_id=task_id: peer.state(task_id) == "complete", task_id)  # type: ignore[misc]


class Watchers:
    """Two clients, an nc, and an nc that has ended its side, who watch the same tasks."""

    def __init__(self, engine: Engine, stack: ExitStack, peer: Peer) -> None:
        self._ids = _one_each("watched")
        for task_id in self._ids:
            peer.post(task_id, "type=url due=4000000000")
        lines = [f"watch_task task_id={task_id}" for task_id in self._ids]
        self._clients = [stack.enter_context(engine.peer(f"worker={slot}")) for slot in (0, 1)]
        for client in self._clients:
            for line in lines:
                client.ok(line)
        text = "".join(f"{line}\n" for line in lines)
        self._ncs = [stack.enter_context(_nc(engine, text, half_closed=half)) for half in (False, True)]

    def finish(self, peer: Peer) -> None:
        """Everyone is told of the end."""
        for task_id in self._ids:
            peer.ok(f"cancel_task task_id={task_id}")
        for client in self._clients:
            pushes = client.pushed(2)
            assert {push.fields["state"] for push in pushes} == {"cancelled"}
            assert {push.fields["task_id"] for push in pushes} == set(self._ids)
        for nc in self._ncs:
            assert nc.stdout is not None
            lines = [nc.stdout.readline() for _ in range(4)]
            assert all(line.startswith("ok task_id=watched") for line in lines[:2]), lines
            assert all(line.startswith("!state ") and "state=cancelled" in line for line in lines[2:]), lines
        assert self._ncs[1].wait(PATIENCE_S) == 0, "what is half closed ends with what it watches"


class Unfinished:
    """Connections that have said nothing yet, or half of it."""

    def __init__(self, engine: Engine, stack: ExitStack) -> None:
        self._fresh, self._line, self._hello = (stack.enter_context(engine.peer()) for _ in range(3))
        self._line.write_bytes(b"pi")
        self._hello.write_bytes(b"hello v=1 role=cl")
        self._zipped = stack.enter_context(SnappyPeer(engine.address()))
        self._chunk = IDENTIFIER + frame(b"ping\n")
        self._zipped.write_raw(self._chunk[:-3])

    def finish(self) -> None:
        """The other halves."""
        self._fresh.ok("ping")
        self._line.write_bytes(b"ng\n")
        assert self._line.reply().ok
        self._hello.write_bytes(b"ient\nping\n")
        assert [reply.ok for reply in self._hello.replies(2)] == [True, True]
        self._zipped.write_raw(self._chunk[-3:])
        assert self._zipped.reply().ok
        self._zipped.ok("ping")


def _one_each(stem: str) -> list[str]:
    """An id for each of two workers."""
    return [owned_by(slot, stem)[0] for slot in (0, 1)]


@pytest.mark.needs("nc")
@pytest.mark.timeout(240)
def test_every_kind_of_connection_outlives_ten_upgrades() -> None:
    """At the end each is served by the newest generation, on the connection that it had from the start."""
    patience = {"refreshd.worker.connection": {"LINE_PATIENCE_S": 600}}
    with (
        Engine(proxies=["p1", "p2"], constants=patience) as engine,
        engine.proxy("p2"),
        engine.peer() as peer,
        ExitStack() as stack,
    ):
        proxy = Proxy(engine, stack, peer)
        watchers = Watchers(engine, stack, peer)
        unfinished = Unfinished(engine, stack)
        pipeliner = stack.enter_context(Pipeliner(engine))
        seen = engine.pids()
        for _ in range(UPGRADES):
            engine.roll("upgrade")
            engine.wait_whole()
            assert not seen & engine.pids(), "every process is a new one"
            seen |= engine.pids()
            proxy.beat()
            pipeliner.goes_on()
        unfinished.finish()
        proxy.finish(peer)
        watchers.finish(peer)
    assert not pipeliner.faults
    assert "Traceback" not in engine.log()
