"""Parked tasks: unfinished, only waiting for proxies that are away, and therefore not in memory.

The store has the request of every unfinished task anyway. When a task is parked, the
store also keeps how far it has come, and memory keeps nothing but a count for each *group*:
the tasks that wait for the same proxies of the same layer, with the same priority.

From tasks to rows and back; the parts that do it are parking.py and replay.py.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from refreshd.fleet import Layer, Plan
from refreshd.store.base import Parked, Stored
from refreshd.task import State, Task
from refreshd.worker.loading import TaskReader


class Group:
    """Parked tasks that wait for the same proxies."""

    __slots__ = ("layer", "mask", "names", "number", "oldest", "priority", "tasks")

    def __init__(self, layer: Layer, priority: int, mask: bytes) -> None:
        self.layer = layer
        self.priority = priority
        self.mask = mask
        self.number = group_number(layer, priority, mask)
        bits = int.from_bytes(mask, "little")
        self.names = frozenset(name for at, name in enumerate(layer.proxies) if bits >> at & 1)
        """Who is waited for."""
        self.tasks = 0
        """How many there are, but for what another process parked since they were counted."""
        self.oldest = 0
        """The serial of the first of them, or of an earlier one."""

    def add(self, serial: int, tasks: int = 1) -> None:
        """There are more, `serial` the first of these."""
        self.oldest = min(self.oldest, serial) if self.tasks else serial
        self.tasks += tasks

    def __repr__(self) -> str:
        return f"<Group {self.number:x}: {self.tasks} tasks for {len(self.names)} proxies>"


class GroupKey(NamedTuple):
    """What tasks of a group have in common."""

    layer: Layer
    priority: int
    mask: bytes


def group_number(layer: Layer, priority: int, mask: bytes) -> int:
    """Names a group in the store, the same in each process: 63 bits of a SHA-256."""
    text = b"%d %d %d %b" % (layer.plan.number, layer_place(layer), priority, mask)
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def layer_place(layer: Layer) -> int:
    """Which of its plan's layers it is."""
    return layer.plan.layers.index(layer)


def key_of(task: Task) -> GroupKey:
    """The group that a task belongs in, as it is now."""
    mask = task.layer.full if task.mask is None else bytes(task.mask)
    return GroupKey(task.layer, task.terms.priority, mask)


def pack(task: Task, group: Group, wall_offset_ms: int) -> Parked:
    """How far a task has come; `wall_offset_ms` is wall clock less monotonic clock."""
    return Parked(
        task.serial,
        group.number,
        layer_place(task.layer),
        group.priority,
        group.mask,
        task.deadline_ms + wall_offset_ms,
        task.updated_ms,
        int(task.state),
        task.failed,
        bytes(task.marks) if task.marks else None,
    )


def unpack(task: Task, parked: Parked, wall_offset_ms: int) -> Task:
    """Brings a task, as `TaskReader` makes it, to where it had come. The inverse of `pack`."""
    layer = task.layer.plan.layers[parked.layer]
    task.layer = layer
    task.mask = None if parked.mask == layer.full else bytearray(parked.mask)
    task.left = int.from_bytes(parked.mask, "little").bit_count()
    task.deadline_ms = parked.deadline_ms - wall_offset_ms
    task.updated_ms = parked.updated_ms
    task.state = State(parked.state)
    task.failed = parked.failed
    task.marks = bytearray(parked.marks) if parked.marks else None
    return task


def task_of(stored: Stored) -> Task | None:
    """A parked task as it would be in memory, to be looked at; None for one that is not parked."""
    if stored.parked is None:
        return None
    plan = _plan(stored.plan)
    return unpack(TaskReader().read(stored.body, plan, stored.serial), stored.parked, 0)


_plans: dict[str, Plan] = {}


def _plan(text: str) -> Plan:
    """Listings look at many tasks of few plans."""
    plan = _plans.get(text)
    if plan is None:
        if len(_plans) >= _PLANS_KEPT:
            _plans.clear()
        plan = _plans[text] = Plan.from_text(text)
    return plan


_PLANS_KEPT = 16
