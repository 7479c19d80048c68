"""What worker 0 of an engine does for the cluster, every second or so, beside its tasks.

    beat:  renew the engine's lease ─► read the registry ─► win, renew or give up the leader's key
    act:   claim the leader's epoch ─► read the engines in SQL ─► fence, deal out        (in a thread)

The two go on beside each other: SQL that hangs keeps no lease from being renewed,
and Redis that hangs keeps nobody from seeing in SQL that it was fenced.

**A reload.** The process that leaves calls `hand_over` and gives what it returns to
its successor, which starts with it: same lease, same lead, same leader's epoch; the
key in Redis never changes hands. If it is lost on the way (the old process died),
the successor still finds the key held by its own engine's epoch and takes it over;
only the leader's epoch is then raised once more. If the hand-over fails, the old
process makes a new coordinator with what it had given.

**Redis away**: everybody goes on with what it owns, and the last snapshot stands.
A leader stops acting when its lease is over. When Redis is back, nobody fences
before the registry was watched for a lease. **SQL away**: the leader gives the key up
after a while, so that one that reaches SQL leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from refreshd.cluster import clock, takeover
from refreshd.cluster.acts import Acts, TruthThread
from refreshd.cluster.client import ClusterClient
from refreshd.cluster.election import Election, Event, Lead, State
from refreshd.cluster.lease import TIMING, Timing
from refreshd.cluster.names import Names
from refreshd.cluster.news import News
from refreshd.cluster.registry import Registry
from refreshd.cluster.seat import Seat
from refreshd.cluster.snapshot import Advert, Snapshot, Watch
from refreshd.cluster.status import ClusterStatus, engines_of
from refreshd.cluster.takeover import Incarnation, Sightings
from refreshd.cluster.tasks import end, rest
from refreshd.cluster.truth import EngineRow, Truth
from refreshd.errors import ClusterUnavailable, NotLeader, StoreError, StoreFenced

log = structlog.get_logger()

# Two engines of one id displace each other at each renewal; this often is enough to say so.
_CONFLICT_LOG_MS = 60_000


class Handed(msgspec.Struct, frozen=True):
    """What a coordinator gives to the one that goes on with it, in another process of this machine."""

    lead: Lead | None = None
    watch: tuple[str, str, int] | None = None
    seen: list[Incarnation] = []


class Calls(NamedTuple):
    """What a coordinator calls, on the loop. A fault in one is logged and goes no further."""

    on_registry: Callable[[Snapshot], None] = lambda _: None
    """The registry was read; once a second."""
    on_handout: Callable[[int], None] = lambda _: None
    """Tasks were given to the engine of this number."""
    on_fenced: Callable[[str], None] = lambda _: None
    """This engine was fenced, and why that is thought: no write of this process counts any more. Once."""


class Coordinator:
    """One engine in its cluster."""

    def __init__(
        self,
        advert: Advert,
        client: ClusterClient,
        names: Names,
        truth: Truth,
        calls: Calls,
        *,
        timing: Timing = TIMING,
        handed: Handed | None = None,
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        """`advert`: id, number, epoch and boot stay as they are. The client stays the caller's to close."""
        self.snapshot = Snapshot()
        self.rows: Sequence[EngineRow] = ()
        """The engines as SQL had them last."""
        self._advert = advert
        self._client = client
        self._names = names
        self._timing = timing
        self._now_ms = now_ms
        self._calls = calls
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self._registry = Registry(client, names, timing, now_ms)
        self._election = Election(advert.id, advert.number, advert.epoch, timing, on_change=self._on_change)
        self._seat = Seat(client, names, self._election, timing, now_ms)
        self._news = News(client, names, on_handout=self._on_handout, on_registry=self._wake.set)
        self._thread = TruthThread(truth, timing.truth_ms / 1000)
        self._acts = Acts(
            self._thread, may_act=self._may_act, heirs=self._heirs, tell=self._news.tell_handout
        )
        self._watch = Watch()
        self._sightings = Sightings()
        self._loops: list[asyncio.Task[None]] = []
        self._register_due_ms = 0
        self._rows_due_ms = 0
        self._registered = False
        self._fenced = False
        self._conflict = False
        self._conflict_logged_ms: int | None = None
        self._redis_error = ""
        self._store_error = ""
        self._store_away_ms: int | None = None
        if handed is not None:
            self._election.inherit(handed.lead)
            self._watch.inherit(handed.watch)
            self._sightings.inherit(handed.seen)

    # ── from and to the worker ────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begins. Neither Redis nor SQL need be there."""
        loop = asyncio.get_running_loop()
        self._news.start()
        self._loops = [
            loop.create_task(self._again_and_again(self._beat, self._wake)),
            loop.create_task(self._again_and_again(self._act, self._look)),
        ]

    async def close(self) -> None:
        """The engine stops as planned: gives up lead and lease, if Redis lets it, within two calls' time."""
        leads = await self._halt()
        self._election.stop(self._now_ms())
        if not self._registered and not leads:
            return
        try:
            async with asyncio.timeout(2 * self._timing.call_ms / 1000):
                await self._seat.step("")
                await self._registry.give_up(self._advert)
                await self._news.tell_registry()
        except (ClusterUnavailable, TimeoutError) as error:
            log.info("leases are not given up, they end by themselves", error=str(error))

    async def hand_over(self) -> Handed:
        """Stops, and gives nothing up: another process of this engine goes on with what this returns."""
        await self._halt()
        lead = self._election.leave(self._now_ms())
        return Handed(lead, self._watch.handed(), self._sightings.handed())

    async def _halt(self) -> bool:
        leads = self._election.state is not State.FOLLOWER
        await end(self._loops)
        await self._news.close()
        self._thread.close()
        return leads

    def advertise(self, **changes: Any) -> None:
        """From now on the registry says so: any of `Advert`'s address, workers, unfinished, draining."""
        was = self._advert
        self._advert = msgspec.structs.replace(was, **changes)
        if (was.draining, was.address) != (self._advert.draining, self._advert.address):
            self._register_now()

    def status(self) -> ClusterStatus:
        """How the cluster stands, without asking anybody."""
        now_ms = self._now_ms()
        election = self._election
        leader = self.snapshot.get(self.snapshot.leader_id)
        return ClusterStatus(
            cluster=self._names.cluster,
            id=self._advert.id,
            state=election.state.value,
            leader=self.snapshot.leader_id,
            leader_epoch=election.leader_epoch or (leader.advert.leader_epoch if leader else 0),
            lead_ms=election.remaining_ms(now_ms) if election.may_act(now_ms) else 0,
            watched_ms=self._watch.watched_ms(now_ms),
            redis_error=self._redis_error,
            store_error=self._store_error,
            fenced=self._acts.fenced,
            handed_out=self._acts.handed_out,
            conflict=self._conflict,
            engines=engines_of(self.snapshot, self.rows, lease_ms=self._timing.lease_ms, now_ms=now_ms),
        )

    # ── the two loops ─────────────────────────────────────────────────────────────────────

    async def _again_and_again(self, work: Callable[[], Awaitable[float]], now: asyncio.Event) -> None:
        """Does `work` for ever; it returns after how many ms again, sooner if `now` is set."""
        while True:
            now.clear()
            wait_ms: float = self._timing.poll_ms
            try:
                wait_ms = await work()
            except Exception:
                log.exception("a fault of the coordinator")
            await rest(now, wait_ms / 1000)

    async def _beat(self) -> float:
        self._election.tick(self._now_ms())
        try:
            await self._register()
            self._read(await self._registry.read())
            await self._seat.step(self.snapshot.leader)
        except ClusterUnavailable as error:
            self._watch.missed()
            if not self._redis_error:
                log.warning("redis does not answer; what is owned is gone on with", error=str(error))
            self._redis_error = str(error)
            return min(self._timing.retry_ms, self._timing.poll_ms)
        if self._redis_error:
            self._redis_error = ""
            log.info("redis answers again")
        return self._timing.poll_ms

    async def _register(self) -> None:
        now_ms = self._now_ms()
        if self._fenced or now_ms < self._register_due_ms:
            return
        advert = msgspec.structs.replace(self._advert, leader_epoch=self._election.leader_epoch)
        done, before = await self._registry.register(advert)
        if not done:
            self._on_fenced("a later epoch of this engine is registered")
            return
        self._register_due_ms = now_ms + self._timing.renew_ms
        self._look_for_conflict(before, now_ms)
        if not self._registered:
            self._registered = True
            await self._news.tell_registry()

    def _look_for_conflict(self, before: Advert | None, now_ms: int) -> None:
        # Before the first time it may be the engine as it was before a restart.
        self._conflict = self._registered and before is not None and before.boot != self._advert.boot
        if not self._conflict or before is None:
            return
        if self._conflict_logged_ms is None or now_ms - self._conflict_logged_ms >= _CONFLICT_LOG_MS:
            self._conflict_logged_ms = now_ms
            log.error(
                "another engine has this engine's id; give each its own `engine.id`",
                id=self._advert.id,
                address=before.address,
            )

    def _read(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._watch.read(snapshot.memory, self._client.server, self._now_ms())
        self._sightings.note(snapshot)
        self._call(self._calls.on_registry, snapshot)

    async def _act(self) -> float:
        error: StoreError | None = None
        try:
            if self._election.state is State.CANDIDATE:
                await self._claim()
            await self._read_rows()
            # What fails from here on may be about one engine: others would fare no better.
            self._store_away_ms = None
            await self._take_over()
        except (NotLeader, StoreFenced) as refused:
            log.warning("the store refuses this leader", error=str(refused))
            self._election.outdone(self._now_ms())
            self._rows_due_ms = 0
        except StoreError as failed:
            error = failed
            self._store_away()
        self._note_store(error)
        return self._timing.poll_ms

    async def _claim(self) -> None:
        value = self._election.value
        epoch = await self._thread.call(self._thread.truth.claim_leadership)
        self._election.claimed(value, epoch, self._now_ms())

    async def _read_rows(self) -> None:
        now_ms = self._now_ms()
        if now_ms < self._rows_due_ms and self._election.state is State.FOLLOWER:
            return
        self.rows = await self._thread.call(self._thread.truth.engines)
        self._rows_due_ms = now_ms + self._timing.own_row_ms
        self._sightings.note_rows(self.rows, self._now_ms())
        advert = self._advert
        own = next((row for row in self.rows if row.number == advert.number), None)
        if own is None or own.name != advert.id:
            self._on_fenced(f"the store does not know it as number {advert.number} any more")
        elif (own.epoch, own.alive) != (advert.epoch, True):
            self._on_fenced(f"the store has it at epoch {own.epoch}, and this process at {advert.epoch}")

    async def _take_over(self) -> None:
        now_ms = self._now_ms()
        epoch = self._election.leader_epoch
        if not self._may_act(epoch) or self._snapshot_is_old(now_ms):
            return
        plan = takeover.decide(
            self._advert.number,
            self.snapshot,
            self.rows,
            self._sightings,
            watched_ms=self._watch.watched_ms(now_ms),
            now_ms=now_ms,
            timing=self._timing,
        )
        if plan:
            await self._acts.carry_out(epoch, plan, self._sightings.unfinished)

    def _snapshot_is_old(self, now_ms: int) -> bool:
        """Whether this process was stopped, or Redis is slow: who was missing then may be back."""
        return now_ms - self.snapshot.at_ms > 2 * self._timing.poll_ms + self._timing.call_ms

    # ── what happens ──────────────────────────────────────────────────────────────────────

    def _may_act(self, leader_epoch: int) -> bool:
        election = self._election
        return not self._fenced and election.leader_epoch == leader_epoch and election.may_act(self._now_ms())

    def _heirs(self) -> tuple[int, ...]:
        return takeover.heirs(self.snapshot, self.rows)

    def _register_now(self) -> None:
        self._register_due_ms = 0
        self._wake.set()

    def _on_change(self, was: State, event: Event) -> None:
        election = self._election
        log.info(
            "leadership",
            was=was.value,
            now=election.state.value,
            why=event.value,
            epoch=election.leader_epoch,
        )
        if election.state is State.CANDIDATE:
            self._look.set()
        # The registry shows by which epoch it leads.
        self._register_now()

    def _note_store(self, error: StoreError | None) -> None:
        text = "" if error is None else str(error)
        if text and text != self._store_error:
            log.warning("the store does not do what the coordinator asks", error=text)
        elif self._store_error and not text:
            log.info("the store does what the coordinator asks again")
        self._store_error = text

    def _store_away(self) -> None:
        now_ms = self._now_ms()
        if self._store_away_ms is None:
            self._store_away_ms = now_ms
        elif now_ms - self._store_away_ms >= self._timing.lease_ms:
            self._election.store_away(now_ms)

    def _on_fenced(self, why: str) -> None:
        if self._fenced:
            return
        self._fenced = True
        log.critical("this engine was fenced", why=why, epoch=self._advert.epoch)
        self._election.stop(self._now_ms())
        self._call(self._calls.on_fenced, why)

    def _on_handout(self, number: int) -> None:
        self._call(self._calls.on_handout, number)

    def _call(self, call: Callable[..., None], *args: object) -> None:
        try:
            call(*args)
        except Exception:
            log.exception("a fault in what the coordinator calls")

    def __repr__(self) -> str:
        return f"<Coordinator {self._election!r}>"
