"""What else one could use, started privately in the same run with the same lines.

Each acknowledges only what is on the disk: beanstalkd syncs its binlog at each put
(`-f 0`), Redis its append-only file (`appendfsync always`). The floor is a bare loop
that splits the lines, keeps an object a task and group-commits to SQLite, and does
nothing else: no checks, no states, nobody to push to.
"""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

from tools.bench.load import Measured, drive, post_lines
from tools.bench.report import Row
from tools.bench.rig import Folder, Program, wait_for


def run(quick: bool) -> list[Row]:
    """Those that are installed; the others are said to be missing."""
    many, few = (20_000, 5_000) if quick else (200_000, 50_000)
    rows = [_floor(many), _floor_single(few)]
    if shutil.which("redis-server"):
        rows += [_redis(many, 8, 64), _redis(few, 50, 1)]
    else:
        rows.append(Row("redis-server is not installed", "", 0))
    if shutil.which("beanstalkd"):
        rows += [_beanstalkd(few // 2, 8, 64), _beanstalkd(few // 2, 50, 1)]
    else:
        rows.append(Row("beanstalkd is not installed", "", 0))
    return rows


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _row(name: str, measured: Measured) -> Row:
    extra = {"p50_ms": measured.p50_ms, "p99_ms": measured.p99_ms}
    return Row(name, "tasks/s", measured.rate, cpu_us=measured.cpu_us, extra=extra)


def _measure(
    name: str,
    command: list[str],
    folder: Path,
    port: int,
    lines: list[bytes],
    shape: tuple[int, int],
    head: bytes,
) -> Measured:
    program = Program(name, command, folder)
    try:
        wait_for(f"{name} answers", lambda: _answers(port), 10)
        return drive(("127.0.0.1", port), [lines], *shape, [program], greeting=b"", head=head)
    finally:
        program.stop()


def _redis(number: int, connections: int, depth: int) -> Row:
    def command(line: bytes) -> bytes:
        task_id = line[18:50]
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(task_id), task_id, len(line), line)

    port = _free_port()
    lines = [command(line) for line in post_lines(number, 1)[0]]
    with Folder() as folder:
        start = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        shape = (connections, depth)
        measured = _measure("redis", [*start, *durable], folder, port, lines, shape, b"+OK")
    return _row(f"Redis SET, appendfsync always, {connections}×{depth}", measured)


def _beanstalkd(number: int, connections: int, depth: int) -> Row:
    port = _free_port()
    lines = [b"put 5 0 60 %d\r\n%b\r\n" % (len(line) - 1, line[:-1]) for line in post_lines(number, 1)[0]]
    with Folder() as folder:
        command = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(folder), "-f", "0"]
        shape = (connections, depth)
        measured = _measure("beanstalkd", command, folder, port, lines, shape, b"INSERTED")
    return _row(f"beanstalkd, synced binlog, {connections}×{depth}", measured)


def _floor(number: int) -> Row:
    return _row("floor: split, dict, SQLite, one process, 8×64", _measure_floor(number, 8, 64))


def _floor_single(number: int) -> Row:
    return _row("floor: split, dict, SQLite, one process, 50×1", _measure_floor(number, 50, 1))


def _measure_floor(number: int, connections: int, depth: int) -> Measured:
    port = _free_port()
    with Folder() as folder:
        command = [
            sys.executable,
            str(Path(__file__).with_name("floor.py")),
            str(port),
            str(folder / "floor.db"),
        ]
        lines = post_lines(number, 1)[0]
        return _measure("floor", command, folder, port, lines, (connections, depth), b"ok")
