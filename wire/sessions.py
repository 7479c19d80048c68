"""The two ends of a connection as state machines, without I/O.

Engine side, `Greeting`: NEW until the first request, which alone may be `hello`.

    NEW ── hello accepted ──► GREETED
     └──── any other line ──► ANONYMOUS

Peer side, `ReplyReader`: replies come in the order of the requests, so it holds
one entry a request that is still unanswered; a listing collects its rows; a
push belongs to no request and never stands inside a listing.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from wire import DEFAULT_LINE_MAX_BYTES
from wire.errors import BadLine, PeerMisbehaved, Refused, WireError
from wire.fields import missing_field
from wire.lines import Line, LineReader, parse, read_count, read_refused
from wire.verbs import LIST_MAX, VERBS, read_fields

Token = TypeVar("Token")

# A fleet, a task's proxies and a page of tasks are all far below this.
LISTING_MAX = 10 * LIST_MAX


class GreetingState(enum.Enum):
    """Where a connection stands with respect to its greeting."""

    NEW = "new"
    GREETED = "greeted"
    ANONYMOUS = "anonymous"


class Hello(NamedTuple):
    """A greeting whose form is right; whether its signature holds is not looked at."""

    role: str
    key: str | None
    ts: int
    nonce: str
    sig: str
    worker: int | None
    zip: str | None
    name: str
    group: str | None
    layer: int | None
    learn: bool = False
    """Whether a proxy wants to be told of other engines (`!engines`)."""
    catch_up: bool = False
    """Whether a proxy wants to be told that it has been pushed all that waited for it (`!caught_up`)."""
    drop_after_s: int | None = None
    """After how long an absence a proxy may be told to drop its whole cache (`!drop`); None: never."""
    asks: bool = False
    """Whether a proxy answers questions (`!ask`)."""
    verify: bool = False
    """Whether a proxy knows `verify=1`: what it then reports done was seen."""
    receipt_key: str = ""
    """What a proxy signs its receipts with; empty where it does not say."""


class Greeting:
    """What a connection may do, as far as its greeting decides it."""

    __slots__ = ("state",)

    def __init__(self, state: GreetingState = GreetingState.NEW) -> None:
        """`state`: where a connection stood that comes from another process."""
        self.state = state

    def read_hello(self, line: Line) -> Hello:
        """Reads a `hello`. The state changes only with `accept`.

        Raises: BadLine for a hello that is not the first request; Refused.
        """
        if self.state is not GreetingState.NEW:
            raise BadLine("hello is the first request of a connection or is left out")
        values = read_fields(VERBS["hello"], line)
        if values["role"] == "proxy" and "name" not in values:
            raise missing_field("name", "the proxy's name")
        if "key" in values:
            for name in ("ts", "nonce", "sig"):
                if name not in values:
                    raise missing_field(name, "it goes with key")
        return Hello(
            role=values["role"],
            key=values.get("key"),
            ts=values.get("ts", 0),
            nonce=values.get("nonce", ""),
            sig=values.get("sig", ""),
            worker=values.get("worker"),
            zip=values.get("zip"),
            name=values.get("name", ""),
            group=values.get("group"),
            layer=values.get("layer"),
            learn=values.get("learn", False),
            catch_up=values.get("catch_up", False),
            drop_after_s=values.get("drop_after"),
            asks=values.get("asks", False),
            verify=values.get("verify", False),
            receipt_key=values.get("receipt_key", ""),
        )

    def accept(self) -> None:
        """The greeting holds. Raises: RuntimeError if there was none to accept."""
        if self.state is not GreetingState.NEW:
            raise RuntimeError(f"a greeting cannot be accepted in state {self.state.value}")
        self.state = GreetingState.GREETED

    def skip(self) -> None:
        """The first request was not a hello."""
        if self.state is GreetingState.NEW:
            self.state = GreetingState.ANONYMOUS


class Reply(NamedTuple, Generic[Token]):
    """The answer to the request that was sent with `token`."""

    token: Token
    fields: dict[str, str]
    rows: list[dict[str, str]]
    refused: Refused | None


class Push(NamedTuple):
    """A line that begins with `!`."""

    line: Line
    raw: bytes


class ReplyReader(Generic[Token]):
    """The peer's side: pairs replies with requests.

    Call `sent` for each request in the order of sending, `feed` with what came.
    """

    def __init__(self, line_max: int = DEFAULT_LINE_MAX_BYTES) -> None:
        self.lines = LineReader(line_max)
        self._waiting: deque[tuple[Token, bool]] = deque()
        self._listing: tuple[Token, dict[str, str]] | None = None
        self._rows: list[dict[str, str]] = []
        self._rows_missing = 0
        self.fault: PeerMisbehaved | None = None
        """Set once the engine broke the protocol: nothing that follows can be understood."""

    def sent(self, token: Token, verb: str) -> None:
        """A request was sent; `verb` decides whether a listing is expected."""
        known = VERBS.get(verb)
        self._waiting.append((token, known is not None and known.listing))

    @property
    def unanswered(self) -> int:
        """Requests whose reply has not come whole."""
        return len(self._waiting) + (self._listing is not None)

    def abandon(self) -> list[Token]:
        """The tokens that will get no reply, oldest first; the connection has ended."""
        tokens = [] if self._listing is None else [self._listing[0]]
        tokens += [token for token, _ in self._waiting]
        self._waiting.clear()
        self._listing = None
        self._rows = []
        return tokens

    def feed(self, data: bytes) -> list[Reply[Token] | Push]:
        """What `data` completes, in order.

        Raises: PeerMisbehaved; the connection must be given up. Events that came
        before the fault are returned first, with `fault` set; the next call raises.
        """
        if self.fault is not None:
            raise self.fault
        events: list[Reply[Token] | Push] = []
        try:
            for raw in self.lines.feed(data):
                event = self._take(self._parse(raw), raw)
                if event is not None:
                    events.append(event)
            if self.lines.overflow is not None:
                raise PeerMisbehaved(f"the engine sent a line that is too long: {self.lines.overflow}")
        except PeerMisbehaved as fault:
            self.fault = fault
            if not events:
                raise
        return events

    @staticmethod
    def _parse(raw: bytes) -> Line:
        try:
            return parse(raw)
        except WireError as error:
            raise PeerMisbehaved(f"the engine sent a bad line: {error}") from None

    def _take(self, line: Line, raw: bytes) -> Reply[Token] | Push | None:
        if self._listing is not None:
            return self._take_row(line)
        if line.verb.startswith("!"):
            return Push(line, raw)
        if not self._waiting:
            raise PeerMisbehaved(f"the engine sent {line.verb!r} though nothing was asked")
        if line.verb not in ("ok", "err"):
            raise PeerMisbehaved(f"got {line.verb!r} where a reply must begin with ok or err")
        token, listing = self._waiting.popleft()
        if line.verb == "err":
            return Reply(token, {}, [], read_refused(line))
        if not listing:
            return Reply(token, line.fields, [], None)
        return self._begin_listing(token, line.fields)

    def _begin_listing(self, token: Token, fields: dict[str, str]) -> Reply[Token] | None:
        count = read_count(fields.get("n", ""))
        if count is None or count > LISTING_MAX:
            # The token stays among those that will get no reply.
            self._waiting.appendleft((token, True))
            got = fields.get("n", "")[:20]
            raise PeerMisbehaved(f"a listing begins with ok n=N, N at most {LISTING_MAX}; got n={got!r}")
        if count == 0:
            return Reply(token, fields, [], None)
        self._listing = (token, fields)
        self._rows_missing = count
        return None

    def _take_row(self, line: Line) -> Reply[Token] | None:
        if line.verb != "+" or self._listing is None:
            raise PeerMisbehaved(f"got {line.verb!r} inside a listing, wanted a row that begins with +")
        self._rows.append(line.fields)
        self._rows_missing -= 1
        if self._rows_missing:
            return None
        token, fields = self._listing
        rows, self._rows, self._listing = self._rows, [], None
        return Reply(token, fields, rows, None)
