"""A worker that serves nothing and behaves as a file says, started by the real master.

The folder $FAKE_WORKERS holds `slot-N` (what the next process of slot N shall do) and
gets `slot-N.log`, one JSON object for each thing that came.

What it shall do is one of BEHAVIOURS, or words STEP:DEED for steps of a hand-over or a
reload (the names of the messages, in small letters) at which it does not do as it should:
`die` (at once), `freeze` (SIGSTOP), `ignore` (go on and never answer), `decline`, `refuse`.
"""

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from refreshd import control
from refreshd.config import from_plain
from refreshd.scoreboard import Row, Scoreboard, row_of

FOLDER = Path(os.environ["FAKE_WORKERS"])
BEAT_S = 0.05


class FakeWorker:
    """Says what a worker says. `behaviour` is one of BEHAVIOURS."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        for name in ("slot", "control-fd", "listen-fd", "scoreboard-fd"):
            parser.add_argument(f"--{name}", type=int, required=True)
        self.arguments = parser.parse_args()
        self.slot = self.arguments.slot
        self.control = socket.socket(fileno=self.arguments.control_fd)
        self.listener = socket.socket(fileno=self.arguments.listen_fd)
        self.scoreboard = Scoreboard(self.arguments.scoreboard_fd)
        self.peers: dict[int | str, list[int]] = {}
        path = FOLDER / f"slot-{self.slot}"
        behaviour = path.read_text() if path.exists() else "ready"
        self.deeds = dict(word.split(":") for word in behaviour.split()) if ":" in behaviour else {}
        self.behaviour = "ready" if self.deeds else behaviour
        self.row = row_of(self.slot, 0)
        self.beats = True
        self.obeys = True

    def note(self, **what: object) -> None:
        with (FOLDER / f"slot-{self.slot}.log").open("a") as log:
            log.write(json.dumps({"pid": os.getpid(), **what}) + "\n")

    def run(self) -> None:
        message, fds, _ = control.receive(self.control)
        assert isinstance(message, control.Start)
        assert not fds
        self.row = row_of(message.slot, message.side)
        config = from_plain(message.config)
        self.note(
            start=message.slot,
            workers=message.workers,
            generation=message.generation,
            lanes=message.lanes,
            side=message.side,
            standby=message.standby,
            draining=message.draining,
            engine=config.engine.id,
            line_max=config.engine.line_max,
            tasks_max=config.engine.tasks_max,
            code=__file__,
            cpus=sorted(os.sched_getaffinity(0)),
            fds=sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
        )
        if self.step("start"):
            BEHAVIOURS[self.behaviour](self)

    def step(self, name: str) -> bool:
        """Whether it goes on at this step as it should."""
        deed = self.deeds.get(name)
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif deed == "decline":
            control.send(self.control, control.Declined(f"it declines at {name}"))
        return deed is None

    def serve(self) -> None:
        self.listener.setblocking(False)
        while True:
            if self.beats:
                self.scoreboard.write(self.row, Row(time.monotonic_ns(), os.getpid(), 3, 4, 1))
            met = [fd for fds in self.peers.values() for fd in fds]
            readable, _, _ = select.select([self.control, self.listener, *met], [], [], BEAT_S)
            for slot, fds in self.peers.items():
                self.peers[slot] = [fd for fd in fds if fd not in readable or self.read_greeting(slot, fd)]
            if self.listener in readable:
                self.greet()
            if self.control in readable:
                self.hear()

    def greet(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        with sock:
            sock.sendall(f"worker {self.slot} pid {os.getpid()}\n".encode())

    def hear(self) -> None:
        received = control.receive(self.control)
        if received is None:
            self.note(orphaned=True)
            sys.exit(0)
        message, fds, rest = received
        match message:
            case control.Peer(slot, generation, side, succeeds):
                self.note(peer=slot, generation=generation, side=side, succeeds=succeeds, fds=len(fds))
                self.meet(slot, fds)
                if succeeds:
                    self.step("peer")
            case control.Adopt(role, peer):
                self.note(adopt=role, peer=peer, rest=rest.decode())
                with socket.socket(fileno=fds[0]) as sock:
                    sock.sendall(f"ok worker={self.slot} rest={len(rest)}\n".encode())
            case control.Stop(deadline_s):
                self.note(stop=deadline_s)
                if self.obeys:
                    control.send(self.control, control.Stopping())
                    sys.exit(0)
            case _:
                self.hear_of_change(message, fds)

    def hear_of_change(self, message: control.Message, fds: list[int]) -> None:
        match message:
            case control.TakeOver(generation):
                self.note(take_over=generation, fds=len(fds))
                self.meet("partner", fds)
                self.step("take_over")
            case control.HandOver(generation):
                self.note(hand_over=generation, fds=len(fds))
                self.meet("partner", fds)
                self.hand_over()
            case control.Resume():
                self.note(resume=True)
                if self.step("resume"):
                    control.send(self.control, control.Resumed(7, 1))
            case control.Inherit():
                self.note(inherit=True)
                if self.step("inherit"):
                    control.send(self.control, control.Resumed(7, 1))
            case control.Remap(workers):
                self.note(remap=workers)
                if self.step("remap"):
                    control.send(self.control, control.Remapped(7, 1))
            case control.Route(workers):
                self.note(route=workers)
                if self.step("route"):
                    control.send(self.control, control.Routed())
            case control.Retire(workers):
                self.note(retire=workers)
                if self.step("retire"):
                    control.send(self.control, control.Moved(3, 0, 1))
            case control.Left(slot):
                self.note(left=slot)
            case control.Drain(on):
                self.note(drain=on)
            case control.Configure(number, config):
                self.note(configure=number, tasks_max=config["engine"]["tasks_max"])
                why = "it cannot" if self.deeds.get("configure") == "refuse" else ""
                if why or self.step("configure"):
                    control.send(self.control, control.Configured(number, why))

    def hand_over(self) -> None:
        if not self.step("hand_over"):
            return
        control.send(self.control, control.Given(7, 1, 1))
        if self.step("given"):
            control.send(self.control, control.Moved(3, 0, 1))

    def meet(self, slot: int | str, fds: list[int]) -> None:
        """Greets the sibling over both sockets; replaces what there was to an earlier process of the slot."""
        for fd in self.peers.pop(slot, []):
            os.close(fd)
        self.peers[slot] = fds
        for fd in fds:
            try:
                os.write(fd, f"from {self.slot} pid {os.getpid()}".encode())
            except BrokenPipeError:
                pass

    def read_greeting(self, slot: int | str, fd: int) -> bool:
        """False, and closed, once the sibling is gone."""
        try:
            greeting = os.read(fd, 100)
        except ConnectionResetError:
            # It had not read ours. The kernel says so once, ahead of its last words.
            return True
        if greeting:
            with socket.socket(fileno=os.dup(fd)) as sock:
                self.note(met=greeting.decode(), kind=sock.type)
            return True
        os.close(fd)
        return False

    def be_ready(self) -> None:
        self.scoreboard.write(self.row, Row(time.monotonic_ns(), os.getpid(), 0, 0, 1))
        version = 1 if self.behaviour == "old" else control.VERSION
        control.send(self.control, control.Ready(7, 1, version, release="fake"))
        self.serve()

    def be_silent(self) -> None:
        self.beats = False
        self.be_ready()

    def be_stubborn(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.obeys = False
        self.be_ready()

    def fail(self) -> None:
        control.send(self.control, control.Failed("the store is damaged"))
        sys.exit(1)

    def leave(self) -> None:
        sys.exit(5)

    def hang(self) -> None:
        while True:
            signal.pause()

    def babble(self) -> None:
        self.control.send(b'{"type":"nonsense"}\n')
        self.hang()

    def repeat(self) -> None:
        control.send(self.control, control.Ready(version=control.VERSION))
        self.be_ready()

    def close_control(self) -> None:
        control.send(self.control, control.Ready(version=control.VERSION))
        self.control.close()
        self.hang()


BEHAVIOURS: dict[str, Callable[[FakeWorker], None]] = {
    "ready": FakeWorker.be_ready,
    "old": FakeWorker.be_ready,
    "silent": FakeWorker.be_silent,
    "stubborn": FakeWorker.be_stubborn,
    "fail": FakeWorker.fail,
    "exit": FakeWorker.leave,
    "hang": FakeWorker.hang,
    "babble": FakeWorker.babble,
    "repeat": FakeWorker.repeat,
    "close control": FakeWorker.close_control,
}


if __name__ == "__main__":
    FakeWorker().run()
