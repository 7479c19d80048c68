"""Where a task lives: known values, since peers in other languages compute the same."""

import subprocess
import sys

import pytest

from wire import SHARDS
from wire.shards import shard_of, worker_of


@pytest.mark.parametrize(
    ("task_id", "shard"), [(b"123456789", 0xCBF43926 % 64), (b"t1", 55), (b"", 0), ("ü".encode(), 21)]
)
def test_known_shards(task_id: bytes, shard: int) -> None:
    assert shard_of(task_id) == shard


def test_workers_share_the_shards() -> None:
    for workers in (1, 2, 3, 64):
        found = {worker_of(b"%d" % number, workers) for number in range(2000)}
        assert found == set(range(workers))
        assert worker_of(b"t1", workers) == shard_of(b"t1") % workers
    assert {shard_of(b"%d" % number) for number in range(5000)} == set(range(SHARDS))


def test_it_is_the_same_in_every_process() -> None:
    code = "from wire.shards import shard_of; print(shard_of(b'123456789'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert int(out.stdout) == shard_of(b"123456789")
