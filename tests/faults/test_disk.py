"""FAULTS 9 to 11: a full disk, a sync that fails, files that are cut or missing.

A full disk is a small tmpfs over the store, in a mount namespace of the engine's
own; where that is not allowed, the test is skipped and the one with a limit on the
size of files (which needs no rights, and gives EFBIG for ENOSPC) stands for it.
A failing sync is a seccomp filter in the worker, see inject/sitecustomize.py.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import Engine, EngineFailed, wait_until
from tests.faults.ledger import Ledger, Load
from tests.small_disk import fill, on_small_disk, seen_by

_BIG = "http://example.com/" + "x" * 100_000


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(["p1"])


@pytest.fixture
def full_disk_engine(ledger: Ledger) -> Iterator[Engine]:
    """An engine whose store is 16 MiB."""
    engine = Engine(proxies=["p1"])
    store = engine.data / "store"
    store.mkdir(parents=True)
    engine._before = on_small_disk(store, 16)
    with engine, engine.proxy("p1", on_effect=ledger.effect):
        yield engine


def _ballast(engine: Engine) -> Path:
    """A file on the engine's small disk, as seen from outside its namespace."""
    assert engine.process is not None
    return seen_by(engine.process.pid, engine.data / "store" / "ballast")


def _refusals(engine: Engine, stem: str, count: int = 30) -> list[str]:
    """The reasons for which large tasks are refused."""
    with engine.peer() as peer:
        peer.write(*[f"post_task task_id={stem}{i} type=url -- {_BIG}{i}" for i in range(count)])
        replies = peer.replies(count)
    assert {reply.code for reply in replies} <= {"", "unavailable"}, replies
    return [reply["msg"] for reply in replies if not reply.ok]


def _accepts(engine: Engine, stem: str) -> bool:
    with engine.peer() as peer:
        peer.write(*[f"post_task task_id={stem}{i} type=url -- {_BIG}" for i in range(8)])
        return all(reply.ok for reply in peer.replies(8))


def test_a_full_disk_is_unavailable_with_the_reason_and_recovers(
    full_disk_engine: Engine, ledger: Ledger
) -> None:
    """Row 9. A refused task is not known afterwards; what was acknowledged is done all the same."""
    engine = full_disk_engine
    with Load(engine.address, ledger, clients=1):
        ledger.wait_for(100)
        fill(_ballast(engine))
        wait_until(lambda: any("full" in why for why in _refusals(engine, "full")), "the disk is full", 40)
        with engine.peer() as peer:
            peer.write(*[f"get_task task_id=full{i}" for i in range(30)])
            refused = [reply for reply in peer.replies(30) if reply.code == "not_found"]
            assert refused, "what was refused is not there"
            peer.ok("ping")
        wait_until(lambda: ledger.refused.get("unavailable"), "the load is refused too", 40)
        _ballast(engine).unlink()
        wait_until(lambda: _accepts(engine, "again"), "the engine accepts again")
        ledger.wait_for(100)
    assert not engine.logged("worker ended"), "no process ended of it"
    ledger.settle(engine.address)


def test_a_file_that_may_not_grow_is_unavailable_and_recovers(ledger: Ledger) -> None:
    """Row 9, without any rights: the workers may not write beyond what they have."""
    with Engine(proxies=["p1"]) as engine, engine.proxy("p1", on_effect=ledger.effect):
        with Load(engine.address, ledger, clients=1):
            ledger.wait_for(100)
            _limit_files(engine, 64 * 1024)
            wait_until(lambda: ledger.refused.get("unavailable"), "the load is refused", 40)
            assert any("cannot write" in why for why in _refusals(engine, "full"))
            _limit_files(engine, resource.RLIM_INFINITY)
            wait_until(lambda: _accepts(engine, "again"), "the engine accepts again")
            ledger.wait_for(100)
        assert not engine.logged("worker ended")
        ledger.settle(engine.address)


def _limit_files(engine: Engine, size: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for slot in range(engine.workers):
        resource.prlimit(engine.pid_of(slot), resource.RLIMIT_FSIZE, (size, hard))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="syscall numbers unknown here")
def test_after_a_sync_that_fails_nothing_is_acknowledged_and_the_worker_ends(
    tmp_path: Path, ledger: Ledger
) -> None:
    """Row 10."""
    failing = tmp_path / "failing"
    with (
        Engine(proxies=["p1"], environment={"REFRESHD_SYNC_FAILS": str(failing)}) as engine,
        engine.proxy("p1", on_effect=ledger.effect),
        Load(engine.address, ledger, clients=2) as load,
    ):
        ledger.wait_for(100)
        pids = [engine.pid_of(slot) for slot in range(2)]
        failing.touch()
        wait_until(lambda: len(failing.read_text().split()) >= 2, "both workers cannot sync")
        failing.unlink()
        for slot, pid in enumerate(pids):
            engine.wait_for_worker(slot, pid)
        ledger.wait_for(100)
        assert all("sync" in line["why"] for line in engine.logged("worker ends at once"))
        assert len(engine.logged("worker ends at once")) >= 2
        assert load.gone, "its clients' connections ended without a reply"
        ledger.settle(engine.address)


@pytest.fixture
def stopped(ledger: Ledger) -> Iterator[Engine]:
    """An engine that was stopped after some load."""
    with Engine(proxies=["p1"]) as engine:
        with engine.proxy("p1", on_effect=ledger.effect):
            with Load(engine.address, ledger):
                ledger.wait_for(300)
            ledger.settle(engine.address)
        engine.stop()
        yield engine


def _lane(engine: Engine, number: int = 0) -> Path:
    return engine.data / "store" / f"lane-{number}.db"


def test_a_missing_lane_is_refused_by_name(stopped: Engine) -> None:
    """Row 11."""
    _lane(stopped, 1).unlink()
    with pytest.raises(EngineFailed, match=r"lane-1\.db is missing"):
        stopped.start()


def test_a_missing_layout_is_refused(stopped: Engine) -> None:
    (stopped.data / "store" / "layout").unlink()
    with pytest.raises(EngineFailed, match=r"layout is not"):
        stopped.start()


def test_a_lane_that_is_no_database_is_refused(stopped: Engine) -> None:
    _lane(stopped).write_bytes(b"no database at all" * 1000)
    with pytest.raises(EngineFailed, match="damaged"):
        stopped.start()


def test_a_lane_that_was_cut_is_refused(stopped: Engine) -> None:
    """Row 11: never silently wrong."""
    os.truncate(_lane(stopped), _lane(stopped).stat().st_size // 2)
    with pytest.raises(EngineFailed, match="damaged"):
        stopped.start()


def test_a_lane_that_was_emptied_is_refused(stopped: Engine) -> None:
    os.truncate(_lane(stopped), 0)
    with pytest.raises(EngineFailed, match=r"lane-0\.db is empty"):
        stopped.start()


def test_a_log_that_was_cut_loses_its_tail_only(ledger: Ledger) -> None:
    """Row 11: the write-ahead log of a killed engine, cut within its last frames."""
    with Engine(proxies=["p1"]) as engine:
        with engine.peer() as peer:
            for number in range(50):
                peer.post(f"kept{number}", "type=url due=4000000000")
        engine.kill_all()
        for number in range(2):
            log = Path(f"{_lane(engine, number)}-wal")
            os.truncate(log, log.stat().st_size - 100)
        engine.start()
        with engine.peer() as peer:
            there = [n for n in range(50) if peer.ask(f"get_task task_id=kept{n}").ok]
        assert 40 <= len(there) < 50, "the last commit of each lane is gone, and no other"


def test_peers_are_answered_while_a_store_is_away(full_disk_engine: Engine) -> None:
    """What needs no store is served, and reads go on."""
    engine = full_disk_engine
    with engine.peer() as peer:
        peer.post("before", "type=url due=4000000000")
        fill(_ballast(engine))
        wait_until(lambda: _refusals(engine, "full"), "the disk is full", 40)
        assert peer.state("before") == "pending"
        assert peer.ask("list_tasks limit=5").ok
        assert peer.ask("stats").ok
