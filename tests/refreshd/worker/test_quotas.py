"""Quotas of a worker: rows when processes come and go, the note of the day, and rounds over engines."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from refreshd.cluster.quotas import SharedQuotas
from refreshd.config import parse
from refreshd.scoreboard import Scoreboard
from refreshd.shard import ShardMap
from refreshd.worker.quotas import NOTE_FILE, Quotas
from tests.redis_fixtures import redis_server
from tools.servers import RedisServer
from wire.errors import Refused

__all__ = ["redis_server"]
DAY = 20_774
NOON_MS = DAY * 86_400_000 + 43_200_000
KEYS = '[[key]]\nname = "acme"\nsecret_file = "f"\nin_flight = 100\nper_day = { url = 1000 }\n'


class Clock:
    """The clock of an engine that stands still."""

    mono_ms = 1000
    wall_ms = NOON_MS

    def turn(self) -> None:
        pass


class Machine:
    """A data folder, and the memory that workers share until the master ends."""

    def __init__(self, data: Path) -> None:
        self.clock = Clock()
        self.data = data
        self._fds: list[int] = []
        self.start()

    def start(self) -> None:
        """The master starts: the memory is new."""
        self._fds.append(Scoreboard.create())

    def worker(self, slot: int = 0, side: int = 0, *, standby: bool = False) -> Quotas:
        config = parse(f'[engine]\ndata = "{self.data}"\n{KEYS}')
        hub = SimpleNamespace(
            scoreboard=Scoreboard(self._fds[-1]),
            shards=ShardMap(slot, 2, 2),
            config=config,
            engine=SimpleNamespace(clock=self.clock),
        )
        quotas = Quotas(hub, side)  # type: ignore[arg-type] # has what quotas use
        quotas.book.configure(config)
        quotas.boot(standby=standby)
        return quotas

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def take(quotas: Quotas, number: int = 1, count: int = 1) -> int:
    """How many of so many tasks were let in."""
    clock = quotas._clock
    accepted = 0
    for _ in range(number):
        try:
            quotas.book.usage("acme").take(0, count, clock.mono_ms, clock.wall_ms)
        except Refused:
            continue
        accepted += 1
    return accepted


def today(quotas: Quotas) -> object:
    return quotas.rows()[0]["url"]


def in_flight(quotas: Quotas) -> object:
    return quotas.rows()[0]["in_flight"]


def test_workers_see_each_other(machine: Machine) -> None:
    zero, one = machine.worker(0), machine.worker(1)
    assert (take(zero, 60), take(one, 60)) == (60, 40)
    assert today(zero) == today(one) == 100


def test_a_worker_that_died_is_in_flight_until_the_next_one_loads(machine: Machine) -> None:
    zero, one = machine.worker(0), machine.worker(1)
    take(zero, 60)
    assert in_flight(one) == 60
    machine.worker(0)
    assert in_flight(one) == 0
    assert today(one) == 60


def test_a_hand_over_that_ends_in_any_way_leaves_nothing_behind(machine: Machine) -> None:
    zero = machine.worker(0)
    take(zero, 5)
    successor = machine.worker(0, 1, standby=True)
    assert in_flight(successor) == 5
    for _ in range(2):
        successor.book.usage("acme").began()
    # The predecessor dies: the successor has the rest from the store.
    successor.alone()
    assert in_flight(successor) == 2
    again = machine.worker(0, 0)
    assert in_flight(again) == 0


def test_a_slot_that_is_no_more_has_nothing_in_flight(machine: Machine) -> None:
    zero, one = machine.worker(0), machine.worker(1)
    take(one, 5)
    zero.retired(1)
    assert in_flight(zero) == 0


def test_the_day_survives_a_restart(machine: Machine) -> None:
    zero, one = machine.worker(0), machine.worker(1)
    take(zero, 30)
    take(one, 20)
    zero.note()
    machine.start()
    zero, one = machine.worker(0), machine.worker(1)
    assert today(zero) == 50, "once only, whoever starts first"
    assert take(one, 1, 951) == 0
    assert take(one, 1, 950) == 1
    one.note()
    machine.start()
    machine.clock.wall_ms += 86_400_000
    assert today(machine.worker(1)) == 0


def test_a_note_is_written_when_there_is_something_new(machine: Machine) -> None:
    zero = machine.worker(0)
    path = machine.data / NOTE_FILE
    zero.note()
    assert not path.exists()
    take(zero, 3)
    zero.note()
    assert json.loads(path.read_text()) == {"day": DAY, "today": {"acme": [3, 0, 0, 0, 0]}}
    path.unlink()
    zero.note()
    assert not path.exists()
    take(zero)
    zero.note()
    assert [entry.name for entry in machine.data.iterdir()] == [NOTE_FILE]


@pytest.mark.parametrize(
    "note",
    [b"", b"\x00\xff", b"[]", b'{"day": 20774}', b'{"day": 20774, "today": {"acme": [1, 2]}}'],
)
def test_a_note_that_cannot_be_read_is_none(machine: Machine, note: bytes) -> None:
    (machine.data / NOTE_FILE).write_bytes(note)
    assert today(machine.worker(0)) == 0


def test_a_folder_that_cannot_be_written_stops_nothing(machine: Machine) -> None:
    zero = machine.worker(0)
    take(zero, 3)
    machine.data.rmdir()
    zero.note()
    machine.data.mkdir()
    zero.note()
    assert (machine.data / NOTE_FILE).exists()


@pytest.mark.needs("redis-server")
def test_two_engines_with_two_workers_each(tmp_path: Path, redis_server: RedisServer) -> None:
    """All that there is between workers and Redis, but for the connections of clients."""

    async def run() -> None:
        client = redis.asyncio.Redis(host="127.0.0.1", port=redis_server.port, retry=Retry(NoBackoff(), 0))
        machines = [Machine(tmp_path / name) for name in ("e1", "e2")]
        workers = [[machine.worker(slot) for slot in range(2)] for machine in machines]
        rounds = [
            SharedQuotas(client, "test", f"e{number}", some[0]) for number, some in enumerate(workers, 1)
        ]
        accepted = 0
        for turn in range(40):
            for each in rounds:
                assert await each.round()
            if turn > 2:
                accepted += sum(take(worker, 10) for some in workers for worker in some)
                assert accepted <= 100
        assert accepted >= 95
        assert sum(int(str(in_flight(some[1]))) for some in workers) == accepted
        await client.aclose()
        for machine in machines:
            machine.close()

    for name in ("e1", "e2"):
        (tmp_path / name).mkdir()
    asyncio.run(run())
