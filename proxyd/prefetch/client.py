"""The slow lane of one cache: what is prefetched, through which connection, and when.

`PrefetchClient` takes the place that a `CacheClient` has in the fast lane, behind the same face
(`LaneClient`). There is no task and no timer a target: connections ask for the next request when they have an
answer, and two timers a client look for what is overdue and for what may be read again.

What goes next is for `lineup.py` to say; whether anything goes for the breaker, as in `pipeline.py`.

What is held is bounded: targets that wait, by who fills the queue (`dispatch.py`); of those that have begun,
as many as have something in flight, and `TREES_MAX` whose playlists are read, each with at most `WINDOW`
requests.

Cost: see "Measured" in docs/agent.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from proxyd.blame import TRIES_MAX, Death
from proxyd.breaker import Breaker, Outcome, State
from proxyd.causes import Cause, cause_of_death, cause_of_error
from proxyd.connection import Limits
from proxyd.pace import Pace
from proxyd.pipeline import (
    CONNECT_AGAIN_S,
    NOT_IMPLEMENTED,
    PATIENCE_EVERY_S,
    SERVER_ERROR,
    STALLED_S,
    SWEEP_S,
    Ended,
)
from proxyd.prefetch.buckets import Bucket
from proxyd.prefetch.connection import Connection
from proxyd.prefetch.heads import Head
from proxyd.prefetch.job import Job
from proxyd.prefetch.limits import as_it_is, limits_of
from proxyd.prefetch.lineup import Buckets, Lineup
from proxyd.prefetch.resource import Resource
from proxyd.queues import Queue
from proxyd.tasks import Exchange

# The buffer that bodies are read into: larger ones leave the processor's cache, smaller ones cost more reads.
BUFFER_BYTES = 128 * 1024
# How often it is looked whether a debt is paid off: as long as a round of reads lasts.
PACE_S = 0.02


class PrefetchClient:
    """Fetches through one cache and tells `ended(exchange, error)` for each exchange, once.

    `kind` is the cache's; `budget` bounds the bytes of all caches of this agent together.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        limits: Limits,
        ended: Ended,
        breaker: Breaker | None = None,
        *,
        kind: str,
        budget: Bucket,
    ) -> None:
        self.name = name
        self.breaker = Breaker() if breaker is None else breaker
        self.pace = Pace(limits.connections)
        self.limits = limits
        self._how = how = limits_of(limits)
        self._how_else = as_it_is(how)
        """Of what is no GET."""
        self._kind = kind
        self._host = host
        self._port = port
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._lineup = Lineup(how, budget)
        self.queue: Queue[Exchange] = self._lineup.fresh
        self._alone: deque[tuple[Resource, Buckets]] = deque()
        """What found no answer once: it is tried on a fresh connection."""
        self._jobs: dict[Job, None] = {}
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._held: list[Connection] = []
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
        self._pace_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._tick()

    @property
    def waiting(self) -> int:
        """Exchanges that are not begun."""
        return len(self.queue)

    @property
    def in_flight(self) -> int:
        """Exchanges that are begun and have not ended."""
        return len(self._jobs)

    @property
    def _there(self) -> int:
        """Connections that are up or soon will be."""
        return len(self._open) + self._connecting

    @property
    def _has_work(self) -> bool:
        return bool(self._lineup or self._alone)

    def put(self, exchange: Exchange, priority: int) -> None:
        """Takes an exchange; it is begun at the end of this turn of the loop or when there is room."""
        if not self.breaker.closed and self.waiting >= self.breaker.settings.queue_max:
            self._ended(exchange, self._too_many())
            return
        self.queue.put(exchange, priority)
        self._pump_soon()

    def _too_many(self) -> str:
        most = self.breaker.settings.queue_max
        return self._named(
            f"{self.breaker.reason}; {most} targets wait for it, as many as may: bring it back, or raise"
            " [breaker] queue_max, then post again"
        )

    def is_stalled(self, now: float) -> bool:
        """Whether it has requests under way and no byte for a while, or may send none."""
        if not self.breaker.closed:
            return True
        busy = [each.progress_at for each in self._open if each.resource is not None]
        return bool(busy) and now - max(busy) > STALLED_S

    def set_limits(self, limits: Limits) -> None:
        """From now on other limits hold; what has begun goes on as it began."""
        self.limits = limits
        self._how = how = limits_of(limits)
        self._how_else = as_it_is(how)
        self._tick()
        self._lineup.set_limits(how)
        self.pace.set_most(limits.connections)
        # Those that are idle go first.
        for number, connection in enumerate(sorted(self._open, key=lambda each: each.resource is None)):
            connection.limits = limits
            connection.surplus = number >= limits.connections
            if connection.surplus and connection.resource is None:
                self._drop(connection)
        self._pump_soon()

    def unended(self) -> Iterator[Exchange]:
        """What was put in and has not ended."""
        for job in self._jobs:
            yield job.exchange
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
        for timer in (self._sweep_timer, self._pace_timer):
            if timer is not None:
                timer.cancel()
        for task in self._connects:
            task.cancel()
        for connection in self._open:
            connection.abandon()
        self._open.clear()

    def __repr__(self) -> str:
        return (
            f"<PrefetchClient {self.name} {len(self._open)} open, {self._connecting} connecting, "
            f"{self.in_flight} begun, {self.waiting} waiting>"
        )

    # ── what goes next ────────────────────────────────────────────────────────────────────

    def _pump_soon(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Gives idle connections something to do, and opens more where that is not enough."""
        self._pump_due = False
        if self._closed or not self._has_work:
            return
        self._tick()
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
        self._idle = [connection for connection in self._idle if not connection.closing]
        if not self.breaker.closed:
            self._try_one()
            return
        if self._was_down:
            self._was_down = self._permit = False
            self.pace.restart()
        self._pump_alone()
        while self._idle and (resource := self._next()) is not None:
            self._send(self._idle.pop(), resource)
        self._open_more()

    def _try_one(self) -> None:
        """The breaker is not closed: one request is sent once that lets it through, and decides."""
        self._was_down = True
        if not self._permit or self.breaker.state is not State.HALF_OPEN:
            if len(self._idle) < len(self._open) or not self.breaker.may_send(self._now):
                return
            self._permit = True
        if not self._idle:
            if not self._connecting:
                self._start_connect()
            return
        # Rather one that has made nobody suspect it.
        if (resource := self._next(trying=True)) is not None:
            self._permit = False
            self._send(self._idle.pop(), resource)
        elif self._alone:
            self._permit = False
            resource, buckets = self._alone.popleft()
            self._idle.pop().begin(resource, buckets, self._now)

    def _pump_alone(self) -> None:
        """What is tried alone goes on fresh connections; where there is no room for one, an old one goes."""
        fresh = [each for each in self._idle if not each.answered]
        while self._alone and fresh:
            connection = fresh.pop()
            self._idle.remove(connection)
            resource, buckets = self._alone.popleft()
            connection.begin(resource, buckets, self._now)
        if self._alone and self._idle and self._there >= self.limits.connections:
            self._drop(self._idle[-1])

    def _next(self, *, trying: bool = False) -> Resource | None:
        """What goes next, taken out of its queue; None if nothing may go now."""
        if not trying and (not self.breaker.closed or self._is_paced):
            return None
        while (item := self._lineup.next()) is not None:
            if isinstance(item, Resource):
                if self._may_go_on(item):
                    return item
            elif item.task.expires_at > self._now:
                how = self._how if item.deed.method == b"GET" else self._how_else
                job = Job(item, self._kind, how, self._now)
                self._jobs[job] = None
                return job.root
            else:
                self._ended(item, "its ttl ended before it was begun")
        if self._lineup.pays:
            self._pace_soon()
        return None

    @property
    def _is_paced(self) -> bool:
        """Whether as much is under way as a cache in difficulty is to have."""
        pace = self.pace
        return pace.limit < pace.most and len(self._open) - len(self._idle) >= pace.limit

    def _may_go_on(self, resource: Resource) -> bool:
        """Whether what was begun is still wanted; ends it if not."""
        job = resource.job
        if job.over:
            return False
        if job.exchange.task.expires_at > self._now:
            return True
        job.stop("its ttl ended")
        self._resource_ended(resource)
        return False

    def _tick(self) -> float:
        self._now = now = self._lineup.tick(self._loop.time())
        return now

    def _send(self, connection: Connection, resource: Resource) -> None:
        connection.begin(resource, self._lineup.begin(resource.host), self._now)

    def _open_more(self) -> None:
        limits = self.limits
        if self._now < self._not_before:
            return
        # What may go now; what waits for its host's turn needs no connection.
        may_go = len(self._alone) + (0 if self._idle else self._lineup.ready)
        there = self._there
        wanted = min(limits.connections, there + may_go - self._connecting)
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
                await self._loop.create_connection(
                    lambda: Connection(self, self._loop, self._buffer), self._host, self._port
                )
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

    # ── what connections tell ─────────────────────────────────────────────────────────────

    def opened(self, connection: Connection) -> None:
        """A connection is up."""
        if self._closed or len(self._open) >= self.limits.connections:
            connection.abandon()
            return
        self._open.add(connection)
        self._idle.append(connection)

    def answered(self, connection: Connection, resource: Resource, head: Head, size_bytes: int) -> None:
        """An answer is whole, or as much of it as was wanted."""
        self._tick()
        if connection.answered == 1:
            self._not_before = 0.0
        self._lineup.end(resource.host)
        job = resource.job
        paced_before = self.pace.limit
        goes_on = resource.answered(head, size_bytes, job.exchange.deed)
        self._note_answer(resource, head.status)
        if not goes_on:
            self._resource_ended(resource)
        elif not job.over:
            self._lineup.begun.put(resource, job.exchange.task.head.priority)
        if self._closed:
            return
        if connection.closing or connection.surplus:
            self._drop(connection)
            if self._has_work:
                self._pump_soon()
            return
        self._idle.append(connection)
        if self._alone or self._was_down or self.pace.limit > paced_before:
            self._pump_soon()
        elif (after := self._next()) is not None:
            self._send(self._idle.pop(), after)
            if self._there < self.limits.connections:
                self._open_more()

    def died(self, connection: Connection, death: Death) -> None:
        """A connection is gone; what was on it is tried again or has failed."""
        if self._closed or connection not in self._open:
            return
        resource, connection.resource = connection.resource, None
        buckets = connection.buckets
        self._forget(connection)
        self._tick()
        self._note_death(connection, death, in_flight=resource is not None)
        if resource is not None:
            # If it is the cache's fault, each has its last try once that is back.
            resource.tries = min(resource.tries + 1, TRIES_MAX if self.breaker.closed else TRIES_MAX - 1)
            if resource.tries < TRIES_MAX and not resource.job.over:
                # It keeps its place among its host's.
                self._alone.append((resource, buckets))
            else:
                self._lineup.end(resource.host)
                resource.error = cause_of_death(death).of(death.value)
                self._resource_ended(resource)
        if self._has_work:
            self._pump_soon()

    def held(self, connection: Connection) -> None:
        """A connection is not read until its buckets are out of debt."""
        self._held.append(connection)
        self._pace_soon()

    def _drop(self, connection: Connection) -> None:
        """Ends a connection that has nothing in flight."""
        self._forget(connection)
        connection.retire()

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.held_at:
            self._held.remove(connection)

    # ── jobs ──────────────────────────────────────────────────────────────────────────────

    def _resource_ended(self, resource: Resource) -> None:
        job = resource.job
        if job.over:
            return
        was_tree = job.tree is not None
        job.ended(resource)
        if job.tree is None:
            self._end_job(job)
            return
        self._lineup.trees += not was_tree
        self._feed(job)

    def _feed(self, job: Job) -> None:
        """Begins what a playlist names, as far as there is room."""
        if job.over or self._closed:
            return
        task = job.exchange.task
        if task.expires_at <= self._now and not job.finished:
            job.stop("its ttl ended")
        for resource in job.feed():
            self._lineup.begun.put(resource, task.head.priority)
        if job.finished:
            self._end_job(job)
        elif job.hungry:
            self._loop.call_soon(self._feed, job)
        self._pump_soon()

    def _end_job(self, job: Job, error: str | None = None) -> None:
        job.over = True
        del self._jobs[job]
        if job.tree is not None:
            self._lineup.trees -= 1
            job.tree.stop()
        exchange = job.exchange
        evidence = exchange.prove(self.name)
        if evidence is not None:
            job.prove(evidence, self._now)
        error = error or job.outcome
        # It and its first resource hold each other: only the garbage collector would find them.
        del job.root
        self._ended(exchange, None if error is None else self._named(error))

    def _named(self, error: str) -> str:
        return f"cache {self.name}: {error}"

    # ── what the breaker is told ──────────────────────────────────────────────────────────

    def _note_answer(self, resource: Resource, status: int) -> None:
        """See `CacheClient`: how long an object took says nothing of the cache, and a 5xx is an origin's."""
        now = self._now
        self.pace.answered(0.0, now)
        if status < SERVER_ERROR or status == NOT_IMPLEMENTED or resource.error is None:
            self.breaker.note(Outcome.OK, now)
            return
        self.breaker.last_error = resource.error = Cause.BEHIND.of(resource.error)
        self.breaker.note(Outcome.FAILED, now, blame=False)

    def _note_no_connection(self, outcome: Outcome, why: str) -> None:
        now = self._tick()
        self._not_before = now + CONNECT_AGAIN_S
        self.pace.failed(now)
        self.breaker.note(outcome, now, why=why)

    def _note_death(self, connection: Connection, death: Death, *, in_flight: bool) -> None:
        now = self._now
        why = cause_of_death(death).of(death.value)
        if death in (Death.SILENT, Death.SLOW):
            # An origin may be slow for one of them.
            self.breaker.note(Outcome.TIMEOUT, now, why=why, blame=False)
        elif connection.answered == 0 and (in_flight or self._has_work):
            self._not_before = now + CONNECT_AGAIN_S
            self.breaker.note(Outcome.FAILED, now, why=why)
        elif in_flight and (death is not Death.CLOSED or self.breaker.state is State.HALF_OPEN):
            # (Closed between answers is no error: keep-alive connections end. But what was tried must end.)
            self.breaker.note(Outcome.FAILED, now, why=why)
        else:
            return
        self.pace.failed(now)

    # ── time ──────────────────────────────────────────────────────────────────────────────

    def _sweep(self) -> None:
        """Ends what is overdue; runs while there is anything that could be."""
        self._sweep_timer = None
        now = self._tick()
        for connection in list(self._open):
            if connection.is_overdue(now):
                silent = now - connection.progress_at > self.limits.answer_timeout_s
                connection.kill(Death.SILENT if silent else Death.SLOW)
        self._fail_impatient(now)
        self._lineup.sweep()
        if self._has_work or self._jobs:
            self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
            if self._has_work:
                self._pump_soon()

    def _fail_impatient(self, now: float) -> None:
        """Ends what has waited for too long for a cache that is down."""
        down_since = self.breaker.down_since
        came_before = now - self.limits.patience_s
        if down_since is None or down_since > came_before or now < self._patience_at:
            return
        self._patience_at = now + PATIENCE_EVERY_S
        error = f"{self.breaker.reason}; out of reach for {self.limits.patience_s:g} s"
        waiting = [*(resource for resource, _ in self._alone), *self._lineup.begun]
        for job in dict.fromkeys(resource.job for resource in waiting):
            if not job.over and job.exchange.task.received_at <= came_before:
                self._end_job(job, error)
        for resource, _ in self._alone:
            if resource.job.over:
                self._lineup.end(resource.host)
        self._alone = deque(each for each in self._alone if not each[0].job.over)
        self._lineup.begun.remove(lambda resource: resource.job.over)
        for exchange in self.queue.remove(lambda exchange: exchange.task.received_at <= came_before):
            self._ended(exchange, self._named(error))

    def _pace_soon(self) -> None:
        if self._pace_timer is None and not self._closed:
            self._pace_timer = self._loop.call_later(PACE_S, self._pace)

    def _pace(self) -> None:
        """Reads again what is out of debt; runs while anything is held, or waits to be out of it."""
        self._pace_timer = None
        now = self._tick()
        self._lineup.sweep()
        held, self._held = self._held, []
        for connection in held:
            if connection.owes(now):
                self._held.append(connection)
            else:
                connection.go_on(now)
        if self._held:
            self._pace_soon()
        if self._has_work:
            self._pump_soon()
