"""Fan-out: one log of tasks per layer and priority, and a cursor in it for each proxy.

A queue for each proxy would cost a slot per (task, proxy) pair. Instead a task
that a layer is to work on is appended once, to the layer's log, and each link
to a proxy remembers how far it has read:

    log ──► segment 7 ──► segment 8 ──► segment 9 (open)
              ▲ cursor of a slow proxy      ▲ cursors of those that keep up

A segment holds up to 256 tasks. Its tasks' push lines are encoded once and
joined once for all links that stand at the same place, so the price of a pair
is a share of one write. A task leaves its segment when its layer has finished;
a segment that is empty leaves the log. A link that comes (back) begins at the
head of each log and is given only what its proxy still owes.

A segment also knows the earliest deadline of its tasks: one timer a segment,
none a task. And it knows which proxies were `given` all of its tasks that they owe
before the log came to this process (docs/handover.md): their links step over it.

Pure: the caller does the writing and passes the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from refreshd.fleet import Layer
from refreshd.shard import SERIAL_MAX
from refreshd.task import Task

# Large enough that a join and a write are shared by many tasks, small enough that
# the slots of finished tasks in a segment that one slow task keeps are little.
SEGMENT_TASKS = 256
# Push lines that are kept encoded for links that come later: usually 700 segments. With less, links
# that are far apart make each other encode anew (0.5 µs a pair).
ENCODED_MAX_BYTES = 64 << 20
# Segments whose lines are kept joined as well: only for links that stand at the same place.
JOINED_MAX = 8


class Segment:
    """Up to SEGMENT_TASKS tasks of a log, in order."""

    __slots__ = (
        "deadline_ms",
        "given",
        "joined",
        "lines",
        "live",
        "log",
        "next",
        "number",
        "prev",
        "pushed",
        "tasks",
        "uniform",
    )

    def __init__(self, log: Log, number: int) -> None:
        self.log = log
        self.number = number
        self.tasks: list[Task | None] = []
        self.live = 0
        self.uniform = True
        """Every task has exactly one target, and every proxy that has not read it owes it."""
        self.given = 0
        """The proxies of the layer, a bit each, that had been pushed these tasks by an earlier process."""
        self.pushed = 0
        """Tasks before this place were pushed to some proxy."""
        self.deadline_ms = 0
        """The earliest deadline of its tasks, monotonic; 0: none yet."""
        self.lines: list[bytes] | None = None
        self.joined: tuple[int, int, bytes] | None = None
        self.prev: Segment | None = None
        self.next: Segment | None = None

    def __repr__(self) -> str:
        return f"<Segment {self.number}: {self.live} of {len(self.tasks)} live>"


class Cursor:
    """How far one link has read one log."""

    __slots__ = ("bit", "catching_up", "link", "log", "offset", "place", "segment")

    def __init__(self, log: Log, link: object, place: tuple[int, int, int]) -> None:
        self.log = log
        self.link = link
        self.place = place
        """Where the proxy's bit is in the mask of this log's tasks."""
        self.bit = log.layer.bit(place)
        self.segment = log.head
        self.offset = 0
        self.catching_up = True
        """Until it first reaches the end, tasks may be met that the proxy has already done."""

    def at_end(self) -> bool:
        """Whether everything was read. Steps over segments that were read to their end."""
        segment = self.segment
        while self.offset >= len(segment.tasks):
            if segment.next is None:
                self.catching_up = False
                return True
            segment = self.segment = segment.next
            self.offset = 0
        return False

    def next_serial(self) -> int:
        """The serial of the next task to read, larger than any if there is none. Steps over empty places."""
        while not self.at_end():
            task = self.segment.tasks[self.offset]
            if task is not None:
                return task.serial
            self.offset += 1
        return SERIAL_MAX

    def has_passed(self, task: Task) -> bool:
        """Whether this cursor has read the task, so that it was pushed on this link."""
        segment = task.segment
        if segment is None:
            return False
        if segment.given & self.bit:
            return True
        number = self.segment.number
        return segment.number < number or (segment is self.segment and task.place < self.offset)


class Log:
    """The tasks of one layer and priority that the layer has not finished."""

    __slots__ = ("_encode", "_encoded", "cursors", "head", "is_replay", "layer", "live", "priority", "tail")

    def __init__(
        self,
        layer: Layer,
        priority: int,
        encode: Callable[[Task], bytes],
        encoded: EncodedSegments,
        *,
        is_replay: bool = False,
    ) -> None:
        self.layer = layer
        self.priority = priority
        self.is_replay = is_replay
        """Whether its tasks were parked: they are older than those in the other log of this layer."""
        self.head = self.tail = Segment(self, 0)
        self.live = 0
        self.cursors: dict[object, Cursor] = {}
        self._encode = encode
        self._encoded = encoded

    def append(self, task: Task) -> Segment | None:
        """Takes a task in. Returns its segment if the segment's deadline became earlier, else None."""
        segment = self.tail
        if len(segment.tasks) >= SEGMENT_TASKS:
            segment = self._grow()
        task.segment = segment
        task.place = len(segment.tasks)
        segment.tasks.append(task)
        segment.live += 1
        self.live += 1
        if task.count != 1 or self.is_replay:
            # What was parked is not owed by all.
            segment.uniform = False
        if not segment.deadline_ms or task.deadline_ms < segment.deadline_ms:
            segment.deadline_ms = task.deadline_ms
            return segment
        return None

    def adopt(self, task: Task, given: int) -> Segment | None:
        """As `append`, for a task that an earlier process had pushed to the proxies `given`."""
        segment = self.tail
        if segment.given != given:
            if segment.tasks:
                segment = self._grow()
            segment.given = given
        if len(segment.tasks) >= SEGMENT_TASKS:
            self._grow().given = given
        earlier = self.append(task)
        if task.mask is not None:
            self.tail.uniform = False
        if given:
            self.tail.pushed = len(self.tail.tasks)
        return earlier

    def seal(self) -> None:
        """Tasks that are appended from now on were given to nobody."""
        if self.tail.given:
            self._grow()

    def _grow(self) -> Segment:
        last = self.tail
        segment = self.tail = Segment(self, last.number + 1)
        last.next, segment.prev = segment, last
        if not last.live:
            self._unlink(last)
        return segment

    def remove(self, task: Task) -> Segment | None:
        """Lets a task go. Returns its segment if that is empty and gone now, else None."""
        segment = task.segment
        if segment is None:
            return None
        segment.tasks[task.place] = None
        # What was joined may hold the task, and a link that has not read it yet must not get it.
        segment.joined = None
        task.segment = None
        segment.live -= 1
        self.live -= 1
        if segment.live or segment is self.tail:
            return None
        self._unlink(segment)
        return segment

    def _unlink(self, segment: Segment) -> None:
        following = segment.next
        if following is None:
            return
        following.prev = segment.prev
        if segment.prev is None:
            self.head = following
        else:
            segment.prev.next = following
        self._encoded.forget(segment)
        for cursor in self.cursors.values():
            if cursor.segment is segment:
                cursor.segment, cursor.offset = following, 0

    def attach(self, link: object, place: tuple[int, int, int], *, moved: bool = False) -> Cursor:
        """Begins to serve a link, from the head of the log.

        Unless the link `moved` here from an earlier process, what its proxy had been given is given again.
        """
        cursor = self.cursors[link] = Cursor(self, link, place)
        cursor.catching_up = self.live > 0
        if not moved:
            for segment in self.segments():
                segment.given &= ~cursor.bit
        return cursor

    def detach(self, link: object) -> None:
        """Ends serving a link; what it was given is still owed by its proxy."""
        self.cursors.pop(link, None)

    def segments(self) -> Iterator[Segment]:
        """From head to tail."""
        segment: Segment | None = self.head
        while segment is not None:
            yield segment
            segment = segment.next

    def read(
        self, cursor: Cursor, room: int, idle: bool, activate: Callable[[Task], None]
    ) -> tuple[bytes, int] | None:
        """What the link may be sent next: (push lines, targets in them), within one segment.

        `room` is how many targets the link's credit still allows; None means that
        the next task does not fit. A task that is larger than the whole credit is
        read by a link with nothing outstanding (`idle`), else it would never be.
        `activate` is called once for each task that had not been pushed to anyone.
        """
        segment = cursor.segment
        start, end = cursor.offset, len(segment.tasks)
        if segment.given and segment.given & cursor.bit:
            cursor.offset = end
            return b"", 0
        if cursor.catching_up or not segment.uniform or end - start > room:
            return self._read_some(cursor, room, idle, activate)
        data = self._joined(segment, start, end)
        if segment.pushed < end:
            self._activate(segment, end, activate)
        cursor.offset = end
        # Places that are empty by now cost nothing; the others have one target each.
        targets = end - start if segment.live == end else end - start - segment.tasks[start:end].count(None)
        return data, targets

    def _read_some(
        self, cursor: Cursor, room: int, idle: bool, activate: Callable[[Task], None]
    ) -> tuple[bytes, int] | None:
        """As `read`, looking at each task: some are done, or large, or beyond the credit."""
        segment = cursor.segment
        tasks = segment.tasks
        lines = self._lines(segment)
        out: list[bytes] = []
        taken = 0
        at = cursor.offset
        while at < len(tasks):
            task = tasks[at]
            if task is not None and task.owes(cursor.place):
                if taken + task.count > room and not (idle and not taken):
                    break
                out.append(lines[at])
                taken += task.count
            at += 1
        cursor.offset = at
        if segment.pushed < at:
            self._activate(segment, at, activate)
        if not out and at < len(tasks):
            return None
        return b"".join(out), taken

    def _activate(self, segment: Segment, end: int, activate: Callable[[Task], None]) -> None:
        for task in segment.tasks[segment.pushed : end]:
            if task is not None:
                activate(task)
        segment.pushed = end

    def _joined(self, segment: Segment, start: int, end: int) -> bytes:
        joined = segment.joined
        if joined is None or joined[0] != start or joined[1] != end:
            lines = self._lines(segment)[start:end]
            if segment.live < len(segment.tasks):
                lines = [line for line, task in zip(lines, segment.tasks[start:end], strict=True) if task]
            joined = segment.joined = (start, end, b"".join(lines))
            self._encoded.was_joined(segment)
        return joined[2]

    def _lines(self, segment: Segment) -> list[bytes]:
        """The push lines of a segment; those of empty places are empty or out of date."""
        lines = segment.lines
        if lines is None:
            lines = segment.lines = []
        if len(lines) < len(segment.tasks):
            encode = self._encode
            more = [b"" if task is None else encode(task) for task in segment.tasks[len(lines) :]]
            lines += more
            self._encoded.grew(segment, sum(map(len, more)))
        return lines


class EncodedSegments:
    """Keeps push lines of segments, shared by all logs of a worker, up to ENCODED_MAX_BYTES."""

    __slots__ = ("_joined", "_kept", "_total")

    def __init__(self) -> None:
        self._joined: deque[Segment] = deque()
        self._kept: dict[Segment, int] = {}
        self._total = 0

    def grew(self, segment: Segment, size: int) -> None:
        """Lines of a segment were encoded; others, encoded longest ago, may lose theirs."""
        self._kept[segment] = self._kept.pop(segment, 0) + size
        self._total += size
        while self._total > ENCODED_MAX_BYTES and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def was_joined(self, segment: Segment) -> None:
        """A segment's lines were joined; the one that was joined longest ago may lose that."""
        self._joined.append(segment)
        if len(self._joined) > JOINED_MAX:
            last = self._joined.popleft()
            if last not in self._joined:
                last.joined = None

    def forget(self, segment: Segment) -> None:
        """The segment is gone."""
        if segment in self._kept:
            self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        self._total -= self._kept.pop(segment)
        segment.lines = None
        segment.joined = None
