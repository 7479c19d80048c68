"""A pushed task on its way through the agent, and one request of it to one cache. Pure.

A task is a number of targets; a target is done when every cache has done it,
and failed, once, when any cache could not. A task ends when no target is open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from proxyd.caches import Deed
from proxyd.done import Content
from proxyd.evidence import EVIDENCE_MAX, Evidence
from wire.tasks import PushHead

if TYPE_CHECKING:
    from proxyd.course import Course
    from proxyd.homes import Home
    from proxyd.replay import Segment

# What a report lists of the targets that failed, so that its line stays short whatever the task.
FAILED_LISTED_MAX = 100
FAILED_LISTED_MAX_BYTES = 32 * 1024


class Task:
    """What was pushed under one id. `home` is where its report goes: to the worker that pushed it last."""

    __slots__ = (
        "content", "era", "error", "evidence", "evidence_left_out", "expires_at", "failed",
        "failed_bytes", "failed_targets", "head", "home", "id", "key", "merged_into", "open",
        "received_at", "shown", "total",
    )  # fmt: skip

    def __init__(
        self, task_id: bytes, home: Home, total: int, head: PushHead, received_at: float, expires_at: float
    ) -> None:
        self.id = task_id
        self.key = task_id
        """What it is known by while it is in hand: id and scope."""
        self.content: Content = b""
        """Stands for all its targets; empty where that is not known."""
        self.era = 0
        """Among what caches, and as whom, it was begun; 0 if it is not to be remembered."""
        self.home = home
        self.total = total
        self.open = total
        self.failed = 0
        self.head = head
        self.received_at = received_at
        self.expires_at = expires_at
        """What has not begun by then (loop time) is not begun; 0 once the task is cancelled."""
        self.error: str | None = None
        """The first failure's reason."""
        self.failed_targets: list[bytes] = []
        self.failed_bytes = 0
        self.shown = 0
        """How many targets the last `active` report told to be ended."""
        self.evidence: list[Evidence] | None = None
        """What was done and seen, in the order in which it ended; None where nobody asked."""
        self.merged_into = b""
        """The task that was done in its place, for it asks for no less: see `bans.py`."""
        self.evidence_left_out = 0
        """What did not fit there."""

    @property
    def ended(self) -> int:
        """Targets that are done or failed."""
        return self.total - self.open

    @property
    def done(self) -> int:
        """Targets that every cache has done."""
        return self.total - self.open - self.failed

    @property
    def cancelled(self) -> bool:
        """Whether the engine took it back: it is not reported."""
        return not self.expires_at

    def end_target(self, target: bytes, error: str | None) -> bool:
        """One target is done (`error` None) or failed; returns whether the task has ended."""
        self.open -= 1
        if error is not None:
            self._note_failure(target, error)
        return not self.open

    def add_evidence(self, evidence: Evidence) -> None:
        """One more target at one cache has ended."""
        if self.evidence is not None and len(self.evidence) < EVIDENCE_MAX:
            self.evidence.append(evidence)
        else:
            self.evidence_left_out += 1

    def _note_failure(self, target: bytes, error: str) -> None:
        self.failed += 1
        if self.error is None:
            self.error = error
        self.failed_bytes += len(target) + 1
        if not target:
            # A drop of the whole cache has none.
            return
        if len(self.failed_targets) < FAILED_LISTED_MAX and self.failed_bytes <= FAILED_LISTED_MAX_BYTES:
            self.failed_targets.append(target)

    def __repr__(self) -> str:
        return f"<Task {self.id.decode()} {self.done} done, {self.failed} failed of {self.total}>"


class CarriedTask(msgspec.Struct, frozen=True):
    """A task that has not ended, as it crosses an upgrade (`carry.py`).

    `targets` are those that are open; `ttl_left_s` is None where there is no end. For the others see `Task`.
    """

    id: bytes
    head: PushHead
    ttl_left_s: float | None
    age_s: float
    total: int
    failed: int
    error: str | None
    failed_targets: list[bytes]
    targets: list[bytes]
    content: Content = b""
    era: int = 0


def carry_tasks(unended: Iterable[Exchange], now: float) -> list[tuple[Home, CarriedTask]]:
    """The tasks of exchanges that have not ended, and where each is reported."""
    targets: dict[Task, dict[bytes, None]] = {}
    for exchange in unended:
        if not exchange.task.cancelled:
            targets.setdefault(exchange.task, {})[exchange.target] = None
    return [(task.home, _carry_task(task, list(left), now)) for task, left in targets.items()]


def _carry_task(task: Task, targets: list[bytes], now: float) -> CarriedTask:
    return CarriedTask(
        id=task.id,
        head=task.head,
        ttl_left_s=None if task.expires_at == math.inf else max(0.0, task.expires_at - now),
        age_s=now - task.received_at,
        total=task.total,
        failed=task.failed,
        error=task.error,
        failed_targets=task.failed_targets,
        targets=targets,
        content=task.content,
        era=task.era,
    )


def resume_task(home: Home, carried: CarriedTask, now: float) -> Task:
    """The task again. Of a target that stood there twice, one is left."""
    left_s = carried.ttl_left_s
    expires_at = math.inf if left_s is None else now + left_s
    task = Task(carried.id, home, carried.total, carried.head, now - carried.age_s, expires_at)
    task.content, task.era = carried.content, carried.era
    task.open = len(carried.targets)
    task.failed, task.error = carried.failed, carried.error
    task.failed_targets = list(carried.failed_targets)
    task.failed_bytes = sum(len(target) + 1 for target in task.failed_targets)
    return task


class Share:
    """What the requests for one target to several caches have in common."""

    __slots__ = ("error", "left")

    def __init__(self, caches: int) -> None:
        self.left = caches
        self.error: str | None = None


class Exchange:
    """One request to one cache, and what is needed once it is answered."""

    __slots__ = (
        "course", "deed", "evidence", "followers", "request", "segment", "sent_at", "share", "target", "task",
        "tries",
    )  # fmt: skip

    def __init__(self, task: Task, target: bytes, request: bytes, deed: Deed, share: Share | None) -> None:
        self.task = task
        self.target = target
        self.request = request
        self.deed = deed
        self.share = share
        """None where there is one cache only."""
        self.sent_at = 0.0
        self.tries = 0
        """How often it was sent and found no answer."""
        self.segment: Segment | None = None
        """Where it stands among others while the agent catches up, see `replay.py`."""
        self.followers: list[Exchange] | None = None
        """What ends with it, because it asks for no more than this: see `merging.py`."""
        self.evidence: Evidence | None = None
        """What was done and seen, see `prove`."""
        self.course: Course | None = None
        """Where it stands, if it is more than one request: see `course.py`."""

    def prove(self, cache: str) -> Evidence | None:
        """Where to write down what is done at a cache, or None if nobody asked."""
        if self.evidence is None and self.task.evidence is not None:
            self.evidence = Evidence(cache, self.target.decode("utf-8", "replace"))
        return self.evidence

    def part(self) -> list[Exchange]:
        """Its followers, which stand for themselves from now on."""
        followers, self.followers = self.followers, None
        return followers or []

    def __repr__(self) -> str:
        return f"<Exchange {self.request.partition(b' HTTP/')[0].decode()} tries={self.tries}>"


def end_exchange(exchange: Exchange, error: str | None) -> bool:
    """One request has ended; returns whether its task has ended with it."""
    if exchange.evidence is not None:
        exchange.evidence.error = error
        exchange.task.add_evidence(exchange.evidence)
    share = exchange.share
    if share is not None:
        share.left -= 1
        share.error = share.error or error
        if share.left:
            return False
        error = share.error
    return exchange.task.end_target(exchange.target, error)
