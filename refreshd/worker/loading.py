"""Tasks out of the store into memory: at the start, and when another process left its shards behind.

At the start nobody is served yet, and all is read in one go. Later on the worker
serves while it reads: in slices, in a thread of its own, each taken in by one turn of the loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from refreshd.errors import StoreDamaged
from refreshd.fleet import Plan
from refreshd.shard import created_ms
from refreshd.store.base import Reader
from refreshd.task import Task, read_terms, split_body
from wire.errors import WireError
from wire.heads import HeadTable
from wire.lines import is_plain, parse

# Tasks that are taken in by one turn of the loop: about 5 ms.
SLICE_ROWS = 1_000

Row = tuple[int, int, bytes]
"""(serial, plan number, body)"""

Opening = Callable[[], Reader]
"""Opens a reader of a lane; blocks."""

Slices = Callable[[Reader], Iterator[list[Row]]]


class TaskReader:
    """Makes tasks of what `task.body_of` made of them; those with the same head share their terms."""

    def __init__(self) -> None:
        self._heads = HeadTable("post_task", read_terms)

    def read(self, body: bytes, plan: Plan, serial: int) -> Task:
        """A saved task at the beginning of its plan. Raises: WireError, KeyError for what is no task."""
        line, key = split_body(body)
        cut = self._heads.cut(line) if is_plain(line) else None
        if cut is None:
            parsed = parse(line)
            task_id, terms = parsed.fields["task_id"].encode(), read_terms(parsed)
            count = len(parsed.items or ())
        else:
            task_id, terms, targets = cut
            count = targets.count(b" ") + 1
        task = Task(task_id, line, terms, count, plan.layers[0], serial, created_ms(serial))
        task.key = key
        return task


class Loader:
    """Reads unfinished tasks of the lanes of a worker."""

    def __init__(self, wanted: Callable[[bytes], bool]) -> None:
        """`wanted` tells of an id whether its task is to be loaded."""
        self._wanted = wanted
        self._tasks = TaskReader()
        self._plans: dict[str, Plan] = {}

    def all(self, readers: Iterable[Reader]) -> Iterator[Task]:
        """The tasks, in order of acceptance over all lanes. Blocks. Raises: StoreError."""
        lanes = [self._with_plans(reader, reader.unfinished()) for reader in readers]
        return self._read(heapq.merge(*lanes, key=lambda row: row[0]))

    async def slices(
        self, openings: Iterable[Opening], read: Slices | None = None
    ) -> AsyncIterator[list[Task]]:
        """The tasks of some lanes, some at a time, while the worker serves. Raises: StoreError.

        `read`: which of a reader's unfinished tasks; absent: all.
        """
        loop = asyncio.get_running_loop()
        for opening in openings:
            reader = await loop.run_in_executor(None, opening)
            try:
                slices = read(reader) if read is not None else reader.unfinished_slices(SLICE_ROWS)
                while rows := await loop.run_in_executor(None, next, slices, None):
                    yield list(self._read(await loop.run_in_executor(None, self._planned, reader, rows)))
            finally:
                await loop.run_in_executor(None, reader.close)

    def _planned(self, reader: Reader, rows: list[Row]) -> list[tuple[int, Plan, bytes]]:
        return list(self._with_plans(reader, rows))

    def _with_plans(self, reader: Reader, rows: Iterable[Row]) -> Iterator[tuple[int, Plan, bytes]]:
        """Lanes have plans of their own; tasks of one scope share one all the same."""
        plans: dict[int, Plan] = {}
        for serial, number, body in rows:
            plan = plans.get(number)
            if plan is None:
                plans |= {key: self._plan(text) for key, text in reader.plans().items() if key not in plans}
                plan = plans[number]
            yield serial, plan, body

    def _plan(self, text: str) -> Plan:
        plan = self._plans.get(text)
        if plan is None:
            try:
                plan = self._plans[text] = Plan.from_text(text)
            except ValueError as error:
                raise StoreDamaged(
                    f"the store holds a plan that cannot be read: {error}; restore the data folder"
                ) from error
        return plan

    def _read(self, rows: Iterable[tuple[int, Plan, bytes]]) -> Iterator[Task]:
        try:
            for serial, plan, body in rows:
                task = self._tasks.read(body, plan, serial)
                if self._wanted(task.id):
                    yield task
        except (WireError, ValueError, KeyError, TypeError) as error:
            message = f"the store holds a task that cannot be read: {error!r}; restore the data folder"
            raise StoreDamaged(message) from error
