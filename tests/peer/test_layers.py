"""Scopes, groups and layers: who is told, and in which order by acknowledgement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.driver import Engine, Peer, wait_until
from tests.peer.raw import owned_by

FLEET = {"core": ("eu", 0), "edge1": ("eu", 1), "edge2": ("us", 1), "leaf": ("us", 4)}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Four listed proxies in three layers, of which the numbers have gaps."""
    listed = [f'name = "{p}"\ngroup = "{group}"\nlayer = {layer}' for p, (group, layer) in FLEET.items()]
    with Engine(proxies=listed, settings="open_fleet = false") as engine:
        yield engine
        assert "Traceback" not in engine.log()


@pytest.fixture
def fleet(engine: Engine) -> Iterator[dict[str, Peer]]:
    """A connection of each, at worker 0, with credit."""
    with ExitStack() as stack:
        fleet = {p: stack.enter_context(engine.proxy_peer(p, 0)) for p in FLEET}
        for proxy in fleet.values():
            proxy.ok("ready credit=100")
        yield fleet


def _told(fleet: dict[str, Peer], task_id: str) -> set[str]:
    """Who has been pushed the task."""
    told = {p for p, proxy in fleet.items() if not proxy.is_quiet(0.1)}
    assert all(fleet[p].push().fields["task_id"] == task_id for p in told)
    return told


def _done(fleet: dict[str, Peer], told: set[str], task_id: str) -> None:
    for p in told:
        fleet[p].ok(f"report state=done -- {task_id}")


@pytest.mark.parametrize("worker", [0, 1])
def test_layers_go_one_after_the_other(peer: Peer, fleet: dict[str, Peer], name: str, worker: int) -> None:
    (task_id,) = owned_by(worker, name)
    assert peer.post(task_id)["total"] == "4"
    assert _told(fleet, task_id) == {"core"}
    _done(fleet, {"core"}, task_id)
    assert _told(fleet, task_id) == {"edge1", "edge2"}
    _done(fleet, {"edge1"}, task_id)
    assert _told(fleet, task_id) == set(), "the layer has not finished"
    rows = {row["proxy"]: row for row in peer.ok(f"task_detail task_id={task_id}").rows}
    assert {p: (row["layer"], row["state"]) for p, row in rows.items()} == {
        "core": ("0", "complete"),
        "edge1": ("1", "complete"),
        "edge2": ("1", "active"),
        "leaf": ("4", "pending"),
    }
    fleet["edge2"].ok(f"report state=failed task_id={task_id} done=0 failed=1 error=x")
    assert _told(fleet, task_id) == {"leaf"}, "a failure ends a layer too"
    _done(fleet, {"leaf"}, task_id)
    wait_until(lambda: peer.state(task_id) == "failed", "it ends as failed")
    task = peer.ok(f"get_task task_id={task_id}")
    assert (task["done"], task["failed"]) == ("3", "1")


@pytest.mark.parametrize(
    ("scope", "first", "total"),
    [
        ("eu", {"core"}, 2),
        ("us", {"edge2"}, 2),
        ("edge1,edge2", {"edge1", "edge2"}, 2),
        ("leaf", {"leaf"}, 1),
        ("us,eu", {"core"}, 4),
        ("us,edge1", {"edge1", "edge2"}, 3),
        ("core,eu,core", {"core"}, 2),
    ],
)
def test_a_scope_is_groups_and_names(
    peer: Peer, fleet: dict[str, Peer], name: str, scope: str, first: set[str], total: int
) -> None:
    assert peer.post(name, f"type=url scope={scope}")["total"] == str(total)
    assert _told(fleet, name) == first
    peer.ok(f"cancel_task task_id={name}")


def test_an_upper_layer_waits_for_a_proxy_that_is_away(engine: Engine, peer: Peer, name: str) -> None:
    with engine.proxy_peer("edge1", 0) as edge:
        edge.ok("ready credit=10")
        peer.post(name, "type=url scope=core,edge1")
        assert edge.is_quiet()
        with engine.proxy("core"):
            assert edge.push().fields["task_id"] == name
        edge.ok(f"report state=done -- {name}")
        wait_until(lambda: peer.state(name) == "complete", "complete")


def test_the_ttl_ends_a_task_in_its_lower_layer(peer: Peer, fleet: dict[str, Peer], name: str) -> None:
    """A proxy that never reports: what it and those above it did not do counts as failed."""
    peer.post(name, "type=url ttl=1 scope=eu", "http://a/1 http://a/2")
    peer.ok(f"watch_task task_id={name}")
    assert _told(fleet, name) == {"core"}
    while (push := peer.push()).fields["state"] in ("pending", "active"):
        pass
    assert push.fields == {"task_id": name, "state": "expired", "done": "0", "failed": "4", "total": "4"}
    cancel = fleet["core"].push()
    assert (cancel.verb, cancel.items) == ("!cancel", [name])
    assert {row["state"] for row in peer.ok(f"task_detail task_id={name}").rows} == {"expired"}
    assert fleet["edge1"].is_quiet()


def test_a_stranger_or_a_proxy_that_is_not_what_is_listed(engine: Engine) -> None:
    hellos = {
        "name=stranger": "denied",
        "name=core group=us": "bad_field",
        "name=core layer=1": "bad_field",
        "name=core layer=x": "bad_field",
        "group=eu": "missing_field",
        "name=a/b": "bad_field",
    }
    for hello, code in hellos.items():
        with engine.peer() as peer:
            assert peer.code(f"hello v=1 role=proxy {hello}") == code, hello
            peer.ok("ping")
            assert peer.code("ready credit=1") == "auth"
    with engine.peer() as peer:
        peer.ok("hello v=1 role=proxy name=core group=eu layer=0")
