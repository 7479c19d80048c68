"""Engines as processes of their own, stopped and killed by signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from refreshd.cluster import clock
from tests.refreshd.cluster.engine_process import FENCED
from tests.refreshd.cluster.sql import Sql
from tests.refreshd.cluster.timing import NAMES, TIMING
from tools.servers import RedisServer, wait_until

pytestmark = pytest.mark.needs("redis-server")

ROOT = Path(__file__).resolve().parents[3]
Start = Callable[..., "subprocess.Popen[bytes]"]


@contextmanager
def engines(server: RedisServer, sql: Sql) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(number: int, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.refreshd.cluster.engine_process", server.url, str(sql.path)]
        process = subprocess.Popen([*command, str(number), *more], cwd=ROOT, stdout=subprocess.DEVNULL)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def is_registered(server: RedisServer, number: int) -> bool:
    return bool(server.client.exists(NAMES.engine(f"e{number}")))


def watched_long_enough(server: RedisServer) -> None:
    """The word has been the same for so long that everybody may fence."""
    word, since_ms = "", 0

    def long_enough() -> bool:
        nonlocal word, since_ms
        now, now_ms = server.client.get(NAMES.memory), clock.now_ms()
        if now != word:
            word, since_ms = now, now_ms
        return now_ms - since_ms > 1.2 * TIMING.lease_ms

    wait_until(long_enough)


def test_a_leader_that_is_stopped_amid_an_act_does_nothing_when_it_wakes_up(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    sql = Sql(tmp_path / "sql")
    with engines(redis_server, sql) as start:
        old = start(1, "hand_out")
        wait_until(lambda: sql.leader_epoch == 1)
        dead, _ = start(2), start(3)
        wait_until(lambda: is_registered(redis_server, 2) and is_registered(redis_server, 3))
        watched_long_enough(redis_server)
        sql.fill(1, 3_000)
        sql.fill(2, 3_000)
        dead.kill()
        # The leader fences it, and is stopped with the first tasks in its hands.
        wait_until(lambda: psutil.Process(old.pid).status() == psutil.STATUS_STOPPED)
        assert [(act.engine, act.about) for act in sql.acts("fence")] == [(1, 2)]
        # The one that is left leads, fences the stopped one, and gets all.
        wait_until(lambda: sql.owned() == {3: 6_000})
        assert sql.leader_epoch == 2
        old.send_signal(signal.SIGCONT)
        assert old.wait(20) == FENCED
        assert sql.refusals() == [(1, 1)]
        assert sql.owned() == {3: 6_000}
        # It comes back as another incarnation, and nobody minds.
        start(1)
        key = NAMES.engine("e1")
        wait_until(lambda: '"epoch":3' in (redis_server.client.get(key) or ""))
        assert [(row.number, row.epoch, row.alive) for row in sql.rows()] == [
            (1, 3, True), (2, 2, False), (3, 1, True)
        ]  # fmt: skip
        # What it did it did before it was stopped.
        assert [act.what for act in sql.acts() if act.engine == 1] == ["claim", "fence"]
