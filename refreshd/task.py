"""A task in memory, and the states it passes through.

    (NEW) ── saved ──► PENDING ── first push ──► ACTIVE
                          │                        │
                          └──────────┬─────────────┘
                                     ▼ every proxy reported, ttl over, or cancelled
                              CLOSING ── saved ──► COMPLETE | FAILED | EXPIRED | CANCELLED

Rule 1: nobody outside may see a state that a crash could take back. So NEW is
not answered until its row is saved, and a final state shows only once its result
is saved; until then the task answers as it did before, with its final counts.

Rule 2: a task is in at most one segment of one log (see fanout.py), that of the
layer it works on; it leaves it when the layer has finished or the task closes.

There are millions of these. What many tasks share (`terms`, the plan) is one object;
what few tasks have (`extra`) is absent; the rest is 0.75 KiB for a request of 330
bytes (tools/bench memory), most of it the request itself.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING

from wire.fields import DEFAULT_PRIORITY, DEFAULT_TTL_S, TASK_TYPES
from wire.lines import Line, escape, format_line, unescape
from wire.tasks import TaskHead, read_task_head

if TYPE_CHECKING:
    from refreshd.fanout import Segment
    from refreshd.fleet import Layer


class State(enum.IntEnum):
    """The state of a task; the numbers stand in the store."""

    NEW = -1
    PENDING = 0
    ACTIVE = 1
    COMPLETE = 2
    FAILED = 3
    EXPIRED = 4
    CANCELLED = 5

    @property
    def text(self) -> str:
        """The state as the wire calls it; a NEW task is seen by nobody and would be pending."""
        return _TEXTS[self]


_TEXTS = {state: state.name.lower() for state in State} | {State.NEW: "pending"}
STATE_BY_TEXT = {text: state for state, text in _TEXTS.items() if state is not State.NEW}
FINAL = frozenset({State.COMPLETE, State.FAILED, State.EXPIRED, State.CANCELLED})
TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.PENDING}),
    State.PENDING: frozenset({State.ACTIVE}) | FINAL,
    State.ACTIVE: FINAL,
    **{state: frozenset() for state in FINAL},
}


class Terms:
    """A task's content but for id and targets, as the hot paths want it. Shared by tasks."""

    __slots__ = (
        "due", "head", "is_plain_url", "kind", "priority", "push", "scope", "ttl_ms", "type", "verify",
    )  # fmt: skip

    def __init__(self, head: TaskHead) -> None:
        self.head = head
        self.type = head.type
        self.kind = TASK_TYPES.index(head.type)
        self.scope = head.scope
        self.due = head.due
        self.verify = head.verify
        self.ttl_ms = head.ttl_s * 1000
        self.priority = head.priority
        self.is_plain_url = head.type in ("url", "prefetch")
        """Whether the targets may be checked by `wire.fields.is_one_plain_url`."""
        fields = {
            "type": head.type,
            "ttl": head.ttl_s if head.ttl_s != DEFAULT_TTL_S else None,
            "priority": head.priority if head.priority != DEFAULT_PRIORITY else None,
            "force": 1 if head.force else None,
            "verify": 1 if head.verify else None,
            "then": head.then,
        }
        self.push = format_line("", fields, ())[:-1] + b" "
        """What stands between id and targets in a push: ` type=url -- `."""


def read_terms(line: Line) -> Terms:
    """The terms of a `post_task` line. Raises: Refused."""
    return Terms(read_task_head(line))


def push_line(task: Task) -> bytes:
    """The `!task` push of a task, LF included; its targets go on byte for byte."""
    return b"!task task_id=%b%b%b\n" % (task.id, task.terms.push, task.line.partition(b" -- ")[2])


def body_of(task: Task) -> bytes:
    """The task as it is stored, and handed over: its request line and, behind an LF, the key that posted it.

    A line has no LF in it, so no client can make up another's key.
    """
    return task.line if task.key is None else b"%b\n%b" % (task.line, task.key.encode())


def line_of(body: bytes) -> bytes:
    """The request line in what is stored of a task."""
    return body.partition(b"\n")[0]


def split_body(body: bytes) -> tuple[bytes, str | None]:
    """The inverse of `body_of`: line and key."""
    line, lf, key = body.partition(b"\n")
    # Millions of tasks have few keys.
    return line, sys.intern(key.decode()) if lf else None


class IllegalTransition(RuntimeError):
    """A fault of the engine: a task was to go where TRANSITIONS does not let it."""


class Failure:
    """What a proxy reported that ended a task with failures."""

    __slots__ = ("done", "error", "failed")

    def __init__(self, done: int, failed: int, error: str) -> None:
        self.done = done
        self.failed = failed
        self.error = error


class Extra:
    """What only few tasks have."""

    __slots__ = ("progress",)

    def __init__(self) -> None:
        self.progress: dict[int, tuple[int, int]] = {}
        """Rank of a proxy → (done, failed) so far."""


class Task:
    """One task that is not final. Plain attributes: the hot paths read and write them in place."""

    __slots__ = (
        "closing",
        "count",
        "deadline_ms",
        "extra",
        "failed",
        "id",
        "key",
        "layer",
        "left",
        "line",
        "marks",
        "mask",
        "place",
        "segment",
        "serial",
        "state",
        "terms",
        "updated_ms",
    )

    def __init__(
        self, task_id: bytes, line: bytes, terms: Terms, count: int, layer: Layer, serial: int, now_ms: int
    ) -> None:
        self.id = task_id
        self.line = line
        """The request as it came, without its line end."""
        self.key: str | None = None
        """Whose it is: the key of the greeting it came with."""
        self.terms = terms
        self.count = count
        """How many targets."""
        self.layer = layer
        """The layer the task works on."""
        self.serial = serial
        self.state = State.NEW
        self.closing: State | None = None
        """The final state that is being saved."""
        self.left = layer.size
        """How many proxies of the layer are still to report."""
        self.mask: bytearray | None = None
        """Which ones, a bit each; None while that is all of them."""
        self.marks: bytearray | None = None
        """A mark for each proxy that has ended, see `mark`."""
        self.failed = 0
        """(proxy, target) pairs that failed, at proxies that have ended."""
        self.extra: Extra | None = None
        self.deadline_ms = 0
        """When the task expires, monotonic; set when it starts."""
        self.segment: Segment | None = None
        self.place = 0
        self.updated_ms = now_ms

    def move(self, state: State) -> None:
        """Raises: IllegalTransition."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"task {self.id.decode()}: {self.state.name} → {state.name}")
        self.state = state

    @property
    def total(self) -> int:
        """(proxy, target) pairs."""
        return self.layer.plan.size * self.count

    def counts(self) -> tuple[int, int]:
        """(proxy, target) pairs that are (done, failed), with the progress of proxies still at work."""
        layer = self.layer
        ended = layer.first + layer.size - self.left
        done = ended * self.count - self.failed
        failed = self.failed
        if self.extra is not None:
            for at_done, at_failed in self.extra.progress.values():
                done += at_done
                failed += at_failed
        return done, failed

    def final_counts(self) -> tuple[int, int]:
        """The counts with which the task closes: but for a cancelled one, what was undone has failed."""
        done, failed = self.counts()
        if self.closing is not State.CANCELLED:
            failed = self.total - done
        return done, failed

    def outcome(self) -> State:
        """The final state of a task that every proxy has ended."""
        return State.FAILED if self.failed else State.COMPLETE

    def extras(self) -> Extra:
        """The rare part, made if need be."""
        if self.extra is None:
            self.extra = Extra()
        return self.extra

    def take_bit(self, place: tuple[int, int, int]) -> bool:
        """Marks the proxy at `place` of the layer as ended. False if it had ended before."""
        byte, bit, _ = place
        mask = self.mask
        if mask is None:
            mask = self.mask = bytearray(self.layer.full)
        value = mask[byte]
        if not value & bit:
            return False
        mask[byte] = value ^ bit
        self.left -= 1
        return True

    def owes(self, place: tuple[int, int, int]) -> bool:
        """Whether the proxy at `place` of the layer is still to report."""
        return self.mask is None or bool(self.mask[place[0]] & place[1])

    def add_mark(self, mark: bytes) -> None:
        """Keeps the mark of a proxy that has ended."""
        if self.marks is None:
            self.marks = bytearray(mark)
        else:
            self.marks += mark

    def __repr__(self) -> str:
        return f"<Task {self.id.decode()} {self.state.name} layer {self.layer.number}, {self.left} left>"


def mark(rank: int, ms: int) -> bytes:
    """The mark of a proxy that did every target: `RANK:MS `. One object serves a whole report."""
    return b"%d:%d " % (rank, ms)


def verified_mark(rank: int, ms: int) -> bytes:
    """The mark of a proxy that did every target and saw to it: as `mark`, with a zero before the ms.

    Code that does not know this reads the same number.
    """
    return b"%d:0%d " % (rank, ms)


def failure_mark(rank: int, ms: int, failure: Failure) -> bytes:
    """The mark of a proxy that ended with failures: `RANK:MS:DONE:FAILED:ERROR `."""
    return f"{rank}:{ms}:{failure.done}:{failure.failed}:{escape(failure.error)} ".encode()


def read_marks(marks: bytes) -> dict[int, tuple[int, Failure | None]]:
    """Rank → (ms, failure or None), from the marks of a task."""
    read: dict[int, tuple[int, Failure | None]] = {}
    # At the space and nothing else: an error may hold other white space, such as U+00A0.
    for text in marks.decode().split(" ")[:-1]:
        rank, ms, *rest = text.split(":", 4)
        failure = Failure(int(rest[0]), int(rest[1]), unescape(rest[2])) if rest else None
        read[int(rank)] = (int(ms), failure)
    return read


def read_verified(marks: bytes) -> frozenset[int]:
    """The ranks whose mark is a `verified_mark`."""
    verified = set()
    for text in marks.decode().split(" ")[:-1]:
        rank, ms, *rest = text.split(":", 2)
        if not rest and len(ms) > 1 and ms.startswith("0"):
            verified.add(int(rank))
    return frozenset(verified)
