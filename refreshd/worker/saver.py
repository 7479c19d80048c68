"""Group commit: everything that gathered while the last commit ran is the next commit.

    loop:    gather ──► hand over ──────────────► settle: reply, push, forget
    thread:             commit (no interpreter lock while SQLite works)

One saver a lane. The loop adds to the open batch; when the thread is free, the
batch is handed over at the end of the loop's turn, so that all that came in one
poll shares one sync. Nothing is answered, pushed or forgotten before its commit.

When a commit fails: tasks of the batch, and those that gathered behind it, are
refused (nothing was accepted); results go into the next batch, as they must not
get lost. Until a commit succeeds the engine refuses new tasks at once, and the
saver tries by itself, if need be with an empty batch: nobody waits for a store
that is known to be away. After a failed sync the process ends without a word:
nobody knows what is on the disk (FAULTS 10).
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar
from zlib import crc32

import structlog

from refreshd.errors import StoreError, StoreUnavailable
from refreshd.store.base import Batch, Lane, Parked, ProxyRow, ReceiptRow
from refreshd.task import State, Task, body_of
from refreshd.worker.turns import Turn

log = structlog.get_logger()
T = TypeVar("T")

# A batch that cannot be written is tried again after this long, with what gathered since.
RETRY_S = 0.5
# Upkeep (retention) is looked after this often, and sooner again while more is left.
# 1,024 tasks every 20 ms are 50,000 a second: more than a lane accepts for long.
UPKEEP_S = 5.0
UPKEEP_MORE_S = 0.02
# Receipts that wait for a store that is away; beyond it they are dropped. Usually one has 0.5 KB.
RECEIPTS_MAX_BYTES = 32 << 20


class SaveBatch:
    """What the next commit keeps, and who waits for it."""

    __slots__ = (
        "closing",
        "forgotten",
        "last_turn",
        "low",
        "parking",
        "proxies",
        "receipt_bytes",
        "receipts",
        "tasks",
        "turns",
        "waiters",
    )

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.turns: list[Turn] = []
        self.last_turn: Turn | None = None
        self.closing: list[Task] = []
        self.parking: list[tuple[Task, Parked]] = []
        """Tasks that may leave memory once this is kept, with what is kept of each."""
        self.proxies: list[ProxyRow] = []
        self.forgotten: list[str] = []
        self.receipts: list[ReceiptRow] = []
        self.receipt_bytes = 0
        self.low = 0
        self.waiters: list[Callable[[StoreError | None], None]] = []

    def __len__(self) -> int:
        return (
            len(self.tasks)
            + len(self.closing)
            + len(self.parking)
            + len(self.proxies)
            + len(self.forgotten)
            + len(self.receipts)
            + len(self.waiters)
        )

    def add_task(self, task: Task, turn: Turn) -> None:
        """A new task; the turn's replies wait for the commit."""
        self.tasks.append(task)
        if turn is not self.last_turn:
            self.last_turn = turn
            self.turns.append(turn)
            turn.waiting += 1

    def add_receipt(self, serial: int, proxy: str, text: bytes) -> bool:
        """What a proxy signed of a task. Returns whether there was room."""
        if self.receipt_bytes + len(text) > RECEIPTS_MAX_BYTES:
            return False
        self.receipts.append(ReceiptRow(serial, proxy, text))
        self.receipt_bytes += len(text)
        return True

    def refuse_too(self, other: SaveBatch) -> None:
        """Takes over the tasks of a batch, and who waits for them: they share the fate of this one's."""
        self.tasks += other.tasks
        # One that waits for both batches is named twice.
        self.turns += other.turns
        other.tasks, other.turns, other.last_turn = [], [], None

    def to_rows(self) -> Batch:
        """The rows to write. Runs in the saver's thread: nothing else touches these tasks' rows."""
        batch = Batch()
        batch.tasks = [
            (
                task.serial,
                task.id,
                task.layer.plan.number,
                # Most engines have no keys: a call costs a quarter of all this.
                task.line if task.key is None else body_of(task),
            )
            for task in self.tasks
        ]
        batch.plans = {plan.number: plan.text for plan in {task.layer.plan for task in self.tasks}}
        for task in self.closing:
            done, failed = task.final_counts()
            state = State.CANCELLED if task.closing is None else task.closing
            marks = bytes(task.marks) if task.marks else None
            batch.results.append((task.serial, int(state), done, failed, task.updated_ms, marks))
            batch.finished.append((crc32(task.id), task.id, task.serial))
        for task, parked in self.parking:
            batch.parked.append(parked)
            batch.finished.append((crc32(task.id), task.id, task.serial))
        batch.proxies = self.proxies
        batch.forgotten = self.forgotten
        batch.receipts = self.receipts
        batch.low = self.low
        return batch


class SaverOwner(Protocol):
    """What a saver calls back into; the engine. All calls come on the loop."""

    def saved(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        """The batch is on stable storage, but for the tasks whose ids were `known` as finished."""

    def not_saved(self, batch: SaveBatch, error: StoreError) -> None:
        """Nothing of the batch was kept."""

    def store_failed(self, error: StoreError) -> None:
        """The store can no longer be trusted: end the process."""


class Saver:
    """Saves to one lane, in a thread of its own."""

    def __init__(
        self,
        lane: Lane,
        owner: SaverOwner,
        loop: asyncio.AbstractEventLoop,
        name: str,
        *,
        upkeep: bool = True,
    ) -> None:
        self.lane = lane
        self.batch = SaveBatch()
        """The open batch; whoever adds to it calls `wake` in the same turn of the loop."""
        self.in_flight = 0
        """Entries in the commit that runs now."""
        self.commits = 0
        self.last_error: StoreError | None = None
        """Why the last commit failed: no task may be added then. None if it did not."""
        self._owner = owner
        self._loop = loop
        self._scheduled = False
        self._busy = False
        self._closed = False
        self._handed_over = False
        self._upkeep_on = upkeep
        self._jobs: queue.SimpleQueue[SaveBatch | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"saver-{name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Sees to it that the open batch is handed over at the end of this turn of the loop."""
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        if not self._busy and len(self.batch):
            self._start_commit()

    def _start_commit(self) -> None:
        batch, self.batch = self.batch, SaveBatch()
        if not self._upkeep_on:
            batch.low = 0
        self.in_flight = len(batch)
        self._busy = True
        self._jobs.put(batch)

    @property
    def waiting(self) -> int:
        """Entries that gather for the next commit."""
        return len(self.batch)

    @property
    def upkeep(self) -> bool:
        """Whether this process looks after the lane: retention, stragglers, `low`.

        Not while shards move: no process knows then what all of them have
        unfinished. Once it is off, what is under way ends; `await call(…)` waits for that.
        """
        return self._upkeep_on

    @upkeep.setter
    def upkeep(self, on: bool) -> None:
        self._upkeep_on = on
        # What was said meanwhile is not true of what is owned now.
        self.batch.low = 0

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Runs `work` in the saver's thread, after the batch that was handed over, before any later one.

        What it returns or raises is the future's. It may use the lane. A batch that
        could not be written is tried again after it.
        Raises: StoreUnavailable once `close` was called.
        """
        if self._closed:
            raise StoreUnavailable("the saver is closed; nothing more runs in it")
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(partial(self._run, work, done))
        return done

    def _run(self, work: Callable[[], T], done: asyncio.Future[T]) -> None:
        try:
            result = work()
        except Exception as error:
            # A future does not take every kind: that one would be lost, and its awaiter wait for ever.
            kept = StoreError(f"the saver failed: {error!r}") if isinstance(error, StopIteration) else error
            self._tell(_settle_call, done, kept)
        except BaseException as error:
            self._tell(_settle_call, done, StoreError(f"the saver failed: {error!r}"))
        else:
            self._tell(_settle_call, done, None, result)

    def _work(self) -> None:
        """The thread: one job after the other, and upkeep every now and then."""
        upkeep_at = time.monotonic() + UPKEEP_S
        while True:
            try:
                job = self._jobs.get(timeout=max(upkeep_at - time.monotonic(), 0.001))
            except queue.Empty:
                pass
            else:
                if job is None:
                    self.lane.close(handed_over=self._handed_over)
                    return
                if isinstance(job, SaveBatch):
                    self._commit(job)
                else:
                    job()
            if time.monotonic() >= upkeep_at:
                upkeep_at = time.monotonic() + (UPKEEP_MORE_S if self._upkeep() else UPKEEP_S)

    def _commit(self, job: SaveBatch) -> None:
        try:
            known = self.lane.commit(job.to_rows())
        except StoreError as error:
            self._tell(self._failed, job, error)
        except BaseException as error:
            # A fault of ours: the batch's fate is unknown, so it is treated like a failed sync.
            self._tell(self._failed, job, StoreError(f"the saver failed: {error!r}"))
        else:
            self._tell(self._done, job, known)

    def _upkeep(self) -> bool:
        """A bounded piece of upkeep. Returns whether more is left."""
        if not self._upkeep_on:
            return False
        try:
            return self.lane.idle()
        except StoreUnavailable as error:
            log.warning("store upkeep failed", error=str(error))
        except StoreError as error:
            # As after a commit: nobody knows what is on the disk.
            self._tell(self._owner.store_failed, error)
        return False

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            # The loop is closed: the process ends, and nobody waits for an answer.
            return

    def _done(self, batch: SaveBatch, known: dict[bytes, int]) -> None:
        self._busy = False
        self.in_flight = 0
        self.commits += 1
        if self.last_error is not None:
            self.last_error = None
            log.info("store available again")
        # The next commit starts before the replies of this one are made: the disk need not wait for them.
        self._hand_over()
        self._settle(self._owner.saved, batch, known)
        self.wake()

    def _settle(self, call: Callable[..., None], *args: object) -> None:
        """Tells the owner of a commit. A fault amid it ends the process: the rest would never start."""
        try:
            call(*args)
        except Exception as error:
            log.exception("a commit could not be settled")
            self._owner.store_failed(StoreError(f"a commit could not be settled: {error!r}"))

    def _failed(self, batch: SaveBatch, error: StoreError) -> None:
        self.in_flight = 0
        was_away = self.last_error is not None
        self.last_error = error
        if not isinstance(error, StoreUnavailable):
            self._owner.store_failed(error)
            return
        following = self.batch
        # They would fare no better, and later.
        batch.refuse_too(following)
        if batch.tasks or not was_away:
            refused, kept = len(batch.tasks), len(batch.closing)
            log.error("store unavailable", error=str(error), refused=refused, kept=kept)
        # What must not get lost goes first in the next batch, so order is kept.
        following.closing = batch.closing + following.closing
        following.proxies = batch.proxies + following.proxies
        following.forgotten = batch.forgotten + following.forgotten
        following.receipts = batch.receipts + following.receipts
        following.receipt_bytes += batch.receipt_bytes
        self._settle(self._owner.not_saved, batch, error)
        if self._closed:
            self._busy = False
        else:
            self._loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._busy = False
        if not self._closed:
            self._start_commit()

    async def close(self, deadline_s: float, *, handed_over: bool = False) -> bool:
        """Saves what is there, closes the lane, ends the thread. Returns whether all was saved in time.

        `handed_over`: another process has the lane by now, see `Lane.close`.
        """
        end = self._loop.time() + deadline_s
        self._closed = True
        while (len(self.batch) or self._busy) and self._loop.time() < end:
            self._busy = self._busy and bool(self.in_flight)
            self.wake()
            await asyncio.sleep(0.01)
        saved = not len(self.batch) and not self._busy
        self._handed_over = handed_over
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join, max(end - self._loop.time(), 0.5))
        return saved


def _settle_call(done: asyncio.Future[T], error: Exception | None, *result: T) -> None:
    if done.done():
        # Whoever waited was cancelled.
        return
    if error is None:
        done.set_result(*result)
    else:
        done.set_exception(error)
