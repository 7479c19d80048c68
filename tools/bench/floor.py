"""The floor: split lines, keep an object, group-commit to SQLite, reply. A program of its own."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import sys
import threading
from pathlib import Path
from typing import cast

import uvloop


class Floor:
    """A dictionary, a table, and a thread that commits all that gathered."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: dict[bytes, tuple[bytes, bytes]] = {}
        self._loop = loop
        self._rows: list[tuple[bytes, bytes]] = []
        self._waiting: list[tuple[Connection, int]] = []
        self._busy = False
        self._jobs: queue.SimpleQueue[tuple[list[tuple[bytes, bytes]], list[tuple[Connection, int]]]]
        self._jobs = queue.SimpleQueue()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE task (id BLOB, body BLOB)")
        threading.Thread(target=self._work, daemon=True).start()

    def take(self, connection: Connection, lines: list[bytes]) -> None:
        for line in lines:
            fields = dict(part.split(b"=", 1) for part in line.partition(b" -- ")[0].split(b" ")[1:])
            self.tasks[fields[b"task_id"]] = (fields[b"type"], line)
            self._rows.append((fields[b"task_id"], line))
        self._waiting.append((connection, len(lines)))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._busy = bool(self._rows)
        if self._rows:
            self._jobs.put((self._rows, self._waiting))
            self._rows, self._waiting = [], []

    def _work(self) -> None:
        while True:
            rows, waiting = self._jobs.get()
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO task VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._reply, waiting)

    def _reply(self, waiting: list[tuple[Connection, int]]) -> None:
        self._hand_over()
        for connection, number in waiting:
            connection.transport.write(b"ok\n" * number)


class Connection(asyncio.Protocol):
    """Lines in, `ok` lines out."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        if lines:
            self._floor.take(self, lines)


async def main(port: int, path: str, port_file: str) -> None:
    """Serves until it is killed; writes the port it got to `port_file`."""
    loop = asyncio.get_running_loop()
    floor = Floor(path, loop)
    server = await loop.create_server(lambda: Connection(floor), "127.0.0.1", port, backlog=1024)
    Path(port_file).write_text(str(server.sockets[0].getsockname()[1]))  # noqa: ASYNC240 (once, at start)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), *sys.argv[2:4]))
