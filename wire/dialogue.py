"""The client's end of a connection, without I/O: greeting, compression, pairing.

    GREETING ── ok ──► OPEN          a connection that does not greet begins OPEN
        └────── err ─► nothing; the connection is given up

While GREETING no request may be sent: whether what follows is compressed is
decided by the `ok`, and `worker=I` may have moved the connection by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, NamedTuple

from wire import DEFAULT_LINE_MAX_BYTES, PROTOCOL_VERSION
from wire.errors import BadStream, LocalError, PeerMisbehaved, WireError
from wire.lines import Line, format_line, parse, read_count, read_refused
from wire.sessions import Push, Reply, ReplyReader, Token
from wire.signatures import sign_hello

if TYPE_CHECKING:
    from wire.compress import Compressor, Decompressor

# Above any engine's; a line_max beyond it would let one line fill the memory.
LINE_MAX_CEILING_BYTES = 64 << 20
WORKERS_MAX = 4096


class Credentials(NamedTuple):
    """The key a client signs its greetings with."""

    key: str
    secret: bytes


class Welcome(NamedTuple):
    """The engine's answer to a greeting."""

    engine: str
    worker: int
    workers: int
    line_max: int


def format_hello(
    credentials: Credentials | None, *, ts: int, nonce: str, worker: int | None = None, zipped: bool = False
) -> bytes:
    """The greeting of a client, signed if there is a key; `ts` in Unix seconds."""
    signed: dict[str, str | int | float | None] = {}
    if credentials is not None:
        key, secret = credentials
        signed = {"key": key, "ts": ts, "nonce": nonce, "sig": sign_hello(secret, "client", key, ts, nonce)}
    return format_line(
        "hello",
        {
            "v": PROTOCOL_VERSION,
            "role": "client",
            **signed,
            "worker": worker,
            "zip": "snappy" if zipped else None,
        },
    )


class Dialogue(Generic[Token]):
    """One connection's bytes, both ways. `hello` is None where nobody greets."""

    def __init__(self, hello: bytes | None, *, zipped: bool = False) -> None:
        self._hello = hello
        self._zipped = zipped
        self._greeting = bytearray()
        self._replies: ReplyReader[Token] = ReplyReader(LINE_MAX_CEILING_BYTES)
        self._compressor: Compressor | None = None
        self._decompressor: Decompressor | None = None
        self.welcome: Welcome | None = None
        """Set by the `ok` to the greeting."""
        self.open = hello is None
        """Whether requests may be sent."""

    @property
    def line_max(self) -> int:
        """The longest line that the engine takes, LF included."""
        return self.welcome.line_max if self.welcome else DEFAULT_LINE_MAX_BYTES

    @property
    def unanswered(self) -> int:
        """Requests whose reply has not come whole."""
        return self._replies.unanswered

    @property
    def fault(self) -> PeerMisbehaved | None:
        """Set once the engine broke the protocol; the connection must be given up."""
        return self._replies.fault

    def begin(self) -> bytes:
        """The first bytes to send."""
        return self._hello or b""

    def sent(self, token: Token, verb: str) -> None:
        """A request will be sent by the next `pack`. Raises: LocalError while greeting."""
        if not self.open:
            raise LocalError("a request was sent before the greeting was answered")
        self._replies.sent(token, verb)

    def pack(self, lines: bytes) -> bytes:
        """The bytes that carry these lines."""
        return lines if self._compressor is None else self._compressor.compress(lines)

    def abandon(self) -> list[Token]:
        """The requests that will get no reply, oldest first; the connection has ended."""
        return self._replies.abandon()

    def feed(self, data: bytes) -> list[Reply[Token] | Push]:
        """What the received `data` completes, in order.

        Raises: Refused if the greeting was refused, PeerMisbehaved; the
        connection must be given up then. Look at `fault` after each call too.
        """
        events: list[Reply[Token] | Push] = []
        if not self.open:
            data = self._feed_greeting(data, events)
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data)
            except BadStream as error:
                raise PeerMisbehaved(f"the engine sent a damaged snappy stream: {error}") from None
        return events + self._replies.feed(data) if data else events

    def _feed_greeting(self, data: bytes, events: list[Reply[Token] | Push]) -> bytes:
        """Reads up to the answer to the greeting; returns what came behind it."""
        held = self._greeting
        held += data
        while not self.open and b"\n" in held:
            raw, _, rest = bytes(held).partition(b"\n")
            held[:] = rest
            try:
                line = parse(raw)
            except WireError as error:
                raise PeerMisbehaved(f"the answer to hello is no line of this protocol: {error}") from None
            if line.verb.startswith("!"):
                events.append(Push(line, raw))
            else:
                self._read_welcome(line)
        if len(held) > DEFAULT_LINE_MAX_BYTES and not self.open:
            raise PeerMisbehaved("the answer to hello does not end; is this a refreshd engine?")
        if not self.open:
            return b""
        self._greeting = bytearray()
        return bytes(held)

    def _read_welcome(self, line: Line) -> None:
        if line.verb == "err":
            raise read_refused(line)
        if line.verb != "ok":
            raise PeerMisbehaved(f"the answer to hello begins with {line.verb!r}, wanted ok or err")
        self.welcome = _welcome(line.fields)
        if self._zipped:
            # Only who asks for it pays for loading the library.
            from wire.compress import Compressor, Decompressor

            self._compressor, self._decompressor = Compressor(), Decompressor()
        self.open = True


def _welcome(fields: dict[str, str]) -> Welcome:
    worker = read_count(fields.get("worker", ""))
    workers = read_count(fields.get("workers", ""))
    line_max = read_count(fields.get("line_max", ""))
    if worker is None or workers is None or not 1 <= workers <= WORKERS_MAX:
        raise PeerMisbehaved("the answer to hello has no worker=I workers=W; is this a refreshd engine?")
    return Welcome(
        fields.get("engine", ""),
        worker,
        workers,
        min(line_max or DEFAULT_LINE_MAX_BYTES, LINE_MAX_CEILING_BYTES),
    )
