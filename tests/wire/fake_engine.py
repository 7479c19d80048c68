"""An engine for tests of clients: keeps tasks in a dict, and misbehaves as it is told.

`engine.script("post_task", reply, …)` answers the next requests of a verb with
the given bytes, or with what a function makes of (connection, line); None means
no answer at all. What is not scripted is answered as PROTOCOL.md says.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wire.compress import Compressor, Decompressor
from wire.errors import BadLine, Refused
from wire.fields import FINAL_STATES
from wire.lines import Line, LineReader, format_line, format_refused, parse
from wire.shards import worker_of

Script = bytes | None | Callable[["Connection", Line], bytes | None]


class FakeEngine:
    """A raw asyncio server; `async with` starts and stops it."""

    def __init__(self, workers: int = 1, *, path: Path | None = None, name: str = "e1") -> None:
        self.workers = workers
        self.name = name
        self.path = path
        self.port = 0
        self.tasks: dict[str, dict[str, Any]] = {}
        self.seen: list[tuple[int, Line]] = []
        """(worker, request) of all requests but greetings, as they came."""
        self.greetings: list[Line] = []
        self.connections: list[Connection] = []
        self.accepted = 0
        self.misrouted = 0
        self.line_max = 1 << 20
        self.draining = False
        self.operations: list[dict[str, Any]] = []
        """Reloads and upgrades; each runs until a test changes it."""
        self._scripts: dict[str, deque[Script]] = defaultdict(deque)
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.path}" if self.path else f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self.path:
            self._server = await loop.create_unix_server(lambda: Connection(self), str(self.path))
        else:
            self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stops listening and cuts every connection."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> FakeEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def script(self, verb: str, *replies: Script) -> None:
        self._scripts[verb].extend(replies)

    def requests(self, verb: str) -> list[Line]:
        return [line for _, line in self.seen if line.verb == verb]

    def answer(self, connection: Connection, line: Line) -> bytes | None:
        scripts = self._scripts[line.verb]
        if scripts:
            script = scripts.popleft()
            return script(connection, line) if callable(script) else script
        try:
            return getattr(self, f"do_{line.verb}", self.do_unknown)(connection, line)
        except Refused as refused:
            return format_refused(refused)

    def set_state(self, task_id: str, state: str, done: int = 0, failed: int = 0) -> None:
        """Changes a task and tells its watchers, on connections that still live."""
        task = self.tasks[task_id]
        task.update(state=state, done=done, failed=failed)
        for connection in self.connections:
            if task_id in connection.watched:
                connection.write(format_line("!state", self.counts(task_id)))
                if state in FINAL_STATES:
                    connection.watched.discard(task_id)

    def drain(self, to: str | None = None) -> None:
        for connection in self.connections:
            connection.write(format_line("!drain", {"to": to}))

    def counts(self, task_id: str) -> dict[str, Any]:
        task = self.tasks[task_id]
        return {key: task[key] for key in ("task_id", "state", "done", "failed", "total")}

    def status(self, task_id: str) -> dict[str, Any]:
        return {key: value for key, value in self.find(task_id).items() if key != "content"}

    def find(self, task_id: str) -> dict[str, Any]:
        if task_id not in self.tasks:
            raise Refused("not_found", f"no task {task_id}")
        return self.tasks[task_id]

    # -- one method a verb

    def do_unknown(self, connection: Connection, line: Line) -> bytes:
        raise Refused("unknown_verb", line.verb)

    def do_hello(self, connection: Connection, line: Line) -> bytes:
        worker = int(line.fields.get("worker", connection.worker))
        if worker >= self.workers:
            raise Refused("bad_field", f"worker: there are {self.workers}", field="worker")
        connection.worker = worker
        connection.zip_next = line.fields.get("zip") == "snappy"
        return format_line(
            "ok",
            {
                "v": 1, "engine": self.name, "worker": worker, "workers": self.workers, "shards": 64,
                "line_max": self.line_max,
            },
        )  # fmt: skip

    def do_ping(self, connection: Connection, line: Line) -> bytes:
        return b"ok now=1795250000123\n"

    def do_post_task(self, connection: Connection, line: Line) -> bytes:
        task_id = line.fields["task_id"]
        if worker_of(task_id.encode(), self.workers) != connection.worker:
            self.misrouted += 1
        content = (sorted((key, value) for key, value in line.fields.items()), sorted(line.items or ()))
        task = self.tasks.get(task_id)
        if task is not None and task["content"] != content:
            raise Refused("conflict", f"task {task_id} exists with another content")
        dup = 1 if task is not None else None
        if task is None:
            task = self.tasks[task_id] = {
                "task_id": task_id, "type": line.fields["type"], "state": "pending",
                "total": len(line.items or ()), "done": 0, "failed": 0, "created": 1000 + len(self.tasks),
                "updated": 1000, "content": content,
            }  # fmt: skip
        return format_line(
            "ok", {"task_id": task_id, "state": task["state"], "total": task["total"], "dup": dup}
        )

    def do_get_task(self, connection: Connection, line: Line) -> bytes:
        return format_line("ok", self.status(line.fields["task_id"]))

    def do_task_detail(self, connection: Connection, line: Line) -> bytes:
        task = self.find(line.fields["task_id"])
        row = {
            "proxy": "pop1", "layer": 0, "state": task["state"], "done": task["done"],
            "failed": task["failed"], "ms": 3,
        }  # fmt: skip
        return listing([row, row | {"proxy": "pop2", "layer": 1, "error": "no route"}])

    def do_cancel_task(self, connection: Connection, line: Line) -> bytes:
        task = self.find(line.fields["task_id"])
        if task["state"] not in FINAL_STATES:
            self.set_state(task["task_id"], "cancelled")
        return format_line("ok", {"task_id": task["task_id"], "state": task["state"]})

    def do_watch_task(self, connection: Connection, line: Line) -> bytes:
        task_id = line.fields["task_id"]
        reply = format_line("ok", self.status(task_id))
        if self.tasks[task_id]["state"] not in FINAL_STATES:
            connection.watched.add(task_id)
        return reply

    def do_list_tasks(self, connection: Connection, line: Line) -> bytes:
        ids = list(reversed(self.tasks))
        if "after" in line.fields:
            ids = ids[ids.index(line.fields["after"]) + 1 :]
        if state := line.fields.get("state"):
            ids = [task_id for task_id in ids if self.tasks[task_id]["state"] == state]
        return listing([self.status(task_id) for task_id in ids[: int(line.fields.get("limit", 100))]])

    def do_stats(self, connection: Connection, line: Line) -> bytes:
        figures = {"tasks": len(self.tasks), "accept_rate_1m": "12.5", "engine": self.name}
        return listing([{"name": name, "value": value} for name, value in figures.items()])

    def do_list_workers(self, connection: Connection, line: Line) -> bytes:
        row = {
            "pid": 4711, "state": "ready", "role": "serving", "generation": 3, "release": "1.0",
            "cpu_pct": "1.5", "mem": 31457280, "up_s": 60, "connections": 1,
            "tasks": 0, "restarts": 0, "heartbeat_ms": 12,
        }  # fmt: skip
        return listing([{"worker": worker} | row for worker in range(self.workers)])

    def do_engine_status(self, connection: Connection, line: Line) -> bytes:
        status = {
            "phase": "draining" if self.draining else "up", "pid": 4710, "generation": 3, "release": "1.0",
            "workers": self.workers, "ready": self.workers,
        }  # fmt: skip
        return format_line("ok", status | (self.operations[-1] if self.operations else {}))

    def do_reload(self, connection: Connection, line: Line) -> bytes:
        number = len(self.operations) + 1
        self.operations.append(
            {"operation": number, "kind": line.verb, "state": "running", "step": "", "why": "", "ms": 0}
        )
        return format_line("ok", {"operation": number})

    do_upgrade = do_reload

    def do_operation(self, connection: Connection, line: Line) -> bytes:
        number = int(line.fields["operation"])
        if not 0 < number <= len(self.operations):
            raise Refused("not_found", f"no operation {number}")
        return format_line("ok", self.operations[number - 1])

    def do_drain(self, connection: Connection, line: Line) -> bytes:
        self.draining = line.verb == "drain"
        return b"ok\n"

    do_undrain = do_drain

    def do_list_proxies(self, connection: Connection, line: Line) -> bytes:
        return listing(
            [
                {
                    "proxy": "pop1", "group": "eu", "layer": 0, "listed": 0, "online": 1, "links": 2,
                    "credit": 100,
                    "outstanding": 0, "waiting": 0, "seen": 1500,
                }
            ]
        )  # fmt: skip

    def do_list_quotas(self, connection: Connection, line: Line) -> bytes:
        acme = {"key": "acme", "rate": 100, "burst": 500, "spare": -30, "taken": 20120, "refused": 12}
        in_flight = {"in_flight": 31, "in_flight_max": 1000}
        types = {"url": 20100, "url_max": 1000000, "dir": 20, "dir_max": 0}
        free = {"key": "0x10", "rate": 0, "burst": 0, "taken": 5, "refused": 0}
        return listing([acme | in_flight | types, free | in_flight | types])

    def do_list_engines(self, connection: Connection, line: Line) -> bytes:
        return listing(
            [
                {
                    "engine": "e1", "number": 1, "epoch": 3, "self": 1, "alive": 1, "leads": 1, "draining": 0,
                    "workers": 2, "unfinished": 7, "lease": 8_000, "lag": 2_000, "address": "127.0.0.1:7070",
                    "release": "1.0", "leader_epoch": 5, "error": "Redis is away",
                },
                {"engine": "e2", "number": 2, "epoch": 1, "self": 0, "alive": 0},
            ]
        )  # fmt: skip

    def do_forget_proxy(self, connection: Connection, line: Line) -> bytes:
        if line.fields.get("name") != "pop1":
            raise Refused("not_found", f"no proxy {line.fields.get('name')}")
        return b"ok\n"


def listing(rows: list[dict[str, Any]]) -> bytes:
    return format_line("ok", {"n": len(rows)}) + b"".join(format_line("+", row) for row in rows)


class Connection(asyncio.Protocol):
    """One connection to the fake engine."""

    transport: asyncio.Transport

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.worker = 0
        self.watched: set[str] = set()
        self.lines = LineReader()
        self.zip_next = False
        self.packer: tuple[Compressor, Decompressor] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.engine.connections.append(self)
        self.worker = self.engine.accepted % self.engine.workers
        self.engine.accepted += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        if self.packer is not None:
            data = self.packer[1].decompress(data)
        for raw in self.lines.feed(data):
            if self.transport.is_closing():
                return
            try:
                line = parse(raw)
            except BadLine as error:
                self.write(format_refused(Refused("bad_line", str(error))))
                continue
            if line.verb == "hello":
                self.engine.greetings.append(line)
            else:
                self.engine.seen.append((self.worker, line))
            reply = self.engine.answer(self, line)
            if reply is not None:
                self.write(reply)
            if self.zip_next and self.packer is None:
                self.packer = (Compressor(), Decompressor())

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data if self.packer is None else self.packer[0].compress(data))

    def abort(self) -> None:
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()


def cut(connection: Connection, line: Line) -> None:
    """A script: the connection is reset instead of an answer."""
    connection.abort()


def accept_then_cut(connection: Connection, line: Line) -> None:
    """A script: the task is accepted, and half of the reply arrives."""
    reply = connection.engine.do_post_task(connection, line)
    connection.write(reply[: len(reply) // 2])
    connection.close()
