"""Commits of a lane in MariaDB: rows a second, and what a row costs the engine.

One lane, one thread, a private mariadbd on the same cores that syncs every commit
(innodb_flush_log_at_trx_commit=1). The bodies have 350 bytes, the ids are random.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from zlib import crc32

import psutil

from refreshd.mysql_url import read_mysql_url
from refreshd.shard import SerialClock
from refreshd.store.base import Batch
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_engines import register
from refreshd.store.mysql_schema import migrate
from refreshd.task import State
from tools.bench.lines import LINE_BYTES
from tools.bench.report import Aim, Row
from tools.servers import MariaDb
from tools.servers.process import SEARCH_PATH

# Rows a commit.
BATCHES = (500, 1_000)
# How many of each: quick, in full.
ROWS = (10_000, 200_000)
_PLAN = (7, "0=pop1")
# Room for all rows in memory, and for the log of all of them.
_SETTINGS = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
_CPU = Aim("engine", most=3.0)


def run(quick: bool) -> list[Row]:
    """New tasks, and then their ends, by size of the commit."""
    if shutil.which("mariadbd", path=SEARCH_PATH) is None:
        return [Row("mariadbd: not installed", 0, "")]
    rows: list[Row] = []
    with MariaDb(settings=_SETTINGS) as server:
        url = read_mysql_url(server.url)
        migrate(url)
        session = Session(url)
        member = register(session, "bench")
        session.drop()
        lane = MysqlLane(url, member, 1e9)
        serials = SerialClock(0)
        for size in BATCHES:
            tasks, ends = _batches(ROWS[not quick], size, serials)
            # The first commit also connects.
            lane.commit(Batch())
            for name, batches in (("new tasks", tasks), ("ends", ends)):
                title = f"mysql: {name}, {size:,} a commit"
                rows.append(_timed(title, batches, size, lane.commit, server.pid))
        lane.close()
    return rows


def _batches(number: int, size: int, serials: SerialClock) -> tuple[list[Batch], list[Batch]]:
    """Commits of new tasks, and those that end them."""
    now_ms = time.time_ns() // 1_000_000
    tasks, ends = [], []
    body = b"x" * LINE_BYTES
    for _ in range(number // size):
        new, ended = Batch(), Batch()
        new.plans = dict([_PLAN])
        for _ in range(size):
            serial, task_id = serials.next(now_ms), uuid.uuid4().hex.encode()
            new.tasks.append((serial, task_id, _PLAN[0], body))
            ended.results.append((serial, int(State.COMPLETE), 1, 0, now_ms, b"0:12 "))
            ended.finished.append((crc32(task_id), task_id, serial))
        tasks.append(new)
        ends.append(ended)
    return tasks, ends


def _timed(
    name: str, batches: Sequence[Batch], size: int, commit: Callable[[Batch], object], server_pid: int
) -> Row:
    server = psutil.Process(server_pid)
    server_began, began, wall = _cpu_s(server), time.process_time(), time.perf_counter()
    for batch in batches:
        commit(batch)
    used, elapsed = time.process_time() - began, time.perf_counter() - wall
    number = size * len(batches)
    cpu_us = {
        "engine": round(used / number * 1e6, 2),
        "mariadbd": round((_cpu_s(server) - server_began) / number * 1e6, 2),
    }
    extra = {"ms_a_commit": round(elapsed / len(batches) * 1000, 2)}
    return Row(name, round(number / elapsed), "rows/s", cpu_us, extra, (_CPU,))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
