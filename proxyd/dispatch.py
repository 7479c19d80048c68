"""What was pushed, from its arrival to its report: who does what, and when a task has ended.

How much is held: the engines may have `credit` targets outstanding on each of
L links, so credit × L is what they may push. After a reconnect an engine may
push other tasks than those that still run here, so up to twice that is taken.
Beyond 2 × credit × L open targets the links are not read until half of it is
done: nothing is dropped, the engines' credit holds the rest. One line can
overshoot it, by the targets of 1 MiB. An open target costs 0.3 to 0.6 KB here.
With the defaults (credit 16,384, two workers): at most 65,536 targets, 40 MB; 85 while the agent is
behind, where what waits can be merged (`merging.py`).

With several caches, what one of them does not do stays open though all others have done it, and would use up
the credit that they live of. So where a cache does not keep up (its breaker is not closed, or it has not
answered for 0.5 s; see `Caches.left_behind`), the agent grants the engines more, in steps, as many targets as
wait for such caches only: at most `[breaker] queue_max` E in all, E / L on each link (`Links.grant`). Credit
cannot be taken back, so it counts until the link greets anew; then the bound is 2 × credit × L + E. With the
defaults, and E = 100,000: at most 165,536 targets, 100 MB, and that only while a cache is down. Beyond E the
credit holds the engines again; what is put into the queue of a cache whose breaker is not closed beyond E
fails there at once.

A task is known by the scope of the engine that pushed it, and its id:

    push ──not known──────────────────────────────► begun
      ├──in hand, the same content────────────────► joins: one execution, each engine is told
      │     (layer 1 and above, another engine)───► begun anew, for all of them
      ├──in hand, another content─────────────────► begun beside it; that goes on for the others
      └──done well a while ago (done.py)──────────► reported done
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from msgspec import structs

from proxyd.caches import Deed
from proxyd.course import Course, End, Lane, Plan, Step
from proxyd.done import CarriedDone, Content, Done, content_of, is_same_work
from proxyd.errors import BadTarget
from proxyd.evidence import Evidence, is_evidence_wanted
from proxyd.homes import Home, add_home, drop_home, is_told, leave_home, move_home, parts_of
from proxyd.merging import DROP
from proxyd.outbox import Outbox
from proxyd.proving import make_course, plan_proof
from proxyd.replay import Door
from proxyd.route import Lanes, Route, plan_route
from proxyd.targets import TARGET_OF_DROP
from proxyd.tasks import CarriedTask, Exchange, Share, Task, end_exchange, resume_task
from wire.tasks import PushHead

DROP_HEAD = PushHead(type=DROP, priority=9)
"""Of a drop of the whole cache. It goes first: what waits is satisfied by it."""
OVERCOMMIT = 2
DROP_CONTENT = b"\0drop"
"""Stands for what a drop asks for; no targets have this content."""
NO_DEED = Deed(method=b"", good=frozenset())
"""Of a course that has not begun."""
NO_HEAD = PushHead(type="")
"""Of a push that could not be read."""


class Dispatcher:
    """Holds the tasks in flight. It calls `hold(True)` when overfull, `hold(False)` when there is room."""

    def __init__(self, hold: Callable[[bool], None], clock: Callable[[], float] = time.time) -> None:
        self._hold = hold
        self._caches: tuple[Lanes, ...] = ()
        self._routes: dict[str, Route] = {}
        self._forced_routes: dict[str, Route] = {}
        self._clock = clock
        self._provable: dict[tuple[str, bool], bool] = {}
        self.verify_all = False
        """Whether what can be verified is, though the task does not ask for it."""
        self._tasks: dict[bytes, Task] = {}
        # Those with more than one target: the only ones whose progress is worth telling.
        self._long: dict[bytes, Task] = {}
        self.done = Done()
        self.era = 1
        """Counts what makes it unsure whether a task was done: other caches, another identity."""
        self._set_aside = 0
        self.open_targets = 0
        self._open_max = math.inf
        self._held = False
        self._replaying = False
        self._drops: set[bytes] = set()
        self.ended_tasks = 0
        """Tasks that ended here and were reported."""
        self.merged = 0
        """Requests that were not sent, for another one satisfied them: see `merging.py`."""

    def use_caches(self, caches: Iterable[Lanes]) -> None:
        """Says what the caches are; what is in hand goes on at those that it began with."""
        before, self._caches = self._caches, tuple(caches)
        self._forget_routes()
        for cache in self._caches:
            cache.replay.changed = self._forget_routes
        if self._caches != before:
            self.forget_done()
        self.replay(self._replaying)

    def _forget_routes(self) -> None:
        """What was planned does not hold any more: other caches, or another order at one of them."""
        self._routes, self._forced_routes = {}, {}
        self._provable = {}

    def replay(self, on: bool) -> None:
        """Begins or ends the order that holds while the agent catches up, at each cache."""
        self._replaying = on
        for cache in self._caches:
            if on:
                cache.replay.begin()
            else:
                cache.replay.end()

    def forget_done(self) -> None:
        """What was done, or is being done, is done again when it is pushed again."""
        self.era += 1
        self.done.clear()

    def know_done(self, done: Iterable[CarriedDone], era: int, now: float) -> None:
        """Goes on with what the code before this had done well, in the era that it was in."""
        self.era = era
        self.done.resume(done, now)

    def limit(self, credit: int, links: int, extra: int = 0) -> None:
        """Sets how much is held, see above. `extra` is granted besides, for caches that do not keep up."""
        self._open_max = OVERCOMMIT * credit * max(1, links) + extra

    @property
    def tasks(self) -> int:
        """Tasks in flight."""
        return len(self._tasks)

    def push(self, home: Outbox, task_id: bytes, head: PushHead, targets: list[bytes], now: float) -> None:
        """Begins a task, or sees that it is in hand or was done, see above; `home` is told of its end."""
        head = self.as_configured(head)
        key = home.scope.mark + task_id
        content = content_of(targets)
        proves = is_evidence_wanted(head)
        its_home: Home = home
        known = self._tasks.get(key)
        if known is not None:
            if not _is_same(known, head, content):
                self._step_aside(known, home)
                home.owed += 1
            elif home.layer and not is_told(known.home, home.engine):
                # It may have mended below what was broken when ours began.
                its_home = add_home(known.home, home)
                self._drop(known)
            else:
                known.home = add_home(known.home, home)
                return
        else:
            home.owed += 1
            if home.trusted and not proves and self.done.knows(key, head, content, now):
                home.add_done(task_id, now)
                return
        expires_at = math.inf if head.ttl_s is None else now + head.ttl_s
        task = Task(task_id, its_home, len(targets), head, now, expires_at)
        task.key, task.content = key, content
        if proves:
            # It is not remembered as done: what was seen then is not seen now.
            task.evidence = []
        elif home.trusted:
            task.era = self.era
        self._start(task, targets)

    def as_configured(self, head: PushHead) -> PushHead:
        """What is done for a task of this head: it is verified, if everything is that can be."""
        if self.verify_all and not head.verify and self._is_provable(head):
            return structs.replace(head, verify=True)
        return head

    def _is_provable(self, head: PushHead) -> bool:
        """Whether a task like this can be verified at each cache."""
        key = (head.type, head.force)
        found = self._provable.get(key)
        if found is None:
            asked = structs.replace(head, verify=True)
            plans = [plan_proof(cache, asked) for cache in self._caches]
            found = self._provable[key] = not any(isinstance(plan, str) for plan in plans)
        return found

    def drop(self, home: Outbox, task_id: bytes, now: float) -> None:
        """Begins to drop all that the caches hold; `home` is told of the end.

        It is done each time that it is pushed: what was missed since is dropped by a new one only. What is
        pushed behind it must find it done, so the order of a replay holds from now on.
        """
        self.replay(True)
        key = home.scope.mark + task_id
        its_home: Home = home
        known = self._tasks.get(key)
        if known is None:
            home.owed += 1
        else:
            its_home = add_home(known.home, home)
            self._drop(known)
        task = Task(task_id, its_home, 1, DROP_HEAD, now, math.inf)
        task.key, task.content = key, DROP_CONTENT
        self._drops.add(key)
        self._start(task, [TARGET_OF_DROP])

    @property
    def dropping(self) -> bool:
        """Whether a drop of the whole cache is in hand."""
        if self._drops:
            self._drops = {key for key in self._drops if key in self._tasks}
        return bool(self._drops)

    def in_hand(self, home: Outbox) -> list[bytes]:
        """The tasks that will be reported at `home`, the newest first: for `still_in_hand`."""
        return [task.key for task in reversed(self._tasks.values()) if home in parts_of(task.home)]

    def still_in_hand(self, keys: list[bytes]) -> int:
        """How many of these have not ended, about; 0 only if all have. Takes from the list's end what has."""
        while keys and keys[-1] not in self._tasks:
            keys.pop()
        return len(keys)

    def _step_aside(self, known: Task, home: Outbox) -> None:
        """Another content comes under a task's id: whoever pushes that is not told of the one in hand."""
        known.home = drop_home(known.home, home)
        if not parts_of(known.home):
            self._drop(known)
            return
        before = known.key
        self._set_aside += 1
        # No id has a space: no push and no cancel finds it.
        known.key += b" %d" % self._set_aside
        known.era = 0
        self._tasks[known.key] = self._tasks.pop(before)
        if known.total > 1:
            self._long[known.key] = self._long.pop(before)

    def _drop(self, task: Task) -> None:
        """What has not begun of a task is not begun, and nobody is told."""
        del self._tasks[task.key]
        self._long.pop(task.key, None)
        task.expires_at = 0.0
        self._release(task.open)

    def _start(self, task: Task, targets: list[bytes]) -> None:
        """Begins what is open of a task."""
        head = task.head
        routes = self._forced_routes if head.force else self._routes
        route = routes.get(head.type)
        if route is None:
            route = routes[head.type] = plan_route(head.type, self._caches, force=head.force)
        self._tasks[task.key] = task
        self.open_targets += task.open
        if task.total > 1:
            self._long[task.key] = task
        if head.verify or head.then is not None:
            self._begin_proved(task, route, targets)
        elif len(route.steps) == 1 and route.refusal is None:
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

    def cancel(self, home: Outbox, task_ids: Iterable[bytes]) -> None:
        """Forgets tasks: what has not begun is not begun, and nothing is reported.

        But what another engine waits for goes on: who cancels may be one that its tasks were taken from.
        """
        for task_id in task_ids:
            key = home.scope.mark + task_id
            self.done.forget(key)
            task = self._tasks.get(key)
            if task is not None:
                task.home = drop_home(task.home, home)
                if not any(part.live for part in parts_of(task.home)):
                    leave_home(task.home)
                    self._drop(task)

    def resume(self, home: Outbox, carried: CarriedTask, now: float) -> None:
        """Begins what was open of a task when the code before this left it."""
        key = home.scope.mark + carried.id
        known = self._tasks.get(key)
        if known is not None:
            if _is_same(known, carried.head, carried.content):
                known.home = add_home(known.home, home)
                return
            self._step_aside(known, home)
        home.owed += 1
        task = resume_task(home, carried, now)
        task.key = key
        if is_evidence_wanted(task.head):
            # What was seen by the code before this is not told.
            task.evidence = []
        if carried.head.type == DROP:
            self.replay(True)
            self._drops.add(key)
        self._start(task, carried.targets)

    def move(self, gone: Outbox, heir: Outbox | None) -> None:
        """What `gone` was to report is reported by `heir`, or by nobody: it is done all the same."""
        for task in self._tasks.values():
            if gone in parts_of(task.home):
                task.home = move_home(task.home, gone, heir)

    def _begin_single(self, task: Task, route: Route, targets: list[bytes]) -> None:
        """The hot path: one cache."""
        deed, door = route.steps[0]
        split = route.split
        for target in targets:
            try:
                request = deed.render(*split(target))
            except BadTarget as error:
                self._end_target(task, target, str(error))
                continue
            door.put(Exchange(task, target, request, deed, None), task.head.priority)

    def _begin(self, task: Task, route: Route, targets: list[bytes]) -> None:
        if not route.steps:
            for target in targets:
                self._end_target(task, target, route.refusal or "this agent has no caches")
            return
        for target in targets:
            refusal = route.refusal
            requests: list[tuple[bytes, Deed, Door]] = []
            try:
                host, path = route.split(target)
            except BadTarget as error:
                self._end_target(task, target, str(error))
                continue
            for deed, door in route.steps:
                try:
                    requests.append((deed.render(host, path), deed, door))
                except BadTarget as error:
                    refusal = refusal or str(error)
            if not requests:
                self._end_target(task, target, str(refusal))
                continue
            share = Share(len(requests))
            share.error = refusal
            for request, deed, door in requests:
                door.put(Exchange(task, target, request, deed, share), task.head.priority)

    def _begin_proved(self, task: Task, route: Route, targets: list[bytes]) -> None:
        """Each target at each cache takes a course (`course.py`)."""
        plans: list[tuple[Lanes, Plan]] = []
        refusal: str | None = None
        for cache in self._caches:
            plan = plan_proof(cache, task.head)
            if isinstance(plan, str):
                refusal = refusal or f"cache {cache.name}: {plan}"
            else:
                plans.append((cache, plan))
        for target in targets:
            try:
                host, path = route.split(target)
            except BadTarget as error:
                self._end_target(task, target, str(error))
                continue
            if not plans:
                self._end_target(task, target, refusal or "this agent has no caches")
                continue
            share = Share(len(plans))
            share.error = refusal
            for cache, plan in plans:
                self._begin_course(Exchange(task, target, b"", NO_DEED, share), cache, plan, host, path)

    def _begin_course(self, exchange: Exchange, cache: Lanes, plan: Plan, host: bytes, path: bytes) -> None:
        evidence = exchange.evidence = Evidence(cache.name, exchange.target.decode("utf-8", "replace"))
        course = exchange.course = make_course(cache, plan, host, path, evidence)
        if cache.replay.on and plan.purge is not None:
            cache.replay.count(exchange)
        try:
            step = course.begin()
        except BadTarget as error:
            exchange.course = None
            self.ended(exchange, f"cache {cache.name}: {error}")
            return
        self._take_step(exchange, cache, step, first=True)

    def _take_step(self, exchange: Exchange, cache: Lanes, step: Step, *, first: bool = False) -> None:
        exchange.deed, exchange.request, exchange.tries = step.deed, step.request, 0
        priority = exchange.task.head.priority
        if step.lane is Lane.LOOK:
            if cache.look is None:
                raise RuntimeError(f"cache {cache.name} is to be looked at, which its kind cannot be")
            cache.look.put_later(exchange, priority, step.delay_s)
        elif step.lane is Lane.QUICK:
            cache.fast.put(exchange, priority)
        else:
            # What warms by itself waits for the refreshes before it; what follows a refresh is part of it.
            door = cache.replay.prefetches if first and cache.replay.on else cache.slow
            door.put(exchange, priority)

    def _go_on(self, exchange: Exchange, course: Course) -> str | Step | None:
        """A step of a course has ended well: the next is begun and returned, or how the course has ended."""
        name = course.cache.name
        try:
            step = course.after(int(self._clock() * 1000))
        except BadTarget as error:
            return f"cache {name}: {error}"
        if isinstance(step, End):
            return None if step.error is None else f"cache {name}: {step.error}"
        self._take_step(exchange, course.cache, step)
        return step

    def _end_target(self, task: Task, target: bytes, error: str) -> None:
        self._release(1)
        if task.end_target(target, error):
            self._end_task(task)

    def ended(self, exchange: Exchange, error: str | None) -> None:
        """A client has ended an exchange: `error` is None if the cache has done it."""
        if exchange.followers is not None:
            # What it satisfied ends with it.
            for follower in exchange.part():
                self.merged += 1
                self.ended(follower, error)
        task = exchange.task
        if exchange.course is not None and error is None and task.expires_at:
            outcome = self._go_on(exchange, exchange.course)
            if isinstance(outcome, Step):
                return
            error = outcome
        open_before = task.open
        ended = end_exchange(exchange, error)
        if task.expires_at and task.open != open_before:
            self._release(1)
            if ended:
                self._end_task(task)
        segment = exchange.segment
        if segment is not None:
            # What waited for all of them may begin.
            exchange.segment = None
            segment.end_one()

    def _end_task(self, task: Task) -> None:
        self.ended_tasks += 1
        del self._tasks[task.key]
        if task.total > 1:
            self._long.pop(task.key, None)
        if task.evidence is not None:
            task.home.add_evidence(task)
        if task.failed:
            task.home.add_failed(task)
            return
        if task.era == self.era:
            self.done.add(task.key, task.head, task.content, task.received_at)
        if task.merged_into:
            task.home.add_merged(task)
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
            "fast": sum(cache.fast.waiting + cache.looks_waiting for cache in self._caches),
            "slow": sum(cache.slow.waiting + cache.replay.waiting for cache in self._caches),
            "inflight": self.open_targets,
        }

    def sweep(self, now: float) -> None:
        """Called every second or so."""
        self.done.sweep(now)

    def __repr__(self) -> str:
        return f"<Dispatcher {len(self._tasks)} tasks, {self.open_targets} targets, held={self._held}>"


def _is_same(known: Task, head: PushHead, content: Content) -> bool:
    """Whether what is pushed is what is in hand under its id."""
    # (Where the code before this did not say what a task's content is, its id has to do.)
    return not known.content or (known.content == content and is_same_work(known.head, head))
