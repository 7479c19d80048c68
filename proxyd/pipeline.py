"""A client for one lane of one cache: few keep-alive connections, many requests on each.

`CacheClient` decides what goes where; one connection is in `connection.py`.
Nothing is allocated per request beyond the `Exchange`;
there is one timer a client, and one write per connection and turn of the loop.

Cost: see "Measured" in docs/agent.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from proxyd.backoff import Backoff
from proxyd.blame import Death, share_blame
from proxyd.connection import Connection, Limits
from proxyd.queues import PriorityQueue, Queue
from proxyd.tasks import Exchange

# How often deadlines are looked at: none here is shorter than a second.
SWEEP_S = 0.25
# A cache that refuses connections is asked again after these.
CONNECT_BACKOFF_FIRST_S = 0.05
CONNECT_BACKOFF_CAP_S = 2.0
# Requests that one connection takes at once before the next one gets any: below this, fewer
# writes are worth more than a fair share.
SHARE_MIN = 16

Ended = Callable[[Exchange, str | None], None]


class CacheClient:
    """Sends exchanges to one cache and tells `ended(exchange, error)` for each, once, in no promised order.

    `error` is None when the cache's answer meant done.
    """

    def __init__(self, name: str, host: str, port: int, limits: Limits, ended: Ended) -> None:
        self.name = name
        self.limits = limits
        self.queue: Queue[Exchange] = PriorityQueue()
        self._host = host
        self._port = port
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._alone: deque[Exchange] = deque()
        self._spared: deque[Exchange] = deque()
        self._open: list[Connection] = []
        self._connecting = 0
        self._connects: set[asyncio.Task[None]] = set()
        self._backoff = Backoff(CONNECT_BACKOFF_FIRST_S, CONNECT_BACKOFF_CAP_S)
        self._not_before = 0.0
        self._trouble_since: float | None = None
        self._trouble = ""
        self._pump_due = False
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._low_water = max(0, limits.depth - SHARE_MIN)

    @property
    def waiting(self) -> int:
        """Exchanges that are not on a connection."""
        return len(self.queue) + len(self._spared) + len(self._alone)

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
        self.queue.put(exchange, priority)
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def set_limits(self, limits: Limits) -> None:
        """From now on other limits hold; connections beyond their number end when their answers are in."""
        self.limits = limits
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
        connections = self._open
        if connections:
            if len(connections) > 1:
                connections.sort(key=_load)
            share = max(SHARE_MIN, -(-waiting // len(connections)))
            growing = self._trouble_since is None and self._there < self.limits.connections
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
        if room <= 0 or connection.closing or connection.alone or connection.surplus:
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
        room = min(room, share)
        while batch := self.queue.take(room) if not self._spared else self._take_spared(room):
            now = self._loop.time()
            fresh = [exchange for exchange in batch if exchange.task.expires_at > now]
            if len(fresh) < len(batch):
                self._drop_expired(batch, now)
            if fresh:
                connection.send(fresh)
                return

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
        if self._trouble_since is not None:
            # A cache in trouble is asked with one connection at a time.
            wanted = min(wanted, max(there, 1))
        for _ in range(wanted - there):
            self._connecting += 1
            task = self._loop.create_task(self._connect())
            self._connects.add(task)
            task.add_done_callback(self._connects.discard)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self.limits.connect_timeout_s):
                await self._loop.create_connection(self.make_connection, self._host, self._port)
        except TimeoutError:
            self._note_trouble(f"no connection within {self.limits.connect_timeout_s:g} s", backoff=True)
        except OSError as error:
            self._note_trouble(f"cannot connect: {error.strerror or error}", backoff=True)
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
        self._trouble_since = None
        if connection.answered == 0:
            self._backoff.reset()
            self._not_before = 0.0
        connection.answered += len(statuses)
        popleft = connection.in_flight.popleft
        ended = self._ended
        for status in statuses:
            exchange = popleft()
            deed = exchange.deed
            ended(exchange, None if status in deed.good else self._named(deed.judge(status)))
        connection.alone = False
        if connection.surplus and not connection.closing:
            self._let_go(connection)
        # Topped up in lumps: a write a lump costs less than a write an answer, and the cache never runs dry.
        low = len(connection.in_flight) <= self._low_water
        if low and not connection.closing and (self.queue or self._alone or self._spared):
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
        if connection.answered == 0 and (in_flight or self.waiting):
            self._note_trouble(death.value, backoff=True)
        elif death is Death.SILENT and not self.limits.streaming:
            # Where answers are streamed, an origin may be slow for one of them.
            self._note_trouble(death.value, backoff=False)
        if in_flight:
            failed, again, spared = share_blame(death, in_flight)
            connection.in_flight = deque()
            self._alone.extend(again)
            self._spared.extendleft(reversed(spared))
            for exchange in failed:
                self._ended(exchange, self._named(death.value))
        if self.waiting:
            self._pump_soon()

    def _named(self, error: str | None) -> str:
        return f"cache {self.name}: {error}"

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    # Trouble and time.

    def _note_trouble(self, what: str, *, backoff: bool) -> None:
        now = self._loop.time()
        if self._trouble_since is None:
            self._trouble_since = now
        self._trouble = what
        if backoff:
            self._not_before = now + self._backoff.next_s()

    def _sweep(self) -> None:
        """Ends what is overdue; runs while there is anything that could be."""
        self._sweep_timer = None
        now = self._loop.time()
        for connection in list(self._open):
            if connection.is_overdue(now):
                connection.kill(Death.SILENT)
        if self._trouble_since is not None and now - self._trouble_since > self.limits.patience_s:
            self._fail_waiting()
        if self.waiting or self.in_flight:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
            if self.waiting:
                self._pump_soon()

    def _fail_waiting(self) -> None:
        waiting = [*self._alone, *self._spared, *self.queue.take(len(self.queue))]
        self._alone.clear()
        self._spared.clear()
        error = self._named(f"out of reach for {self.limits.patience_s:g} s: {self._trouble}")
        for exchange in waiting:
            self._ended(exchange, error)


def _load(connection: Connection) -> int:
    return len(connection.in_flight)
