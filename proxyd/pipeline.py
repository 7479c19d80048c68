"""A client for one lane of one cache: few keep-alive connections, many requests on each.

`CacheClient` decides what goes where; one connection is in `connection.py`.
Nothing is allocated per request beyond the `Exchange`;
there is one timer a client, and one write per connection and turn of the loop.

Whether anything is sent is for the breaker to say (`breaker.py`), how much at once for the pace (`pace.py`).
While the breaker is not closed what comes waits here, in order, up to `queue_max`; what is beyond that fails
at once, and what has waited `patience_s` since the cache went fails then. All else waits for the cache, or
for its ttl to end. No request is blamed for a cache that is down: one that had its two tries keeps the last
for when it is back.

Cost: see "Measured" in docs/agent.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from proxyd.bans import Bans
from proxyd.blame import TRIES_MAX, Death, share_blame
from proxyd.breaker import Breaker, Outcome, State
from proxyd.causes import Cause, cause_of_death, cause_of_error
from proxyd.connection import Connection, Limits
from proxyd.pace import Pace
from proxyd.queues import PriorityQueue, Queue
from proxyd.tasks import Exchange

# How often deadlines are looked at: none here is shorter than a second.
SWEEP_S = 0.25
# How often it is looked for what has waited too long at a cache that is down: a look is 0.1 us a target.
PATIENCE_EVERY_S = 1.0
# A cache that refuses connections is asked again after this, until the breaker opens.
CONNECT_AGAIN_S = 0.05
# From here on a status says that the cache could not, not that it would not ...
SERVER_ERROR = 500
# ... but for this one: it does not know the method. That is for its configuration to mend.
NOT_IMPLEMENTED = 501
# A cache that has said nothing for so long with requests under way does not keep up, see `lanes.py`.
STALLED_S = 0.5
# Requests that one connection takes at once before the next one gets any: below this, fewer
# writes are worth more than a fair share.
SHARE_MIN = 16

Ended = Callable[[Exchange, str | None], None]


class CacheClient:
    """Sends exchanges to one cache and tells `ended(exchange, error)` for each, once, in no promised order.

    `error` is None when the cache's answer meant done.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        limits: Limits,
        ended: Ended,
        breaker: Breaker | None = None,
        bans: Bans | None = None,
    ) -> None:
        self.name = name
        self.breaker = Breaker() if breaker is None else breaker
        self.pace = Pace(limits.connections * limits.depth)
        self.limits = limits
        self.queue: Queue[Exchange] = PriorityQueue()
        self._host = host
        self._port = port
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self.bans = bans
        """Where bans are held back and merged, if the cache has any."""
        self._alone: deque[Exchange] = deque()
        self._spared: deque[Exchange] = deque()
        self._open: list[Connection] = []
        self._connecting = 0
        self._connects: set[asyncio.Task[None]] = set()
        self._not_before = 0.0
        self._permit = False
        """Whether the breaker, which is half-open, lets one request through that was not sent yet."""
        self._was_down = False
        """Whether the breaker was not closed when something was to be sent last."""
        self._patience_at = 0.0
        self._pump_due = False
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._low_water = max(0, limits.depth - SHARE_MIN)

    @property
    def waiting(self) -> int:
        """Exchanges that are not on a connection."""
        return len(self.queue) + len(self._spared) + len(self._alone) + self._held_bans

    @property
    def _held_bans(self) -> int:
        return 0 if self.bans is None else self.bans.waiting

    @property
    def in_flight(self) -> int:
        """Exchanges that were sent and are not answered."""
        return sum(len(connection.in_flight) for connection in self._open)

    @property
    def _there(self) -> int:
        """Connections that are up or soon will be."""
        return len(self._open) + self._connecting

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes an exchange; it is sent at the end of this turn of the loop or when there is room."""
        if not self.breaker.closed and self.waiting >= self.breaker.settings.queue_max:
            self._ended(exchange, self._too_many())
            return
        self.queue.put(exchange, priority)
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _too_many(self) -> str:
        most = self.breaker.settings.queue_max
        return self._named(
            f"{self.breaker.reason}; {most} targets wait for it, as many as may: bring it back, or raise"
            " [breaker] queue_max, then post again"
        )

    def is_stalled(self, now: float) -> bool:
        """Whether it has requests under way and no answer for a while, or may send none."""
        if not self.breaker.closed:
            return True
        busy = [each.progress_at for each in self._open if each.in_flight]
        return bool(busy) and now - max(busy) > STALLED_S

    def set_limits(self, limits: Limits) -> None:
        """From now on other limits hold; connections beyond their number end when their answers are in."""
        self.limits = limits
        self.pace.set_most(limits.connections * limits.depth)
        self._low_water = max(0, limits.depth - SHARE_MIN)
        for connection in self._open:
            connection.limits = limits
        for connection in self._open[limits.connections :]:
            connection.surplus = True
            self._let_go(connection)
        if self.waiting:
            self._pump_soon()

    def _let_go(self, connection: Connection) -> None:
        """Ends a connection that is not wanted any more, once nothing is in flight on it."""
        if not connection.in_flight:
            self._open.remove(connection)
            connection.retire()

    def unended(self) -> Iterator[Exchange]:
        """What was put in and has not ended; what follows something that was sent is left out."""
        for connection in self._open:
            yield from connection.in_flight
        yield from self._alone
        yield from self._spared
        if self.bans is not None:
            yield from self.bans.unended()
        yield from self.queue

    def give_up(self, error: str) -> None:
        """Ends everything that has not ended with this error, and closes."""
        left = list(self.unended())
        self.close()
        for exchange in left:
            self._ended(exchange, self._named(error))

    def close(self) -> None:
        """Drops everything at once; nothing more is told of what was not ended."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for task in self._connects:
            task.cancel()
        for connection in self._open:
            connection.abandon()
        self._open.clear()

    def __repr__(self) -> str:
        return (
            f"<CacheClient {self.name} {len(self._open)} open, {self._connecting} connecting, "
            f"{self.in_flight} in flight, {self.waiting} waiting>"
        )

    # What goes where.

    def _pump(self) -> None:
        """Fills the connections from what waits, and opens more where that is not enough."""
        self._pump_due = False
        if self._closed:
            return
        waiting = self.waiting
        if not waiting:
            return
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
        if not self.breaker.closed:
            self._try_one()
            return
        if self._was_down:
            self._resume()
        connections = self._open
        if connections:
            if len(connections) > 1:
                connections.sort(key=_load)
            share = max(SHARE_MIN, -(-waiting // len(connections)))
            growing = not self.breaker.consecutive and self._there < self.limits.connections
            for connection in connections.copy():
                if growing and connection.in_flight:
                    # What waits would stand behind these; a connection of its own is 0.1 ms away, and
                    # an answer that comes sooner makes room here, see `answered`.
                    break
                self.fill(connection, share)
            waiting = self.waiting
        self._open_more(waiting)

    def fill(self, connection: Connection, share: int) -> None:
        """Sends on one connection as much as it and `share` allow."""
        in_flight = connection.in_flight
        room = self.limits.depth - len(in_flight)
        if self.pace.limit < self.pace.most:
            room = min(room, self.pace.limit - self.in_flight)
        if (
            room <= 0
            or connection.closing
            or connection.alone
            or connection.surplus
            or not self.breaker.closed
        ):
            return
        if self._alone:
            # Only a fresh connection will do: others may be as stale as the one that was lost.
            if connection.answered == 0 and not in_flight:
                connection.send([self._alone.popleft()], alone=True)
                return
            if self._there >= self.limits.connections and connection is self._open[0]:
                # There is no room for one, so this one runs empty and makes way.
                if not in_flight:
                    self._open.remove(connection)
                    connection.retire()
                return
        if fresh := self._take_fresh(min(room, share)):
            connection.send(fresh)

    def _try_one(self) -> None:
        """The breaker is not closed: one request is sent once that lets it through, and decides."""
        self._was_down = True
        if not self._permit or self.breaker.state is not State.HALF_OPEN:
            if self.in_flight or not self.breaker.may_send(self._loop.time()):
                return
            self._permit = True
        for connection in self._open:
            if not connection.closing and not connection.in_flight:
                # Rather one that has made nobody suspect it.
                if chosen := self._take_fresh(1) or ([self._alone.popleft()] if self._alone else []):
                    self._permit = False
                    connection.send(chosen, alone=True)
                return
        if not self._connecting:
            self._start_connect()

    def _resume(self) -> None:
        """The breaker is closed again."""
        self._was_down = self._permit = False
        self.pace.restart()

    def _take_fresh(self, room: int) -> list[Exchange]:
        """The first that are to be sent, at most so many; what has expired before them is ended."""
        bans = self.bans
        while batch := self.queue.take(room) if not self._spared else self._take_spared(room):
            now = self._loop.time()
            if bans is not None:
                batch = bans.take_in(batch)
                if batch and bans.waiting:
                    # Not only when nothing else waits. They came first, or with these.
                    batch = bans.give_out(now, max(1, room - len(batch))) + batch
                    self._spared.extendleft(reversed(batch[room:]))
                    del batch[room:]
            fresh = [exchange for exchange in batch if exchange.task.expires_at > now]
            if len(fresh) < len(batch):
                self._drop_expired(batch, now)
            if fresh:
                return fresh
        return [] if bans is None else self._fresh_bans(bans, room)

    def _fresh_bans(self, bans: Bans, room: int) -> list[Exchange]:
        """Bans that may be sent now, when nothing else waits."""
        now = self._loop.time()
        while batch := bans.give_out(now, room):
            fresh = [exchange for exchange in batch if exchange.task.expires_at > now]
            self._drop_expired(batch, now)
            if fresh:
                return fresh
        return []

    def _drop_expired(self, batch: list[Exchange], now: float) -> None:
        for exchange in batch:
            if exchange.task.expires_at <= now:
                # What was to end with it is still wanted.
                for follower in exchange.part():
                    self.queue.put(follower, follower.task.head.priority)
                self._ended(exchange, "its ttl ended before it was begun")

    def _take_spared(self, room: int) -> list[Exchange]:
        spared = self._spared
        taken = [spared.popleft() for _ in range(min(room, len(spared)))]
        return taken + self.queue.take(room - len(taken))

    def _open_more(self, waiting: int) -> None:
        limits = self.limits
        now = self._loop.time()
        if now < self._not_before:
            return
        there = self._there
        if limits.depth == 1:
            wanted = min(limits.connections, there + waiting - self._connecting)
        elif waiting:
            wanted = min(limits.connections, there + 1)
        else:
            return
        if self.breaker.consecutive:
            # A cache in trouble is asked with one connection at a time.
            wanted = min(wanted, max(there, 1))
        for _ in range(wanted - there):
            self._start_connect()

    def _start_connect(self) -> None:
        self._connecting += 1
        task = self._loop.create_task(self._connect())
        self._connects.add(task)
        task.add_done_callback(self._connects.discard)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                await self._loop.create_connection(self.make_connection, self._host, self._port)
        except TimeoutError:
            why = f"no connection within {self.limits.connect_timeout_s:g} s"
            self._note_no_connection(Outcome.TIMEOUT, Cause.FULL.of(why))
        except OSError as error:
            why = f"cannot connect: {error.strerror or error}"
            self._note_no_connection(Outcome.FAILED, cause_of_error(error).of(why))
        except asyncio.CancelledError:
            self._closed = True
            raise
        finally:
            self._connecting -= 1
        self._pump()

    def make_connection(self) -> Connection:
        """A fresh one, to be connected."""
        return Connection(self, self._loop)

    # What connections tell.

    def opened(self, connection: Connection) -> None:
        """A connection is up."""
        if self._closed or len(self._open) >= self.limits.connections:
            connection.abandon()
            return
        self._open.append(connection)

    def answered(self, connection: Connection, statuses: list[int]) -> None:
        """Answers came, in the order of the requests."""
        now = connection.progress_at
        # (Of an object, how long it took says nothing of the cache.)
        self.pace.answered(0.0 if self.limits.streaming else now - connection.in_flight[0].sent_at, now)
        if connection.answered == 0:
            self._not_before = 0.0
        connection.answered += len(statuses)
        popleft = connection.in_flight.popleft
        ended = self._ended
        could_not = 0
        for status in statuses:
            exchange = popleft()
            deed = exchange.deed
            if status in deed.good:
                ended(exchange, None)
                continue
            why = str(deed.judge(status))
            if status >= SERVER_ERROR and status != NOT_IMPLEMENTED:
                could_not += 1
                self.breaker.last_error = why = self._source_of_5xx.of(why)
            ended(exchange, self._named(why))
        if could_not:
            self._note_breakdown(len(statuses) - could_not, could_not, now)
        else:
            self.breaker.note(Outcome.OK, now, len(statuses))
        if self._was_down and self.breaker.closed:
            self._resume()
        connection.alone = False
        if connection.surplus and not connection.closing:
            self._let_go(connection)
        # Topped up in lumps: a write a lump costs less than a write an answer, and the cache never runs dry.
        low = len(connection.in_flight) <= self._low_water
        if low and not connection.closing and (self.queue or self._alone or self._spared or self._held_bans):
            self.fill(connection, self.limits.depth)
            if len(self._open) < self.limits.connections:
                self._open_more(self.waiting)
        if self._alone or self._spared:
            self._pump_soon()

    def died(self, connection: Connection, death: Death) -> None:
        """A connection is gone; what was on it is tried again or has failed."""
        if self._closed or connection not in self._open:
            return
        self._open.remove(connection)
        in_flight = connection.in_flight
        self._note_death(connection, death)
        if in_flight:
            failed, again, spared = share_blame(death, in_flight)
            if failed and not self.breaker.closed:
                # It is the cache's fault. Once that is back each has its last try.
                for exchange in failed:
                    exchange.tries = TRIES_MAX - 1
                again += failed
                failed = []
            connection.in_flight = deque()
            self._alone.extend(again)
            self._spared.extendleft(reversed(spared))
            for exchange in failed:
                self._ended(exchange, self._named(cause_of_death(death).of(death.value)))
        if self.waiting:
            self._pump_soon()

    def _named(self, error: str | None) -> str:
        return f"cache {self.name}: {error}"

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    # What the breaker is told.

    @property
    def _source_of_5xx(self) -> Cause:
        return Cause.BEHIND if self.limits.streaming else Cause.FULL

    def _note_breakdown(self, good: int, could_not: int, now: float) -> None:
        """Of the answers that came together some were of 500 and above."""
        if good:
            self.breaker.note(Outcome.OK, now, good)
        # (An origin's, where answers are streamed: see `breaker.py`.)
        blame = not self.limits.streaming
        in_a_row = could_not if not good else 1
        self.breaker.note(Outcome.FAILED, now, could_not, in_a_row=in_a_row, blame=blame)
        if blame:
            self.pace.failed(now)

    def _note_no_connection(self, outcome: Outcome, why: str) -> None:
        now = self._loop.time()
        self._not_before = now + CONNECT_AGAIN_S
        self.pace.failed(now)
        self.breaker.note(outcome, now, why=why)

    def _note_death(self, connection: Connection, death: Death) -> None:
        now = self._loop.time()
        in_flight = connection.in_flight
        why = cause_of_death(death).of(death.value)
        if death in (Death.SILENT, Death.SLOW):
            # Where answers are streamed, an origin may be slow for one of them.
            blame = not self.limits.streaming
            self.breaker.note(Outcome.TIMEOUT, now, len(in_flight), why=why, blame=blame)
        elif connection.answered == 0 and (in_flight or self.waiting):
            self._not_before = now + CONNECT_AGAIN_S
            self.breaker.note(Outcome.FAILED, now, why=why)
        elif in_flight and (death is not Death.CLOSED or self.breaker.state is State.HALF_OPEN):
            # (Closed between answers is no error: keep-alive connections end. But what was tried must end.)
            self.breaker.note(Outcome.FAILED, now, why=why)
        else:
            return
        self.pace.failed(now)

    # Time.

    def _sweep(self) -> None:
        """Ends what is overdue; runs while there is anything that could be."""
        self._sweep_timer = None
        now = self._loop.time()
        for connection in list(self._open):
            if connection.is_overdue(now):
                silent = now - connection.progress_at > self.limits.answer_timeout_s
                connection.kill(Death.SILENT if silent else Death.SLOW)
        self._fail_impatient(now)
        if self.waiting or self.in_flight:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
            if self.waiting:
                self._pump_soon()

    def _fail_impatient(self, now: float) -> None:
        """Ends what has waited for too long for a cache that is down."""
        down_since = self.breaker.down_since
        came_before = now - self.limits.patience_s
        if down_since is None or down_since > came_before or now < self._patience_at:
            return
        self._patience_at = now + PATIENCE_EVERY_S

        def is_due(exchange: Exchange) -> bool:
            return exchange.task.received_at <= came_before

        due = [*filter(is_due, self._alone), *filter(is_due, self._spared), *self.queue.remove(is_due)]
        if self.bans is not None:
            due += self.bans.remove(is_due)
        for waiting in (self._alone, self._spared):
            left = [exchange for exchange in waiting if not is_due(exchange)]
            waiting.clear()
            waiting += left
        error = self._named(f"{self.breaker.reason}; out of reach for {self.limits.patience_s:g} s")
        for exchange in due:
            # What was to end with it may have waited less.
            for follower in exchange.part():
                self.queue.put(follower, follower.task.head.priority)
            self._ended(exchange, error)


def _load(connection: Connection) -> int:
    return len(connection.in_flight)
