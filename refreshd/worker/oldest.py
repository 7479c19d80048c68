"""The oldest unfinished task: from its serial on the store is looked through after a crash.

Tasks are in memory in the order of their serials, so it is the first one's. Tasks that came
from another process break that order; those that are accepted later are in order again,
behind them. So what is there when the first question is asked after that is sorted, some
a tick, and read from its beginning until it is used up: then all is in order again.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterator

from refreshd.task import Task

_serial = operator.attrgetter("serial")
# 20,000 are 5 ms; a million take 5 s, and the store can wait for that.
TASKS_A_TICK = 20_000


class Oldest:
    """Finds the smallest serial of the unfinished tasks."""

    def __init__(self, tasks: dict[bytes, Task]) -> None:
        self._tasks = tasks
        self._in_order = True
        self._unsorted: list[Task] | None = None
        """Those that are still to be sorted; None: nobody has asked since the order was lost."""
        self._heads: list[tuple[int, bytes, Iterator[tuple[int, bytes]]]] = []
        """Of each sorted piece the first entry, and the rest; a heap."""

    def __repr__(self) -> str:
        return f"<Oldest in_order={self._in_order}, {len(self._heads)} pieces>"

    def order_is_lost(self) -> None:
        """Tasks were taken in that may be older than those before them."""
        self._in_order = False
        self._unsorted = None
        self._heads = []

    def serial(self) -> int:
        """The smallest serial, of at least one task; 0 while it is not known."""
        if not self._in_order:
            if self._unsorted is None:
                self._unsorted = list(self._tasks.values())
            if self._unsorted:
                return 0
            self._step_over_finished()
            if self._heads:
                return self._heads[0][0]
            self._in_order = True
        return next(iter(self._tasks.values())).serial

    def look_on(self) -> None:
        """Sorts some of the tasks that are to be sorted."""
        if not self._unsorted:
            return
        some = sorted(self._unsorted[-TASKS_A_TICK:], key=_serial)
        del self._unsorted[-TASKS_A_TICK:]
        # Ids, not tasks: one that has finished must not be kept in memory for this.
        self._push(iter([(task.serial, task.id) for task in some]))

    def _push(self, piece: Iterator[tuple[int, bytes]]) -> None:
        head = next(piece, None)
        if head is not None:
            heapq.heappush(self._heads, (*head, piece))

    def _step_over_finished(self) -> None:
        while self._heads:
            serial, task_id, piece = self._heads[0]
            task = self._tasks.get(task_id)
            if task is not None and task.serial == serial:
                return
            heapq.heappop(self._heads)
            self._push(piece)
