"""An agent, told what to do by an engine that is pretended: none of an engine's CPU is part of the figure."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from tools.bench.errors import BenchError
from tools.servers import Agent

DEADLINE_S = 180.0
# Targets that are pushed and not reported, about as an engine's credit allows.
AHEAD = 8000
CacheAddress = tuple[str, str, str]


class Spent(NamedTuple):
    """What a number of targets took."""

    wall_s: float
    cpu_us: float
    """Of the agent, a target."""


class PretendedEngine:
    """One link to one agent."""

    def __init__(self, sock: socket.socket, agent: Agent) -> None:
        self._sock = sock
        self.agent = agent
        self._process = psutil.Process(agent.pid)
        self._greet()

    def _greet(self) -> None:
        stream = self._sock.makefile("rb")
        stream.readline()
        self._sock.sendall(b"ok v=1 engine=e worker=0 workers=1 shards=64 line_max=1048576 store=s\n")
        stream.readline()
        self._sock.sendall(b"ok\n")

    def peak_bytes(self) -> int:
        """The most memory that the agent has had so far."""
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def push(self, tasks: Iterable[tuple[bytes, list[bytes]]], ahead: int = AHEAD) -> Spent:
        """Pushes tasks, each (fields, targets), and waits until all are done. Raises: BenchError.

        At the most `ahead` targets are pushed and not reported.
        """
        pushed = done = number = 0
        rest = b""
        left: Iterator[tuple[bytes, list[bytes]]] | None = iter(tasks)
        before, began = self._process.cpu_times(), time.perf_counter()
        deadline = time.monotonic() + DEADLINE_S
        selector = selectors.DefaultSelector()
        selector.register(self._sock, selectors.EVENT_READ)
        while left is not None or done < pushed:
            while left is not None and pushed - done < ahead:
                task = next(left, None)
                if task is None:
                    left = None
                    break
                fields, targets = task
                number += 1
                line = (number, len(targets), fields, b" ".join(targets))
                self._sock.sendall(b"!task task_id=t%d-%d %b -- %b\n" % line)
                pushed += len(targets)
            if not selector.select(1.0) and time.monotonic() > deadline:
                raise BenchError(f"{done} of {pushed} targets done within {DEADLINE_S:g} s")
            *lines, rest = (rest + self._sock.recv(1 << 20)).split(b"\n")
            for said in lines:
                if said.startswith(b"report state=failed"):
                    raise BenchError(f"a task failed: {said[:300]!r}")
                if said.startswith(b"report state=done"):
                    ids = said.partition(b" -- ")[2].split(b" ")
                    done += sum(int(task_id.rpartition(b"-")[2]) for task_id in ids)
            self._sock.sendall(b"ok n=1\n" * len(lines))
        wall_s, after = time.perf_counter() - began, self._process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return Spent(wall_s, cpu_s / max(pushed, 1) * 1e6)


@contextmanager
def pretended_engine(caches: list[CacheAddress], more: str = "") -> Iterator[PretendedEngine]:
    """An agent for some caches, linked. `more` is TOML for its configuration."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with Agent([f"{host}:{port}"], caches, more=more) as agent:
            sock, _ = listener.accept()
            with sock:
                yield PretendedEngine(sock, agent)
