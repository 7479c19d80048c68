"""Prefetch of 10 KB objects by miss, through a Varnish, beside what `wrk` gets from it.

    nginx (a file for any URL) ◄── Varnish, empty ◄── proxyd, told by this process what to fetch
                                                  ◄── wrk, with as many connections, in turn with it

wrk is a C program that does nothing but this: the rate of the cache on this machine. Each run has a Varnish
of its own, so that all misses are alike; the runs alternate, so that what else the machine does hits both.
"""

from __future__ import annotations

import json
import re
import resource
import selectors
import shutil
import socket
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from tools.bench.errors import BenchError
from tools.bench.report import Aim, Row
from tools.bench.rig import folder
from tools.servers import Agent, Varnish
from tools.servers.process import Server, find_program
from tools.servers.waiting import free_port

OBJECT_BYTES = 10_000
CONNECTIONS = 16
TARGETS_A_TASK = 100
DEADLINE_S = 120.0
# A run fills this far.
STORAGE_MB = 1024

_ORIGIN = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log error;
events {{ worker_connections 512; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    open_file_cache max=10;
    client_body_temp_path {folder}/tmp/body;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location / {{ add_header Cache-Control max-age=3600; try_files /object =404; }}
    }}
}}
"""

# The headers of a prefetch.
_WALK = """\
wrk.headers["Host"] = "bench.example"
wrk.headers["User-Agent"] = "refreshd-prefetch"
wrk.headers["Accept"] = "*/*"
wrk.headers["Accept-Encoding"] = "gzip"
local number = 0
request = function()
    number = number + 1
    return wrk.format("GET", "/object/" .. number .. ".bin")
end
"""


class Origin(Server):
    """nginx that answers any URL with the same file."""

    name = "nginx"
    tries = 3

    def _command(self) -> list[str]:
        self.port = free_port()
        (self.folder / "object").write_bytes(b"x" * OBJECT_BYTES)
        (self.folder / "tmp").mkdir(exist_ok=True)
        config = _ORIGIN.format(folder=self.folder, port=self.port, user="user root;")
        path = self.folder / "nginx.conf"
        path.write_text(config)
        return [
            find_program("nginx"),
            "-p",
            str(self.folder),
            "-e",
            f"{self.folder}/error.log",
            "-c",
            str(path),
        ]

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True


class Run(NamedTuple):
    """One side of the comparison."""

    rate: float
    cpu_us: float


def run(quick: bool) -> list[Row]:
    """The rates in turn, and their ratio."""
    name = f"prefetch of {OBJECT_BYTES // 1000} KB by miss, Varnish, {CONNECTIONS} connections"
    if shutil.which("wrk") is None:
        return [Row(f"{name}: wrk is not installed (apt install wrk), nothing to compare with", 0, "")]
    times, seconds = (1, 1.0) if quick else (5, 3.0)
    generated: list[Run] = []
    prefetched: list[Run] = []
    with folder() as where, Origin() as origin:
        for _ in range(times):
            with _varnish(origin) as cache:
                generated.append(_generate(where, cache.address, seconds))
            with _varnish(origin) as cache:
                prefetched.append(_prefetch(cache.address, round(generated[-1].rate * seconds * 0.8)))
    ratios = [ours.rate / theirs.rate for ours, theirs in zip(prefetched, generated, strict=True)]
    return [
        _row(f"{name}: wrk", generated),
        _row(f"{name}: proxyd", prefetched),
        Row(
            "prefetch by miss: proxyd : wrk",
            round(median(ratios) * 100),
            "%",
            extra={"lowest": round(min(ratios) * 100), "highest": round(max(ratios) * 100)},
            aims=(Aim("value", least=80),),
        ),
    ]


def _row(name: str, runs: list[Run]) -> Row:
    rates = [run.rate for run in runs]
    cpu = {"agent" if name.endswith("proxyd") else "wrk": round(median(run.cpu_us for run in runs), 1)}
    return Row(
        name,
        round(median(rates)),
        "objects/s",
        cpu,
        {"lowest": round(min(rates)), "highest": round(max(rates))},
    )


def _varnish(origin: Origin) -> Varnish:
    return Varnish(origin.address, storage_mb=STORAGE_MB)


def _generate(where: Path, address: str, seconds: float) -> Run:
    script = where / "walk.lua"
    script.write_text(_WALK)
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), f"http://{address}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = re.search(r"(\d+) requests in ", done.stdout)
    rate = re.search(r"Requests/sec: +([0-9.]+)", done.stdout)
    if said is None or rate is None or "Non-2xx" in done.stdout:
        raise BenchError(f"wrk failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(float(rate[1]), cpu_s / int(said[1]) * 1e6)


def _prefetch(address: str, number: int) -> Run:
    """The agent, told by a pretended engine, whose CPU is so no part of the figure."""
    more = f"[slow]\nconnections = {CONNECTIONS}\nper_host = {CONNECTIONS}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
        with Agent([f"{host}:{port}"], [("v1", "varnish", address)], more=more) as agent:
            sock, _ = listener.accept()
            with sock:
                greet(sock)
                process = psutil.Process(agent.pid)
                before, began = process.cpu_times(), time.perf_counter()
                push(sock, number)
                wall_s = time.perf_counter() - began
                after = process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return Run(number / wall_s, cpu_s / number * 1e6)


def greet(sock: socket.socket) -> None:
    """Answers the agent's hello and its credit."""
    stream = sock.makefile("rb")
    stream.readline()
    sock.sendall(b"ok v=1 engine=e worker=0 workers=1 shards=64 line_max=1048576 store=s\n")
    stream.readline()
    sock.sendall(b"ok\n")


def push(sock: socket.socket, number: int) -> None:
    """Pushes so many targets, a hundred a task, at most 8,000 ahead, until all are reported done."""
    pushed = done = 0
    rest = b""
    deadline = time.monotonic() + DEADLINE_S
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    while done < number:
        while pushed < number and pushed - done < 8000:
            count = min(TARGETS_A_TASK, number - pushed)
            targets = b" ".join(b"http://bench.example/object/%d.bin" % (pushed + n) for n in range(count))
            sock.sendall(b"!task task_id=t%d-%d type=prefetch -- %b\n" % (pushed, count, targets))
            pushed += count
        if not selector.select(1.0) and time.monotonic() > deadline:
            raise BenchError(f"{done} of {number} prefetched within {DEADLINE_S:g} s")
        *lines, rest = (rest + sock.recv(1 << 20)).split(b"\n")
        for line in lines:
            if line.startswith(b"report state=failed"):
                raise BenchError(f"a prefetch failed: {line[:300]!r}")
            if line.startswith(b"report state=done"):
                done += sum(int(task.rpartition(b"-")[2]) for task in line.partition(b" -- ")[2].split(b" "))
        sock.sendall(b"ok n=1\n" * len(lines))


if __name__ == "__main__":
    print(json.dumps([row._asdict() for row in run(quick=True)], indent=1))
