"""A real agent that is told of one engine only, in front of a real Varnish."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cache_fixtures import origin, varnish
from tests.cluster.site import Site
from tests.driver import Engine, wait_until
from tools.servers import Agent, Varnish

__all__ = ["origin", "varnish"]

pytestmark = pytest.mark.needs("varnishd")
NAME = "learner"


@pytest.fixture
def agent(site: Site, varnish: Varnish) -> Iterator[Agent]:
    """Knows of e1 by its configuration, of e2 by what e1 says."""
    host, port = site["e1"].address()
    with Agent([f"{host}:{port}"], [("v1", "varnish", varnish.address)], name=NAME) as agent:
        wait_until(lambda: _serves(agent, "e1") and _serves(agent, "e2"), "links to both engines")
        yield agent
    # It is not listed: tasks of the tests that follow would wait for it.
    for engine in site.engines.values():
        wait_until(lambda e=engine: _forgets(e), "it is forgotten")  # type: ignore[misc]


def _forgets(engine: Engine) -> bool:
    reply = engine.admin(f"forget_proxy name={NAME}")
    return reply.ok or reply.code == "not_found"


def _serves(agent: Agent, engine: str) -> bool:
    return any(line["id"] == engine for line in agent.logged("link up"))


def complete(engine: Engine, task_id: str, target: str) -> None:
    """Posts a task for the agent, and waits until it has done it."""
    with engine.peer() as peer:

        def taken() -> bool:
            # Who came to one engine is known to the others a little later.
            return peer.ask(f"post_task task_id={task_id} type=url scope={NAME} -- {target}").ok

        wait_until(taken, f"{task_id} is accepted")

        def is_complete() -> bool:
            return peer.state(task_id) == "complete"

        wait_until(is_complete, f"{task_id} is complete")


def test_an_engine_that_is_not_configured_is_learned_and_served(site: Site, agent: Agent) -> None:
    complete(site["e1"], "learned-1", "http://learned.example.com/1")
    complete(site["e2"], "learned-2", "http://learned.example.com/2")
    assert len(agent.logged("engine learned")) == 1


def test_what_is_learned_serves_when_what_is_configured_is_gone(site: Site, agent: Agent) -> None:
    complete(site["e1"], "gone-1", "http://gone.example.com/1")
    site.kill("e1")
    complete(site["e2"], "gone-2", "http://gone.example.com/2")
    site.mend()
    complete(site["e1"], "gone-3", "http://gone.example.com/3")


def test_a_store_that_engines_share_has_one_name(site: Site) -> None:
    names = set()
    for engine in site.engines.values():
        with engine.peer() as peer:
            names.add(peer.ok("hello v=1 role=client").fields["store"])
    assert len(names) == 1
