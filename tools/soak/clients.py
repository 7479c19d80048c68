"""Clients of every kind, each one connection that posts tasks, and posts again what got no `ok`.

They post at a rate that does not depend on the replies, so that an engine that pauses is
seen to pause. A line costs a client about 1.5 µs, so the whole crowd fits in one process.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

from tools.bench.rig import Address
from tools.soak.ledger import ID_BYTES, Ledger, task_id
from tools.soak.tally import Tally
from wire.compress import Compressor, Decompressor

RETRY_S = 0.05
# After a refusal; `busy` asks for half a second.
REFUSED_RETRY_S = 0.5
# Five seconds' worth of all clients together; an engine reads no further at 4,096 lines of a connection.
UNANSWERED_MAX = 500
# What a byte-by-byte client writes a byte in, and how long another may stay in the middle of a line.
_BYTE_EVERY_S = 0.004
_HALF_S = (0.05, 6.0)
_OK = b"ok task_id=s"
_OK_AT, _OK_END = len(_OK), len(_OK) - 1 + ID_BYTES
_STATE = b"!state task_id=s"
_STATE_AT, _STATE_END = len(_STATE), len(_STATE) - 1 + ID_BYTES
_FINAL = (b" state=complete ", b" state=failed ")


class Site(NamedTuple):
    """What every connection of a soak shares."""

    address: Callable[[], Address]
    ledger: Ledger
    tally: Tally
    rng: random.Random


class Sent(NamedTuple):
    """A request without a reply."""

    at: float
    number: int
    is_watch: bool = False


class Client(asyncio.Protocol):
    """Greets as it is told to ("" for not at all), then posts what `post` is called for.

    `owner`: it posts only tasks of that worker. Connects again, for ever, after a loss.
    """

    kind = "client"

    def __init__(self, site: Site, greeting: str = "", *, owner: int | None = None, zipped: bool = False):
        self.ready = False
        self.over = False
        self._site = site
        self._greeting = greeting.encode()
        self._owner = owner
        self._zipped = zipped
        self._sent: deque[Sent] = deque()
        self.again: list[int] = []
        """What must be posted, or posted again."""
        self._refused: list[int] = []
        """What will be posted again a moment later."""
        self._transport: asyncio.Transport | None = None
        self._tail = b""
        self._connecting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self._greeting.decode() or 'anonymous'} unanswered={len(self._sent)}>"

    # ── the connection ────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """Begins to connect, and goes on until it is."""
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.over:
            try:
                await loop.create_connection(lambda: self, *self._site.address())
                return
            except OSError as error:
                self._site.tally.lost(f"{self.kind}, connecting", error)
                await asyncio.sleep(RETRY_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._tail = b""
        self._compressor, self._decompressor = Compressor(), Decompressor()
        if self._greeting:
            self._transport.write(self._greeting + b"\n")
        else:
            self._greeted()

    def _greeted(self) -> None:
        self.ready = True
        again, self.again = self.again, []
        self.send(again)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ready = False
        self._transport = None
        if self.over:
            return
        self._site.tally.lost(self.kind, exc)
        self._forget_sent()
        asyncio.get_running_loop().call_later(RETRY_S, self.connect)

    def _forget_sent(self) -> None:
        """What was not answered is asked again."""
        self.again += [sent.number for sent in self._sent if not sent.is_watch]
        self._sent.clear()

    def close(self) -> None:
        """Ends it for good."""
        self.over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ── writing ───────────────────────────────────────────────────────────────────────────

    @property
    def unanswered(self) -> int:
        """Tasks that were posted, or should have been, and got no `ok` yet."""
        return len(self._sent) + len(self.again) + len(self._refused)

    def post(self) -> None:
        """Posts a burst of new tasks; while there is no connection, as soon as there is."""
        numbers = self._site.ledger.take(self._owner)
        if self.ready:
            self.send(numbers)
        else:
            self.again += numbers

    def send(self, numbers: list[int]) -> None:
        """Posts these tasks."""
        if numbers:
            now = time.perf_counter()
            line = self._site.ledger.line
            self._sent += [Sent(now, number) for number in numbers]
            self.write(b"".join([line(number) for number in numbers]))

    def write(self, data: bytes) -> None:
        """Writes to the connection, which must be there."""
        if self._transport is not None:
            self._transport.write(self._compressor.compress(data) if self._zipped else data)

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        if self._zipped and self.ready:
            data = self._decompressor.decompress(data)
        *lines, self._tail = (self._tail + data if self._tail else data).split(b"\n")
        if not self.ready and lines:
            self._read_greeting(lines.pop(0))
        now = time.perf_counter()
        for line in lines:
            if line.startswith(b"!"):
                self.pushed(line)
            else:
                self._replied(line, now)

    def _read_greeting(self, line: bytes) -> None:
        if line.startswith(b"ok "):
            self._greeted()
            return
        self._site.tally.refused("hello", self.kind, line)
        if self._transport is not None:
            self._transport.close()

    def _replied(self, line: bytes, now: float) -> None:
        if not self._sent:
            self._site.tally.refused("unasked", self.kind, line)
            return
        at, number, is_watch = self._sent.popleft()
        self._site.tally.answered(now - at)
        if line.startswith(_OK):
            if int(line[_OK_AT:_OK_END]) != number:
                self._site.tally.refused("out of order", self.kind, line + b" for " + task_id(number))
            elif is_watch:
                self.watched(number, line)
            else:
                self._site.ledger.acknowledge(number)
        elif not is_watch or number not in self._refused:
            self._note_refusal(number, line)

    def _note_refusal(self, number: int, line: bytes) -> None:
        code = line.partition(b" code=")[2].partition(b" ")[0].decode() or "not a reply"
        self._site.tally.refused(code, self.kind, line)
        self._refused.append(number)
        if len(self._refused) == 1:
            asyncio.get_running_loop().call_later(REFUSED_RETRY_S, self._post_refused)

    def _post_refused(self) -> None:
        numbers, self._refused = self._refused, []
        self._post_again(numbers)

    def _post_again(self, numbers: list[int]) -> None:
        if self.ready:
            self.send(numbers)
        else:
            self.again += numbers

    # ── for those that watch ──────────────────────────────────────────────────────────────

    def pushed(self, line: bytes) -> None:
        """A push came."""
        if not line.startswith(b"!drain"):
            self._site.tally.refused("unasked", self.kind, line)

    def watched(self, number: int, line: bytes) -> None:
        """The reply to a watch came."""


class Watcher(Client):
    """Watches each task that it posts until it is told of a final state."""

    kind = "watcher"

    def __init__(self, site: Site, greeting: str = "", *, zipped: bool = False):
        super().__init__(site, greeting, zipped=zipped)
        self.watching: set[int] = set()

    def send(self, numbers: list[int]) -> None:
        """Posts and watches these tasks."""
        now = time.perf_counter()
        for number in numbers:
            self.watching.add(number)
            self._sent += (Sent(now, number), Sent(now, number, is_watch=True))
        line = self._site.ledger.line
        self.write(b"".join([line(number) + _watch_line(number) for number in numbers]))

    def _greeted(self) -> None:
        lost = self.watching.difference(self.again)
        super()._greeted()
        now = time.perf_counter()
        self._sent += [Sent(now, number, is_watch=True) for number in lost]
        self.write(b"".join(map(_watch_line, lost)))

    def pushed(self, line: bytes) -> None:
        if not line.startswith(_STATE):
            super().pushed(line)
        elif any(state in line for state in _FINAL):
            self.watching.discard(int(line[_STATE_AT:_STATE_END]))

    def watched(self, number: int, line: bytes) -> None:
        if any(state in line for state in _FINAL):
            self.watching.discard(number)


class Slow(Client):
    """One that takes its time over a burst, and posts another only when all of it is answered."""

    kind = "slow"

    def __init__(self, site: Site, greeting: str = ""):
        super().__init__(site, greeting)
        self._queue: deque[int] = deque()
        """Of the burst, what is not written whole."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def unanswered(self) -> int:
        return super().unanswered + len(self._queue)

    def post(self) -> None:
        """Begins with a burst, unless it is still busy with the last."""
        if self.ready and not self._queue and not self._sent:
            numbers, self.again = self.again or self._site.ledger.take(), []
            self.send(numbers)

    def send(self, numbers: list[int]) -> None:
        """Begins to write these tasks; one counts as sent with its last byte."""
        self._queue += numbers
        if self._queue:
            self._go_on()

    def _go_on(self) -> None:
        """Writes the next piece."""
        raise NotImplementedError

    def _later(self, after_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(after_s, self._go_on)

    def _wrote(self, count: int) -> None:
        now = time.perf_counter()
        self._sent += [Sent(now, self._queue.popleft()) for _ in range(count)]

    def _forget_sent(self) -> None:
        super()._forget_sent()
        self.again += self._queue
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _post_again(self, numbers: list[int]) -> None:
        self.again += numbers


class ByteByByte(Slow):
    """Writes one byte at a time."""

    kind = "byte by byte"
    _rest = b""

    def _go_on(self) -> None:
        if not self._rest:
            self._rest = self._site.ledger.line(self._queue[0])
        byte, self._rest = self._rest[:1], self._rest[1:]
        self.write(byte)
        if not self._rest:
            self._wrote(1)
        if self._queue:
            self._later(_BYTE_EVERY_S)

    def _forget_sent(self) -> None:
        super()._forget_sent()
        self._rest = b""


class Halving(Slow):
    """Stays in the middle of a line for a while."""

    kind = "in two halves"
    _rest = b""

    def _go_on(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            self.write(rest)
            self._wrote(len(self._queue))
            return
        data = b"".join([self._site.ledger.line(number) for number in self._queue])
        at = self._site.rng.randrange(1, len(data) - 1)
        self.write(data[:at])
        self._wrote(data.count(b"\n", 0, at))
        self._rest = data[at:]
        self._later(self._site.rng.uniform(*_HALF_S))

    def _forget_sent(self) -> None:
        super()._forget_sent()
        self._rest = b""


class Silent(Client):
    """Connects and says nothing, not even who it is, until it is asked to `speak`."""

    kind = "silent"

    def __init__(self, site: Site):
        super().__init__(site)
        self.answer = b""

    def speak(self) -> None:
        """Asks whether the connection is still served; `answer` is what came."""
        self.write(b"ping\n")

    def data_received(self, data: bytes) -> None:
        self.answer += data


def _watch_line(number: int) -> bytes:
    return b"watch_task task_id=%b\n" % task_id(number)
