"""docs/haproxy.cfg, with the real HAProxy: engines that are drained or fail leave it, and come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.haproxy import HaProxy
from tests.cluster.site import Ledger, Site
from tests.driver import Peer, wait_until
from tests.peer.raw import Gone
from tools.servers import MariaDb, RedisServer
from tools.servers.waiting import free_port

pytestmark = pytest.mark.needs("haproxy")

CONNECTIONS = 8


@pytest.fixture(scope="module")
def _behind(database: MariaDb, redis: RedisServer) -> Iterator[Site]:
    # The balancer knows them by their ports, which stay when they are started again.
    with Site(database, redis, workers=1, ports=(free_port(), free_port())) as site:
        yield site


@pytest.fixture
def site(_behind: Site) -> Site:
    """Two engines at fixed ports, up and together."""
    _behind.mend()
    return _behind


@pytest.fixture
def balancer(site: Site) -> Iterator[HaProxy]:
    """In front of them; both are in rotation."""
    with HaProxy(["{}:{}".format(*engine.address()) for engine in site.engines.values()]) as balancer:
        wait_until(lambda: _reached(balancer) == {"e1", "e2"}, "both are in rotation")
        yield balancer


def _address(balancer: HaProxy) -> tuple[str, int]:
    return "127.0.0.1", balancer.port


def _reached(balancer: HaProxy) -> set[str]:
    """The engines that connections come to, "" where one was closed at once."""
    reached: Counter[str] = Counter()
    peers: list[Peer] = []
    try:
        for _ in range(CONNECTIONS):
            peer = Peer(_address(balancer))
            peers.append(peer)
            try:
                reached[peer.ok("hello v=1 role=client")["engine"]] += 1
            except Gone:
                reached[""] += 1
    finally:
        for peer in peers:
            peer.close()
    return set(reached)


def test_the_configuration_is_as_haproxy_wants_it() -> None:
    assert HaProxy([]).check().startswith("0 ")


def test_an_engine_that_is_drained_leaves_and_comes_back(
    site: Site, balancer: HaProxy, ledger: Ledger
) -> None:
    """Clients meanwhile get `draining` for no longer than the checks need."""
    with site.fleet(ledger):
        with site.load(ledger, address=lambda: _address(balancer)) as load:
            load.wait_for_all()
            assert site["e1"].admin("drain").ok
            wait_until(lambda: _reached(balancer) == {"e2"}, "e1 has left")
            with site["e1"].peer() as peer:
                assert peer.ok("ping")["draining"] == "1"
            refused = dict(ledger.refused)
            ledger.wait_for(100)
            assert ledger.refused == refused, "clients are at the drained engine still"
            assert site["e1"].admin("undrain").ok
            wait_until(lambda: _reached(balancer) == {"e1", "e2"}, "it is back")
        assert ledger.refused.keys() <= {"draining"}
        site.settle(ledger)


def _kill(site: Site) -> None:
    site.kill("e1")


def _pause(site: Site) -> None:
    site.pause("e1")


def _stop(site: Site) -> None:
    assert site["e1"].stop() == 0


@pytest.mark.parametrize("fault", [_kill, _pause, _stop])
def test_an_engine_that_fails_leaves_and_comes_back(
    site: Site, balancer: HaProxy, ledger: Ledger, fault: Callable[[Site], None]
) -> None:
    """Under load: killed, hanging, or stopped as planned. Everything that was acknowledged is done."""
    with site.fleet(ledger):
        with site.load(ledger, address=lambda: _address(balancer), clients=4) as load:
            load.wait_for_all()
            fault(site)
            # One that hangs holds its clients until their connections are shut.
            ledger.wait_for(200)
            wait_until(lambda: _reached(balancer) == {"e2"}, "e1 has left")
            site.mend()
            wait_until(lambda: _reached(balancer) == {"e1", "e2"}, "it is back")
            ledger.wait_for(100)
        assert ledger.refused.keys() <= {"draining", "unavailable", "busy"}
        site.settle(ledger)
