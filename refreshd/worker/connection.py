"""A connection of a client, a proxy or an operator: bytes to turns, turns to bytes.

    FRESH ── first line ──► SERVED ──► CLOSED
      │ hello worker=I           ▲
      └──► handed to worker I ───┘ (there)

In any state but the last it can be moved to this worker's successor (`leave`, then
`pack` once `is_quiet`; there `arrive`), and goes on as if nothing had been.

Bounded: unanswered lines (reading stops at PENDING_MAX), unread replies (reading
stops when the write buffer is full; the connection is closed when it stays so, or
when pushes pile up beyond PUSHES_MAX_BYTES), an unfinished line (`line_max`, and
LINE_PATIENCE_S from its first byte).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import structlog

from refreshd.worker.callers import Caller
from refreshd.worker.handover.connections import Moved
from refreshd.worker.proxy_session import ProxySession
from refreshd.worker.turns import Turn
from wire import PROTOCOL_VERSION, SHARDS
from wire.compress import Compressor, Decompressor
from wire.errors import BadStream, Refused, WireError
from wire.lines import LineReader, format_line, format_refused, parse
from wire.sessions import Greeting, GreetingState, Hello

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

# Lines of one connection that may wait for their answers: enough to fill a commit
# (a read brings up to 256 KiB, some 750 tasks), little enough that 1,000 clients
# that all do it hold a few hundred thousand.
PENDING_MAX = 4_096
WRITE_HIGH_BYTES = 1 << 20
PUSHES_MAX_BYTES = 8 << 20
LINE_PATIENCE_S = 60.0
# What a peer sends after its connection has ended is read and dropped for this long.
LINGER_S = 2.0
WRITE_PATIENCE_S = 60.0


class Connection(asyncio.Protocol):
    """One connection. Owner of its turns, wire of its link."""

    def __init__(self, hub: Hub, number: int, *, admin: bool = False, unread: bytes = b"") -> None:
        self.hub = hub
        self.number = number
        self.caller = Caller(
            hub.shards.slot,
            number,
            must_greet=not admin and hub.config.engine.auth == "required",
            role="admin" if admin else None,
        )
        self.session: ProxySession | None = None
        self.full = False
        """Whether the peer reads more slowly than it is written to."""
        self.transport: asyncio.Transport | None = None
        self._greeting = Greeting()
        if admin:
            self._greeting.skip()
        self._fresh = not admin
        self._reader = LineReader(hub.config.engine.line_max)
        self._turns: deque[Turn] = deque()
        self._pending = 0
        self._held: list[bytes] | None = None
        """What came while the greeting is being looked at; None while nothing is held."""
        self._paused = False
        self._moved = False
        """It is another process's by now."""
        self.leaving = False
        """It is not read any more, as it is to be moved."""
        self._closing = False
        """It ends once all replies are out; what still comes is not looked at."""
        self._cut_off = False
        """It ends because of what the peer sent, and the peer may be sending still."""
        self._said_all = False
        """Its stream has ended: a push must not be written any more."""
        self._at_end = False
        """The peer has ended its side."""
        self._watch_turns = 0
        """Turns that wait and have a `watch_task` in them: pushes stay behind them."""
        self._behind_bytes = 0
        self.rewatches = 0
        """How often it is asked just now what becomes of what it watches, see watching.py."""
        self._zip: Compressor | None = None
        self._unzip: Decompressor | None = None
        self._line_since = 0.0
        self._full_since = 0.0
        self._unread = unread

    # ── the transport's side ──────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop has transports of its own, with the same methods.
        self.transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self.hub.connected(self)
        if self._unread:
            # Before anything else, the end of the stream included, is heard of the peer.
            unread, self._unread = self._unread, b""
            self.hub.engine.clock.turn()
            self._take(unread)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._moved:
            return
        self._closing = True
        self.hub.disconnected(self)
        if self.session is not None:
            self.hub.proxies.disconnected(self.session)

    def eof_received(self) -> bool:
        """The peer sends no more; it may still read what it is owed, and what it watches."""
        self._at_end = True
        return not self._is_over()

    def _is_over(self) -> bool:
        """Whether the connection has nothing more to say."""
        if self._turns or self._held is not None:
            return False
        return self._closing or (self._at_end and not self.caller.watching)

    def pause_writing(self) -> None:
        self.full = True
        self._full_since = self.hub.loop.time()
        self._regulate()

    def resume_writing(self) -> None:
        self.full = False
        self._regulate()
        if self.session is not None:
            self.hub.pusher.due(self.session.link)

    def data_received(self, data: bytes) -> None:
        """Bytes came: make lines of them, a turn of the lines."""
        if self._closing:
            return
        if self._held is not None:
            self._held.append(data)
            return
        self.hub.engine.clock.turn()
        if self._unzip is not None:
            try:
                data = self._unzip.decompress(data)
            except BadStream as error:
                self._end_with(Refused("bad_line", str(error)))
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Bytes, as they were before the peer compressed them."""
        if self._fresh:
            self._first_bytes(data)
        else:
            self._serve(data)

    def _first_bytes(self, data: bytes) -> None:
        """The first line alone: what follows a hello may be compressed, or be another worker's.

        A hello that does not hold leaves the connection as fresh as it was.
        """
        at = 0
        while at < len(data):
            end = data.find(b"\n", at) + 1 or len(data)
            lines = self._reader.feed(data[at:end])
            at = end
            if not lines:
                self._after_feed()
            elif not _is_hello(lines[0]):
                self._fresh = False
                self._greeting.skip()
                self._run(lines)
                if at < len(data):
                    self._serve(data[at:])
                return
            elif self._greet(lines[0]):
                self._held = [data[at:]]
                self._regulate()
                return

    def _serve(self, data: bytes) -> None:
        lines = self._reader.feed(data)
        if lines:
            self._run(lines)
        self._after_feed()

    def _run(self, lines: list[bytes]) -> None:
        turn = Turn(self)
        if self.session is not None:
            self.session.heard_ms = self.hub.engine.clock.mono_ms
            self.hub.rate_proxy.count += len(lines)
        else:
            self.hub.rate_boss.count += len(lines)
        self._pending += len(lines)
        self._turns.append(turn)
        self.hub.requests.run(self.caller, turn, lines, self._reader.plain)
        if turn.watches is not None:
            self._watch_turns += 1
        turn.release()
        if self._pending > PENDING_MAX:
            self._regulate()

    def _after_feed(self) -> None:
        if self._reader.overflow is not None:
            self._end_with(Refused("too_long", str(self._reader.overflow)))
        if not self._reader.holds_part:
            self._line_since = 0.0
        elif not self._line_since:
            self._line_since = self.hub.loop.time()

    # ── replies ───────────────────────────────────────────────────────────────────────────

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`: writes this turn and those behind it that are whole."""
        turns = self._turns
        while turns and not turns[0].waiting:
            done = turns.popleft()
            self._pending -= len(done.parts)
            if done.watches is not None:
                self._watch_turns -= 1
                self._forget_ended(done)
            self.send(b"".join(done.parts))
        if not turns:
            self._behind_bytes = 0
        if self._paused:
            self._regulate()
        if (self._closing or self._at_end) and self._is_over() and self.transport is not None:
            self._end(self.transport)

    def _end(self, transport: asyncio.Transport) -> None:
        """Everything was said. A peer that is still sending is let finish, for a while.

        Closing with unread bytes makes TCP reset the connection, and a reset can
        destroy the very reply that says what was wrong.
        """
        if self._at_end or not self._cut_off:
            transport.close()
        elif not transport.is_closing():
            transport.write_eof()
            self._cut_off, self._said_all = False, True
            self.hub.loop.call_later(LINGER_S, transport.abort)

    def _forget_ended(self, turn: Turn) -> None:
        """Of what was to be watched, some is not there or final already: nothing will be pushed."""
        for place, task_id in turn.watches or ():
            part = turn.parts[place]
            if not part.startswith(b"ok ") or _is_final(part):
                self.caller.watching.pop(task_id, None)

    def send(self, data: bytes) -> None:
        """Writes whole lines, compressed if that was agreed."""
        transport = self.transport
        if transport is None or transport.is_closing() or self._said_all:
            return
        if self._zip is not None:
            data = self._zip.compress(data)
        transport.write(data)

    def push(self, data: bytes) -> None:
        """Lines that belong to no request. A peer that does not read them is cut off."""
        transport = self.transport
        if transport is None:
            return
        if transport.get_write_buffer_size() > PUSHES_MAX_BYTES:
            log.warning("closing a connection that does not read", caller=repr(self.caller))
            self.abort()
            return
        if data.startswith(b"!state ") and not self._is_watched(data):
            return
        if not self._watch_turns:
            self.send(data)
            if self._at_end and self._is_over():
                transport.close()
            return
        self._behind_bytes += len(data)
        if self._behind_bytes > PUSHES_MAX_BYTES:
            self.abort()
            return
        turn = Turn(self)
        turn.parts.append(data)
        self._pending += 1
        self._turns.append(turn)
        turn.release()

    def _is_watched(self, push: bytes) -> bool:
        """Whether the task of a `!state` push is watched here still; its final state is the last.

        During a hand-over an earlier push can come by a longer way than a later one.
        """
        task_id = push[_ID_AT : push.find(b" ", _ID_AT)]
        watching = self.caller.watching
        if task_id not in watching:
            return False
        if _is_final(push):
            del watching[task_id]
        return True

    def _end_with(self, refused: Refused) -> None:
        """The last reply, behind all earlier ones; then the connection is closed."""
        if self._closing:
            return
        turn = Turn(self)
        turn.parts.append(format_refused(refused))
        self._pending += 1
        self._turns.append(turn)
        self._closing = self._cut_off = True
        turn.release()

    def _regulate(self) -> None:
        """Reads on only while the peer reads and its requests are answered."""
        stop = self.full or self._pending > PENDING_MAX or self._held is not None or self.leaving
        if stop == self._paused or self.transport is None:
            return
        self._paused = stop
        if stop:
            self.transport.pause_reading()
            return
        if self._line_since:
            # The rest of the line may have been waiting all the time that nobody read.
            self._line_since = self.hub.loop.time()
        self.transport.resume_reading()

    def abort(self) -> None:
        """Closes at once."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Closes once everything is written."""
        if self.transport is not None:
            self.transport.close()

    @property
    def may_greet(self) -> bool:
        """Whether its peer has not asked for anything yet, or is being greeted."""
        return self._fresh or self._held is not None

    def dismiss(self) -> None:
        """Ends it, as its peer may not stay: what it asked is answered, what still comes is not looked at."""
        if self._closing or self.transport is None:
            return
        self.push(b"!drain\n")
        self.finish()

    def finish(self) -> None:
        """What was asked is answered, what still comes is not looked at; then it is closed."""
        if self._closing or self.transport is None:
            return
        self._closing = self._cut_off = True
        if self.session is not None:
            self.hub.proxies.disconnected(self.session)
        if self._is_over():
            self._end(self.transport)

    def sweep(self, now_s: float) -> None:
        """Closes a connection that is stuck. To be called every few seconds."""
        if self._line_since and not self._paused and now_s - self._line_since > LINE_PATIENCE_S:
            self._end_with(Refused("bad_line", f"no line end within {LINE_PATIENCE_S:.0f} s"))
        if self.full and now_s - self._full_since > WRITE_PATIENCE_S:
            log.warning("closing a connection that does not read", caller=repr(self.caller))
            self.abort()

    # ── moving to another process ─────────────────────────────────────────────────────────

    def leave(self) -> None:
        """Is read no more: what is asked is answered, then it `is_quiet`."""
        self.leaving = True
        if self.session is not None:
            self.session.link.held = True
        self._regulate()

    def stay(self) -> None:
        """Is served on."""
        self.leaving = False
        self._regulate()
        if self.session is not None:
            self.session.link.held = False
            self.hub.pusher.due(self.session.link)

    @property
    def is_ending(self) -> bool:
        """Whether it will be closed by itself."""
        return self._closing or (self.transport is not None and self.transport.is_closing())

    @property
    def is_quiet(self) -> bool:
        """Whether it owes its peer nothing, and the peer has taken everything."""
        if self._turns or self._held is not None or self.rewatches or self.transport is None:
            return False
        return not self.transport.get_write_buffer_size()

    def pack(self) -> Moved:
        """All that belongs to it, once it is quiet."""
        caller = self.caller
        return Moved(
            number=self.number,
            role=caller.role,
            key=caller.key,
            must_greet=caller.must_greet,
            greeting=self._greeting.state.value,
            fresh=self._fresh,
            unread=self._reader.rest,
            chunk=None if self._unzip is None else self._unzip.rest,
            zip_started=self._zip is not None and self._zip.started,
            unzip_started=self._unzip is not None and self._unzip.started,
            watching=list(caller.watching),
            proxy=None if self.session is None else self.session.pack(),
            met=self.hub.met if caller.watching else {},
        )

    def let_go(self) -> None:
        """Its descriptor was sent: what is left here is a copy."""
        self._moved = True
        self.hub.moved_out(self)
        self.abort()

    def arrive(self, moved: Moved) -> None:
        """Goes on where the other process left it; before it is connected."""
        self._greeting = Greeting(GreetingState(moved.greeting))
        self._fresh = moved.fresh
        self._unread = moved.unread
        caller = self.caller
        caller.greeted(moved.role, moved.key, must_greet=moved.must_greet)
        caller.watching = dict.fromkeys(moved.watching)
        if moved.chunk is not None:
            self._zip = Compressor(started=moved.zip_started)
            self._unzip = Decompressor(moved.chunk, started=moved.unzip_started)

    def serve_proxy(self, session: ProxySession) -> None:
        """It is a proxy's."""
        self.session = session
        self.caller.session = session

    # ── greeting ──────────────────────────────────────────────────────────────────────────

    def _greet(self, raw: bytes) -> bool:
        """Looks at a hello. Returns whether it may hold: then what comes behind it is to be held."""
        try:
            hello = self._greeting.read_hello(parse(raw))
            self._check_worker(hello)
        except Refused as refused:
            self.send(format_refused(refused))
            return False
        except WireError as error:
            self.send(format_refused(Refused("bad_line", str(error))))
            return False
        self._fresh = False
        if hello.worker is not None and hello.worker != self.hub.shards.slot:
            self.hub.background(self._hand_over(hello.worker, raw))
        else:
            self.hub.background(self._finish_greeting(hello))
        return True

    def _check_worker(self, hello: Hello) -> None:
        if hello.worker is not None and hello.worker >= self.hub.shards.workers:
            raise Refused(
                "bad_field",
                f"worker: got {hello.worker}, this engine has workers 0 to {self.hub.shards.workers - 1}",
                field="worker",
            )

    async def _hand_over(self, slot: int, raw: bytes) -> None:
        """Gives the connection to the worker that the peer asked for, with its unread bytes."""
        refused = await self.hub.handing.hand_over(self, slot, raw + b"\n", self._held or [])
        if refused is not None:
            self._go_on(format_refused(refused), fresh=True)

    async def _finish_greeting(self, hello: Hello) -> None:
        try:
            await self._check_hello(hello)
        except Refused as refused:
            self._go_on(format_refused(refused), fresh=True)
            return
        except TimeoutError:
            busy = Refused("busy", "a worker does not answer; greet again", retry_ms=500)
            self._go_on(format_refused(busy), fresh=True)
            return
        if self.transport is None:
            return
        self._greeting.accept()
        self.caller.greeted(hello.role, hello.key)
        self._go_on(self._welcome(hello), hello=hello)

    async def _check_hello(self, hello: Hello) -> None:
        """Raises: Refused; TimeoutError."""
        await self.hub.greeter.check(hello)
        config = None
        # What has been checked may not hold any more if the configuration changed meanwhile.
        while config is not self.hub.config:
            config = self.hub.config
            self.hub.greeter.check_signature(hello)
            if hello.role == "proxy":
                await self.hub.proxies.register(hello)

    def _welcome(self, hello: Hello) -> bytes:
        engine = self.hub.config.engine
        return format_line(
            "ok",
            {
                "v": PROTOCOL_VERSION,
                "engine": engine.id,
                "worker": self.hub.shards.slot,
                "workers": self.hub.shards.workers,
                "shards": SHARDS,
                "line_max": engine.line_max,
                "store": self.hub.cluster.store_name,
                "catch_up": 1 if hello.catch_up else None,
                "receipts": 1 if hello.role == "proxy" else None,
            },
        )

    def _go_on(self, reply: bytes, *, fresh: bool = False, hello: Hello | None = None) -> None:
        """Answers the hello, then serves what was held."""
        held, self._held = self._held or [], None
        self._fresh = fresh
        self.hub.engine.clock.turn()
        self.send(reply)
        if hello is not None:
            if hello.zip == "snappy":
                self._zip, self._unzip = Compressor(), Decompressor()
            if hello.role == "proxy":
                session = ProxySession(self.hub.proxies, hello.name, self, self.close, learns=hello.learn)
                session.link.tell_caught_up = hello.catch_up
                session.link.drop_after_s = hello.drop_after_s
                session.answers = hello.asks
                session.verifies = hello.verify
                session.receipt_key = hello.receipt_key
                self.serve_proxy(session)
                self.hub.proxies.connected(session)
        self._regulate()
        data = b"".join(held)
        if data:
            self.data_received(data)


_ID_AT = len(b"!state task_id=")


def _is_hello(line: bytes) -> bool:
    return line.startswith(b"hello") and (len(line) == 5 or line[5] in b" \r")


def _is_final(push: bytes) -> bool:
    """Whether a `!state` push tells of a final state."""
    return b" state=pending " not in push and b" state=active " not in push
