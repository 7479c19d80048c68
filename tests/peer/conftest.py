"""Engines for peers. A test that shares one names its own proxies and ids, so that no two tests meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.driver import Engine, Peer

_numbers = itertools.count()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine that a module shares; any proxy may register."""
    with Engine() as engine:
        yield engine
        assert "Traceback" not in engine.log()
        assert not engine.logged("worker ended")


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    """An engine for one test."""
    with Engine() as engine:
        yield engine
        assert "Traceback" not in engine.log()


@pytest.fixture
def peer(engine: Engine) -> Iterator[Peer]:
    """A client that has not greeted."""
    with engine.peer() as peer:
        yield peer


@pytest.fixture
def name() -> str:
    """A word that no other test has: for a proxy, a group, the beginning of ids."""
    # Of one length, so that no other one begins with it.
    return f"n{next(_numbers):04}"


@pytest.fixture
def proxies(engine: Engine, name: str) -> Iterator[list[Peer]]:
    """The connections of proxy `name` to worker 0 and to worker 1, without credit yet."""
    with engine.proxy_peer(name, 0) as zero, engine.proxy_peer(name, 1) as one:
        yield [zero, one]
