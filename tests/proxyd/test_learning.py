"""Engines that engines name: linked, kept, forgotten; and never two sets of links to one engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import pytest

import proxyd.agent
from proxyd import engine as engine_module
from proxyd import roster
from proxyd.config import AgentConfig, CacheConfig, default_config
from proxyd.logs import Log
from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine, FakeLink, engines
from tests.proxyd.rig import run, split_address
from tests.proxyd.rig import wait_until as until
from tools.servers import Agent, wait_until

TIMEOUT_S = 20.0


@contextmanager
def agent_for(*addresses: str, cache: FakeCache, settings: str = "") -> Iterator[Agent]:
    """An agent with one cache, v1, whose configuration names these engines."""
    with Agent(addresses, [("v1", "varnish", cache.address)], settings=settings) as agent:
        yield agent


def until_done(link: FakeLink, task_id: str) -> None:
    wait_until(lambda: task_id in link.done_ids(), TIMEOUT_S, f"a report of {task_id}")


def do(link: FakeLink, task_id: str) -> None:
    """A task that is pushed on this link is done and reported there."""
    link.push(task_id, f"http://h/{task_id}")
    until_done(link, task_id)


def until_logged(agent: Agent, event: str, count: int = 1) -> dict[str, object]:
    wait_until(lambda: len(agent.logged(event)) >= count, TIMEOUT_S, event)
    return agent.logged(event)[-1]


def names(link: FakeLink, *addresses: str) -> None:
    """An engine names others."""
    link.send(" ".join(["!engines --", *addresses]) + "\n")


def reload(agent: Agent, *changes: tuple[str, str], number: signal.Signals = signal.SIGHUP) -> None:
    """Reloads or upgrades, with other settings; waits until that is over."""
    agent.configure(*changes)
    event = "reloaded" if number is signal.SIGHUP else "upgraded"
    count = len(agent.logged(event))
    agent.signal(number)
    until_logged(agent, event, count + 1)


def greetings(engine: FakeEngine) -> list[FakeLink]:
    """Connections on which a proxy greeted."""
    return [link for link in engine.links if any("role=proxy" in line for line in link.of("hello"))]


def test_an_engine_that_is_named_is_linked_to_each_of_its_workers(cache: FakeCache) -> None:
    with engines(1, 2) as (first, other), agent_for(first.address, cache=cache) as agent:
        link = first.wait_link()
        names(link, first.address, other.address, "nonsense", "127.0.0.1:1")
        links = [other.wait_link(worker) for worker in range(2)]
        do(links[1], "a")
        learned = {line["engine"] for line in agent.logged("engine learned")}
        assert learned == {other.address, "127.0.0.1:1"}
        up = {(line["engine"], line["learned"]) for line in agent.logged("link up")}
        assert up == {(first.address, False), (other.address, True)}
        assert not link.closed
        # One that is named no more is kept as long as it is there.
        names(link)
        do(link, "b")
        do(links[0], "c")
        assert agent.logged("engine learned")[-1] == agent.logged("engine learned")[1]


def test_a_learned_engine_outlives_the_one_that_named_it(cache: FakeCache) -> None:
    with engines(1, 1, store="s") as (first, other), agent_for(first.address, cache=cache):
        names(first.wait_link(), other.address)
        link = other.wait_link()
        first.stop()
        do(link, "a")
        link.close()
        do(other.wait_link(newer_than=link), "b")


def test_engines_are_not_learned_where_that_is_not_wanted(cache: FakeCache) -> None:
    with (
        engines(1, 1) as (first, other),
        agent_for(first.address, cache=cache, settings="learn_engines = false") as agent,
    ):
        link = first.wait_link()
        names(link, other.address)
        do(link, "a")
        reload(agent)
        assert other.links == []
        reload(agent, ("learn_engines = false", "learn_engines = true"))
        learned = other.wait_link()
        do(learned, "b")
        reload(agent, ("learn_engines = true", "learn_engines = false"))
        wait_until(lambda: learned.closed, TIMEOUT_S, "the link is closed")
        assert not link.closed


def test_the_same_engine_by_another_name_is_not_linked_twice(cache: FakeCache) -> None:
    with FakeEngine(2) as engine, agent_for(engine.address, cache=cache) as agent:
        links = [engine.wait_link(worker) for worker in range(2)]
        names(links[0], f"localhost:{engine.port}", f"0.0.0.0:{engine.port}")
        until_logged(agent, "engine is linked by another name", 2)
        for link in links:
            do(link, f"a{link.worker}")
        assert greetings(engine) == links
        assert len(engine.links) == 4
        names(links[1], f"localhost:{engine.port}")
        reload(agent)
        reload(agent, number=signal.SIGUSR2)
        for link in links:
            do(link, f"b{link.worker}")
        assert greetings(engine) == links
        assert len(engine.links) == 4


def test_an_engine_that_answers_no_client_is_known_by_its_greeting(cache: FakeCache) -> None:
    """The greeting closes what it replaces; then one set of links is left."""
    with FakeEngine() as engine, agent_for(engine.address, cache=cache) as agent:

        def answer(link: FakeLink, line: str) -> str:
            if "role=client" in line:
                return "err code=auth msg=no\n"
            return engine.answer_well(link, line)

        engine.answer = answer
        link = engine.wait_link()
        link.push("held", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        names(link, f"localhost:{engine.port}")
        until_logged(agent, "engine is linked by another name")
        again = engine.wait_link(newer_than=link)
        cache.release()
        until_done(again, "held")
        count = len(greetings(engine))
        reload(agent)
        do(again, "a")
        assert len(greetings(engine)) == count == 3


def test_an_engine_that_is_configured_twice_is_linked_once(cache: FakeCache) -> None:
    with (
        FakeEngine(2, store="s") as engine,
        agent_for(engine.address, f"localhost:{engine.port}", cache=cache) as agent,
    ):
        until_logged(agent, "engine is linked by another name")
        count = 0
        while count != len(greetings(engine)):
            count = len(greetings(engine))
            reload(agent)
            for worker in range(2):
                do(engine.wait_link(worker), f"a{worker}.{count}")
        assert sum(not link.closed for link in greetings(engine)) == 2


def test_two_engines_that_happen_to_have_one_name_are_both_linked(cache: FakeCache) -> None:
    with (
        FakeEngine(id="e1", store="s1") as one,
        FakeEngine(id="e1", store="s2") as two,
        agent_for(one.address, two.address, cache=cache),
    ):
        do(one.wait_link(), "a")
        do(two.wait_link(), "a")
        do(one.wait_link(), "b")
        assert len(one.links) == len(two.links) == 1


def test_what_is_configured_takes_the_place_of_what_was_learned(cache: FakeCache) -> None:
    with engines(1, 1, store="s") as (first, other), agent_for(first.address, cache=cache) as agent:
        names(first.wait_link(), other.address)
        link = other.wait_link()
        link.push("held", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        one, both = f'"{first.address}"', f'"{first.address}", "localhost:{other.port}"'
        reload(agent, (one, both))
        again = other.wait_link(newer_than=link)
        said = until_logged(agent, "engine is linked by another name")
        assert (said["engine"], said["linked"]) == (other.address, f"localhost:{other.port}")
        cache.release()
        until_done(again, "held")
        # It is learned again by the name that is left.
        reload(agent, (both, one))
        last = other.wait_link(newer_than=again)
        wait_until(lambda: again.closed, TIMEOUT_S, "the configured one is left")
        do(last, "a")


def test_an_engine_that_leaves_the_configuration_and_is_named_stays(cache: FakeCache) -> None:
    with engines(1, 1) as (first, other), agent_for(first.address, other.address, cache=cache) as agent:
        links = [first.wait_link(), other.wait_link()]
        names(links[0], other.address)
        do(links[0], "a")
        reload(agent, (f'"{first.address}", "{other.address}"', f'"{first.address}"'))
        do(links[1], "b")
        assert len(other.links) == 1


def test_learned_engines_cross_an_upgrade(cache: FakeCache) -> None:
    with engines(1, 2) as (first, other), agent_for(first.address, cache=cache) as agent:
        link = first.wait_link()
        names(link, other.address, "127.0.0.1:1")
        links = [other.wait_link(worker) for worker in range(2)]
        reload(agent, number=signal.SIGUSR2)
        for each in (link, *links):
            do(each, f"a{links.index(each) if each in links else 'x'}")
        assert [len(greetings(each)) for each in (first, other)] == [1, 2]
        # It knows who is named, so nothing is learned anew or forgotten.
        assert len(agent.logged("engine learned")) == 2
        names(link, other.address, "127.0.0.1:1")
        do(link, "b")
        assert len(agent.logged("engine names others")) == 1


def test_an_upgrade_that_is_to_learn_nothing_lets_go_of_what_was_learned(cache: FakeCache) -> None:
    with (
        engines(1, 1) as (first, other),
        agent_for(first.address, cache=cache, settings="learn_engines = true") as agent,
    ):
        link = first.wait_link()
        names(link, other.address)
        learned = other.wait_link()
        reload(agent, ("learn_engines = true", "learn_engines = false"), number=signal.SIGUSR2)
        wait_until(lambda: learned.closed, TIMEOUT_S, "the link is closed")
        do(link, "a")


def test_a_draining_engine_names_where_to_go(cache: FakeCache) -> None:
    """The others that it names are linked beside it; it is tried again."""
    with engines(1, 1) as (leaving, other), agent_for(leaving.address, cache=cache):
        link = leaving.wait_link()
        link.send(f"!drain to={other.address}\n")
        do(other.wait_link(), "a")
        again = leaving.wait_link(newer_than=link)
        do(again, "b")
        assert len(greetings(other)) == 1


def test_a_redirect_where_nothing_is_learned_does_not_lead_to_what_is_linked(cache: FakeCache) -> None:
    with (
        engines(1, 1, store="s") as (leaving, other),
        agent_for(leaving.address, other.address, cache=cache, settings="learn_engines = false"),
    ):
        link = leaving.wait_link()
        other.wait_link()
        link.send(f"!drain to=localhost:{other.port}\n")
        do(leaving.wait_link(newer_than=link), "a")
        do(other.wait_link(), "b")
        assert sum(not each.closed for each in greetings(other)) == 1


# ── with time that passes faster ──────────────────────────────────────────────────────────


@asynccontextmanager
async def agent_within(engine: FakeEngine, cache: FakeCache) -> AsyncIterator[proxyd.agent.Agent]:
    """An agent in this process."""
    config: AgentConfig = msgspec.structs.replace(
        default_config(),
        engines=[("127.0.0.1", engine.port)],
        caches=[CacheConfig("v1", "varnish", split_address(cache.address))],
    )
    agent = proxyd.agent.Agent(config, Log("error"), lambda: config)
    running = asyncio.create_task(agent.run())
    try:
        await until(lambda: engine.live() is not None)
        yield agent
    finally:
        agent.stop(fast=True)
        await running


def test_what_nobody_names_and_nobody_reaches_is_forgotten(
    cache: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "FORGET_AFTER_S", 0.5)

    async def test() -> None:
        with engines(1, 1) as (first, other):
            async with agent_within(first, cache) as agent:
                link = first.live()
                assert link is not None
                names(link, other.address)
                await until(lambda: other.live() is not None)
                assert len(agent.links.engines) == 2
                names(link)
                other.stop()
                await until(lambda: len(agent.links.engines) == 1)
                assert agent.links.engines_up == (1, 0)

    run(test())


def test_the_other_name_is_used_when_the_first_one_leads_nowhere(
    cache: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LINKED_S", 0.5)

    async def test() -> None:
        with FakeEngine() as engine:
            async with agent_within(engine, cache) as agent:
                link = engine.live()
                assert link is not None
                names(link, f"localhost:{engine.port}")
                await until(lambda: any(each.parked for each in agent.links.engines))
                [configured, other] = agent.links.engines
                configured.configured = ("127.0.0.1", 1)
                link.close()
                await until(lambda: not other.parked and other.up)
                assert [each.up for each in agent.links.engines] == [False, True]

    run(test())
