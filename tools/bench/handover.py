"""What a hand-over costs those who are served meanwhile, and how soon a killed worker is back.

The load is the soak's: clients of every kind at a steady rate, proxies that report.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple, cast

import uvloop

from tools.bench.errors import BenchError
from tools.bench.lines import LINE_BYTES
from tools.bench.load import Shape, drive, undisturbed
from tools.bench.report import Aim, Row
from tools.bench.rig import folder
from tools.soak import proxies
from tools.soak.clients import Site
from tools.soak.crowd import Crowd
from tools.soak.engine import Engine
from tools.soak.ledger import GROUP_SIZE, Ledger
from tools.soak.tally import Histogram, Tally
from wire.shards import worker_of

_POSTED_BY = Shape(8, 64)
# What is rendered and posted at a time: lines take memory too.
_CHUNK = 100_000
_FAR = 4_000_000_000
_AWAY = proxies.Row("gone", "away", 0)
_WORKERS = 2
_SETTLE_S = 60.0
_REPLY_DEADLINE_S = 30.0
_PING_EVERY_S = 0.01


class Size(NamedTuple):
    """How much of everything."""

    unfinished: int
    unfinished_at_kill: int
    rate: int
    clients: int
    proxies: int
    idle: int
    calm_s: float
    kills: int


FULL = Size(500_000, 100_000, 10_000, 50, 20, 2_000, 10.0, 5)
QUICK = Size(20_000, 5_000, 2_000, 20, 8, 100, 2.0, 2)


def run(quick: bool) -> list[Row]:
    """A reload under load with many unfinished tasks; kills; many connections that move."""
    size = QUICK if quick else FULL
    return [*_reload(size), _kill(size), *_connections(size)]


@contextmanager
def _engine(size: Size) -> Iterator[Engine]:
    fleet = [*proxies.fleet(size.proxies), _AWAY]
    with folder() as where, Engine(where, workers=_WORKERS, fleet=fleet) as engine, undisturbed():
        yield engine


def _run(main: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


# ── a reload under load ───────────────────────────────────────────────────────────────────


def _reload(size: Size) -> list[Row]:
    with _engine(size) as engine:
        _run(engine.all_ready())
        _fill(engine, size.unfinished)
        tally, seconds, freezes = _run(_roll_under_load(engine, size))
    name = f"hand-over: {size.unfinished:,} unfinished tasks, {size.rate:,} tasks/s"
    soon = (Aim("value", most=250), Aim("p99_ms", most=50))
    return [
        _replies(f"{name}, no reload", tally.calm),
        _replies(f"{name}, during a reload", tally.rolls)._replace(aims=soon),
        Row(f"{name}, the roll of {_WORKERS} workers", round(seconds, 2), "s", aims=(Aim("value", most=20),)),
        Row(f"{name}, longest freeze of a shard", max(freezes), "ms"),
    ]


def _replies(name: str, histogram: Histogram) -> Row:
    p50, p99 = (round(histogram.percentile_ms(share), 2) for share in (0.5, 0.99))
    extra = {"p50_ms": p50, "p99_ms": p99, "replies": histogram.count}
    return Row(name, round(histogram.worst_s * 1000, 1), "ms worst reply", extra=extra)


async def _roll_under_load(engine: Engine, size: Size) -> tuple[Tally, float, list[float]]:
    """The latencies, how long the roll took, and the longest freeze of each hand-over in ms."""
    tally = Tally()
    ledger = Ledger(_WORKERS, size.proxies // GROUP_SIZE)
    crowd = Crowd(
        Site(engine.address, ledger, tally, random.Random(1)),
        clients=size.clients,
        proxies=size.proxies,
        workers=_WORKERS,
        rate=size.rate,
    )
    await crowd.begin()
    # What the start of it all did to latencies is not what is measured.
    await asyncio.sleep(size.calm_s / 2)
    tally.calm = Histogram()
    await asyncio.sleep(size.calm_s)
    seconds = await _roll(engine, tally)
    missing = await crowd.settle(_SETTLE_S)
    await crowd.close()
    if missing or tally.failed or tally.dropped:
        raise BenchError(f"a reload was noticed: {missing} {tally.failed} {tally.dropped} {tally.notes[:3]}")
    return tally, seconds, [line["longest_freeze_ms"] for line in _logged(engine, "shards given")]


async def _roll(engine: Engine, tally: Tally) -> float:
    """A reload that needs new workers. How long it took, in seconds."""
    engine.configure(f"line_max = {1 << 20 | 1}")
    before = engine.children()
    began = time.perf_counter()
    with tally.rolling():
        outcome = await engine.refreshctl("reload", "--wait")
    seconds = time.perf_counter() - began
    await engine.all_ready()
    if outcome.status or before & engine.children():
        raise BenchError(f"the reload did not renew the workers: {outcome}")
    return seconds


def _logged(engine: Engine, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in engine.program.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if line["event"] == event]


# ── unfinished tasks ──────────────────────────────────────────────────────────────────────


def _fill(engine: Engine, number: int) -> None:
    """Posts so many that stay unfinished: one half is due in the far future, the other's proxy is away."""
    terms = (f"due={_FAR} scope=away", "scope=away")
    for at in range(0, number, _CHUNK):
        dealt: list[list[bytes]] = [[] for _ in range(_WORKERS)]
        for place in range(min(_CHUNK, number - at)):
            task_id = uuid.uuid4().hex
            dealt[worker_of(task_id.encode(), _WORKERS)].append(_line(task_id, terms[place % 2]))
        drive([engine.address()], dealt, _POSTED_BY)


def _line(task_id: str, terms: str) -> bytes:
    front = f"post_task task_id={task_id} type=url {terms} -- http://www.example.com/"
    return f"{front:x<{LINE_BYTES - 1}}\n".encode()


# ── a killed worker ───────────────────────────────────────────────────────────────────────


def _kill(size: Size) -> Row:
    with _engine(size) as engine:
        _run(engine.all_ready())
        _fill(engine, size.unfinished_at_kill)
        took_s = _run(_kill_some(engine, size.kills))
    return Row(
        f"hand-over: kill -9 of a worker, {size.unfinished_at_kill:,} unfinished tasks",
        round(statistics.median(took_s), 3),
        "s until its shards' first reply",
        extra={"lowest": round(min(took_s), 3), "highest": round(max(took_s), 3)},
        aims=(Aim("value", most=1),),
    )


async def _kill_some(engine: Engine, kills: int) -> list[float]:
    """Seconds from each kill until a task that its successor owns is acknowledged, asked of its sibling."""
    took_s = []
    for number in range(kills):
        slot = number % _WORKERS
        pid = int((await engine.rows())[slot]["pid"])
        reader, writer = await asyncio.open_connection(*engine.address())
        writer.write(b"hello v=1 role=client worker=%d\n" % (1 - slot))
        await reader.readline()
        line = next(line for line in _lines_of(slot))
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        writer.write(line)
        reply = await asyncio.wait_for(reader.readline(), _REPLY_DEADLINE_S)
        took_s.append(time.perf_counter() - began)
        writer.close()
        if not reply.startswith(b"ok "):
            raise BenchError(f"got {reply!r} from the sibling of a killed worker, wanted ok")
        await engine.all_ready()
    return took_s


def _lines_of(slot: int) -> Iterator[bytes]:
    """Requests for tasks that a worker owns."""
    for _ in count():
        task_id = uuid.uuid4().hex
        if worker_of(task_id.encode(), _WORKERS) == slot:
            yield _line(task_id, "scope=away")


# ── connections that move ─────────────────────────────────────────────────────────────────


def _connections(size: Size) -> list[Row]:
    with _engine(size) as engine:
        _run(engine.all_ready())
        worst_s = _run(_move(engine, size.idle))
        moved = [line["connections"] for line in _logged(engine, "all handed over")]
        given_ms = [line["ms"] for line in _logged(engine, "shards given")]
        ended_ms = [line["ms"] for line in _logged(engine, "all handed over")]
    took_s = (sum(ended_ms) - sum(given_ms)) / 1000
    name = f"hand-over: {size.idle:,} connections"
    return [
        Row(f"{name}, moved", round(sum(moved) / max(took_s, 0.001)), "connections/s"),
        Row(f"{name}, longest pause of one", round(worst_s * 1000, 1), "ms"),
    ]


class _Pinger(asyncio.Protocol):
    """Pings all the time: its longest wait for a reply is how long its connection stood still."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self.lost = False
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ping()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def _ping(self) -> None:
        self._sent_at = time.perf_counter()
        self.transport.write(b"ping\n")

    def data_received(self, data: bytes) -> None:
        self.worst_s = max(self.worst_s, time.perf_counter() - self._sent_at)
        asyncio.get_running_loop().call_later(_PING_EVERY_S, self._ping)


async def _move(engine: Engine, idle: int) -> float:
    """A roll with so many connections, of which one in fifty pings. The longest wait, in seconds."""
    loop = asyncio.get_running_loop()
    transports = []
    for _ in range(idle):
        transport, _ = await loop.create_connection(asyncio.Protocol, *engine.address())
        transports.append(transport)
    pingers = [
        (await loop.create_connection(_Pinger, *engine.address()))[1] for _ in range(max(2, idle // 50))
    ]
    await asyncio.sleep(1.0)
    for pinger in pingers:
        pinger.worst_s = 0.0
    await _roll(engine, Tally())
    if any(pinger.lost for pinger in pingers) or any(transport.is_closing() for transport in transports):
        raise BenchError("a connection was lost")
    for transport in (*transports, *(pinger.transport for pinger in pingers)):
        transport.abort()
    await asyncio.sleep(0.05)
    return max(pinger.worst_s for pinger in pingers)
