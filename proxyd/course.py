"""What is done to one target at one cache, step by step, where that is to be proved or goes on. Pure.

A task with `verify=1` or `then=prefetch` makes of each exchange a course of several requests:

    url at a cache that tells since when it has a copy:
                    purge ──► look ──gone, or newer──► (then=prefetch: warm) ──► ended well
                      ▲         └──old──► again, again (PURGES_MAX), or failed
                      └─────────────────┘
    at one that does not:    look ──► purge ──► look … as above, the second and third time after AGAIN_S
    at one that sees to it by itself that it is gone (files are unlinked):    act ──► (warm) ──► ended well
    dir, tag:       plant ──► look ──there──► ban ──► look ──gone──► ended well
                                └──not there──► failed: nothing can be proved
    prefetch:       warm ──► look ──there──► ended well

A step that fails ends the course. What is planted is an object of our own (a canary) that the
cache makes without asking an origin, under the directory or with the tag: a ban that takes it along takes
along all like it.

A course begins anew when the agent is upgraded, or is pushed the task again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from proxyd.caches.base import Canary, Deed, Look
from proxyd.evidence import Evidence
from proxyd.sight import Answer, Purged, Sight, Verdict, judge, read_seconds

if TYPE_CHECKING:
    from proxyd.route import Lanes

# Once because it was asked for, and again for what was just being fetched; a third time settles that purging
# does not help.
PURGES_MAX = 3
# `Age` counts whole seconds: after this, a copy from before shows one more.
AGAIN_S = 1.1


Part = TypeVar("Part")


class Lane(enum.Enum):
    """Who does a step."""

    LOOK = "look"
    QUICK = "fast"
    SLOW = "slow"


class Stage(enum.Enum):
    """What was begun last."""

    START = "start"
    BEFORE = "look before"
    PLANT = "plant"
    PLANTED = "look at what was planted"
    PURGE = "purge"
    AFTER = "look after"
    WARM = "warm"
    WARMED = "look at what was fetched"


class Step(NamedTuple):
    """What is to be done next: who does it, what is sent, after how long (s)."""

    lane: Lane
    deed: Deed
    request: bytes
    delay_s: float = 0.0


class End(NamedTuple):
    """The course has ended: `error` is None if all is well."""

    error: str | None


class Plan(NamedTuple):
    """Which steps there are for a type at a kind of cache; the same for all targets. None: no such step."""

    purge: Deed | None
    look: Look | None
    plant: Canary | None
    warm: Deed | None
    soft: bool = False
    tagged: bool = False
    """What is planted has the tag that is refreshed."""


class Course:
    """One target at one cache on its way. `evidence` is written as it goes."""

    __slots__ = (
        "_before", "_evidence", "_host", "_path", "_place", "_plan", "_purged",
        "answer", "cache", "sent_at", "stage",
    )  # fmt: skip

    def __init__(
        self, cache: Lanes, plan: Plan, host: bytes, path: bytes, evidence: Evidence, place: bytes = b""
    ) -> None:
        self.cache = cache
        """Where its steps are done."""
        self._plan = plan
        self._host = host
        self._path = path
        self._evidence = evidence
        self._place = place or path
        """What is looked at: the target, or what was planted for it."""
        self._before: Sight | None = None
        self._purged: Purged | None = None
        self.stage = Stage.START
        self.answer: Answer | None = None
        """What the last step of the look lane was answered with."""
        self.sent_at = 0.0
        """When the last step was sent: loop time, s."""

    def begin(self) -> Step:
        """The first step."""
        plan = self._plan
        if plan.purge is None:
            return self._warm()
        if plan.plant is not None:
            self.stage = Stage.PLANT
            tag = self._path if plan.tagged else b""
            return Step(Lane.LOOK, plan.plant, plan.plant.render_tagged(self._host, self._place, tag))
        if plan.look is not None and not plan.look.tells_begun:
            return self._look(Stage.BEFORE)
        return self._purge()

    def after(self, unix_ms: int) -> Step | End:
        """What follows the step that has ended well."""
        match self.stage:
            case Stage.PLANT:
                return self._look(Stage.PLANTED)
            case Stage.PURGE:
                return self._purge_answered(unix_ms)
            case Stage.WARM:
                return self._warmed(unix_ms)
            case Stage.START:
                raise RuntimeError("a course that has not begun has ended a step")
        return self._looked(unix_ms)

    def _purge(self, delay_s: float = 0.0) -> Step:
        deed = _needed(self._plan.purge)
        self.stage = Stage.PURGE
        # A ban is merged with others there; a canary needs no clock.
        by_the_way = self._plan.look is None or self._plan.plant is not None
        lane = Lane.QUICK if by_the_way else Lane.LOOK
        return Step(lane, deed, deed.render(self._host, self._path), delay_s)

    def _look(self, stage: Stage) -> Step:
        look = _needed(self._plan.look)
        self.stage = stage
        return Step(Lane.LOOK, look, look.render(self._host, self._place))

    def _warm(self) -> Step:
        deed = _needed(self._plan.warm)
        self.stage = Stage.WARM
        return Step(Lane.SLOW, deed, deed.render(self._host, self._path))

    def _purge_answered(self, unix_ms: int) -> Step | End:
        self._evidence.purges += 1
        self._evidence.purged_ms = unix_ms
        cache_now = None if self.answer is None else read_seconds(self.answer, b"x-refreshd-now")
        self._purged = Purged(self.sent_at, cache_now, self._plan.soft)
        if self._plan.look is None:
            return self._verified(unix_ms)
        return self._look(Stage.AFTER)

    def _verified(self, unix_ms: int) -> Step | End:
        if self._plan.look is not None or (self._plan.purge is not None and self._plan.purge.certain):
            self._evidence.verified_ms = unix_ms
        return End(None) if self._plan.warm is None else self._warm()

    def _warmed(self, unix_ms: int) -> Step | End:
        if self._plan.purge is None and self._plan.look is not None:
            return self._look(Stage.WARMED)
        return End(None)

    def _looked(self, unix_ms: int) -> Step | End:
        sight = _needed(self._plan.look).see(_needed(self.answer))
        if isinstance(sight, str):
            return End(sight)
        match self.stage:
            case Stage.BEFORE:
                self._before = sight
                return self._purge()
            case Stage.PLANTED:
                if not sight.there:
                    return End("cannot be verified: what was put there to see it go was not kept")
                return self._purge()
            case Stage.WARMED:
                if not sight.there:
                    return End("was fetched through the cache, but the cache has not kept it")
                self._evidence.verified_ms = unix_ms
                return End(None)
        return self._judge(sight, unix_ms)

    def _judge(self, sight: Sight, unix_ms: int) -> Step | End:
        plan, purged = self._plan, _needed(self._purged)
        if plan.plant is not None:
            # It is like no other, so nobody but us has it come back.
            verdict = Verdict.OLD if sight.there else Verdict.GONE
        else:
            verdict = judge(self._before, sight, purged)
        if verdict is not Verdict.OLD:
            return self._verified(unix_ms)
        if self._evidence.purges >= PURGES_MAX:
            return End(_describe(sight, self._evidence.purges))
        told = plan.plant is not None or (plan.look is not None and plan.look.tells_begun)
        self._before = sight
        return self._purge(0.0 if told else AGAIN_S)

    def __repr__(self) -> str:
        return f"<Course at {self.stage.value!r}>"


def _needed(part: Part | None) -> Part:
    """What is there if the plan is of those that `proving.py` makes."""
    if part is None:
        raise RuntimeError("a course takes a step that its plan does not have")
    return part


def _describe(sight: Sight, purges: int) -> str:
    copy = "a copy" if sight.age_s is None else f"a copy that is {sight.age_s:g} s old"
    return f"says that it was purged ({purges} times), but keeps {copy} from before"
