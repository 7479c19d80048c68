"""The lines that are posted, rendered before anything is measured."""

from __future__ import annotations

import uuid

from wire.shards import worker_of

LINE_BYTES = 350
"""Of a `post_task` line with one target, LF included."""


def post_lines(
    number: int, workers: int, *, ids: str = "random", cross: float = 0.0, first: int = 0
) -> list[list[bytes]]:
    """`number` post_task lines of LINE_BYTES, dealt to the workers they are sent to.

    `ids`: "random" (UUIDs) or "ascending", from `first` on. `cross`: the share that
    is sent to a worker that does not own the shard.
    """
    dealt: list[list[bytes]] = [[] for _ in range(workers)]
    for count in range(first, first + number):
        task_id = uuid.uuid4().hex if ids == "random" else f"task-{count:027d}"
        away = 1 if count % 100 < cross * 100 else 0
        worker = (worker_of(task_id.encode(), workers) + away) % workers
        dealt[worker].append(_line(task_id, count))
    return dealt


def _line(task_id: str, count: int) -> bytes:
    front = f"post_task task_id={task_id} type=url -- http://www.example.com/{count}/"
    return f"{front:x<{LINE_BYTES - 1}}\n".encode()


def id_of(line: bytes) -> bytes:
    """The task id of such a line."""
    return line[18 : line.index(b" ", 18)]
