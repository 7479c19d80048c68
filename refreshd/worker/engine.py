"""The tasks of one worker: accept, start, finish. No connection and no link is known here.

What is bounded by what: unfinished tasks by `tasks_max` and `tasks_bytes_max`, rows waiting for the
store by `saver_queue_max`; beyond either a task is refused with `busy`.

When a step fails: a task that cannot be saved is taken out again as if it had
never come (nobody saw it); a result that cannot be saved waits in its saver; a
store that cannot be trusted ends the process, and the next one starts from what
is on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from zlib import crc32

import structlog

from refreshd.config import Config
from refreshd.errors import StoreError
from refreshd.fanout import EncodedSegments, Log, Segment
from refreshd.fleet import Fleet, Layer
from refreshd.limits import Book
from refreshd.shard import SerialClock, ShardMap
from refreshd.task import State, Task, Terms, push_line, read_terms
from refreshd.timers import Wheel
from refreshd.worker.accepting import (
    BUSY_RETRY_MS,
    accepted_reply,
    check_domains,
    conflict,
    dup_reply,
    same_content,
    unavailable,
)
from refreshd.worker.listener import Listener
from refreshd.worker.oldest import Oldest
from refreshd.worker.saver import SaveBatch, Saver
from refreshd.worker.turns import Turn
from wire.errors import Refused
from wire.fields import is_one_plain_url
from wire.heads import HeadTable, split_targets
from wire.lines import Line, format_refused, parse
from wire.tasks import check_targets

log = structlog.get_logger()

DRAIN_RETRY_MS = 1000
# A jump of the wall clock by more than this re-dates the tasks that wait for their due time.
CLOCK_JUMP_MS = 1000


class Clock:
    """The time of this turn of the loop. Looked at once a turn, not once a task."""

    __slots__ = ("mono_ms", "wall_ms")

    def __init__(self) -> None:
        self.turn()

    def turn(self) -> None:
        """A new turn has begun."""
        self.wall_ms = time.time_ns() // 1_000_000
        self.mono_ms = time.monotonic_ns() // 1_000_000


class Counters:
    """Events since the worker started; hot paths add to them in place."""

    __slots__ = ("accepted", "finished", "pairs", "receipts", "receipts_dropped")

    def __init__(self) -> None:
        self.accepted = 0
        self.finished = dict.fromkeys(State, 0)
        self.pairs = 0
        """(task, proxy) pairs that were reported."""
        self.receipts = 0
        """Receipts of proxies that were given to the store."""
        self.receipts_dropped = 0
        """Those for which there was no room while the store was away."""


class Engine:
    """The shards of one worker."""

    def __init__(
        self,
        config: Config,
        shards: ShardMap,
        fleet: Fleet,
        listener: Listener,
        *,
        side: int = 0,
        book: Book | None = None,
    ) -> None:
        self.book = book or Book()
        """What keys use."""
        self.configure(config)
        self.shards = shards
        self.fleet = fleet
        self.clock = Clock()
        self.counters = Counters()
        self.tasks: dict[bytes, Task] = {}
        """Every task that is not final, by id."""
        self.held_bytes = 0
        """Bytes of the request lines of those."""
        self.draining = False
        self.moving = False
        """Whether shards move: some of this worker's belong to another process just now."""
        self.on_saved: Callable[[list[Task]], None] | None = None
        """Told, while shards move, which tasks have come to stable storage."""
        self.changes: list[set[int]] = []
        """Whoever reads parked tasks out of the store just now is told here which ones change meanwhile."""
        self.fatal: Callable[[str], None] = _exit_at_once
        self.wheel: Wheel[Task | Segment] = Wheel(self.clock.mono_ms)
        self.serials = SerialClock(shards.slot, side=side)
        self.savers: dict[int, Saver] = {}
        """Lane → saver."""
        self.logs: set[Log] = set()
        self._encoded = EncodedSegments()
        self._listener = listener
        self._heads: HeadTable[Terms] = HeadTable("post_task", read_terms)
        self._layers: dict[tuple[str, ...] | None, Layer] = {}
        self._wait_for: dict[bytes, list[Callable[[int | None], None]]] = {}
        self._wait_for_end: dict[bytes, list[Callable[[Task], None]]] = {}
        self._due_offset_ms = self.clock.wall_ms - self.clock.mono_ms
        self._oldest = Oldest(self.tasks)

    def configure(self, config: Config) -> None:
        """The bounds, and what keys may touch, from now on."""
        self.config = config
        self._rows_max = config.engine.saver_queue_max
        self._tasks_max = config.engine.tasks_max
        self._bytes_max = config.engine.tasks_bytes_max
        self._domains = {key.name: key.domains for key in config.keys}
        self.book.configure(config)

    # ── accept ────────────────────────────────────────────────────────────────────────────

    def post(self, turn: Turn, raw: bytes, plain: bool, key: str | None) -> None:
        """Takes a `post_task` line for a shard of this worker; the reply goes into `turn`.

        Raises: Refused, BadLine; nothing was changed then.
        """
        cut = self._heads.cut(raw) if plain else None
        if cut is None:
            task_id, terms, count, raw = self._read_post(parse(raw), raw)
        else:
            task_id, terms, targets = cut
            if terms.is_plain_url and is_one_plain_url(targets):
                count = 1
            else:
                items = split_targets(targets)
                check_targets(terms.type, items)
                count = len(items)
        if key is not None:
            domains = self._domains.get(key)
            # Without any it may touch all.
            if domains != ():
                check_domains(key, domains, terms, raw)
        known = self.tasks.get(task_id)
        if known is not None:
            self._post_known(turn, known, terms, raw)
            return
        layer = self._layers.get(terms.scope) or self._plan(terms)
        saver = self.savers[self.shards.lane_by_shard[crc32(task_id) & 63]]
        batch = saver.batch
        if (
            self.draining
            or saver.last_error is not None
            or len(batch.tasks) >= self._rows_max
            or len(self.tasks) >= self._tasks_max
            or self.held_bytes >= self._bytes_max
        ):
            raise self._no_room(saver)
        now_ms = self.clock.wall_ms
        if key is not None:
            # The last check: what it takes would have to be given back.
            self.book.usage(key).take(terms.kind, count, self.clock.mono_ms, now_ms)
        task = Task(task_id, raw, terms, count, layer, self.serials.next(now_ms), now_ms)
        task.key = key
        self.tasks[task_id] = task
        self.held_bytes += len(raw)
        turn.parts.append(accepted_reply(task))
        batch.add_task(task, turn)
        saver.wake()

    def _read_post(self, line: Line, raw: bytes) -> tuple[bytes, Terms, int, bytes]:
        """Reads any `post_task` line. The slow way, for unusual order, escapes and faults."""
        terms = read_terms(line)
        items = line.items or ()
        check_targets(terms.type, items)
        return line.fields["task_id"].encode(), terms, len(items), raw.removesuffix(b"\r")

    def _no_room(self, saver: Saver) -> Refused:
        """Why another task must not be taken in."""
        if self.draining:
            return Refused("draining", "this engine takes no new tasks now", retry_ms=DRAIN_RETRY_MS)
        if saver.last_error is not None:
            return unavailable(saver.last_error)
        if len(self.tasks) >= self._tasks_max:
            return Refused("busy", f"{len(self.tasks)} tasks are unfinished; engine.tasks_max", retry_ms=5000)
        if self.held_bytes >= self._bytes_max:
            why = f"unfinished tasks hold {self.held_bytes} bytes; engine.tasks_bytes_max"
            return Refused("busy", why, retry_ms=5000)
        return Refused("busy", "too many tasks wait for the store", retry_ms=BUSY_RETRY_MS)

    def _plan(self, terms: Terms) -> Layer:
        layer = self.fleet.plan(terms.scope).layers[0]
        if len(self._layers) >= 1024:
            self._layers.clear()
        self._layers[terms.scope] = layer
        return layer

    def fleet_changed(self) -> None:
        """Scopes mean something else from now on."""
        self._layers.clear()

    def _post_known(self, turn: Turn, known: Task, terms: Terms, raw: bytes) -> None:
        """The id is in use: the same content is a repeat, another a conflict."""
        if not same_content(raw, known.line):
            raise conflict(known.id)
        if known.state is State.NEW:
            # Not on stable storage yet: a repeat may not be told so before it is.
            self.when_saved(
                known.id,
                turn,
                dup_reply,
                lambda place, serial: self._listener.id_is_finished(known, serial, turn, place),
            )
        else:
            turn.parts.append(dup_reply(known))

    def when_saved(
        self,
        task_id: bytes,
        turn: Turn,
        reply: Callable[[Task], bytes],
        is_finished: Callable[[int, int], None],
    ) -> None:
        """Answers once the fate of a NEW task is known; if it is refused, so is this.

        `is_finished(place, serial)`: the id turned out to be that of a finished task.
        """
        place = turn.hold()

        def answer(serial: int | None) -> None:
            task = self.tasks.get(task_id)
            if serial is not None:
                is_finished(place, serial)
            elif task is None or task.state is State.NEW:
                refused = Refused(
                    "unavailable", "the task was not accepted; send it again", retry_ms=BUSY_RETRY_MS
                )
                turn.fill(place, format_refused(refused))
            else:
                try:
                    part = reply(task)
                except Refused as refused:
                    part = format_refused(refused)
                turn.fill(place, part)

        self.after_saved(task_id, answer)

    def after_saved(self, task_id: bytes, call: Callable[[int | None], None]) -> None:
        """Calls back once the fate of a NEW task is known, with the serial of a finished one of that id."""
        self._wait_for.setdefault(task_id, []).append(call)

    def _settle_waiters(self, task_id: bytes, serial: int | None = None) -> None:
        for answer in self._wait_for.pop(task_id, ()):
            answer(serial)

    # ── saved ─────────────────────────────────────────────────────────────────────────────

    def saved(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        """See `SaverOwner`."""
        self.clock.turn()
        if known:
            self._known_as_finished(batch, known)
        self.counters.accepted += len(batch.tasks)
        for turn in batch.turns:
            turn.release()
        self.start_all(batch.tasks)
        for task in batch.closing:
            self._ended(task)
        if batch.parking:
            self._listener.tasks_parked(batch.parking, True)
        for waiter in batch.waiters:
            waiter(None)
        if self._wait_for:
            for task in batch.tasks:
                self._settle_waiters(task.id)
        if self.on_saved is not None:
            self.on_saved(batch.tasks)

    def _known_as_finished(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        """Ids that belong to finished tasks: whoever sent them is answered from the store."""
        fresh: list[Task] = []
        by_reply: dict[bytes, Task] = {}
        for task in batch.tasks:
            if known.get(task.id, task.serial) == task.serial:
                fresh.append(task)
            else:
                by_reply[accepted_reply(task)] = task
                self._take_out(task)
        batch.tasks = fresh
        # One walk over the replies: a client may repeat tens of thousands of tasks at once.
        for turn in batch.turns:
            for place, part in enumerate(turn.parts):
                repeat = by_reply.get(part)
                if repeat is not None:
                    turn.waiting += 1
                    self._listener.id_is_finished(repeat, known[repeat.id], turn, place)
        for task in by_reply.values():
            self._settle_waiters(task.id, known[task.id])

    def not_saved(self, batch: SaveBatch, error: StoreError) -> None:
        """See `SaverOwner`."""
        refused = format_refused(unavailable(error))
        replies = {}
        for task in batch.tasks:
            replies[accepted_reply(task)] = refused
            self._take_out(task)
        for turn in batch.turns:
            turn.replace(replies)
            turn.release()
        for task in batch.tasks:
            self._settle_waiters(task.id)
        if batch.parking:
            self._listener.tasks_parked(batch.parking, False)
        for waiter in batch.waiters:
            waiter(error)

    def store_failed(self, error: StoreError) -> None:
        """See `SaverOwner`."""
        self.fatal(f"the store failed: {error}")

    # ── start ─────────────────────────────────────────────────────────────────────────────

    def start_all(self, tasks: list[Task]) -> None:
        """Starts tasks whose rows are saved: now, or at their due time."""
        mono_ms, wall_ms = self.clock.mono_ms, self.clock.wall_ms
        terms: Terms | None = None
        began_ms = deadline_ms = due_ms = 0
        for task in tasks:
            # Set in place, not by `move`: this is done for each task that is accepted.
            task.state = State.PENDING
            if task.terms is not terms or task.updated_ms != began_ms:
                terms, began_ms = task.terms, task.updated_ms
                due_ms = (terms.due or 0) * 1000
                # One number object serves all tasks that came together: 32 bytes a task saved.
                deadline_ms = mono_ms + terms.ttl_ms - max(wall_ms - max(began_ms, due_ms), 0)
            if due_ms > wall_ms:
                self.wheel.add(task, mono_ms + due_ms - wall_ms)
            elif deadline_ms <= mono_ms:
                # Its time was over while no engine ran: nobody is to begin with it.
                self._close(task, State.EXPIRED)
            else:
                task.deadline_ms = deadline_ms
                self.append(task)

    def append(self, task: Task) -> None:
        """Gives a task to the layer it works on."""
        self._append(task, task.layer.logs.get(task.terms.priority) or self._make_log(task))

    def _append(self, task: Task, log_: Log) -> None:
        segment = log_.append(task)
        if segment is not None:
            self.wheel.add(segment, segment.deadline_ms)
        self._listener.log_grew(log_)

    def _make_log(self, task: Task, *, is_replay: bool = False) -> Log:
        layer, priority = task.layer, task.terms.priority
        log_ = Log(layer, priority, push_line, self._encoded, is_replay=is_replay)
        _logs_of(log_)[priority] = log_
        self.logs.add(log_)
        self._listener.log_made(log_)
        return log_

    def activate(self, task: Task) -> None:
        """The task is being pushed to the first proxy."""
        if task.state is State.PENDING:
            task.move(State.ACTIVE)
            task.updated_ms = self.clock.wall_ms
            self._listener.task_changed(task)

    # ── tasks that come from, or go to, another process ───────────────────────────────────

    def load(self, task: Task) -> None:
        """Takes in a task that an earlier process accepted. Start them with `start_all` when all are in."""
        self.tasks[task.id] = task
        self.held_bytes += len(task.line)
        if task.key is not None:
            self.book.usage(task.key).began()

    def adopt(self, task: Task, given: int) -> None:
        """Takes in a task at which its layer is working, and that was pushed to the proxies `given`.

        Call `adopted` when all are in.
        """
        self.load(task)
        log_ = task.layer.logs.get(task.terms.priority) or self._make_log(task)
        segment = log_.adopt(task, given)
        if segment is not None:
            self.wheel.add(segment, segment.deadline_ms)

    def adopted(self) -> None:
        """What was taken in is as good as what was accepted here, but for the order of its serials."""
        self._oldest.order_is_lost()
        for log_ in self.logs:
            log_.seal()
            self._listener.log_grew(log_)

    def release(self, task: Task) -> None:
        """A task that is saved and not closing goes to another process."""
        if task.segment is None:
            # Only what waits for its due time has a timer of its own.
            self.wheel.remove(task)
        else:
            self.leave_log(task)
        self._forget(task)

    def park(self, task: Task) -> None:
        """A task leaves memory: the store keeps all it takes to go on."""
        self.leave_log(task)
        self._forget(task)

    def unpark(self, task: Task) -> None:
        """A task that was parked is worked on again, before those that came after it."""
        self.load(task)
        if task.deadline_ms <= self.clock.mono_ms:
            self._close(task, State.EXPIRED)
        else:
            log_ = task.layer.replays.get(task.terms.priority) or self._make_log(task, is_replay=True)
            self._append(task, log_)

    # ── finish ────────────────────────────────────────────────────────────────────────────

    def leave_log(self, task: Task) -> None:
        """Takes a task out of the log it is in."""
        segment = task.segment
        if segment is None:
            return
        if segment.log.remove(task) is not None or not segment.live:
            segment.deadline_ms = 0
            self.wheel.remove(segment)

    def layer_done(self, task: Task) -> None:
        """Every proxy of the task's layer has ended it."""
        self.leave_log(task)
        following = task.layer.next
        if following is None:
            self._close(task, task.outcome())
            return
        task.layer = following
        task.left = following.size
        task.mask = None
        self.append(task)

    def keep_receipt(self, task: Task, proxy: str, text: bytes) -> None:
        """Saves what a proxy signed of a task, no later than an end of it that is reported behind it."""
        saver = self.savers[self.shards.lane(task.id)]
        if saver.batch.add_receipt(task.serial, proxy, text):
            self.counters.receipts += 1
            saver.wake()
            return
        if not self.counters.receipts_dropped:
            log.warning(
                "receipts are dropped: too many wait for the store", task=task.id.decode(), proxy=proxy
            )
        self.counters.receipts_dropped += 1

    def _close(self, task: Task, state: State) -> None:
        """Saves a task's end; it shows once it is saved."""
        task.closing = state
        task.updated_ms = self.clock.wall_ms
        saver = self.savers[self.shards.lane(task.id)]
        saver.batch.closing.append(task)
        saver.wake()

    def _ended(self, task: Task) -> None:
        """A task's end is on stable storage."""
        state = task.closing
        if state is None:
            return
        task.move(state)
        self.counters.finished[state] += 1
        self._forget(task)
        for changed in self.changes:
            changed.add(task.serial)
        self._listener.task_changed(task)
        for answer in self._wait_for_end.pop(task.id, ()):
            answer(task)

    def cancel(self, task: Task, ended: Callable[[Task], None]) -> None:
        """Cancels a task that is saved and not final; calls back once that, or an earlier end, is saved."""
        self._wait_for_end.setdefault(task.id, []).append(ended)
        self.withdraw(task, State.CANCELLED)

    def _forget(self, task: Task) -> None:
        """The task leaves memory."""
        del self.tasks[task.id]
        self.held_bytes -= len(task.line)
        if task.key is not None:
            self.book.usage(task.key).ended()

    def _take_out(self, task: Task) -> None:
        """The task was not accepted after all."""
        self._forget(task)
        if task.key is not None:
            self.book.usage(task.key).give_back(task.terms.kind, task.count)

    def _may_end(self, task: Task) -> bool:
        """Whether the task is not just going to another process, which will see to its time itself."""
        return not self.moving or self.shards.owns(task.id)

    def withdraw(self, task: Task, state: State) -> None:
        """Ends a task before its proxies have: it expired, or was cancelled."""
        if task.closing is not None or not self._may_end(task):
            return
        self._listener.task_withdrawn(task)
        self.wheel.remove(task)
        self.leave_log(task)
        self._close(task, state)

    # ── time ──────────────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Starts what is due and ends what has expired. To be called every timers.TICK_MS or so."""
        self.clock.turn()
        self._watch_for_jumps()
        self.book.tick(self.clock.mono_ms, self.clock.wall_ms)
        self._oldest.look_on()
        for entry in self.wheel.advance(self.clock.mono_ms):
            if isinstance(entry, Segment):
                self._expire(entry)
            elif entry.state is State.PENDING and entry.closing is None and self._may_end(entry):
                self.start_all([entry])

    def _expire(self, segment: Segment) -> None:
        """Ends the tasks of a segment whose time is over, and sets its timer to the next one's."""
        mono_ms = self.clock.mono_ms
        following = 0
        for task in list(segment.tasks):
            if task is None:
                continue
            if task.deadline_ms <= mono_ms:
                self.withdraw(task, State.EXPIRED)
            elif not following or task.deadline_ms < following:
                following = task.deadline_ms
        segment.deadline_ms = following
        if following:
            self.wheel.add(segment, following)

    def _watch_for_jumps(self) -> None:
        """Due times are wall clock times: when that jumps, they are somewhere else on the wheel."""
        offset_ms = self.clock.wall_ms - self.clock.mono_ms
        if abs(offset_ms - self._due_offset_ms) <= CLOCK_JUMP_MS:
            return
        log.warning("the wall clock jumped", by_ms=offset_ms - self._due_offset_ms)
        self._due_offset_ms = offset_ms
        waiting = [entry for entry in self.wheel if isinstance(entry, Task)]
        for task in waiting:
            # One that is due by now goes into its log, and must not fire once more.
            self.wheel.remove(task)
        self.start_all(waiting)

    def _note_low(self) -> None:
        low = self._oldest.serial() if self.tasks else self.serials.next(self.clock.wall_ms)
        for saver in self.savers.values():
            if low and not saver.batch.low:
                saver.batch.low = low

    def housekeeping(self) -> None:
        """Tells the store from where on tasks may be unfinished. To be called every few seconds."""
        if not self.moving:
            # While shards move, another process has tasks of this slot, and they may be older.
            self._note_low()
        for log_ in [log_ for log_ in self.logs if not log_.live]:
            # Only where the log is as good as new: a scope that nobody uses any more leaves nothing behind.
            self.logs.discard(log_)
            _logs_of(log_).pop(log_.priority, None)
            self._listener.log_gone(log_)


def _logs_of(log_: Log) -> dict[int, Log]:
    """Where a layer keeps a log."""
    return log_.layer.replays if log_.is_replay else log_.layer.logs


def _exit_at_once(why: str) -> None:
    raise SystemExit(why)
