"""FAULTS 21 with several engines: what is parked belongs to whoever owns the task."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.site import LEASE_S, Ledger, Site
from tests.driver import Engine, wait_until
from tests.faults.test_offline import figure, post_many
from tools.servers import MariaDb, RedisServer

TASKS = 400
IN_MEMORY = 20


@pytest.fixture
def site(database: MariaDb, redis: RedisServer) -> Iterator[Site]:
    with Site(database, redis, engines=2, settings=f"park_above = {IN_MEMORY}") as site:
        yield site


def parked(engine: Engine) -> int:
    return figure(engine, "tasks_parked")


def test_what_a_dead_engine_had_parked_is_delivered_by_another(site: Site, ledger: Ledger) -> None:
    """Its proxy is away when the engine dies, and comes when there is only the other one."""
    one, two = site["e1"], site["e2"]
    ids = [f"gone{number}" for number in range(TASKS)]
    with one.proxy("p2", on_effect=ledger.effect), two.proxy("p2", on_effect=ledger.effect):
        with one.peer() as peer:
            post_many(peer, ledger, ids)
        wait_until(lambda: parked(one) >= TASKS - 4 * IN_MEMORY, "tasks are parked", 30)
        with two.peer() as peer:
            # Asked at the other engine while the owner lives: p2 has done it.
            wait_until(lambda: peer.ok("get_task task_id=gone0")["done"] == "1", "the owner is asked")
            assert peer.code("post_task task_id=gone0 type=url -- http://example.com/other") == "conflict"
            assert peer.ok("cancel_task task_id=gone1")["state"] == "cancelled"
        site.kill("e1")
        wait_until(lambda: site.unfinished("e1") == 0, "the other engine owns all", 5 * LEASE_S)
        wait_until(lambda: parked(two) >= TASKS - 8 * IN_MEMORY, "what is parked is counted there", 30)
        # It has not been taken into memory.
        assert figure(two, "tasks_in_cache") <= 8 * IN_MEMORY
        with two.proxy("p1", on_effect=ledger.effect) as p1:
            site.settle(ledger, "e2")
            assert "gone1" not in p1.effects


def test_a_proxy_is_given_what_each_engine_has_parked(site: Site, ledger: Ledger) -> None:
    one, two = site["e1"], site["e2"]
    with one.proxy("p2", on_effect=ledger.effect), two.proxy("p2", on_effect=ledger.effect):
        for name in ("e1", "e2"):
            with site[name].peer() as peer:
                post_many(peer, ledger, [f"{name}-{number}" for number in range(TASKS)])
        for engine in (one, two):
            wait_until(lambda e=engine: parked(e) >= TASKS - 4 * IN_MEMORY, "tasks are parked", 30)  # type: ignore[misc]
        with one.proxy("p1", on_effect=ledger.effect), two.proxy("p1", on_effect=ledger.effect):
            site.settle(ledger)
        assert [parked(one), parked(two)] == [0, 0]
        assert site.ask("SELECT count(*) FROM parked") == [(0,)]
