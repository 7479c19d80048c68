"""Tasks on their way from one engine's memory into another's.

The giver sends each task twice: first as it was accepted, while it still serves it
(`Copier`), then its state, when its shard is frozen (`pack`). Only the second is
waited for, and it is small: 1.5 µs a task here and as much there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import groupby
from zlib import crc32

from refreshd.fanout import Log
from refreshd.fleet import Layer, Plan
from refreshd.task import State, Task, body_of
from refreshd.worker.engine import Engine
from refreshd.worker.handover.frames import Copy, Group, Shards, TaskState
from refreshd.worker.links import Link
from refreshd.worker.loading import TaskReader
from wire import SHARDS


class Copier:
    """The giver's book: which tasks the successor has, and which are still to be copied."""

    def __init__(self, engine: Engine, shards: frozenset[int]) -> None:
        """`shards` are those that will be given; other tasks are passed over."""
        self._engine = engine
        self._shards = shards
        self._copied: list[list[Task]] = [[] for _ in range(SHARDS)]
        self._new: list[list[Task]] = [[] for _ in range(SHARDS)]
        self._plans_sent: set[int] = set()

    def note(self, tasks: Iterable[Task]) -> None:
        """Tasks have come to stable storage; the successor does not have them."""
        for task in tasks:
            shard = crc32(task.id) & 63
            if shard in self._shards:
                self._new[shard].append(task)

    def copy(self, tasks: Iterable[Task]) -> Copy:
        """What makes these tasks known to the successor; those that are new or ending are left out."""
        engine_tasks = self._engine.tasks
        plans: dict[int, str] = {}
        rows: list[tuple[int, int, bytes]] = []
        for task in tasks:
            if task.state is State.NEW or task.closing is not None or engine_tasks.get(task.id) is not task:
                continue
            shard = crc32(task.id) & 63
            if shard not in self._shards:
                continue
            plan = task.layer.plan
            if plan.number not in self._plans_sent:
                self._plans_sent.add(plan.number)
                plans[plan.number] = plan.text
            rows.append((task.serial, plan.number, body_of(task)))
            self._copied[shard].append(task)
        return Copy(plans, rows)

    def take_new(self, shards: Iterable[int]) -> list[Task]:
        """The tasks of these shards that are still to be copied."""
        tasks: list[Task] = []
        for shard in shards:
            tasks += self._new[shard]
            self._new[shard] = []
        return tasks

    def size(self, shard: int) -> int:
        """About how many tasks a shard has."""
        return len(self._copied[shard]) + len(self._new[shard])

    def tasks(self, shards: Iterable[int]) -> list[Task]:
        """The unfinished tasks of these shards that were copied."""
        engine_tasks = self._engine.tasks
        return [task for shard in shards for task in self._copied[shard] if engine_tasks.get(task.id) is task]

    def is_settled(self, shards: Iterable[int]) -> bool:
        """Whether no task of these shards is on its way into the store or out of it."""
        engine_tasks = self._engine.tasks
        return not any(
            task.closing is not None and engine_tasks.get(task.id) is task
            for shard in shards
            for task in (*self._copied[shard], *self._new[shard])
        )

    def forget(self, shards: Iterable[int]) -> None:
        """The shards are the successor's."""
        for shard in shards:
            self._copied[shard] = []


def pack(tasks: list[Task], links: Iterable[Link], *, with_given: bool = True) -> Shards:
    """The state of tasks, and (`with_given`) to which proxies they were pushed on these links."""
    by_log: dict[Log, list[Task]] = {}
    waiting: list[bytes] = []
    for task in tasks:
        if task.segment is None:
            waiting.append(task.id)
        else:
            by_log.setdefault(task.segment.log, []).append(task)
    known = set(links)
    groups: list[Group] = []
    for log, some in by_log.items():
        groups += _groups(log, some, known if with_given else None)
    return Shards(groups, waiting)


def _groups(log: Log, tasks: list[Task], known: set[Link] | None) -> Iterable[Group]:
    layer = log.layer
    plan, number = layer.plan.number, layer.plan.layers.index(layer)
    size = (layer.size + 7) // 8
    tasks.sort(key=_place)
    given_to = (lambda _: 0) if known is None else _given_to(log, known)
    for given, some in groupby(tasks, key=given_to):
        yield Group(plan, number, given.to_bytes(size, "little"), [_state(task) for task in some])


def _place(task: Task) -> tuple[int, int]:
    segment = task.segment
    return (segment.number, task.place) if segment is not None else (-1, -1)


def _given_to(log: Log, known: set[Link]) -> Callable[[Task], int]:
    """Tells of a task of the log which proxies of its layer were pushed it, a bit each."""
    places, given_behind = _given(log, known)

    def given_to(task: Task) -> int:
        before = task.segment.given if task.segment is not None else 0
        return before | given_behind[bisect_right(places, _place(task))]

    return given_to


def free_pushed(tasks: Iterable[Task], links: Iterable[Link]) -> None:
    """The tasks go where they are pushed again: on these links they are no longer outstanding."""
    by_log: dict[Log, list[Task]] = {}
    for task in tasks:
        if task.segment is not None:
            by_log.setdefault(task.segment.log, []).append(task)
    known = set(links)
    for log, some in by_log.items():
        given_to = _given_to(log, known)
        by_bit = {cursor.bit: cursor.link for cursor in log.cursors.values() if isinstance(cursor.link, Link)}
        for task in some:
            owed = given_to(task)
            if task.mask is not None:
                owed &= int.from_bytes(task.mask, "little")
            while owed:
                bit = owed & -owed
                owed ^= bit
                link = by_bit.get(bit)
                if link is not None:
                    link.freed(task.count)


def _given(log: Log, known: set[Link]) -> tuple[list[tuple[int, int]], list[int]]:
    """Places (segment, offset) up to which links have read the log, in order, and whose they are.

    The second list has, for each place and beyond the last, the bits of the proxies whose links
    have read up to that place or further: so a task was given to those behind the first place after it.
    """
    read = sorted(
        (cursor.segment.number, cursor.offset, cursor.bit)
        for cursor in log.cursors.values()
        if cursor.link in known
    )
    behind = [0] * (len(read) + 1)
    for at in range(len(read) - 1, -1, -1):
        behind[at] = behind[at + 1] | read[at][2]
    return [(number, offset) for number, offset, _ in read], behind


def _state(task: Task) -> TaskState:
    return (
        task.id,
        task.state is State.ACTIVE,
        task.updated_ms,
        task.deadline_ms,
        bytes(task.mask) if task.mask is not None else None,
        bytes(task.marks) if task.marks is not None else None,
        task.failed,
        task.extra.progress if task.extra is not None else None,
    )


class Receiver:
    """The taker's book: tasks that were copied here and are not its own yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reader = TaskReader()
        self._plans: dict[int, Plan] = {}
        self._copied: dict[bytes, Task] = {}

    def __len__(self) -> int:
        return len(self._copied)

    def copy(self, frame: Copy) -> list[Task]:
        """Makes the tasks. Raises: WireError, KeyError for what is no task."""
        for number, text in frame.plans.items():
            self._plans[number] = Plan.from_text(text)
        read = self._reader.read
        tasks = [read(body, self._plans[number], serial) for serial, number, body in frame.tasks]
        for task in tasks:
            self._copied[task.id] = task
        return tasks

    def adopt(self, frame: Shards) -> int:
        """Takes the tasks into the engine; returns how many. Raises: KeyError for one that was not copied."""
        number = 0
        for group in frame.groups:
            layer = self._plans[group.plan].layers[group.layer]
            given = int.from_bytes(group.given, "little")
            number += len(group.tasks)
            for state in group.tasks:
                self._adopt(layer, given, state)
        waiting = [self._copied.pop(task_id) for task_id in frame.waiting]
        for task in waiting:
            self._engine.load(task)
        self._engine.start_all(waiting)
        self._engine.adopted()
        return number + len(waiting)

    def _adopt(self, layer: Layer, given: int, state: TaskState) -> None:
        task_id, active, updated_ms, deadline_ms, mask, marks, failed, progress = state
        task = self._copied.pop(task_id)
        task.layer = layer
        task.state = State.ACTIVE if active else State.PENDING
        task.updated_ms = updated_ms
        task.deadline_ms = deadline_ms
        task.left = layer.size
        if mask is not None:
            task.mask = bytearray(mask)
            task.left = int.from_bytes(mask, "little").bit_count()
        if marks is not None:
            task.marks = bytearray(marks)
        task.failed = failed
        if progress:
            task.extras().progress = progress
        self._engine.adopt(task, given)

    def clear(self) -> None:
        """What was copied and not adopted will not come: it ended before, or is read from the store."""
        self._copied.clear()
        self._plans.clear()
