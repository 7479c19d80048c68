"""One MariaDB and one Redis for all that is here; who harms them makes them whole again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.site import PROXIES, Ledger, Site
from tests.mysql_fixtures import mariadb_template
from tools.servers import MariaDb, RedisServer

__all__ = ["mariadb_template"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here need both servers."""
    for item in items:
        if "tests/cluster/" in str(item.path):
            item.add_marker(pytest.mark.needs("mariadbd", "redis-server"))


@pytest.fixture(scope="session")
def database(mariadb_template: Path) -> Iterator[MariaDb]:
    """A MariaDB for all."""
    with MariaDb(template=mariadb_template) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis for all."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def ledger() -> Ledger:
    """For a site's fleet."""
    return Ledger(PROXIES)


@pytest.fixture(scope="session")
def _site(database: MariaDb, redis: RedisServer) -> Iterator[Site]:
    with Site(database, redis) as site:
        yield site


@pytest.fixture
def site(_site: Site) -> Iterator[Site]:
    """Two engines, up, together and without work, for one test after the other; each has ids of its own."""
    _site.mend()
    yield _site
    _site.mend()
    _site.clear()
