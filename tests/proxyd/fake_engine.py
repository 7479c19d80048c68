"""An engine made of raw sockets and threads, as a test sees one: what came, and what to send."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from tools.servers import wait_until

TIMEOUT_S = 15.0


class FakeLink:
    """One accepted connection. `lines` are what the agent sent, greeting and beats included."""

    def __init__(self, engine: FakeEngine, sock: socket.socket) -> None:
        self._engine = engine
        self._sock = sock
        self._lock = threading.Lock()
        self.lines: list[str] = []
        self.worker = -1
        self.name = ""
        self.greeted = False
        self.closed = False
        self.silent = False

    def serve(self) -> None:
        """Reads until the agent closes, answering as `FakeEngine.answer` says."""
        try:
            with self._sock.makefile("rb") as stream:
                for raw in stream:
                    line = raw.decode().rstrip("\n")
                    answer = self._engine.answer(self, line)
                    self.lines.append(line)
                    if not self.silent and answer:
                        self.send(answer)
        except OSError:
            pass
        self.closed = True

    def send(self, text: str) -> None:
        """Sends lines as they stand."""
        with self._lock:
            try:
                self._sock.sendall(text.encode())
            except OSError:
                self.closed = True

    def push(self, task_id: str, *targets: str, type: str = "url", **fields: object) -> None:
        """Pushes a task."""
        extra = "".join(f" {key}={value}" for key, value in fields.items())
        self.send(f"!task task_id={task_id} type={type}{extra} -- {' '.join(targets)}\n")

    def close(self) -> None:
        """Ends the connection."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def of(self, verb: str) -> list[str]:
        """The lines of one verb."""
        return [line for line in self.lines if line.split(" ")[0] == verb]

    def reports(self) -> list[dict[str, str]]:
        """The reports, a dict each; the items stand under "items"."""
        return [read_report(line) for line in self.of("report")]

    def done_ids(self) -> list[str]:
        """Ids that were reported done, in order."""
        return [
            task_id
            for report in self.reports()
            if report["state"] == "done"
            for task_id in report["items"].split()
        ]

    def ended(self, task_id: str) -> dict[str, str] | None:
        """The failed report of a task, or a made-up one for a done task."""
        for report in self.reports():
            if report.get("task_id") == task_id and report["state"] == "failed":
                return report
        return {"state": "done"} if task_id in self.done_ids() else None


def read_report(line: str) -> dict[str, str]:
    """A report line as a dict."""
    head, _, items = line.partition(" -- ")
    return dict(pair.split("=", 1) for pair in head.split(" ")[1:]) | {"items": items}


class FakeEngine:
    """Greets like an engine with `workers` workers, as `id`; `store` is what it says of its tasks.

    Where it `tells`, it says that it will say `!caught_up`; a test sends that.

    `answer` may be replaced.

    A new connection of a name to a worker replaces the older one, which is closed.
    """

    def __init__(
        self,
        workers: int = 1,
        port: int = 0,
        line_max: int = 1 << 20,
        *,
        id: str = "",
        store: str = "",
        tells: bool = False,
    ) -> None:
        self.workers = workers
        self.line_max = line_max
        self.links: list[FakeLink] = []
        self.answer: Callable[[FakeLink, str], str] = self.answer_well
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self.id = id or f"fake{self.port}"
        self.store = store
        self.tells = tells
        self.receipts = False
        """Whether it takes receipts."""
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            link = FakeLink(self, sock)
            self.links.append(link)
            threading.Thread(target=link.serve, daemon=True).start()

    def answer_well(self, link: FakeLink, line: str) -> str:
        """What a good engine answers."""
        verb, *pairs = line.partition(" -- ")[0].split(" ")
        fields = dict(pair.split("=", 1) for pair in pairs)
        if verb == "hello":
            if fields["role"] == "client":
                return f"ok v=1 engine={self.id} worker=0 workers={self.workers} shards=64 line_max=65536\n"
            link.worker = int(fields["worker"])
            if link.worker >= self.workers:
                return "err code=bad_field field=worker msg=no\\ssuch\\sworker\n"
            link.name = fields["name"]
            link.greeted = True
            self._replace_older(link)
            store = f" store={self.store}" if self.store else ""
            store += " catch_up=1" if self.tells else ""
            store += " receipts=1" if self.receipts else ""
            return (
                f"ok v=1 engine={self.id} worker={link.worker} workers={self.workers} shards=64"
                f" line_max={self.line_max}{store}\n"
            )
        if verb == "beat":
            return f"ok now=1 workers={self.workers}\n"
        return "ok n=1\n" if verb == "report" else "ok\n"

    def _replace_older(self, newest: FakeLink) -> None:
        for link in self.links:
            if link is not newest and (link.name, link.worker) == (newest.name, newest.worker):
                link.close()

    def live(self, worker: int = 0) -> FakeLink | None:
        """The newest connection to a worker that is ready."""
        for link in reversed(self.links):
            if link.worker == worker and not link.closed and link.of("ready"):
                return link
        return None

    def wait_link(self, worker: int = 0, *, newer_than: FakeLink | None = None) -> FakeLink:
        """Waits until the agent is ready at a worker, on another connection than `newer_than`."""

        def ready() -> FakeLink | None:
            link = self.live(worker)
            return link if link is not newer_than else None

        link = wait_until(ready, TIMEOUT_S, f"a link to worker {worker}")
        assert link is not None
        return link

    def stop(self) -> None:
        """Closes everything."""
        # shutdown wakes the thread that waits in accept.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(TIMEOUT_S)
        for link in self.links:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def engines(*workers: int, store: str = "") -> Iterator[list[FakeEngine]]:
    """Several engines at once; with a store, they share it."""
    made = [FakeEngine(count, store=store) for count in workers]
    try:
        yield made
    finally:
        for engine in made:
            engine.stop()
