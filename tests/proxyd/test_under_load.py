"""The agent changes under a stream of tasks of a real engine: each is done and reported, none is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.driver import Engine
from tests.faults.ledger import Ledger, Load
from tests.proxyd.fake_cache import FakeCache
from tools.servers import Agent, wait_until

TIMEOUT_S = 20.0
# Between two changes: enough that each falls into the stream.
TASKS_BETWEEN = 300


class Stage:
    """An engine, an agent, a cache that writes down what it is asked, and a stream of tasks."""

    def __init__(self, engine: Engine, agent: Agent, cache: FakeCache, ledger: Ledger) -> None:
        self.engine = engine
        self.agent = agent
        self.cache = cache
        self.ledger = ledger

    def reload(self, *changes: tuple[str, str]) -> None:
        """Changes the agent's configuration amid the stream."""
        self.agent.configure(*changes)
        before = len(self.agent.logged("reloaded"))
        self.agent.signal(signal.SIGHUP)
        wait_until(lambda: len(self.agent.logged("reloaded")) > before, TIMEOUT_S, "the reload")
        assert self.agent.logged("reloaded")[-1]["settled"]
        self.ledger.wait_for(TASKS_BETWEEN)

    def there_and_back(self, old: str, new: str) -> None:
        """A change, and the change back."""
        self.reload((old, new))
        self.reload((new, old))


@contextmanager
def stage(terms: str = "type=url") -> Iterator[Stage]:
    """The stream runs until the `with` ends; then everything must fit."""
    ledger = Ledger(["pop1"])
    cache = FakeCache(lambda path: ledger.effect("pop1", path.removeprefix("/"), []))
    with Engine(workers=2) as engine:
        host, port = engine.address()
        caches = [("v1", "varnish", cache.address)]
        with Agent([f"{host}:{port}"], caches) as agent:
            wait_until(lambda: len(agent.logged("link up")) == 2, TIMEOUT_S, "both links")
            with Load(engine.address, ledger, clients=2, terms=terms):
                ledger.wait_for(TASKS_BETWEEN)
                yield Stage(engine, agent, cache, ledger)
                ledger.wait_for(TASKS_BETWEEN)
            ledger.settle(engine.address)
            assert agent.logged("link down") == []
    cache.close()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('group = "default"', 'group = "eu"'),
        ("layer = 0", "layer = 2"),
        ('group = "default"', 'group = "default"\ncredit = 100'),
        ("[[cache]]", "[fast]\nconnections = 1\ndepth = 2\n[[cache]]"),
    ],
)
def test_reloads_under_load(old: str, new: str) -> None:
    with stage() as running:
        running.there_and_back(old, new)


def test_caches_come_and_go_under_load() -> None:
    other = FakeCache()
    with stage() as running:
        running.there_and_back(
            '[[cache]]\nname = "v1"',
            f'[[cache]]\nname = "v2"\nkind = "varnish"\naddress = "{other.address}"\n[[cache]]\nname = "v1"',
        )
    assert other.asked
    other.close()


def test_a_new_name_and_back_under_load() -> None:
    # To the engine the other name is another proxy: what pop1 has not done waits for pop1.
    with stage("type=url scope=pop1") as running:
        running.there_and_back('name = "pop1"', 'name = "pop2"')
