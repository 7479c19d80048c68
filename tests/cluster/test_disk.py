"""FAULTS 9 and 10: the database's disk is full, or a sync fails; the same of an engine's own folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harmed import OnSmallDisk, WithSyncs
from tests.cluster.pops import pops
from tests.cluster.site import Ledger, Site
from tests.driver import EngineFailed, wait_until
from tests.peer.raw import owned_by
from tests.small_disk import fill, on_small_disk, seen_by
from tools.servers import MariaDb, RedisServer

# As much as InnoDB keeps within a page. On a full disk it ends itself when it cannot undo a larger row
# ("Out of disk space in rollback"), which is another fault: row 12.
_LARGE = "x" * 3_000
_AT_ONCE = 300


@pytest.fixture
def full_disk(mariadb_template: Path) -> Iterator[OnSmallDisk]:
    with OnSmallDisk(mariadb_template) as database:
        yield database


def refusals(site: Site, stem: str) -> list[str]:
    """The reasons for which large tasks are refused."""
    with site["e1"].peer() as peer:
        ids = [f"{stem}{number}" for number in range(_AT_ONCE)]
        peer.write(*[f"post_task task_id={i} type=url -- http://example.com/{_LARGE}" for i in ids])
        replies = peer.replies(_AT_ONCE)
        assert {reply.code for reply in replies} <= {"", "unavailable"}, replies
        # No proxy is to do these: their effects would be under another name.
        peer.write(*[f"cancel_task task_id={reply['task_id']}" for reply in replies if reply.ok])
        peer.replies(sum(reply.ok for reply in replies))
    return [reply["msg"] for reply in replies if not reply.ok]


@pytest.mark.alone
def test_a_full_disk_under_the_database_is_unavailable_with_the_reason(
    full_disk: OnSmallDisk, redis: RedisServer, ledger: Ledger
) -> None:
    """Row 9, with real agents. What was acknowledged is done, what was refused is not there."""
    with Site(full_disk, redis) as site, pops(site, ledger):
        with site.load(ledger) as load:
            ledger.wait_for(200)
            full_disk.fill_disk()
            stems = (f"full{number}-" for number in itertools.count())
            # A table has some MiB in reserve before it asks the disk for more.
            wait_until(
                lambda: any("is full" in why for why in refusals(site, next(stems))), "the disk is full", 40
            )
            with site["e2"].peer() as peer:
                assert peer.ask("ping").ok
            full_disk.free_disk()
            wait_until(lambda: not refusals(site, next(stems)), "large tasks are accepted again")
            ledger.wait_for(200)
        assert load.gone == 0, load.why_gone
        assert ledger.refused.keys() <= {"unavailable"}
        site.settle(ledger)
        for engine in site.engines.values():
            assert not engine.logged("worker ended")


@pytest.fixture
def with_syncs(mariadb_template: Path) -> Iterator[WithSyncs]:
    with WithSyncs(mariadb_template) as database:
        yield database


def test_nothing_is_acknowledged_that_the_database_could_not_sync(
    with_syncs: WithSyncs, redis: RedisServer, ledger: Ledger
) -> None:
    """Row 10: an engine says `ok` after the sync, not before; the database ends, and is started again."""
    with Site(with_syncs, redis) as site, site.fleet(ledger):
        with site.load(ledger) as load:
            ledger.wait_for(200)
        with site["e1"].peer() as one, site["e2"].peer() as two:
            with_syncs.hold_syncs()
            # One a lane: none waits for another.
            waiting = {
                peer: [owned_by(w, f"{n}")[0] for w in (0, 1)] for n, peer in (("one", one), ("two", two))
            }
            for peer, ids in waiting.items():
                peer.write(*[f"post_task task_id={i} type=url -- http://example.com/{i}" for i in ids])
            wait_until(lambda: with_syncs.waiting, "a sync waits")
            assert one.is_quiet(), "acknowledged without a sync"
            assert two.is_quiet(0.01), "acknowledged without a sync"
            with_syncs.fail_syncs()
            wait_until(with_syncs.has_ended, "the database ends of it")
            assert with_syncs.failed
            for peer in waiting:
                assert [reply.code for reply in peer.replies(2)] == ["unavailable"] * 2
        with_syncs.restart()
        with site.load(ledger):
            ledger.wait_for(200)
        assert load.gone == 0, load.why_gone
        site.settle(ledger)


def test_what_happens_to_an_engines_own_folder_happens_to_no_task(
    database: MariaDb, redis: RedisServer, ledger: Ledger, tmp_path: Path
) -> None:
    """Rows 9 and 10: it is full, and no sync of the engine succeeds; rolls go on all the same."""
    failing = tmp_path / "failing"
    site = Site(database, redis, environment={"REFRESHD_SYNC_FAILS": str(failing)})
    engine = site["e1"]
    engine.data.mkdir()
    engine._before = on_small_disk(engine.data, 1)
    with site:
        assert engine.process is not None
        engine.data = seen_by(engine.process.pid, engine.data)
        fill(engine.data / "ballast")
        failing.touch()
        wait_until(lambda: len(failing.read_text().split()) == 4, "no worker can sync")
        with site.fleet(ledger):
            with site.load(ledger) as load:
                ledger.wait_for(200)
                engine.roll()
                ledger.wait_for(200)
            assert (load.gone, ledger.refused) == (0, {})
            site.settle(ledger)


def test_an_engine_that_may_not_write_in_its_folder_does_not_start(
    database: MariaDb, redis: RedisServer
) -> None:
    """And says so. The others are as they were."""
    site = Site(database, redis)
    engine = site["e2"]
    engine.data.mkdir()
    engine._before = on_small_disk(engine.data, 1, read_only=True)
    with site["e1"]:
        with pytest.raises(EngineFailed, match="Read-only file system") as failed:
            engine.start()
        assert str(engine.data) in str(failed.value)
        assert "Traceback" not in str(failed.value)
        site.wait_together("e1")
