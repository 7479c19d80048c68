"""Batches for tests of the store, with everything that a test does not care about filled in."""

from __future__ import annotations

from zlib import crc32

from refreshd.fleet import Plan
from refreshd.shard import SERIAL_MAX
from refreshd.store.base import Batch, Reader
from refreshd.task import State

PLANS = [Plan.from_text("0=a"), Plan.from_text("0=a,b;3=c")]
RETENTION_S = 100.0
START_MS = 1_795_250_000_000


def row(serial: int, task_id: bytes, plan: Plan = PLANS[0]) -> tuple[int, bytes, int, bytes]:
    return (serial, task_id, plan.number, b"post_task task_id=%b type=url -- http://a/" % task_id)


def a_batch(*task_ids: bytes, first: int = 1, plan: Plan = PLANS[0]) -> Batch:
    """New tasks with serials from `first`."""
    batch = Batch()
    batch.tasks = [row(first + i, task_id, plan) for i, task_id in enumerate(task_ids)]
    batch.plans = {plan.number: plan.text}
    return batch


def end(
    batch: Batch, serial: int, task_id: bytes, state: State = State.COMPLETE, ms: int = START_MS
) -> Batch:
    """Adds the end of a task."""
    batch.results.append((serial, int(state), 1, 0, ms, b"0:1 " if state is State.COMPLETE else None))
    batch.finished.append((crc32(task_id), task_id, serial))
    return batch


def content_of(reader: Reader) -> tuple[dict[int, bytes], set[int]]:
    """(serial → id, serials that are unfinished) of everything that a reader sees."""
    stored = reader.page(SERIAL_MAX, 1_000_000, None, unfinished=False)
    return {s.serial: s.id for s in stored}, {serial for serial, _, _ in reader.unfinished()}
