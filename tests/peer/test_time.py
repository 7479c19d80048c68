"""Due times, ttl, and proxies that fall silent."""

from __future__ import annotations

import time

from tests.driver import Engine, Peer, wait_until
from tests.peer.raw import owned_by


def test_a_task_starts_when_it_is_due(peer: Peer, proxies: list[Peer], name: str) -> None:
    due = int(time.time()) + 2
    for worker, proxy in enumerate(proxies):
        proxy.ok("ready credit=10")
        (task_id,) = owned_by(worker, name)
        peer.post(task_id, f"type=url scope={name} due={due}")
        assert peer.state(task_id) == "pending"
    for proxy in proxies:
        proxy.push()
        assert time.time() >= due
    past, now = owned_by(0, f"{name}-past", 2)
    peer.post(past, f"type=url scope={name} due={due - 3600}")
    peer.post(now, f"type=url scope={name} due={int(time.time())}")
    assert {push.fields["task_id"] for push in proxies[0].pushed(2)} == {past, now}


def test_the_ttl_counts_from_the_due_time(peer: Peer, proxies: list[Peer], name: str) -> None:
    due = int(time.time()) + 2
    (task_id,) = owned_by(1, name)
    peer.post(task_id, f"type=url scope={name} ttl=1 due={due}")
    peer.ok(f"watch_task task_id={task_id}")
    assert peer.push().fields["state"] == "expired"
    assert time.time() >= due + 1


def test_a_proxy_that_never_reports_ends_by_the_ttl(peer: Peer, proxies: list[Peer], name: str) -> None:
    """Its credit is free again; a late report changes nothing."""
    ids = owned_by(0, name, 2)
    proxies[0].ok("ready credit=1")
    for task_id in ids:
        peer.post(task_id, f"type=url scope={name} ttl={1 if task_id == ids[0] else 100}")
    assert proxies[0].push().fields["task_id"] == ids[0]
    cancel, following = proxies[0].pushed(2)
    assert (cancel.verb, cancel.items) == ("!cancel", [ids[0]])
    assert following.fields["task_id"] == ids[1]
    proxies[0].ok(f"report state=done -- {ids[0]}")
    wait_until(lambda: peer.state(ids[0]) == "expired", "its end is saved")
    task = peer.ok(f"get_task task_id={ids[0]}")
    assert (task["done"], task["failed"]) == ("0", "1")


def test_time_goes_on_while_the_engine_is_down(own_engine: Engine) -> None:
    engine = own_engine
    engine.proxy_peer("p", 0).close()
    with engine.peer() as peer:
        for task_id in owned_by(0, "short") + owned_by(1, "short"):
            peer.post(task_id, "type=url ttl=1")
            peer.post(f"due-{task_id}", f"type=url due={int(time.time()) + 1}")
        end = time.time() + 1.1
    engine.kill_all()
    wait_until(lambda: time.time() > end, "the ttl is over")
    engine.start()
    with engine.proxy("p") as proxy, engine.peer() as peer:
        for task_id in owned_by(0, "short") + owned_by(1, "short"):
            wait_until(lambda task_id=task_id: peer.state(task_id) == "expired", "expired")  # type: ignore[misc]
            wait_until(lambda task_id=task_id: peer.state(f"due-{task_id}") == "complete", "done")  # type: ignore[misc]
            assert task_id not in proxy.effects


def test_a_silent_proxy_is_offline_and_its_tasks_wait() -> None:
    """PROTOCOL.md says 15 s, which are 3 here; a line on either of its connections keeps both."""
    with (
        Engine(proxies=["p"], constants={"refreshd.worker.proxies": {"OFFLINE_AFTER_MS": 3000}}) as engine,
        engine.proxy_peer("p", 0) as zero,
        engine.proxy_peer("p", 1) as one,
        engine.peer() as peer,
    ):
        zero.ok("ready credit=10")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            one.ok("beat")
            assert zero.is_quiet(0.5)
        assert _proxy(engine)["online"] == "1"
        assert zero.rest() == b""
        assert one.rest() == b""
        wait_until(lambda: _proxy(engine)["online"] == "0", "the proxy is offline")
        (task_id,) = owned_by(0, "waits")
        peer.post(task_id)
        assert peer.state(task_id) == "pending"
        with engine.proxy("p"):
            assert _proxy(engine)["online"] == "1"
            wait_until(lambda: peer.state(task_id) == "complete", "it is done")


def _proxy(engine: Engine) -> dict[str, str]:
    (row,) = engine.admin("list_proxies").rows
    return row
