"""Who watches which task (`watch_task`), and telling them.

Kept by the worker that owns the task; the connection may be at a sibling. A
watch ends with the task's final state, or with its connection. Bounded by
callers.WATCHES_MAX a connection; a connection that does not read is told final states
only, and closed when even those pile up (see connection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Container
from zlib import crc32

from refreshd.task import FINAL, Task
from refreshd.worker.callers import Caller
from refreshd.worker.views import state_push

Deliver = Callable[[int, int, bytes], None]
"""(slot, connection, lines)"""


class Watches:
    """The watchers of this worker's tasks."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._watchers: dict[bytes, dict[tuple[int, int], None]] = {}
        self._by_connection: dict[tuple[int, int], set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._watchers)

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._watchers

    def add(self, caller: Caller, task_id: bytes) -> None:
        """From now on the connection is told what becomes of the task."""
        self.put(task_id, [(caller.slot, caller.number)])

    def take(self, task_id: bytes) -> list[tuple[int, int]]:
        """The watchers of a task that goes to another process; they are no longer known here."""
        watchers = list(self._watchers.pop(task_id, ()))
        for who in watchers:
            self._unwatch(who, task_id)
        return watchers

    def take_of(self, shards: Container[int]) -> list[tuple[bytes, list[tuple[int, int]]]]:
        """As `take`, all of some shards that are left: of tasks that another engine has."""
        ids = [task_id for task_id in self._watchers if crc32(task_id) & 63 in shards]
        return [(task_id, self.take(task_id)) for task_id in ids]

    def put(self, task_id: bytes, watchers: list[tuple[int, int]]) -> None:
        """The watchers of a task that came from another process."""
        for who in watchers:
            self._by_connection.setdefault(who, set()).add(task_id)
            self._watchers.setdefault(task_id, {})[who] = None

    def _unwatch(self, who: tuple[int, int], task_id: bytes) -> None:
        watched = self._by_connection[who]
        watched.discard(task_id)
        if not watched:
            # A sibling does not tell of the end of a connection that watches nothing.
            del self._by_connection[who]

    def changed(self, task: Task) -> None:
        """Tells those who watch the task."""
        watchers = self._watchers.get(task.id)
        if not watchers:
            return
        push = state_push(task)
        for slot, number in watchers:
            self._deliver(slot, number, push)
        if task.state in FINAL:
            for who in self._watchers.pop(task.id):
                self._unwatch(who, task.id)

    def tell(self, task_id: bytes, push: bytes, *, final: bool) -> None:
        """Tells those who watch a task of another engine; for the last time, if it is final."""
        for slot, number in self._watchers.get(task_id, ()):
            self._deliver(slot, number, push)
        if final:
            for who in self._watchers.pop(task_id, ()):
                self._unwatch(who, task_id)

    def forget(self, slot: int, number: int) -> None:
        """A connection is gone."""
        who = (slot, number)
        for task_id in self._by_connection.pop(who, ()):
            watchers = self._watchers.get(task_id)
            if watchers is not None:
                watchers.pop(who, None)
                if not watchers:
                    del self._watchers[task_id]

    def forget_worker(self, slot: int) -> None:
        """All connections of a sibling are gone."""
        for who in [who for who in self._by_connection if who[0] == slot]:
            self.forget(*who)
