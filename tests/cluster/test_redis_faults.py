"""FAULTS 14: Redis holds nothing that may not be lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.site import LEASE_S, Ledger, Site
from tests.driver import wait_until


def _restart(site: Site) -> None:
    site.redis.kill()
    site.redis.restart()


def _flush(site: Site) -> None:
    site.redis.client.flushall()


def _pids(site: Site) -> list[set[int]]:
    """Of all workers."""
    return [engine.pids() for engine in site.engines.values()]


@pytest.mark.parametrize("fault", [_restart, _flush])
def test_what_redis_forgets_is_there_again(site: Site, ledger: Ledger, fault: Callable[[Site], None]) -> None:
    """Three times, under load: nobody is fenced, one leads; no worker ends, no connection or task is lost."""
    epochs, pids = site.epochs(), _pids(site)
    with site.fleet(ledger):
        with site.load(ledger) as load:
            for _ in range(3):
                ledger.wait_for(100)
                fault(site)
                site.wait_together()
            # By now everybody would have fenced whom it had missed.
            watched_from = site.redis_ms()
            wait_until(
                lambda: site.redis_ms() > watched_from + 1500 * LEASE_S, "a lease and a half has passed"
            )
            ledger.wait_for(100)
        assert site.epochs() == epochs
        assert site.leaders_by_own_account() == [site.wait_together()]
        assert (_pids(site), load.gone, ledger.refused) == (pids, 0, {}), load.why_gone
        site.settle(ledger)


def test_while_redis_is_away_all_goes_on_and_nobody_is_fenced(site: Site, ledger: Ledger) -> None:
    """For longer than a lease."""
    epochs, pids = site.epochs(), _pids(site)
    with site.fleet(ledger):
        with site.load(ledger) as load:
            ledger.wait_for(100)
            site.redis.kill()
            try:
                wait_until(
                    lambda: not site.leaders_by_own_account(), "whoever led has stood back", 4 * LEASE_S
                )
                ledger.wait_for(200)
            finally:
                site.redis.restart()
            site.wait_together()
            ledger.wait_for(100)
        assert site.epochs() == epochs
        assert (_pids(site), load.gone, ledger.refused) == (pids, 0, {}), load.why_gone
        site.settle(ledger)


def test_an_engine_that_dies_while_redis_forgets_is_found_out_all_the_same(
    site: Site, ledger: Ledger
) -> None:
    """Later, as its lease is not missed by anyone who has watched for long enough."""
    leader = site.leader()
    (other,) = site.others(leader)
    with site[other].peer() as peer:
        for number in range(20):
            ledger.reply(f"orphan{number}", peer.post(f"orphan{number}"))
    site.kill(other)
    site.redis.client.flushall()
    # Nobody has seen it since the registry was forgotten, but it was seen before.
    wait_until(lambda: site.unfinished(leader) == 20, "its tasks are taken over", 10 * LEASE_S)
    with site.fleet(ledger, engines=[leader]):
        site.settle(ledger, leader)
