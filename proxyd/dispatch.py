"""What was pushed, from its arrival to its report: who does what, and when a task has ended.

How much is held: the engines may have `credit` targets outstanding on each of
L links, so credit × L is what they may push. After a reconnect an engine may
push other tasks than those that still run here, so up to twice that is taken.
Beyond 2 × credit × L open targets the links are not read until half of it is
done: nothing is dropped, the engines' credit holds the rest. One line can
overshoot it, by the targets of 1 MiB. An open target costs 0.3 to 0.6 KB here.
With the defaults (credit 16,384, two workers): at most 65,536 targets, 40 MB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import msgspec

from proxyd.caches import CacheKind, Deed
from proxyd.errors import BadTarget
from proxyd.homes import add_home, leave_home, move_home, parts_of
from proxyd.outbox import Outbox
from proxyd.pipeline import CacheClient
from proxyd.targets import split_directory, split_target
from proxyd.tasks import CarriedTask, Exchange, Share, Task, end_exchange, resume_task
from wire.tasks import PushHead

SLOW_TYPES = frozenset({"prefetch"})
"""What goes through the slow lane; all else is quick."""
OVERCOMMIT = 2
NO_HEAD = PushHead(type="")
"""Of a push that could not be read."""


class Lanes(msgspec.Struct, frozen=True):
    """One cache: what it is, and a client of its own for each lane."""

    name: str
    kind: CacheKind
    fast: CacheClient
    slow: CacheClient


class Route(msgspec.Struct, frozen=True):
    """What is done for one task type: at which caches, and why not at the others."""

    steps: tuple[tuple[Deed, CacheClient], ...]
    refusal: str | None
    split: Callable[[bytes], tuple[bytes, bytes]]


def plan_route(task_type: str, caches: Iterable[Lanes]) -> Route:
    """The route of a task type; the first refusal stands for all."""
    steps: list[tuple[Deed, CacheClient]] = []
    refusal: str | None = None
    for cache in caches:
        deed = cache.kind.deeds.get(task_type)
        if deed is not None:
            steps.append((deed, cache.slow if task_type in SLOW_TYPES else cache.fast))
        elif refusal is None:
            why = cache.kind.refused.get(task_type, "this agent does not know this type")
            refusal = f"cache {cache.name}: type={task_type} refused: {why}"
    return Route(tuple(steps), refusal, split_directory if task_type == "dir" else split_target)


class Dispatcher:
    """Holds the tasks in flight. It calls `hold(True)` when overfull, `hold(False)` when there is room."""

    def __init__(self, hold: Callable[[bool], None]) -> None:
        self._hold = hold
        self._caches: tuple[Lanes, ...] = ()
        self._routes: dict[str, Route] = {}
        self._tasks: dict[bytes, Task] = {}
        # Those with more than one target: the only ones whose progress is worth telling.
        self._long: dict[bytes, Task] = {}
        self.open_targets = 0
        self._open_max = math.inf
        self._held = False

    def use_caches(self, caches: Iterable[Lanes]) -> None:
        """Says what the caches are; what is in hand goes on at those that it began with."""
        self._caches = tuple(caches)
        self._routes = {}

    def limit(self, credit: int, links: int) -> None:
        """Sets how much is held, see above."""
        self._open_max = OVERCOMMIT * credit * max(1, links)

    @property
    def tasks(self) -> int:
        """Tasks in flight."""
        return len(self._tasks)

    def push(self, home: Outbox, task_id: bytes, head: PushHead, targets: list[bytes], now: float) -> None:
        """Begins a task. One that is in flight already goes on, and is reported to `home` from now on."""
        known = self._tasks.get(task_id)
        if known is not None:
            known.home = add_home(known.home, home)
            return
        home.owed += 1
        expires_at = math.inf if head.ttl_s is None else now + head.ttl_s
        self._start(Task(task_id, home, len(targets), head, now, expires_at), targets)

    def _start(self, task: Task, targets: list[bytes]) -> None:
        """Begins what is open of a task."""
        head = task.head
        route = self._routes.get(head.type)
        if route is None:
            route = self._routes[head.type] = plan_route(head.type, self._caches)
        self._tasks[task.id] = task
        self.open_targets += task.open
        if task.total > 1:
            self._long[task.id] = task
        if len(route.steps) == 1 and route.refusal is None:
            self._begin_single(task, route, targets)
        else:
            self._begin(task, route, targets)
        if self.open_targets > self._open_max and not self._held:
            self._held = True
            self._hold(True)

    def refuse(self, home: Outbox, task_id: bytes, total: int, error: str, now: float) -> None:
        """Reports a task failed that was never begun."""
        task = Task(task_id, home, total, NO_HEAD, now, math.inf)
        task.open, task.failed, task.error = 0, total, error
        home.owed += 1
        home.add_failed(task)

    def cancel(self, task_ids: Iterable[bytes]) -> None:
        """Forgets tasks: what has not begun is not begun, and nothing is reported."""
        for task_id in task_ids:
            task = self._tasks.pop(task_id, None)
            if task is not None:
                self._long.pop(task_id, None)
                task.expires_at = 0.0
                leave_home(task.home)
                self._release(task.open)

    def resume(self, home: Outbox, carried: CarriedTask, now: float) -> None:
        """Begins what was open of a task when the code before this left it."""
        known = self._tasks.get(carried.id)
        if known is not None:
            known.home = add_home(known.home, home)
            return
        home.owed += 1
        self._start(resume_task(home, carried, now), carried.targets)

    def move(self, gone: Outbox, heir: Outbox | None) -> None:
        """What `gone` was to report is reported by `heir`, or by nobody: it is done all the same."""
        for task in self._tasks.values():
            if gone in parts_of(task.home):
                task.home = move_home(task.home, gone, heir)

    def _begin_single(self, task: Task, route: Route, targets: list[bytes]) -> None:
        """The hot path: one cache."""
        deed, client = route.steps[0]
        split = route.split
        for target in targets:
            try:
                host, path = split(target)
            except BadTarget as error:
                self._end_target(task, target, str(error))
                continue
            client.put(Exchange(task, target, deed.render(host, path), deed, None), task.head.priority)

    def _begin(self, task: Task, route: Route, targets: list[bytes]) -> None:
        if not route.steps:
            for target in targets:
                self._end_target(task, target, route.refusal or "this agent has no caches")
            return
        for target in targets:
            try:
                host, path = route.split(target)
            except BadTarget as error:
                self._end_target(task, target, str(error))
                continue
            share = Share(len(route.steps))
            share.error = route.refusal
            for deed, client in route.steps:
                client.put(Exchange(task, target, deed.render(host, path), deed, share), task.head.priority)

    def _end_target(self, task: Task, target: bytes, error: str) -> None:
        self._release(1)
        if task.end_target(target, error):
            self._end_task(task)

    def ended(self, exchange: Exchange, error: str | None) -> None:
        """A client has ended an exchange: `error` is None if the cache has done it."""
        task = exchange.task
        open_before = task.open
        ended = end_exchange(exchange, error)
        if task.expires_at and task.open != open_before:
            self._release(1)
            if ended:
                self._end_task(task)

    def _end_task(self, task: Task) -> None:
        del self._tasks[task.id]
        if task.total > 1:
            self._long.pop(task.id, None)
        if task.failed:
            task.home.add_failed(task)
        else:
            task.home.add_done(task.id, task.received_at)

    def _release(self, targets: int) -> None:
        self.open_targets -= targets
        if self._held and self.open_targets <= self._open_max / 2:
            self._held = False
            self._hold(False)

    def tell_progress(self) -> None:
        """Reports what is under way and has moved since the last call; called once a second."""
        for task in self._long.values():
            if task.ended > task.shown:
                task.shown = task.ended
                task.home.add_active(task)

    def figures(self) -> dict[str, str | int | float | None]:
        """What a beat tells: targets that wait in each lane, and all that are in hand."""
        return {
            "fast": sum(cache.fast.waiting for cache in self._caches),
            "slow": sum(cache.slow.waiting for cache in self._caches),
            "inflight": self.open_targets,
        }

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._tasks)} tasks, {self.open_targets} targets, held={self._held}>"
