"""A peer on a raw socket, written from PROTOCOL.md alone: nothing of `wire` is used.

What it reads is checked as it goes: every line ends in LF and is UTF-8, parts are
parted by one space, no key stands twice, a push never stands inside a listing.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self
from zlib import crc32

from tests.peer.waiting import PATIENCE_S

Address = tuple[str, int] | str
LISTINGS = (
    "task_detail", "list_tasks", "stats", "list_workers", "list_proxies", "list_quotas", "list_engines",
    "task_receipt", "ask_proxies",
)  # fmt: skip
_ESCAPES = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class Line(NamedTuple):
    """One line, its values and items unescaped."""

    verb: str
    fields: dict[str, str]
    items: list[str]


@dataclass(frozen=True)
class Reply:
    """The answer to one request, its rows if it was a listing."""

    ok: bool
    fields: dict[str, str]
    rows: list[dict[str, str]]

    def __getitem__(self, key: str) -> str:
        return self.fields[key]

    @property
    def code(self) -> str:
        """The error's code, "" if it is none."""
        return "" if self.ok else self.fields["code"]


class Gone(Exception):
    """The engine closed the connection."""


def shard_of(task_id: str) -> int:
    """PROTOCOL.md, "Greeting": where a task lives."""
    return crc32(task_id.encode()) % 64


def owned_by(worker: int, stem: str, count: int = 1, workers: int = 2) -> list[str]:
    """Ids that begin with `stem` and live at a worker."""
    ids: list[str] = []
    number = 0
    while len(ids) < count:
        task_id = f"{stem}-{number}"
        if shard_of(task_id) % workers == worker:
            ids.append(task_id)
        number += 1
    return ids


def unescape(text: str) -> str:
    """Raises: AssertionError for what is no escape."""
    parts = text.split("\\")
    out, at = parts[0], 1
    while at < len(parts):
        if parts[at] == "" and at + 1 < len(parts):
            out += "\\" + parts[at + 1]
            at += 2
            continue
        assert parts[at][:1] in _ESCAPES, f"an unknown escape in {text!r}"
        out += _ESCAPES[parts[at][0]] + parts[at][1:]
        at += 1
    return out


def read_line(raw: bytes) -> Line:
    """Reads a line without its LF. Raises: AssertionError for one that is not of the protocol's form."""
    text = raw.decode()
    assert all(" " <= char != "\x7f" for char in text), f"a raw control character in {raw!r}"
    head, dashes, tail = text.partition(" -- ")
    verb, *pairs = head.split(" ")
    fields: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        assert equals, f"{pair!r} in {raw!r}"
        assert key not in fields, f"{key!r} twice in {raw!r}"
        fields[key] = unescape(value)
    items = [unescape(item) for item in tail.split(" ")] if dashes else []
    assert all(items) or not dashes, f"an empty item in {raw!r}"
    return Line(verb, fields, items)


class Peer:
    """A connection. Every read has a deadline; what it pushes is kept in `pushes`."""

    def __init__(self, address: Address, timeout_s: float = PATIENCE_S) -> None:
        self.pushes: list[Line] = []
        self._buffer = b""
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout_s)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout_s)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # Writing

    def write(self, *lines: str) -> None:
        """Writes lines, all at once."""
        self.write_bytes("".join(f"{line}\n" for line in lines).encode())

    def write_bytes(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end(self) -> None:
        """Says that nothing more will be written."""
        self.socket.shutdown(socket.SHUT_WR)

    # Reading

    def receive(self) -> bytes:
        """What comes next. Raises: Gone."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError as error:
            raise Gone(str(error)) from None
        if not data:
            raise Gone(f"with {self._buffer!r} unfinished" if self._buffer else "between lines")
        return data

    def raw_line(self) -> bytes:
        """The next line without its LF. Raises: Gone, TimeoutError."""
        while b"\n" not in self._buffer:
            self._buffer += self.receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def has_line(self) -> bool:
        """Whether a whole line was read already."""
        return b"\n" in self._buffer

    def line(self) -> Line:
        return read_line(self.raw_line())

    def push(self) -> Line:
        """The next push; a reply in its place is a fault."""
        if self.pushes:
            return self.pushes.pop(0)
        line = self.line()
        assert line.verb.startswith("!"), f"wanted a push, got {line}"
        return line

    def pushed(self, count: int) -> list[Line]:
        """The next pushes."""
        return [self.push() for _ in range(count)]

    def reply(self, *, listing: bool = False) -> Reply:
        """The next reply. Pushes before it are kept."""
        while (line := self.line()).verb.startswith("!"):
            self.pushes.append(line)
        assert line.verb in ("ok", "err"), line
        rows = []
        if line.verb == "ok" and listing:
            rows = [self.line() for _ in range(int(line.fields["n"]))]
            assert all(row.verb == "+" for row in rows), rows
        if line.verb == "err":
            assert {"code", "msg"} <= line.fields.keys(), line
        return Reply(line.verb == "ok", line.fields, [row.fields for row in rows])

    def replies(self, count: int) -> list[Reply]:
        return [self.reply() for _ in range(count)]

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        data, self._buffer = self._buffer, b""
        try:
            while True:
                data += self.receive()
        except Gone:
            return data

    def is_quiet(self, for_s: float = 0.2) -> bool:
        """Whether nothing comes for a while."""
        if self.pushes or self._buffer:
            return False
        before = self.socket.gettimeout()
        self.socket.settimeout(for_s)
        try:
            self._buffer += self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return False

    # Asking

    def ask(self, request: str) -> Reply:
        """One request and its reply."""
        self.write(request)
        return self.reply(listing=request.split(" ", 1)[0] in LISTINGS)

    def ok(self, request: str) -> Reply:
        """As `ask`; the reply must be `ok`."""
        reply = self.ask(request)
        assert reply.ok, f"{request!r} got {reply.fields}"
        return reply

    def code(self, request: str) -> str:
        """As `ask`; the error's code."""
        return self.ask(request).code

    def post(self, task_id: str, more: str = "type=url", target: str = "http://example.com/a") -> Reply:
        return self.ok(f"post_task task_id={task_id} {more} -- {target}")

    def state(self, task_id: str) -> str:
        return self.ok(f"get_task task_id={task_id}")["state"]

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
