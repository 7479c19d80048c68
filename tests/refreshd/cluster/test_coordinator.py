"""Three engines, a real Redis, and everything that can happen to either."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from refreshd.cluster.coordinator import Handed
from refreshd.cluster.snapshot import Advert
from tests.refreshd.cluster.rig import Engine, Rig, rigged
from tests.refreshd.cluster.timing import NAMES, TIMING, run, until
from tools.servers import RedisServer

pytestmark = pytest.mark.needs("redis-server")


def test_one_leads_and_all_know_of_each_other(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            leader, *others = await rig.add_three(watching=False)
            assert [engine.leads for engine in (leader, *others)] == [True, False, False]
            await until(lambda: all(engine.coordinator.status().leader_epoch == 1 for engine in rig.engines))
            status = others[0].coordinator.status()
            assert (status.state, status.leader, status.lead_ms) == ("follower", leader.id, 0)
            assert status.redis_error == status.store_error == ""
            assert [(row.id, row.number, row.epoch, row.alive) for row in status.engines] == [
                ("e1", 1, 1, True), ("e2", 2, 1, True), ("e3", 3, 1, True)
            ]  # fmt: skip
            assert [row.leads for row in status.engines].count(True) == 1
            assert all(0 < row.lease_ms <= TIMING.lease_ms for row in status.engines)
            assert all(0 <= (row.lag_ms or 0) < TIMING.lease_ms for row in status.engines)
            assert leader.coordinator.status().lead_ms > 0
            assert msgspec.json.decode(msgspec.json.encode(status))["leader"] == leader.id
            assert [act.what for act in rig.sql.acts()] == ["claim"]

    run(test())


def test_what_a_dead_engine_left_is_dealt_out_in_equal_shares(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            leader, dead, other = await rig.add_three()
            rig.sql.fill(dead.number, 10_000)
            dead.coordinator.advertise(unfinished=10_000)
            await until(lambda: _unfinished(leader, dead.id) == 10_000)
            await dead.die()
            await until(lambda: rig.sql.owned().get(dead.number, 0) == 0)
            owned = rig.sql.owned()
            assert sum(owned.values()) == 10_000
            assert abs(owned[leader.number] - owned[other.number]) <= 10_000 / 8
            assert [row.alive for row in rig.sql.rows() if row.number == dead.number] == [False]
            # Each of the two is told that there is something for it, by both.
            for engine in (leader, other):
                await until(lambda engine=engine: {leader.number, other.number} <= set(engine.handouts))
            await until(lambda: leader.coordinator.status().handed_out == 10_000)
            assert leader.coordinator.status().fenced == 1

    run(test())


def _unfinished(at: Engine, of: str) -> int:
    entry = at.coordinator.snapshot.get(of)
    return entry.advert.unfinished if entry is not None else 0


def test_a_dead_leader_is_followed_by_one_that_need_not_wait_another_lease(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            dead, *others = await rig.add_three()
            rig.sql.fill(dead.number, 3_000)
            await dead.die()
            new = await rig.leader(but=dead)
            await until(lambda: rig.sql.owned().get(dead.number, 0) == 0)
            # It has led for less than a lease: what it goes by is how long it has watched.
            (fence,) = rig.sql.acts("fence")
            (claim,) = [act for act in rig.sql.acts("claim") if act.engine == new.number]
            assert fence.at_ns - claim.at_ns < TIMING.lease_ms * 1_000_000
            assert set(rig.sql.owned()) == {engine.number for engine in others}

    run(test())


def test_who_cannot_renew_stops_acting_before_another_leads(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, *_ = await rig.add_three()
            await old.stop_renewing()
            await until(lambda: not old.leads)
            value = redis_server.client.get(NAMES.leader)
            assert value is None or value.startswith(f"{old.id} "), "another leads, and it acted on"
            new = await rig.leader(but=old)
            assert new.leader_epoch == 2
            # It was fenced, and sees that by itself in SQL, without Redis.
            await until(lambda: old.fenced)
            assert "epoch 2" in old.fenced[0]
            assert not [act for act in rig.sql.acts() if act.engine == old.number and act.leader_epoch > 1]

    run(test())


def test_an_act_that_was_begun_by_an_old_leader_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, dead, _ = await rig.add_three()
            stopped = asyncio.Event()
            loop = asyncio.get_running_loop()

            def stop_before(what: str) -> None:
                if what == "hand_out":
                    old.truth.goes_on.clear()
                    loop.call_soon_threadsafe(stopped.set)

            old.truth.before = stop_before
            rig.sql.fill(dead.number, 2_000)
            await dead.die()
            await stopped.wait()
            # As a pause of the whole process: it has looked at its lease, and not acted yet.
            await old.stop_renewing()
            await rig.leader(but=old)
            await until(lambda: rig.sql.owned().get(dead.number, 0) == 0)
            before = rig.sql.owned()
            old.truth.goes_on.set()
            await until(lambda: old.truth.refused)
            assert rig.sql.owned() == before

    run(test())


def test_redis_forgets_everything(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            await rig.add_three()
            for _ in range(2):
                epoch = rig.sql.leader_epoch
                redis_server.client.flushall()
                await until(lambda epoch=epoch: rig.sql.leader_epoch > epoch)
                await rig.leader()
            await until(lambda: all(engine.watches for engine in rig.engines))
            await until(lambda: len(redis_server.client.keys("*engine:*")) == 3)
            await until(lambda: [engine.leads for engine in rig.engines].count(True) == 1)
            assert not rig.sql.acts("fence")
            assert not any(engine.fenced for engine in rig.engines)

    run(test())


def test_redis_is_killed_and_comes_back_empty(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            _, dead, _ = await rig.add_three()
            redis_server.kill()
            await dead.die()
            rig.sql.fill(dead.number, 10)
            await until(lambda: not any(engine.leads for engine in rig.engines))
            living = [engine for engine in rig.engines if engine is not dead]
            assert all(engine.coordinator.status().redis_error for engine in living)
            assert all(len(engine.coordinator.snapshot.engines) == 3 for engine in living), "the last stands"
            assert not rig.sql.acts("fence")
            redis_server.restart()
            await rig.leader()
            # Who died meanwhile never had a lease in this Redis, and is not forgotten either.
            await until(lambda: not rig.sql.owned().get(dead.number, 0))
            assert [act.about for act in rig.sql.acts("fence")] == [dead.number]
            assert all(engine.coordinator.status().redis_error == "" for engine in living)

    run(test())


def test_redis_stands_still_for_longer_than_a_lease(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            await rig.add_three()
            redis_server.pause()
            await until(lambda: not any(engine.leads for engine in rig.engines))
            # All leases are over in Redis, too, once the margin is over.
            stopped_ms = rig.engines[0].coordinator._now_ms()
            await until(lambda: rig.engines[0].coordinator._now_ms() > stopped_ms + TIMING.margin_ms)
            redis_server.resume()
            await rig.leader()
            await until(lambda: all(engine.watches for engine in rig.engines))
            assert not rig.sql.acts("fence")

    run(test())


@pytest.mark.parametrize("jump_ms", [TIMING.lease_ms * 9 // 10, 3_600_000])
def test_the_clock_of_the_redis_machine_jumps(
    redis_server: RedisServer, tmp_path: Path, jump_ms: int
) -> None:
    """For Redis, a jump ahead is that every expiry is so much nearer."""

    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            await rig.add_three()
            script = """
                for _, key in ipairs(redis.call('KEYS', '*')) do
                  local left = redis.call('PTTL', key)
                  if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
                end"""
            redis_server.client.eval(script, 0, jump_ms)
            jumped_ms = rig.engines[0].coordinator._now_ms()
            await until(lambda: rig.engines[0].coordinator._now_ms() > jumped_ms + 2 * TIMING.poll_ms)
            await rig.leader()
            await until(lambda: all(engine.watches for engine in rig.engines))
            await until(lambda: all(len(engine.coordinator.snapshot.engines) == 3 for engine in rig.engines))
            assert not rig.sql.acts("fence")

    run(test())


def test_the_wall_clock_jumps(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, real_ns = time.time, time.time_ns

    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            leader, *_ = await rig.add_three(watching=False)
            for offset_s in (3_600, -3_600, 0):
                monkeypatch.setattr(time, "time", lambda by=offset_s: real() + by)
                monkeypatch.setattr(time, "time_ns", lambda by=offset_s: real_ns() + by * 10**9)
                read = len(leader.snapshots)
                await until(lambda read=read: len(leader.snapshots) > read + 4)
                assert leader.leads
            assert [act.what for act in rig.sql.acts()] == ["claim"]

    run(test())


def test_a_planned_stop_is_taken_over_at_once(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, *others = await rig.add_three()
            rig.sql.fill(old.number, 100)
            await old.stop()
            assert redis_server.client.get(NAMES.engine(old.id)) is None
            assert not (redis_server.client.get(NAMES.leader) or "").startswith(f"{old.id} ")
            await rig.leader(but=old)
            await until(lambda: not rig.sql.owned().get(old.number, 0))
            assert set(rig.sql.owned()) <= {engine.number for engine in others}

    run(test())


def test_a_stop_does_not_wait_for_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            engine = rig.add(1)
            await rig.leader()
            redis_server.pause()
            async with asyncio.timeout(10):
                await engine.stop()
            redis_server.resume()

    run(test())


def _successor(rig: Rig, of: Engine, handed: Handed | None) -> Engine:
    # As it goes between two processes.
    text = msgspec.json.encode(handed)
    return rig.add(of.number, handed=msgspec.json.decode(text, type=Handed | None))


def test_a_reload_changes_nothing_for_the_others(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, dead, follower = await rig.add_three()
            value = redis_server.client.get(NAMES.leader)
            new = _successor(rig, follower, await follower.coordinator.hand_over())
            await until(lambda: new.snapshots)
            assert new.watches
            for _ in range(3):
                new = _successor(rig, old, await old.coordinator.hand_over())
                assert not old.leads
                await until(lambda new=new: new.leads)
                old = new
            assert old.watches
            assert redis_server.client.get(NAMES.leader) == value
            assert [act.what for act in rig.sql.acts()] == ["claim"]
            # And it goes on as the leader that it is.
            rig.sql.fill(dead.number, 10)
            await dead.die()
            await until(lambda: not rig.sql.owned().get(dead.number, 0))
            assert [act.leader_epoch for act in rig.sql.acts("fence")] == [1]

    run(test())


def test_who_dies_during_a_reload_is_not_taken_for_one_that_boots(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, dead, other = await rig.add_three()
            handed = await old.coordinator.hand_over()
            await asyncio.gather(dead.die(), other.stop())
            await until(lambda: not redis_server.client.exists(NAMES.engine(dead.id)))
            rig.add(old.number, handed=handed, timing=TIMING._replace(boot_ms=3_600_000))
            await until(lambda: len(rig.sql.acts("fence")) == 2)

    run(test())


def test_a_successor_of_a_process_that_died_takes_the_lead_over(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, *_ = await rig.add_three(watching=False)
            value = redis_server.client.get(NAMES.leader)
            await old.die()
            new = _successor(rig, old, None)
            await until(lambda: new.leads)
            assert redis_server.client.get(NAMES.leader) == value
            assert [(act.what, act.engine) for act in rig.sql.acts()] == [("claim", old.number)] * 2

    run(test())


def test_a_leader_that_cannot_reach_sql_lets_another_lead(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, dead, _ = await rig.add_three()
            old.truth.away = True
            rig.sql.fill(dead.number, 10)
            await dead.die()
            new = await rig.leader(but=old)
            assert new.number not in (old.number, dead.number)
            await until(lambda: not rig.sql.owned().get(dead.number, 0))
            assert old.coordinator.status().store_error
            assert not old.fenced
            old.truth.away = False
            await until(lambda: not old.coordinator.status().store_error)

    run(test())


def test_sql_is_away_for_all_and_comes_back(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            await rig.add_three(watching=False)
            for engine in rig.engines:
                engine.truth.away = True
            await until(lambda: not any(engine.leads for engine in rig.engines))
            for engine in rig.engines:
                engine.truth.away = False
            await rig.leader()
            await until(lambda: not any(engine.coordinator.status().store_error for engine in rig.engines))
            assert not rig.sql.acts("fence")

    run(test())


def test_sql_that_hangs_keeps_no_lease_from_being_renewed(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            old, *others = await rig.add_three(watching=False)
            old.truth.goes_on.clear()
            new = await rig.leader(but=old)
            assert new in others
            assert redis_server.client.get(NAMES.engine(old.id))
            assert not rig.sql.acts("fence")
            old.truth.goes_on.set()
            await until(lambda: not old.coordinator.status().store_error)
            assert not old.fenced

    run(test())


def test_a_fenced_engine_is_told_once_and_asks_for_nothing_more(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            leader, other, _ = await rig.add_three(watching=False)
            for engine in (leader, other):
                with rig.sql.transaction() as db:
                    db.execute(
                        "UPDATE engine SET epoch = epoch + 1, alive = 0 WHERE number = ?", (engine.number,)
                    )
                await until(lambda engine=engine: engine.fenced)
                await until(lambda engine=engine: not redis_server.client.exists(NAMES.engine(engine.id)))
                assert len(engine.fenced) == 1
            (left,) = [engine for engine in rig.engines if not engine.fenced]
            await until(lambda: left.leads)

    run(test())


def test_a_process_of_a_later_epoch_takes_the_lease_from_one_that_was_paused(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            engine = rig.add(1)
            await rig.leader()
            engine.truth.away = True  # It cannot see in SQL what has happened.
            later = Advert("e1", "127.0.0.1:1", 1, 3, "later")
            redis_server.client.set(NAMES.engine("e1"), msgspec.json.encode(later))
            await until(lambda: engine.fenced)
            assert "later epoch" in engine.fenced[0]
            assert not engine.leads
            assert redis_server.client.get(NAMES.engine("e1")) == msgspec.json.encode(later).decode()

    run(test())


def test_two_engines_of_one_id_are_noticed(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            first = rig.add(1)
            await until(lambda: first.coordinator.status().engines)
            assert not first.coordinator.status().conflict
            rig.add(1, boot="another machine")
            await until(lambda: first.coordinator.status().conflict)

    run(test())


def test_what_an_engine_says_of_itself_is_seen_by_all(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            leader, other, third = await rig.add_three(watching=False)
            other.coordinator.advertise(draining=True, unfinished=5, address="10.0.0.1:1")

            def seen() -> bool:
                entry = third.coordinator.snapshot.get(other.id)
                return entry is not None and entry.advert.draining and entry.advert.address == "10.0.0.1:1"

            await until(seen)
            (row,) = [row for row in third.coordinator.status().engines if row.id == other.id]
            assert (row.draining, row.unfinished, row.address) == (True, 5, "10.0.0.1:1")
            # And nothing is dealt out to one that drains while there is another.
            staying = tuple(sorted((leader.number, third.number)))
            await until(lambda: leader.coordinator._heirs() == staying)

    run(test())


def test_a_fault_in_a_callback_stops_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            engine = rig.add(1)

            def fails(_: object) -> None:
                raise RuntimeError("a fault")

            calls = engine.coordinator._calls
            engine.coordinator._calls = calls._replace(on_registry=fails)
            await rig.leader()
            engine.coordinator._calls = calls
            await until(lambda: engine.snapshots)

    run(test())


def test_it_begins_without_redis_and_without_sql(redis_server: RedisServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(redis_server, tmp_path) as rig:
            redis_server.kill()
            engine = rig.add(1)
            engine.truth.away = True
            await until(lambda: engine.coordinator.status().redis_error)
            await until(lambda: engine.coordinator.status().store_error)
            redis_server.restart()
            await until(lambda: engine.coordinator.snapshot.get("e1"))
            engine.truth.away = False
            await rig.leader()

    run(test())
