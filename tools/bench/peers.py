"""What else one could use, started privately in the same run, with the same 350 bytes a task.

Each acknowledges only what is on the disk: beanstalkd syncs its binlog at each put
(`-f 0`), Redis its append-only file once a turn of its loop (`appendfsync always`).
The floor (floor.py) is what a loop in Python costs that does nothing else.
"""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.bench.accept import ONE_EACH, PIPELINED
from tools.bench.lines import id_of, post_lines
from tools.bench.load import Measured, Shape, Speech, drive
from tools.bench.programs import Program, Tree, wait_for
from tools.bench.report import Row, row_of
from tools.bench.rig import Address, folder

Start = Callable[[Path], tuple[list[Program], Callable[[], list[Address]]]]
"""Starts something in a folder; says where it listens, once it does."""


def run(quick: bool) -> list[Row]:
    """The floor, and those that are installed; the others are said to be missing."""
    times = 1 if quick else 3
    many, few = (20_000, 5_000) if quick else (200_000, 50_000)
    rows: list[Row] = []
    for shape, number in ((PIPELINED, many), (ONE_EACH, few)):
        rows += [
            row_of(_floor_name(n, shape), [floor(n, number, shape) for _ in range(times)]) for n in (1, 2)
        ]
    for name, measure, numbers in (
        ("redis-server", redis, (many, few)),
        ("beanstalkd", beanstalkd, (few // 2, few // 4)),
    ):
        if shutil.which(name) is None:
            rows.append(Row(f"{name}: not installed", 0, ""))
            continue
        for shape, number in zip((PIPELINED, ONE_EACH), numbers, strict=True):
            rows.append(row_of(f"{_PEERS[name]}, {shape}", [measure(number, shape) for _ in range(times)]))
    return rows


_PEERS = {"redis-server": "Redis SET, appendfsync always", "beanstalkd": "beanstalkd put, synced binlog"}


def _floor_name(processes: int, shape: Shape) -> str:
    return f"floor: split, object, SQLite FULL, {processes} process{'es' * (processes > 1)}, {shape}"


def floor(processes: int, number: int, shape: Shape) -> Measured:
    """The bare loop, each process with a port and a file of its own."""

    def start(where: Path) -> tuple[list[Program], Callable[[], list[Address]]]:
        names = [f"floor{at}" for at in range(processes)]
        script = str(Path(__file__).with_name("floor.py"))
        programs = [
            Program(name, [sys.executable, script, "0", f"{name}.db", f"{name}.port"], where)
            for name in names
        ]
        return programs, lambda: [("127.0.0.1", int((where / f"{name}.port").read_text())) for name in names]

    measured = _measure(start, post_lines(number, processes), shape, Speech(b"", b"ok"))
    spent = measured.spent
    cpu_us = {
        "floor": round(sum(us for name, us in spent.cpu_us.items() if name.startswith("floor")), 2),
        "generator": spent.cpu_us["generator"],
    }
    return measured._replace(spent=spent._replace(cpu_us=cpu_us))


def redis(number: int, shape: Shape) -> Measured:
    """SET of the line under its id."""

    def start(where: Path) -> tuple[list[Program], Callable[[], list[Address]]]:
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(where)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        return [Program("redis", [*command, *durable], where)], lambda: [("127.0.0.1", port)]

    return _measure(start, [[_set(line) for line in post_lines(number, 1)[0]]], shape, Speech(b"", b"+OK"))


def _set(line: bytes) -> bytes:
    key = id_of(line)
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(line), line)


def beanstalkd(number: int, shape: Shape) -> Measured:
    """put of the line."""

    def start(where: Path) -> tuple[list[Program], Callable[[], list[Address]]]:
        port = free_port()
        command = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(where), "-f", "0"]
        return [Program("beanstalkd", command, where)], lambda: [("127.0.0.1", port)]

    lines = [b"put 5 0 60 %d\r\n%b\r\n" % (len(line) - 1, line[:-1]) for line in post_lines(number, 1)[0]]
    return _measure(start, [lines], shape, Speech(b"", b"INSERTED"))


def _measure(start: Start, dealt: list[list[bytes]], shape: Shape, speech: Speech) -> Measured:
    with folder() as where, _started(start, where) as (programs, addresses):
        return drive(addresses, dealt, shape, programs, speech)


@contextmanager
def _started(start: Start, where: Path) -> Iterator[tuple[list[Tree], list[Address]]]:
    programs, addresses = start(where)
    try:
        wait_for(f"{programs[0].name} answers", lambda: _answer(programs, addresses), 10)
        yield list(programs), addresses()
    finally:
        for program in programs:
            program.stop()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answer(programs: list[Program], addresses: Callable[[], list[Address]]) -> bool:
    for program in programs:
        program.check_alive()
    try:
        return all(_connects(address) for address in addresses())
    except (FileNotFoundError, ValueError):
        return False


def _connects(address: Address) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(address) == 0
