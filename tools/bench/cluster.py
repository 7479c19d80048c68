"""Engines that share a private MariaDB and Redis, on the same cores: accepting, and a take-over.

MariaDB syncs every commit (innodb_flush_log_at_trx_commit=1).
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import uvloop

from tools.bench.accept import PIPELINED
from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet
from tools.bench.lines import post_lines
from tools.bench.load import drive
from tools.bench.report import Aim, Row, row_of
from tools.bench.rig import Engine, folder
from tools.servers import MariaDb, RedisServer
from tools.servers.process import SEARCH_PATH

_SETTINGS = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
# How many tasks: quick, in full.
_ACCEPTED = (20_000, 200_000)
_TAKEN = (5_000, 100_000)
_TAKEOVER_DEADLINE_S = 60.0
_LOOK_S = 0.02


def run(quick: bool) -> list[Row]:
    """Durable accept through MariaDB; how soon a killed engine's tasks are pushed by another."""
    missing = [
        program for program in ("mariadbd", "redis-server") if shutil.which(program, path=SEARCH_PATH) is None
    ]
    if missing:
        return [Row(f"{', '.join(missing)}: not installed", 0, "")]
    with MariaDb(settings=_SETTINGS) as database, RedisServer() as redis:
        shared = f'[store]\nurl = "{database.url}"\n[redis]\nurl = "redis://{redis.address}/0"\n'
        return [_accept(shared, _ACCEPTED[not quick]), _takeover(shared, _TAKEN[not quick])]


def _accept(shared: str, number: int) -> Row:
    with _engine("accepting", shared) as engine:
        dealt = post_lines(number, engine.workers)
        measured = drive([engine.address], dealt, PIPELINED, [engine.program])
    aims = (Aim("value", least=40_000),)
    return row_of(f"cluster: accept {PIPELINED} through MariaDB", [measured], aims)


@contextmanager
def _engine(name: str, shared: str) -> Iterator[Engine]:
    with folder() as where, Engine(where, settings=f'id = "{name}"', sections=shared) as engine:
        yield engine


def _takeover(shared: str, number: int) -> Row:
    with ExitStack() as stack:
        dies, lives = (stack.enter_context(_engine(name, shared)) for name in ("dies", "lives"))
        # The proxy is at one engine only: what the other accepts stays unfinished there.
        drive([dies.address], post_lines(number, dies.workers), PIPELINED, [dies.program])
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            took_s = runner.run(_until_pushed(dies, lives, number))
    return Row(
        f"cluster: kill -9 of an engine with {number:,} unfinished tasks",
        round(took_s, 2),
        "s until another has pushed them all (lease 10 s)",
        aims=(Aim("value", most=15),),
    )


async def _until_pushed(dies: Engine, lives: Engine, number: int) -> float:
    async with Fleet(lives, 1, credit=2 * number) as fleet:
        dies.program.kill()
        began = time.perf_counter()
        while fleet.pushed < number:
            if time.perf_counter() - began > _TAKEOVER_DEADLINE_S:
                raise BenchError(f"{fleet.pushed} of {number} tasks were taken over and pushed")
            await fleet.until(asyncio.sleep(_LOOK_S))
        return time.perf_counter() - began
