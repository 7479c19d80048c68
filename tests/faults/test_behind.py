"""FAULTS 21 with a real agent and a real Varnish: a cache is shown to be fresh only once it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache_fixtures import origin, varnish
from tests.driver import Engine, wait_until
from tests.faults.test_offline import figure
from tests.proxyd.http import get
from tools.servers import Agent, Origin, Varnish

__all__ = ["origin", "varnish"]

pytestmark = pytest.mark.needs("varnishd")
OBJECTS = 300


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(proxies=["pop1"], settings="park_above = 20") as engine:
        yield engine


def agent_of(engine: Engine, varnish: Varnish, marker: Path, more: str = "") -> Agent:
    host, port = engine.address()
    settings = f'caught_up_file = "{marker}"\n{more}'
    return Agent([f"{host}:{port}"], [("v1", "varnish", varnish.address)], settings=settings)


@pytest.mark.parametrize("drops", [False, True])
def test_a_cache_counts_as_fresh_only_after_all_that_it_missed(
    engine: Engine, varnish: Varnish, origin: Origin, tmp_path: Path, drops: bool
) -> None:
    host = f"behind{int(drops)}.example"
    paths = [f"/a/{number}" for number in range(OBJECTS)]
    marker = tmp_path / "caught-up"

    def old_ones(version: int) -> list[str]:
        return [
            path for path in paths if f"v={version} ".encode() not in get(varnish.address, host, path).body
        ]

    before = origin.version
    with agent_of(engine, varnish, marker):
        wait_until(marker.exists, "an agent that has missed nothing has caught up")
        assert not old_ones(before)
    assert not marker.exists()
    after = origin.bump()
    with engine.peer() as peer:
        for number, path in enumerate(paths):
            kind, target = ("dir", "/a/") if number % 50 == 49 else ("url", path)
            assert peer.ok(f"post_task task_id=t{int(drops)}-{number} type={kind} -- http://{host}{target}")
        wait_until(lambda: figure(engine, "tasks_parked") >= OBJECTS - 60, "tasks are parked", 30)
        began_ms = int(peer.ok("ping")["now"])
        wait_until(lambda: int(peer.ok("ping")["now"]) > began_ms + 1500, "more than a second goes by")
        with agent_of(engine, varnish, marker, "drop_after_s = 1" if drops else ""):
            wait_until(marker.exists, "the agent has caught up")
            assert old_ones(after) == []
            for number in range(OBJECTS):
                task_id = f"t{int(drops)}-{number}"
                wait_until(lambda i=task_id: peer.state(i) == "complete", f"{task_id} is complete")  # type: ignore[misc]
    told = [line["event"].endswith("told to drop its cache") for line in engine.log_lines()]
    assert any(told) == drops
