"""Where a task lives (PROTOCOL.md, "Greeting"): CRC-32 of its id, modulo."""

from __future__ import annotations

from zlib import crc32

from wire import SHARDS


def shard_of(task_id: bytes) -> int:
    """The shard, 0 to 63, of a task id (its bytes as on the wire)."""
    return crc32(task_id) % SHARDS


def worker_of(task_id: bytes, workers: int) -> int:
    """The worker, 0 to `workers` - 1, that owns a task."""
    return crc32(task_id) % SHARDS % workers
