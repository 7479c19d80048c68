"""Thin pytest fixtures over the classes of tools.servers; import them in a conftest.

One server a test session: tests keep apart by using host names of their own (`host`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tools.servers import Nginx, Origin, Squid, TrafficServer, Varnish

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """An origin for all."""
    with Origin() as server:
        yield server


@pytest.fixture(scope="session")
def varnish(origin: Origin) -> Iterator[Varnish]:
    """A Varnish in front of `origin`; its users are marked needs("varnishd")."""
    with Varnish(origin.address) as server:
        yield server


@pytest.fixture(scope="session")
def ats(origin: Origin) -> Iterator[TrafficServer]:
    """A Traffic Server in front of `origin`; its users are marked needs("traffic_server")."""
    with TrafficServer(origin.address) as server:
        yield server


# Two sites keep their paths elsewhere; all others share one place at the origin.
REMAP = """\
map http://apart.example/ http://{origin}/apart/
map http://moved.example/in/ http://{origin}/to/here/
map / http://{origin}/
"""


@pytest.fixture(scope="session")
def ats_rules(origin: Origin) -> Iterator[TrafficServer]:
    """As `ats`, with rules; its users are marked needs("traffic_manager")."""
    with TrafficServer(origin.address, rules=True, remap=REMAP) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(origin: Origin) -> Iterator[Nginx]:
    """An nginx in front of `origin`, whose key has the host; its users are marked needs("nginx")."""
    with Nginx(origin.address, key="$scheme$host$request_uri") as server:
        yield server


@pytest.fixture(scope="session")
def squid(origin: Origin) -> Iterator[Squid]:
    """A Squid in front of `origin`; its users are marked needs("squid")."""
    with Squid(origin.address) as server:
        yield server


@pytest.fixture
def host() -> str:
    """A host name that no other test uses: what it caches is its own."""
    return f"site{next(_numbers)}.example"
