"""A MariaDB for a test session, and databases of a test's own in it; import them in a conftest.

Users are marked needs("mariadbd").
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from refreshd.mysql_url import MysqlUrl, read_mysql_url
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_schema import migrate
from tools.servers import MariaDb
from tools.servers.mariadb import install

TABLES = ("task", "plan", "proxy", "handout", "engine", "parked", "receipt")
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def mariadb_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """System tables to copy: they take longer to make than all the rest of a start."""
    folder = tmp_path_factory.mktemp("mariadb") / "data"
    install(folder)
    return folder


@pytest.fixture(scope="session")
def mariadb(mariadb_template: Path) -> Iterator[MariaDb]:
    """A MariaDB for all; nobody kills it."""
    with MariaDb(template=mariadb_template) as server:
        yield server


@pytest.fixture
def own_mariadb(mariadb_template: Path) -> Iterator[MariaDb]:
    """A MariaDB of the test's own, to be killed."""
    with MariaDb(template=mariadb_template) as server:
        yield server


@pytest.fixture
def new_database(mariadb: MariaDb) -> MysqlUrl:
    """A database without tables that no other test uses."""
    name = f"test_{next(_numbers)}"
    mariadb.make_database(name)
    return read_mysql_url(mariadb.url_of(name))


@pytest.fixture(scope="session")
def _made_database(mariadb: MariaDb) -> MysqlUrl:
    url = read_mysql_url(mariadb.url)
    migrate(url)
    return url


@pytest.fixture
def database(_made_database: MysqlUrl) -> MysqlUrl:
    """The database that all tests use one after the other, empty. To make tables takes 0.3 s."""
    session = Session(_made_database)
    for table in TABLES:
        session.query(f"DELETE FROM {table}".encode())
    session.query(b"UPDATE cluster SET leader_epoch=0, leader=0")
    session.drop()
    return _made_database
