"""What a purge costs the agent: `python -m tests.proxyd.measure [varnish|ats|squid] [TASKS] [CREDIT]`.

The engine is played by this process with rendered lines, so that what is measured is the agent
(CPU microseconds a purge, all in) and the real cache. Prints one line of JSON.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

import psutil

from tools.servers import Agent, Origin, Squid, TrafficServer, Varnish

WORKERS = 2
LINES_A_PUSH = 100


def cpu_s(pid: int) -> float:
    """CPU time of a process and its children, in seconds."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return float(sum(each.user + each.system for each in times))


class Pusher:
    """One worker of a pretended engine: pushes within the credit, counts reports."""

    def __init__(self, sock: socket.socket, worker: int, tasks: int, credit: int) -> None:
        self.sock = sock
        self._credit = credit
        self._rest = b""
        self._outstanding = 0
        self.done = 0
        self.reports = 0
        template = b"!task task_id=t%d-%d type=url -- http://www.example.com/some/path/%d-%d.html?x=1\n"
        lines = [template % (worker, n, worker, n) for n in range(tasks)]
        batches = [b"".join(lines[n : n + LINES_A_PUSH]) for n in range(0, tasks, LINES_A_PUSH)]
        self._batches = batches[::-1]

    def greet(self, worker: int) -> None:
        stream = self.sock.makefile("rb")
        stream.readline()
        hello = f"ok v=1 engine=e worker={worker} workers={WORKERS} shards=64 line_max=1048576 store=s\n"
        self.sock.sendall(hello.encode())
        stream.readline()
        self.sock.sendall(b"ok\n")

    def push(self) -> None:
        while self._batches and self._outstanding + LINES_A_PUSH <= self._credit:
            self.sock.sendall(self._batches.pop())
            self._outstanding += LINES_A_PUSH

    def read(self) -> None:
        lines = (self._rest + self.sock.recv(1 << 20)).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"report"):
                if not line.startswith(b"report state=done "):
                    raise SystemExit(line.decode())
                ended = line.count(b" ") - 3
                self.done += ended
                self._outstanding -= ended
                self.reports += 1
        self.sock.sendall(b"ok n=1\n" * len(lines))


def measure(kind: str, tasks: int, credit: int) -> dict[str, object]:
    """One run."""
    server = {"varnish": Varnish, "ats": TrafficServer, "squid": Squid}[kind]
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with (
        listener,
        Origin() as origin,
        server(origin.address) as cache,
        Agent([address], [("c1", kind, cache.address)]) as agent,
    ):
        pushers = greet_all(listener, tasks, credit)
        began, agent_s, cache_s = time.monotonic(), cpu_s(agent.pid), cpu_s(cache.pid)
        push_all(pushers, tasks)
        took_s = time.monotonic() - began
        return {
            "cache": kind,
            "purges": tasks,
            "credit": credit,
            "per_s": round(tasks / took_s),
            "agent_us": round((cpu_s(agent.pid) - agent_s) / tasks * 1e6, 2),
            "cache_us": round((cpu_s(cache.pid) - cache_s) / tasks * 1e6, 2),
            "ids_a_report": round(tasks / sum(pusher.reports for pusher in pushers), 1),
            "agent_mib": psutil.Process(agent.pid).memory_info().rss >> 20,
        }


def greet_all(listener: socket.socket, tasks: int, credit: int) -> list[Pusher]:
    """Takes the agent's links as they come: worker 0 first, whose greeting tells of the others."""
    pushers = []
    for worker in range(WORKERS):
        sock, _ = listener.accept()
        pusher = Pusher(sock, worker, tasks // WORKERS, credit)
        pusher.greet(worker)
        pushers.append(pusher)
    return pushers


def push_all(pushers: list[Pusher], tasks: int) -> None:
    """Pushes until all is reported done."""
    selector = selectors.DefaultSelector()
    for pusher in pushers:
        selector.register(pusher.sock, selectors.EVENT_READ, pusher)
    while sum(pusher.done for pusher in pushers) < tasks:
        for pusher in pushers:
            pusher.push()
        for key, _ in selector.select(10):
            key.data.read()


if __name__ == "__main__":
    given = sys.argv[1:4]
    kind, tasks, credit = given + ["varnish", "200000", "8000"][len(given) :]
    print(json.dumps(measure(kind, int(tasks), int(credit))))
