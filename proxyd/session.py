"""One connection to one worker of an engine, without I/O (PROTOCOL.md, "Proxy verbs").

    NEW ──greet()──► GREETING ──ok──► SERVING ──!drain──► DRAINING (what is pushed now is not taken)
                         │
                         └──err──► Refusal, the connection is given up

Bytes go into `feed`, events come out; what a method returns as bytes is to be
written. The hot line, `!task` with plain bytes, is cut and never parsed.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import NamedTuple

from proxyd.errors import LinkBroken
from wire import DEFAULT_LINE_MAX_BYTES, PROTOCOL_VERSION
from wire.errors import BadLine, Refused, WireError
from wire.fields import read_id
from wire.heads import HeadTable
from wire.lines import Line, LineReader, format_line, parse, read_count, read_refused
from wire.tasks import PushHead, push_head_table, read_push_head

# More workers than CPUs of any machine: what an engine says is not believed beyond it.
WORKERS_MAX = 1024
RATE_MAX_DIGITS = 15
# What an engine that is busy did not say: when to send a report again (s).
RESEND_DEFAULT_S = 1.0
RESEND_MAX_S = 30.0


class LinkState(enum.Enum):
    """Where a connection stands."""

    NEW = "new"
    GREETING = "greeting"
    SERVING = "serving"
    DRAINING = "draining"


Push = tuple[bytes, PushHead, list[bytes]]
"""(task id, head, targets): a plain tuple, the one event that is hot."""


class Greeted(NamedTuple):
    """The engine's answer to hello: who it is, how many workers it has, and where it keeps its tasks.

    `store` is empty where it does not say. `tells`: it will say when all that waits was pushed.
    `receipts`: it takes what was signed of a task.
    """

    engine: str
    workers: int
    store: str = ""
    tells: bool = False
    receipts: bool = False


class Credited(NamedTuple):
    """The engine has taken the credit: it may push."""


class Counted(NamedTuple):
    """How many workers the engine has now, as its answer to a beat says."""

    workers: int
    prefetch_bytes_per_s: int = 0
    """What prefetches may bring here: this agent's part of what they may to the fleet. 0: no bound."""


class Refusal(NamedTuple):
    """The engine refused hello or ready: the connection is of no use."""

    refused: Refused


class BadPush(NamedTuple):
    """A push that cannot be done, with an id that it can be reported failed by."""

    task_id: bytes
    total: int
    error: str


class Cancel(NamedTuple):
    """These tasks were taken back."""

    task_ids: list[bytes]


class Drain(NamedTuple):
    """The engine goes away; `to` are the addresses it names."""

    to: list[str]


class Engines(NamedTuple):
    """The engine names the others of its cluster, all that it knows."""

    addresses: list[str]


class CaughtUp(NamedTuple):
    """All that this worker had for us when the connection greeted has been pushed."""


class Drop(NamedTuple):
    """The caches are to drop all that they hold."""

    task_id: bytes


class Ask(NamedTuple):
    """An operator wants to know something, see `asks.py`. `head` and `targets` are those of a task."""

    number: int
    what: str
    head: PushHead | None
    targets: list[bytes]
    fault: str = ""
    """Why it cannot be answered."""


class Resend(NamedTuple):
    """A report the engine could not take now: to be sent again after `wait_s`."""

    line: bytes
    wait_s: float


class Complaint(NamedTuple):
    """Something to log: the connection goes on."""

    text: str


Event = (
    Push | Greeted | Credited | Counted | Refusal | BadPush | Cancel | Drain | Engines | CaughtUp | Drop
    | Ask | Resend | Complaint
)  # fmt: skip


class Identity(NamedTuple):
    """Who the agent greets as."""

    name: str
    group: str
    layer: int


class FrozenSession(NamedTuple):
    """A session as values. `part` is an unfinished line.

    `waiting` is what was asked and not answered: a verb, or the whole line (with its LF) of a report that
    must arrive.
    """

    line_max: int
    draining: bool
    part: bytes
    waiting: list[bytes]

    @property
    def unanswered(self) -> list[bytes]:
        """The reports that must arrive."""
        return [asked for asked in self.waiting if asked.endswith(b"\n")]


class LinkSession:
    """The agent's end of one connection.

    After each request that is written, the reply is waited for in order; `unanswered()` gives the
    reports that were sent and not answered when the connection is lost.
    """

    __slots__ = ("_heads", "_reader", "_waiting", "line_max", "state")

    def __init__(self, line_max: int = DEFAULT_LINE_MAX_BYTES) -> None:
        self.state = LinkState.NEW
        self.line_max = line_max
        self._reader = LineReader(line_max)
        self._heads: HeadTable[PushHead] = push_head_table()
        # What was asked and not answered, in order: a verb, or the whole line of a report that must arrive.
        self._waiting: deque[str | bytes] = deque()

    def freeze(self) -> FrozenSession:
        """What `thaw` needs. Nothing is changed. It must have been greeted."""
        part = self._reader.rest
        draining = self.state is LinkState.DRAINING
        waiting = [asked.encode() if isinstance(asked, str) else asked for asked in self._waiting]
        return FrozenSession(self.line_max, draining, part, waiting)

    @classmethod
    def thaw(cls, frozen: FrozenSession) -> LinkSession:
        """A session that goes on where another was frozen, at any byte."""
        session = cls()
        session._set_line_max(frozen.line_max)
        session.state = LinkState.DRAINING if frozen.draining else LinkState.SERVING
        for asked in frozen.waiting:
            session._waiting.append(asked if asked.endswith(b"\n") else asked.decode())
        session._reader.feed(frozen.part)
        return session

    def _set_line_max(self, line_max: int) -> None:
        self.line_max = line_max
        self._reader.line_max = max(line_max, DEFAULT_LINE_MAX_BYTES)

    def greet(
        self,
        who: Identity,
        worker: int,
        signature: dict[str, str | int] | None = None,
        drop_after_s: int | None = None,
        receipt_key: str = "",
    ) -> bytes:
        """The hello. `signature`: the fields key, ts, nonce and sig.

        `drop_after_s`: after how long an absence the engine may ask for a drop of the whole cache.
        `receipt_key`: what receipts are signed with, if that is known by now.
        """
        if self.state is not LinkState.NEW:
            raise RuntimeError(f"a session greets once; it is {self.state.value}")
        self.state = LinkState.GREETING
        self._waiting.append("hello")
        fields: dict[str, str | int | float | None] = {"v": PROTOCOL_VERSION, "role": "proxy"}
        fields |= {"name": who.name, "group": who.group, "layer": who.layer, "worker": worker, "learn": 1}
        fields |= {"catch_up": 1, "drop_after": drop_after_s, "asks": 1, "verify": 1}
        fields["receipt_key"] = receipt_key or None
        return format_line("hello", fields | (signature or {}))

    def ready(self, credit: int) -> bytes:
        """Lets the engine have `credit` targets outstanding here."""
        return self._request("ready", {"credit": credit})

    def beat(self, figures: dict[str, str | int | float | None]) -> bytes:
        """Tells that the agent is alive."""
        return self._request("beat", figures)

    def answer(self, number: int, text: str) -> bytes:
        """Answers an `Ask`."""
        self._waiting.append("answer")
        return format_line("answer", {"ask": number}, [text])

    def _request(self, verb: str, fields: dict[str, str | int | float | None]) -> bytes:
        self._waiting.append(verb)
        return format_line(verb, fields)

    def report(self, kept: list[bytes], active: list[bytes]) -> bytes:
        """Report lines, of which `kept` must arrive."""
        self._waiting.extend(kept)
        self._waiting.extend(["report"] * len(active))
        return b"".join(kept + active)

    @property
    def asked(self) -> int:
        """Requests without a reply so far."""
        return len(self._waiting)

    @property
    def greeted(self) -> bool:
        """Whether the engine has taken the hello."""
        return self.state in (LinkState.SERVING, LinkState.DRAINING)

    @property
    def owes_reports(self) -> bool:
        """Whether a report was sent that no reply came for."""
        return any(isinstance(waiting, bytes) for waiting in self._waiting)

    def unanswered(self) -> list[bytes]:
        """The reports that no reply came for. The session is over."""
        lines = [waiting for waiting in self._waiting if isinstance(waiting, bytes)]
        self._waiting.clear()
        return lines

    def feed(self, data: bytes) -> list[Event]:
        """What `data` completes, in order. Raises: LinkBroken; what came before it in `data` is lost."""
        reader = self._reader
        lines = reader.feed(data)
        events: list[Event] = []
        # Before the greeting is answered no push is hot: none may come.
        plain = reader.plain and self.greeted
        for line in lines:
            if self.state is LinkState.DRAINING and line.startswith(b"!task "):
                # The engine pushes it again, on another connection, as all that was not reported.
                continue
            hot = plain and line.startswith(b"!task ")
            event = self._cut_push(line) if hot else self._read(line)
            if event is not None:
                events.append(event)
        if reader.overflow is not None:
            raise LinkBroken(f"the engine sent a line that is too long: {reader.overflow}")
        return events

    def _cut_push(self, line: bytes) -> Event | None:
        try:
            cut = self._heads.cut(line)
        except WireError:
            cut = None
        if cut is None:
            return self._read(line)
        task_id, head, targets = cut
        items = targets.split(b" ")
        if b"" in items:
            return self._read(line)
        return task_id, head, items

    def _read(self, raw: bytes) -> Event | None:
        try:
            line = parse(raw)
        except BadLine as error:
            if raw.startswith(b"!"):
                return Complaint(f"a push that is not of the protocol's form: {error}")
            raise LinkBroken(f"the engine does not speak the protocol: {error}") from None
        if not line.verb.startswith("!"):
            return self._take_reply(line)
        if self.state in (LinkState.NEW, LinkState.GREETING):
            raise LinkBroken(f"the engine sent {line.verb} before it answered the hello")
        return self._take_push(line)

    def _take_push(self, line: Line) -> Event | None:
        items = line.items or ()
        if line.verb == "!task":
            return _read_push(line, items)
        if line.verb == "!cancel":
            return Cancel([item.encode() for item in items])
        if line.verb == "!drain":
            self.state = LinkState.DRAINING
            return Drain([address for address in line.fields.get("to", "").split(",") if address])
        if line.verb == "!engines":
            return Engines(list(items))
        if line.verb == "!ask":
            return _read_ask(line, items)
        if self.state is LinkState.DRAINING:
            # What was pushed since then was passed over, so this says nothing of us.
            return None
        if line.verb == "!caught_up":
            return CaughtUp()
        if line.verb == "!drop":
            return _read_drop(line)
        # A push of a later version of the protocol.
        return None

    def _take_reply(self, line: Line) -> Event | None:
        if line.verb not in ("ok", "err") or not self._waiting:
            raise LinkBroken(f"the engine sent {line.verb!r} where none was asked for")
        asked = self._waiting.popleft()
        if line.verb == "err":
            return _read_refusal(asked, read_refused(line))
        if asked == "hello":
            return self._take_greeting(line.fields)
        if asked == "beat":
            workers = _read_count(line.fields, "workers", 0)
            rate = _read_rate(line.fields, "prefetch_bytes_per_s")
            return Counted(workers, rate) if 1 <= workers <= WORKERS_MAX else None
        return Credited() if asked == "ready" else None

    def _take_greeting(self, fields: dict[str, str]) -> Greeted:
        self.state = LinkState.SERVING
        self._set_line_max(_read_count(fields, "line_max", DEFAULT_LINE_MAX_BYTES))
        return read_greeted(fields)


def read_greeted(fields: dict[str, str]) -> Greeted:
    """What an engine says of itself when it is greeted. Raises: LinkBroken."""
    workers = _read_count(fields, "workers", 1)
    if not 1 <= workers <= WORKERS_MAX:
        raise LinkBroken(f"the engine says that it has {workers} workers; 1 to {WORKERS_MAX} are possible")
    tells, receipts = fields.get("catch_up") == "1", fields.get("receipts") == "1"
    return Greeted(fields.get("engine", "?"), workers, _read_name(fields, "store"), tells, receipts)


def _read_name(fields: dict[str, str], name: str) -> str:
    try:
        return read_id(fields.get(name, ""))
    except ValueError:
        return ""


def _read_count(fields: dict[str, str], name: str, default: int) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default


def _read_rate(fields: dict[str, str], name: str) -> int:
    text = fields.get(name, "")
    return int(text) if text.isdecimal() and len(text) <= RATE_MAX_DIGITS else 0


def _read_drop(line: Line) -> Event:
    try:
        return Drop(read_id(line.fields.get("task_id", "")).encode())
    except ValueError:
        return Complaint("a drop without a task id that holds")


def _read_ask(line: Line, items: tuple[str, ...]) -> Event:
    number = read_count(line.fields.get("ask", "")) or 0
    if not number:
        return Complaint("a question without a number")
    head, fault = None, ""
    if "type" in line.fields:
        try:
            head = read_push_head(line._replace(fields=line.fields | {"task_id": "-"}))
        except Refused as refused:
            fault = refused.msg
    return Ask(number, line.fields.get("what", ""), head, [item.encode() for item in items], fault)


def _read_push(line: Line, items: tuple[str, ...]) -> Event:
    try:
        task_id = read_id(line.fields.get("task_id", "")).encode()
    except ValueError:
        return Complaint("a push without a task id that holds")
    if not items:
        return BadPush(task_id, 0, "the push has no targets")
    try:
        head = read_push_head(line)
    except Refused as refused:
        return BadPush(task_id, len(items), f"this agent cannot do it: {refused.msg}")
    return task_id, head, [item.encode() for item in items]


def _read_refusal(asked: str | bytes, refused: Refused) -> Event | None:
    if asked in ("hello", "ready"):
        return Refusal(refused)
    if isinstance(asked, bytes) and refused.retry:
        wait_s = RESEND_DEFAULT_S if refused.retry_ms is None else refused.retry_ms / 1000
        return Resend(asked, min(wait_s, RESEND_MAX_S))
    return Complaint(f"the engine refused a {asked if isinstance(asked, str) else 'report'}: {refused}")
