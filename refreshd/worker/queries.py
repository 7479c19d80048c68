"""Reading the store beside the saver: one thread, a bounded number of questions.

What is asked of the store waits in one queue and is worked off by a few
coroutines, however many clients ask; when the queue is full the answer is `busy`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar
from zlib import crc32

import structlog

from refreshd.errors import StoreError
from refreshd.shard import ShardMap
from refreshd.store.base import Reader, ReceiptRow, Stored
from refreshd.task import State
from refreshd.worker.saver import Saver
from refreshd.worker.turns import Turn
from wire.errors import BadLine, Refused
from wire.lines import format_refused

log = structlog.get_logger()
Result = TypeVar("Result")
Answer = Callable[[], Awaitable[bytes]]

# Questions that wait, and that are worked on at a time. The store answers them one
# by one; several are open only because a listing also asks the siblings.
# One read of a connection brings up to 13,000.
QUESTIONS_MAX = 20_000
WORKERS = 8
DEADLINE_S = 10.0


class Question(NamedTuple):
    """A place of a turn, how to find what belongs there, and whom to tell when it is found."""

    turn: Turn
    place: int
    answer: Answer
    done: Callable[[], None] | None = None


class Queries:
    """Answers that need the store or the siblings, in the order they were asked."""

    def __init__(self, shards: ShardMap, readers: dict[int, Reader], savers: dict[int, Saver]) -> None:
        self._shards = shards
        self._readers = readers
        self._savers = savers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._questions: asyncio.Queue[Question] = asyncio.Queue(QUESTIONS_MAX)
        # Of their own: were they to wait behind clients' questions, two workers could wait for each other.
        self._siblings_questions: asyncio.Queue[Question] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to answer."""
        queues = (self._questions, self._siblings_questions)
        self._workers = [asyncio.ensure_future(self._work(queue)) for queue in queues for _ in range(WORKERS)]

    @property
    def waiting(self) -> int:
        """Questions that nobody works on yet."""
        return self._questions.qsize() + self._siblings_questions.qsize()

    def submit(self, turn: Turn, answer: Answer, done: Callable[[], None] | None = None) -> None:
        """Holds a place of the turn for the answer; `done` is called then. Raises: Refused, `busy`."""
        if self._questions.full():
            raise Refused("busy", "too many questions wait for the store", retry_ms=500)
        self._questions.put_nowait(Question(turn, turn.hold(), answer, done))

    def submit_of_sibling(self, turn: Turn, answer: Answer) -> None:
        """As `submit`, for what a sibling asks: bounded by what siblings work on; asks none itself."""
        self._siblings_questions.put_nowait(Question(turn, turn.hold(), answer))

    def submit_at(self, turn: Turn, place: int, answer: Answer) -> None:
        """As `submit`, for a place that is held already; a full queue is answered there."""
        try:
            self._questions.put_nowait(Question(turn, place, answer))
        except asyncio.QueueFull:
            turn.fill(place, format_refused(Refused("busy", "too many questions wait", retry_ms=500)))

    async def _work(self, questions: asyncio.Queue[Question]) -> None:
        while True:
            turn, place, answer, done = await questions.get()
            part = await self._answer(answer)
            if done is not None:
                done()
            turn.fill(place, part)

    async def _answer(self, answer: Answer) -> bytes:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await answer()
        except Refused as refused:
            return format_refused(refused)
        except BadLine as error:
            return format_refused(Refused("bad_line", str(error)))
        except StoreError as error:
            return format_refused(Refused("unavailable", str(error), retry_ms=1000))
        except TimeoutError:
            return format_refused(Refused("unavailable", "no answer in time; ask again", retry_ms=1000))
        except Exception:
            log.exception("a question could not be answered")
            return format_refused(
                Refused("internal", "a fault of the engine; it is in its log", retry_ms=1000)
            )

    async def _read(self, call: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def find(self, task_id: bytes) -> Stored | None:
        """A finished task by id. Raises: StoreError."""
        lane = self._shards.lane(task_id)
        reader = self._readers[lane]
        serial = self._savers[lane].lane.finished_serial(task_id)
        if serial is not None:
            found = await self._read(reader.serials, [serial])
            if found:
                return found[0]
        return await self._read(reader.find, task_id, crc32(task_id))

    async def by_serial(self, task_id: bytes, serial: int) -> Stored | None:
        """A task whose serial is known. Raises: StoreError."""
        found = await self._read(self._readers[self._shards.lane(task_id)].serials, [serial])
        return found[0] if found else None

    async def receipts(self, task_id: bytes, serial: int, after: str, rows: int) -> list[ReceiptRow]:
        """Some receipts of a task, see `base.Reader`. Raises: StoreError."""
        return await self._read(self._readers[self._shards.lane(task_id)].receipts, serial, after, rows)

    async def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """This worker's tasks older than a serial, newest first. Raises: StoreError."""
        stored: list[Stored] = []
        for reader in self._readers.values():
            stored += await self._read(reader.page, before, limit, state, unfinished)
        stored.sort(reverse=True)
        return stored[:limit]

    def close(self) -> None:
        """Stops answering."""
        for worker in self._workers:
            worker.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        for reader in self._readers.values():
            reader.close()
