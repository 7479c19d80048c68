"""Real agents, each in front of a cache that writes down what it is asked to drop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

from tests.cluster.site import PROXIES, Ledger, Site
from tests.driver import wait_until
from tests.proxyd.fake_cache import FakeCache
from tools.servers import Agent


class Pops(NamedTuple):
    """What stands in for the points of presence."""

    agents: list[Agent]
    caches: list[FakeCache]

    def have_done(self, task_ids: Iterable[str]) -> bool:
        """Whether each cache was asked for each of these tasks."""
        wanted = {f"/{task_id}" for task_id in task_ids}
        return all(wanted <= set(cache.asked) for cache in self.caches)


@contextmanager
def pops(site: Site, ledger: Ledger) -> Iterator[Pops]:
    """A `proxyd` for every proxy, linked with every engine. Targets are to be `http://example.com/TASK_ID`.

    An effect is what has come to the cache, so this is the whole way: engine, link, agent, cache, report.
    """
    engines = ["{}:{}".format(*engine.address()) for engine in site.engines.values()]
    made = Pops([], [])
    with ExitStack() as stack:
        for name in PROXIES:
            cache = FakeCache(partial(_asked, ledger, name))
            stack.callback(cache.close)
            agent = Agent(engines, [("v1", "varnish", cache.address)], name=name)
            made.agents.append(stack.enter_context(agent))
            made.caches.append(cache)
        links = sum(engine.workers for engine in site.engines.values())
        wait_until(
            lambda: all(len(agent.logged("link up")) >= links for agent in made.agents), "all links are up"
        )
        yield made


def _asked(ledger: Ledger, proxy: str, path: str) -> None:
    ledger.effect(proxy, path.removeprefix("/"), [])
