"""The agent changes under a stream of tasks of a real engine: each is done and reported, none is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.driver import Engine
from tests.faults.ledger import Ledger, Load
from tests.proxyd.fake_cache import FakeCache
from tools.servers import Agent, Origin, Varnish, wait_until

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


def upgrade(agent: Agent, ledger: Ledger) -> None:
    """The agent runs the code on disk, amid the stream."""
    before = len(agent.logged("upgraded"))
    agent.signal(signal.SIGUSR2)
    wait_until(lambda: len(agent.logged("upgraded")) > before, TIMEOUT_S, "the upgrade")
    assert agent.logged("upgraded")[-1]["links"] == 2
    ledger.wait_for(TASKS_BETWEEN)


def test_upgrades_under_load_close_no_connection() -> None:
    with stage() as running:
        for _ in range(2):
            upgrade(running.agent, running.ledger)
        assert running.agent.process is not None
        assert running.agent.process.poll() is None
        connected = running.engine.logged("proxy connected")
        assert len(connected) == 2, "no link has greeted again"


def test_an_upgrade_and_a_reload_in_one_go_under_load() -> None:
    with stage() as running:
        running.agent.configure(('group = "default"', 'group = "eu"'))
        running.agent.signal(signal.SIGHUP)
        upgrade(running.agent, running.ledger)


def test_an_engine_that_is_upgraded_under_load_is_not_noticed() -> None:
    with stage() as running:
        running.engine.roll("upgrade")
        running.ledger.wait_for(TASKS_BETWEEN)
        assert len(running.agent.logged("link up")) == 2
        upgrade(running.agent, running.ledger)


def test_a_killed_agent_loses_nothing() -> None:
    with stage() as running:
        assert running.agent.process is not None
        running.agent.signal(signal.SIGUSR2)
        wait_until(lambda: running.agent.logged("upgrade begins"), TIMEOUT_S, "the upgrade begins")
        running.agent.process.kill()
        running.agent.wait()
        running.agent.run()
        running.ledger.wait_for(TASKS_BETWEEN)


@pytest.mark.needs("varnishd")
def test_prefetches_through_a_real_varnish_survive_upgrades(varnish: Varnish, origin: Origin) -> None:
    """What is under way is cut by each upgrade and begun again: in the end the origin was asked for all."""
    ledger = Ledger([])
    with Engine(workers=2) as engine:
        host, port = engine.address()
        with Agent([f"{host}:{port}"], [("v1", "varnish", varnish.address)]) as agent:
            wait_until(lambda: len(agent.logged("link up")) == 2, TIMEOUT_S, "both links")
            with Load(engine.address, ledger, clients=1, batch=1, terms="type=prefetch"):
                for _ in range(2):
                    ledger.wait_for(TASKS_BETWEEN)
                    upgrade(agent, ledger)
            ledger.settle(engine.address)
            with engine.peer() as peer:
                peer.write(*[f"get_task task_id={task_id}" for task_id in ledger.acknowledged])
                states = {reply["state"] for reply in peer.replies(len(ledger.acknowledged))}
            assert states == {"complete"}
            asked = {path.removeprefix(b"/").decode() for _, path in origin.asked}
            assert ledger.acknowledged.keys() - asked == set()
