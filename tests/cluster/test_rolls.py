"""Reloads, upgrades and other numbers of workers, of an engine that leads, under load."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.site import Ledger, Site
from tests.driver import wait_until
from tools.servers import MariaDb, RedisServer

# Leases last 2 s here, and "nobody fences it" holds only as long as they are renewed in time.
pytestmark = pytest.mark.alone


@pytest.mark.parametrize("verb", ["reload", "upgrade"])
def test_a_roll_of_the_leading_engine_is_noticed_by_nobody(site: Site, ledger: Ledger, verb: str) -> None:
    """The lead stays with the engine: its new worker goes on with it."""
    leader = site.leader()
    epochs, terms = site.epochs(), site.leader_epoch()
    with site.fleet(ledger) as fleet:
        with site.load(ledger) as load:
            ledger.wait_for(100)
            pids = site[leader].pids()
            site[leader].roll(verb)
            site[leader].wait_whole()
            assert not pids & site[leader].pids()
            ledger.wait_for(100)
            wait_until(lambda: site.leader() == leader, "it leads on")
            assert (load.gone, ledger.refused) == (0, {})
        assert [proxy.gone for proxy in fleet] == [0] * len(fleet)
        assert site.wait_together() == leader
        assert site.leaders_by_own_account() == [leader]
        assert (site.epochs(), site.leader_epoch()) == (epochs, terms)
        site.settle(ledger)


def test_a_successor_that_dies_with_the_lead_in_its_hands_costs_nothing(
    database: MariaDb, redis: RedisServer, ledger: Ledger, tmp_path: Path
) -> None:
    """The old worker 0 has given the lead away and was not told that it arrived: it leads on."""
    with Site(database, redis, environment={"REFRESHD_STEPS": str(tmp_path)}) as site, site.fleet(ledger):
        leader = site.leader()
        engine = site[leader]
        epochs, terms = site.epochs(), site.leader_epoch()
        old = engine.pid_of(0)
        with site.load(ledger):
            ledger.wait_for(100)
            (tmp_path / "ending").touch()
            number = engine.begin("reload")
            (stopped,) = wait_until(lambda: list(tmp_path.glob("ending.*")), "it has come to its last step")
            os.kill(int(stopped.suffix[1:]), signal.SIGKILL)
            assert engine.outcome(number)["state"] == "failed"
            ledger.wait_for(100)
        assert engine.pid_of(0) == old
        assert site.wait_together() == leader
        assert (site.epochs(), site.leader_epoch()) == (epochs, terms)
        site.settle(ledger)


def test_hup_and_another_number_of_workers(site: Site, ledger: Ledger) -> None:
    """From two to three and back: the coordinator is worker 0's, which stays."""
    leader = site.leader()
    engine = site[leader]
    epochs = site.epochs()
    # Connected with the first two workers only: of the third's tasks they get as well.
    with site.fleet(ledger):
        with site.load(ledger) as load:
            for workers in (3, 2):
                ledger.wait_for(100)
                engine.workers = workers
                engine.configure()
                assert engine.process is not None
                engine.process.send_signal(signal.SIGHUP)
                wait_until(
                    lambda: len(engine.admin("list_workers").rows) == engine.workers, "as many workers"
                )
                engine.wait_whole()
                ledger.wait_for(100)
            assert (load.gone, ledger.refused) == (0, {})
        assert site.wait_together() == leader
        assert site.epochs() == epochs
        site.settle(ledger)


def test_a_worker_of_the_leader_that_is_killed_costs_nothing(site: Site, ledger: Ledger) -> None:
    """FAULTS 1 with a store that is shared. With so short a lease the lead may move meanwhile."""
    leader = site.leader()
    with site.fleet(ledger):
        with site.load(ledger):
            for slot in (0, 1):
                ledger.wait_for(100)
                pid = site[leader].kill_worker(slot)
                site[leader].wait_for_worker(slot, pid)
            ledger.wait_for(100)
        site.wait_together()
        site.settle(ledger)
