"""Parking: tasks that only wait for proxies that are away leave memory, and come back with them.

    in memory ──only proxies that are away owe it, and memory holds `engine.park_above`──► being parked
    being parked ──what it takes to go on is committed, and nothing has changed──────────► parked
    parked ──a proxy that owes it is back (replay.py); its time is over; it is cancelled
             or watched──────────────────────────────────────────────────────────────────► in memory

Memory keeps a count for each group of parked tasks (parked.py). The row in the store stays
until the task ends: one that is in memory again is only read from it after a crash, and
what its proxies did since is then done again, which is harmless.

What is bounded by what: tasks in memory by `park_above` as far as proxies are away; rows that are
being parked by PARK_ROWS and what is left of a segment; what is read back by the credit of the
proxy (replay.py), of what expires by EXPIRE_ROWS. When the store does not answer, nothing is
parked, and memory fills up to `engine.tasks_max`; what is to be read is read later.

While shards move nothing is parked, and nothing brought back but what is asked for: the tasks in
memory move, and whoever has the shards then counts what is parked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import structlog

from refreshd.errors import StoreError, StoreUnavailable
from refreshd.fanout import Log, Segment
from refreshd.fleet import Layer, Plan
from refreshd.shard import created_ms
from refreshd.store.base import Parked, ParkedCount, ParkedTask, Reader
from refreshd.task import Task
from refreshd.worker.loading import TaskReader
from refreshd.worker.parked import Group, GroupKey, group_number, key_of, pack, unpack
from refreshd.worker.replay import Replay
from wire.errors import Refused

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub
    from refreshd.worker.links import Link

log = structlog.get_logger()
T = TypeVar("T")

# A proxy whose link was just lost, or that a new worker has not heard of yet, may be back at once.
AWAY_AFTER_MS = 1_000
# Tasks that are looked at in one go, and that go into one commit: some 4 ms of the loop.
LOOK_TASKS = 4_000
PARK_ROWS = 2_000
EXPIRE_EVERY_MS = 1_000
EXPIRE_ROWS = 1_000
CHECK_EVERY_MS = 30_000
# Ends that may wait for the store while more tasks are expired.
_ENDS_WAITING = 4_000
_RETRY_S = 1.0
# Groups whose key was looked up lately, and plans; more are found anew.
_KEYS_KEPT = 10_000
_PLANS_KEPT = 256


class Parking:
    """The parked tasks of one worker."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.groups: dict[int, Group] = {}
        """By number; those with tasks."""
        self._by_key: dict[GroupKey, Group] = {}
        self._plans: dict[int, Plan] = {}
        self._lost_ms: dict[str, int] = {}
        """Proxy → when its link was lost, monotonic."""
        self._started_ms = hub.engine.clock.mono_ms
        # Deadlines are kept as wall clock times. They do not follow its jumps while this process lives.
        self.wall_offset_ms = hub.engine.clock.wall_ms - hub.engine.clock.mono_ms
        self._under_way = 0
        self._at: dict[Log, Segment] = {}
        """How far each log was looked through."""
        self._expire_ms = 0
        self._expiring = False
        self._check_ms = self._started_ms + CHECK_EVERY_MS
        self._unread_ms = 0
        self._added: set[int] = set()
        """Groups that tasks were added to since they were counted last."""
        self._recounts = 0
        self._tasks = TaskReader()
        self._readers: dict[int, Reader] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parking")

    def __len__(self) -> int:
        return sum(group.tasks for group in self.groups.values())

    def owed_by(self, name: str) -> int:
        """How many parked tasks wait for a proxy, perhaps for others as well."""
        return sum(group.tasks for group in self.groups.values() if name in group.names)

    # ── out of memory ─────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Parks what is to be parked, ends what has expired. To be called every 100 ms or so."""
        self.sweep()
        now_ms = self.hub.engine.clock.mono_ms
        due = (self.groups and now_ms >= self._expire_ms) or now_ms >= self._check_ms
        if due and not self._expiring and not self.hub.engine.moving:
            self._expiring = True
            self.hub.background(self._look_after())

    def sweep(self) -> None:
        """Begins to park some tasks, if memory holds more than it is meant to."""
        engine = self.hub.engine
        excess = len(engine.tasks) - engine.config.engine.park_above
        if excess <= 0 or self._under_way or engine.moving:
            return
        if any(saver.last_error is not None for saver in engine.savers.values()):
            return
        wanted = min(excess, PARK_ROWS)
        looks = LOOK_TASKS
        for log_ in sorted(engine.logs, key=_order):
            present = self._present(log_.layer)
            if wanted > 0 and looks > 0 and log_.live and present != (1 << log_.layer.size) - 1:
                parked, looked = self._sweep_log(log_, present, wanted, looks)
                wanted -= parked
                looks -= looked
        for gone in self._at.keys() - engine.logs:
            del self._at[gone]

    def _sweep_log(self, log_: Log, present: int, wanted: int, looks: int) -> tuple[int, int]:
        """Parks up to `wanted` tasks, from where the last look ended. Returns (parked, looked at)."""
        segment: Segment | None = self._at.get(log_, log_.head)
        parked = looked = 0
        while segment is not None and parked < wanted and looked < looks:
            for task in segment.tasks:
                if task is not None and self._may_park(task, present):
                    self._park(task)
                    parked += 1
            looked += len(segment.tasks)
            segment = segment.next
        self._at[log_] = segment or log_.head
        return parked, looked

    def _park(self, task: Task) -> None:
        group = self._group(key_of(task))
        saver = self.hub.engine.savers[self.hub.shards.lane(task.id)]
        saver.batch.parking.append((task, pack(task, group, self.wall_offset_ms)))
        saver.wake()
        self._under_way += 1

    def parked(self, parking: list[tuple[Task, Parked]], kept: bool) -> None:
        """See `listener.Listener.tasks_parked`. What has changed since it was looked at stays in memory."""
        engine = self.hub.engine
        self._under_way -= len(parking)
        if not kept or engine.moving:
            return
        presents: dict[Layer, int] = {}
        for task, row in parking:
            if engine.tasks.get(task.id) is not task or task.segment is None:
                continue
            layer = task.layer
            if layer not in presents:
                presents[layer] = self._present(layer)
            if not self._may_park(task, presents[layer]):
                continue
            group = self._group(key_of(task))
            if pack(task, group, self.wall_offset_ms) != row:
                # It was pushed meanwhile, or reported.
                continue
            engine.park(task)
            for changed in engine.changes:
                changed.add(task.serial)
            # Another one of that number where the plan was made anew since.
            group = self.groups.setdefault(group.number, group)
            group.add(task.serial)
            self._added.add(group.number)
        if not self._under_way:
            self.sweep()

    def _may_park(self, task: Task, present: int) -> bool:
        """Whether a task of a log waits for nothing but proxies that are away."""
        owed = -1 if task.mask is None else int.from_bytes(task.mask, "little")
        return (
            not owed & present
            and task.closing is None
            and (task.extra is None or not task.extra.progress)
            and task.id not in self.hub.watches
        )

    def _present(self, layer: Layer) -> int:
        """The proxies of a layer that are not away, a bit each."""
        links = self.hub.pusher.links
        since_ms = self.hub.engine.clock.mono_ms - AWAY_AFTER_MS
        bits = 0
        for at, name in enumerate(layer.proxies):
            if name in links or self._lost_ms.get(name, self._started_ms) > since_ms:
                bits |= 1 << at
        return bits

    def _group(self, key: GroupKey) -> Group:
        group = self._by_key.get(key)
        if group is None:
            if len(self._by_key) >= _KEYS_KEPT:
                self._by_key.clear()
            self._keep_plan(key.layer.plan)
            number = group_number(*key)
            group = self._by_key[key] = self.groups.get(number) or Group(*key)
        return group

    # ── back into memory ──────────────────────────────────────────────────────────────────

    def lost(self, link: Link) -> None:
        """A proxy cannot be reached from here any more."""
        self._lost_ms[link.name] = self.hub.engine.clock.mono_ms

    def returned(self, link: Link) -> None:
        """A proxy is back: what is parked for it goes to it before anything that is younger."""
        self._lost_ms.pop(link.name, None)
        if self.hub.engine.moving:
            return
        groups = [group for group in self.groups.values() if link.name in group.names]
        link.replay = Replay(self, link, groups) if groups else None
        if link.replay is not None and self._was_away_too_long(link, groups):
            link.replay.drop()

    def _was_away_too_long(self, link: Link, groups: list[Group]) -> bool:
        """Whether the proxy is to drop its cache: it has missed something for longer than it allows for."""
        if link.drop_after_s is None:
            return False
        oldest_ms = min(created_ms(group.oldest) for group in groups)
        return self.hub.engine.clock.wall_ms - oldest_ms > link.drop_after_s * 1000

    async def fetch(self, task_id: bytes) -> Task | None:
        """A task of this worker, brought into memory if it is parked; None: it is neither.

        Also while shards move, as long as the task's is here.
        Raises: StoreError; Refused, `busy`, when it is no longer.
        """
        hub = self.hub
        engine = hub.engine
        while True:
            with self.reading() as changed:
                stored = await hub.queries.find(task_id)
                here = engine.tasks.get(task_id)
            if here is not None or stored is None or stored.parked is None:
                return here
            if stored.serial not in changed:
                break
        if not hub.shards.owns(task_id):
            raise Refused("busy", "the task is on its way to another process; ask again", retry_ms=500)
        plan = self._keep_plan(Plan.from_text(stored.plan))
        engine.clock.turn()
        taken = self.take_in([ParkedTask(plan.number, stored.body, stored.parked)], set())
        if engine.on_saved is not None:
            # Who gives its shard away is to copy it.
            engine.on_saved(taken)
        return engine.tasks.get(task_id)

    @contextmanager
    def reading(self) -> Iterator[set[int]]:
        """While parked tasks are read: the serials of those that end or are parked meanwhile.

        What was read of these is out of date, and must not come back.
        """
        changed: set[int] = set()
        self.hub.engine.changes.append(changed)
        try:
            yield changed
        finally:
            # By identity: another's may be equal.
            self.hub.engine.changes = [other for other in self.hub.engine.changes if other is not changed]

    def take_in(self, rows: Iterable[ParkedTask], changed: set[int]) -> list[Task]:
        """Brings what was just read into memory; returns that. Their plans are known, see `plans_of`."""
        engine, shards = self.hub.engine, self.hub.shards
        taken: list[Task] = []
        for plan, body, row in rows:
            if row.serial in changed:
                continue
            task = self._tasks.read(body, self._plans[plan], row.serial)
            if task.id in engine.tasks or not shards.owns(task.id):
                continue
            engine.unpark(unpack(task, row, self.wall_offset_ms))
            taken.append(task)
            group = self.groups.get(row.group)
            if group is not None:
                group.tasks -= 1
                if group.tasks <= 0:
                    self.empty(group)
        return taken

    def empty(self, group: Group) -> None:
        """All tasks of a group are in memory again."""
        group.tasks = 0
        self.groups.pop(group.number, None)

    async def plans_of(self, rows: list[ParkedTask]) -> None:
        """Sees to it that their plans are known. Raises: StoreError."""
        wanted = {row.plan for row in rows}
        if wanted <= self._plans.keys():
            return
        texts = await self.in_thread(self._read_plans)
        if len(self._plans) + len(wanted) > _PLANS_KEPT:
            self._plans = {number: plan for number, plan in self._plans.items() if number in wanted}
        for number in wanted - self._plans.keys():
            self._plans[number] = Plan.from_text(texts[number])

    def _read_plans(self) -> dict[int, str]:
        texts: dict[int, str] = {}
        for reader in self.readers():
            texts.update(reader.plans())
        return texts

    def _keep_plan(self, plan: Plan) -> Plan:
        """A task comes back to the very plan that it was parked with, as long as that is known."""
        if len(self._plans) >= _PLANS_KEPT and plan.number not in self._plans:
            self._plans.clear()
        return self._plans.setdefault(plan.number, plan)

    # ── time ──────────────────────────────────────────────────────────────────────────────

    async def _look_after(self) -> None:
        """Ends parked tasks whose time is over; every now and then sees that the counts are right."""
        engine = self.hub.engine
        try:
            await self._expire()
            if engine.clock.mono_ms >= self._check_ms:
                self._check_ms = engine.clock.mono_ms + CHECK_EVERY_MS
                await self._check()
        except StoreError as error:
            self.unread(error)
        finally:
            self._expiring = False
            self._expire_ms = engine.clock.mono_ms + EXPIRE_EVERY_MS

    async def _expire(self) -> None:
        engine = self.hub.engine
        while not engine.moving:
            now_ms = engine.clock.mono_ms + self.wall_offset_ms
            with self.reading() as changed:
                rows = await self.in_thread(self._read_due, now_ms)
                await self.plans_of(rows)
                engine.clock.turn()
                if engine.moving or not self.take_in(rows, changed):
                    return
            while sum(saver.waiting for saver in engine.savers.values()) > _ENDS_WAITING:
                await self.hub.catch_up()

    def _read_due(self, now_ms: int) -> list[ParkedTask]:
        rows: list[ParkedTask] = []
        for reader in self.readers():
            rows += reader.parked_due(now_ms, EXPIRE_ROWS)
        return rows

    # ── counting ──────────────────────────────────────────────────────────────────────────

    def count(self, readers: Iterable[Reader]) -> None:
        """Counts what an earlier process parked. Blocks: 0.1 s for a million. Raises: StoreError."""
        for reader in readers:
            self._counted(reader.parked_counts(), reader.plans())

    def recount(self) -> None:
        """Shards came, or tasks of another engine: counts anew, and serves who is back already."""
        self.hub.pusher.knows_all = False
        self._recounts += 1
        if self._recounts == 1:
            self.hub.background(self._recount())

    async def _recount(self) -> None:
        while self._recounts:
            asked = self._recounts
            try:
                counts, plans = await self.in_thread(self._read_counts)
            except StoreError as error:
                self.unread(error)
                await asyncio.sleep(_RETRY_S)
                continue
            self._recounts -= asked
            self._counted(counts, plans)
        self.hub.pusher.knows_all = True
        self._serve()

    def _serve(self) -> None:
        """Whoever is back gets what is parked for it."""
        for link in list(self.hub.pusher.links.values()):
            if link.replay is None:
                self.returned(link)
            self.hub.pusher.due(link)

    async def _check(self) -> None:
        """Compares with the store.

        After a hand-over counts include tasks that are in memory, and are too high; a group
        that was not known here at all would never be replayed.
        """
        self._added.clear()
        counts, plans = await self.in_thread(self._read_counts)
        if self.hub.engine.moving:
            return
        tasks: dict[int, int] = {}
        for count in counts:
            tasks[count.group] = tasks.get(count.group, 0) + count.tasks
        for number in self.groups.keys() - self._added:
            group = self.groups[number]
            group.tasks = min(group.tasks, tasks.get(number, 0))
            if not group.tasks:
                self.empty(group)
        unknown = [count for count in counts if count.group not in self.groups]
        if unknown:
            self._counted(unknown, plans)
            self._serve()

    def _read_counts(self) -> tuple[list[ParkedCount], dict[int, str]]:
        counts: list[ParkedCount] = []
        plans: dict[int, str] = {}
        for reader in self.readers():
            counts += reader.parked_counts()
            plans.update(reader.plans())
        return counts, plans

    def _counted(self, counts: list[ParkedCount], plans: dict[int, str]) -> None:
        for count in counts:
            plan = self._plans.get(count.plan) or self._keep_plan(Plan.from_text(plans[count.plan]))
            group = self._group(GroupKey(plan.layers[count.layer], count.priority, count.mask))
            # Of several lanes; and some were parked since.
            group.add(count.first, max(count.tasks - group.tasks, 0))
            self.groups[group.number] = group

    # ── the store ─────────────────────────────────────────────────────────────────────────

    async def in_thread(self, call: Callable[..., T], *args: object) -> T:
        """Runs what reads parked tasks, one at a time. Raises: what it raises."""
        return await self.hub.loop.run_in_executor(self._thread, call, *args)

    def readers(self) -> list[Reader]:
        """A reader for each lane that has shards of this worker. Only for `in_thread`. Raises: StoreError."""
        shards = self.hub.shards
        lanes = sorted({shards.lane_by_shard[shard] for shard in shards.with_owner(shards.slot)})
        for lane in lanes:
            if lane not in self._readers:
                self._readers[lane] = self.hub.openings([lane])[0]()
        return [self._readers[lane] for lane in lanes]

    def unread(self, error: StoreError) -> None:
        """Parked tasks could not be read; whoever wanted them tries again."""
        if isinstance(error, StoreUnavailable):
            now_ms = self.hub.engine.clock.mono_ms
            if now_ms >= self._unread_ms:
                self._unread_ms = now_ms + CHECK_EVERY_MS
                log.warning("parked tasks cannot be read just now", error=str(error))
        else:
            self.hub.engine.store_failed(error)

    def close(self) -> None:
        """Reads no more."""
        # Behind the read that may be under way: with a database that does not answer, that takes seconds.
        self._thread.submit(self._close_readers)
        self._thread.shutdown(wait=False)

    def _close_readers(self) -> None:
        for reader in self._readers.values():
            reader.close()


def _order(log_: Log) -> tuple[int, int, int]:
    """What is least urgent leaves memory first."""
    return log_.priority, log_.layer.plan.number, log_.layer.number
