"""Playing a proxy (PROTOCOL.md, "Proxy verbs"): credit, priority, reports, connections that come and go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import pytest

from tests.driver import Engine, Peer, wait_until
from tests.peer.raw import Gone, Line, owned_by


def _ids(pushes: Iterable[Line]) -> list[str]:
    return [push.fields["task_id"] for push in pushes]


def _post(
    peer: Peer, ids: Iterable[str], name: str, more: str = "", target: str = "http://a.example/"
) -> None:
    for task_id in ids:
        peer.post(task_id, f"type=url scope={name} {more}".rstrip(), target)


def _done(proxy: Peer, ids: Iterable[str]) -> None:
    ids = list(ids)
    assert proxy.ok("report state=done ms=1 -- " + " ".join(ids))["n"] == str(len(ids))


# ── credit ────────────────────────────────────────────────────────────────────────────────


def test_nothing_comes_without_credit(peer: Peer, proxies: list[Peer], name: str) -> None:
    ids = owned_by(0, name, 3)
    _post(peer, ids, name)
    assert proxies[0].is_quiet()
    assert peer.state(ids[0]) == "pending"
    proxies[0].ok("ready credit=3")
    assert _ids(proxies[0].pushed(3)) == ids


def test_credit_is_never_exceeded_and_a_report_frees_it(peer: Peer, proxies: list[Peer], name: str) -> None:
    ids = owned_by(0, name, 7)
    _post(peer, ids, name)
    proxies[0].ok("ready credit=2")
    assert _ids(proxies[0].pushed(2)) == ids[:2]
    assert proxies[0].is_quiet()
    _done(proxies[0], ids[:1])
    assert _ids(proxies[0].pushed(1)) == ids[2:3]
    assert proxies[0].is_quiet()
    proxies[0].ok("ready credit=1")
    assert _ids(proxies[0].pushed(1)) == ids[3:4]
    assert proxies[0].is_quiet()
    assert proxies[0].ask(f"report state=failed task_id={ids[1]} done=0 failed=1 error=no").ok
    assert _ids(proxies[0].pushed(1)) == ids[4:5]
    proxies[0].ok(f"report state=active task_id={ids[2]} done=0 failed=0")
    assert proxies[0].is_quiet(), "a task that is under way frees nothing"
    peer.ok(f"cancel_task task_id={ids[2]}")
    assert proxies[0].push().items == [ids[2]]
    assert _ids(proxies[0].pushed(1)) == ids[5:6]


def test_credit_counts_targets(peer: Peer, proxies: list[Peer], name: str) -> None:
    big, small = owned_by(0, name, 2)
    _post(peer, [big], name, target="http://a/1 http://a/2 http://a/3")
    _post(peer, [small], name)
    proxies[0].ok("ready credit=3")
    assert _ids(proxies[0].pushed(1)) == [big]
    assert proxies[0].is_quiet()
    _done(proxies[0], [big])
    assert _ids(proxies[0].pushed(1)) == [small]


def test_credit_is_counted_per_connection(peer: Peer, proxies: list[Peer], name: str) -> None:
    zero, one = owned_by(0, name, 2), owned_by(1, name, 2)
    _post(peer, zero + one, name)
    proxies[1].ok("ready credit=1")
    assert _ids(proxies[1].pushed(1)) == one[:1]
    assert proxies[0].is_quiet()
    assert proxies[1].is_quiet()


def test_a_report_may_come_on_the_other_connection(peer: Peer, proxies: list[Peer], name: str) -> None:
    """It frees the credit of the one that the task was pushed on."""
    for proxy in proxies:
        proxy.ok("ready credit=2")
    for worker in (0, 1):
        ids = owned_by(worker, name, 6)
        _post(peer, ids, name)
        for at in (0, 2, 4):
            assert _ids(proxies[worker].pushed(2)) == ids[at : at + 2]
            assert proxies[worker].is_quiet(0.05)
            _done(proxies[1 - worker], ids[at : at + 2])
        wait_until(lambda ids=ids: {peer.state(i) for i in ids} == {"complete"}, "all complete")  # type: ignore[misc]


def test_reports_that_are_repeated_or_wrong_free_nothing(peer: Peer, proxies: list[Peer], name: str) -> None:
    ids = owned_by(0, name, 6)
    _post(peer, ids, name)
    proxies[0].ok("ready credit=2")
    proxies[0].pushed(2)
    for _ in range(3):
        _done(proxies[0], [ids[0], ids[0], "nobody"])
    assert _ids(proxies[0].pushed(1)) == ids[2:3]
    assert proxies[0].is_quiet()


# ── order ─────────────────────────────────────────────────────────────────────────────────


def test_higher_priorities_go_first_and_equals_in_order(peer: Peer, proxies: list[Peer], name: str) -> None:
    ids = owned_by(0, name, 12)
    for number, task_id in enumerate(ids):
        _post(peer, [task_id], name, f"priority={(0, 9, 5)[number % 3]}")
    proxies[0].ok("ready credit=20")
    assert _ids(proxies[0].pushed(12)) == ids[1::3] + ids[2::3] + ids[0::3]


def test_a_late_task_of_high_priority_overtakes_what_waits(
    peer: Peer, proxies: list[Peer], name: str
) -> None:
    slow, fast = owned_by(0, f"{name}-slow", 4), owned_by(0, f"{name}-fast", 1)
    proxies[0].ok("ready credit=1")
    _post(peer, slow, name, "priority=1")
    assert _ids(proxies[0].pushed(1)) == slow[:1]
    _post(peer, fast, name, "priority=8")
    _done(proxies[0], slow[:1])
    assert _ids(proxies[0].pushed(1)) == fast


# ── reports ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("worker", [0, 1])
def test_a_failure_is_counted_and_told(peer: Peer, proxies: list[Peer], name: str, worker: int) -> None:
    """Pushed by its owner, reported at worker 0."""
    (task_id,) = owned_by(worker, name)
    proxies[worker].ok("ready credit=5")
    _post(peer, [task_id], name, target="http://a/1 http://a/2 http://a/3")
    proxies[worker].push()
    assert proxies[0].ok(f"report state=active task_id={task_id} done=1 failed=1")["n"] == "1"
    wait_until(lambda: peer.ok(f"get_task task_id={task_id}")["done"] == "1", "the counts are there")
    (row,) = peer.ok(f"task_detail task_id={task_id}").rows
    assert (row["state"], row["done"], row["failed"]) == ("active", "1", "1")
    report = f"report state=failed task_id={task_id} done=2 failed=1 error=no\\sway -- http://a/3"
    assert proxies[0].ok(report)["n"] == "1"
    wait_until(lambda: peer.state(task_id) == "failed", "the task has failed")
    task = peer.ok(f"get_task task_id={task_id}")
    assert (task["total"], task["done"], task["failed"]) == ("3", "2", "1")
    (row,) = peer.ok(f"task_detail task_id={task_id}").rows
    assert (row["state"], row["done"], row["failed"], row["error"]) == ("failed", "2", "1", "no way")
    assert proxies[0].ok(report)["n"] == "1", "a repeat is harmless"


def test_one_report_line_for_a_thousand_tasks_of_both_workers(
    peer: Peer, proxies: list[Peer], name: str
) -> None:
    ids = owned_by(0, name, 500) + owned_by(1, name, 500)
    for proxy in proxies:
        proxy.ok("ready credit=500")
    peer.write(*[f"post_task task_id={i} type=url scope={name} -- http://a.example/" for i in ids])
    assert all(reply.ok for reply in peer.replies(1000))
    for proxy in proxies:
        proxy.pushed(500)
    _done(proxies[0], ids)
    wait_until(lambda: {peer.state(i) for i in ids[-5:] + ids[:5]} == {"complete"}, "complete")
    peer.write(*[f"get_task task_id={i}" for i in ids])
    assert {reply["state"] for reply in peer.replies(1000)} == {"complete"}


def test_beats_are_answered_with_the_time_and_the_workers(proxies: list[Peer]) -> None:
    for proxy in proxies:
        assert proxy.ok("beat")["workers"] == "2"
        assert int(proxy.ok("beat fast=1 slow=2 inflight=3 cpu=0.75 mem=1000000")["now"]) > 0
        assert int(proxy.ok("beat")["now"]) > 0
        assert proxy.code("beat cpu=lots") == "bad_field"


def test_a_proxy_may_not_do_what_clients_do(proxies: list[Peer]) -> None:
    for request in ("post_task task_id=a type=url -- http://a/", "get_task task_id=a", "list_tasks", "stats"):
        assert proxies[0].code(request) == "denied"
    proxies[0].ok("ping")


# ── cancel and ttl ────────────────────────────────────────────────────────────────────────


def test_cancel_reaches_the_proxies_that_have_the_task(peer: Peer, proxies: list[Peer], name: str) -> None:
    for worker in (0, 1):
        had, waits = owned_by(worker, name, 2)
        proxies[worker].ok("ready credit=1")
        _post(peer, [had, waits], name)
        proxies[worker].push()
        for task_id in (waits, had):
            assert peer.ok(f"cancel_task task_id={task_id}")["state"] == "cancelled"
        cancel = proxies[worker].push()
        assert (cancel.verb, cancel.items) == ("!cancel", [had]), "who was not pushed is not told"
        _done(proxies[worker], [had])
        task = peer.ok(f"get_task task_id={had}")
        assert (task["state"], task["done"], task["failed"]) == ("cancelled", "0", "0")


# ── connections ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("worker", [0, 1])
def test_what_was_not_reported_is_pushed_again_after_a_reconnect(
    engine: Engine, peer: Peer, name: str, worker: int
) -> None:
    """With its one connection at worker 0: of the owner, or through the other worker."""
    ids = owned_by(worker, name, 3)
    with engine.proxy_peer(name, 0) as first:
        first.ok("ready credit=10")
        _post(peer, ids, name)
        assert _ids(first.pushed(3)) == ids
        _done(first, ids[1:2])
        wait_until(lambda: peer.state(ids[1]) == "complete", "one is complete")
    with engine.proxy_peer(name, 0) as second:
        second.ok("ready credit=10")
        assert _ids(second.pushed(2)) == [ids[0], ids[2]]
        assert second.is_quiet()
        _done(second, [ids[0], ids[2]])
        wait_until(lambda: {peer.state(task_id) for task_id in ids} == {"complete"}, "all are complete")


@pytest.mark.parametrize("worker", [0, 1])
def test_a_new_connection_replaces_the_old_one(engine: Engine, peer: Peer, name: str, worker: int) -> None:
    ids = owned_by(worker, name, 2)
    with engine.proxy_peer(name, 0) as first:
        first.ok("ready credit=10")
        _post(peer, ids, name)
        assert _ids(first.pushed(2)) == ids
        with engine.proxy_peer(name, 0) as second:
            assert first.rest() == b"", "the old one is closed, between lines"
            assert second.is_quiet(), "credit is the connection's own"
            second.ok("ready credit=10")
            again = second.pushed(2)
            assert _ids(again) == ids
            _done(second, ids)
            wait_until(lambda: {peer.state(task_id) for task_id in ids} == {"complete"}, "all are complete")


@pytest.mark.parametrize("at", [0, 1])
def test_one_connection_serves_the_shards_of_both_workers(
    engine: Engine, peer: Peer, name: str, at: int
) -> None:
    """Relayed, within the one credit, and freed by reports."""
    ids = owned_by(0, name, 6) + owned_by(1, name, 6)
    with engine.proxy_peer(name, at) as proxy:
        proxy.ok("ready credit=2")
        _post(peer, ids, name)
        seen: list[str] = []
        while len(seen) < 12:
            pushed = _ids(proxy.pushed(2))
            assert proxy.is_quiet(0.05), "no more than the credit"
            _done(proxy, pushed)
            seen += pushed
        assert sorted(seen) == sorted(ids)
        wait_until(lambda: {peer.state(task_id) for task_id in ids} == {"complete"}, "all are complete")


def test_a_relayed_task_fails_and_is_cancelled_like_any(engine: Engine, peer: Peer, name: str) -> None:
    cancelled, failed, last = owned_by(1, name, 3)
    with engine.proxy_peer(name, 0) as proxy:
        proxy.ok("ready credit=2")
        _post(peer, [cancelled, failed, last], name)
        assert _ids(proxy.pushed(2)) == [cancelled, failed]
        peer.ok(f"cancel_task task_id={cancelled}")
        cancel, push = proxy.pushed(2)
        assert (cancel.verb, cancel.items) == ("!cancel", [cancelled])
        assert push.fields["task_id"] == last
        proxy.ok(f"report state=failed task_id={failed} done=0 failed=1 error=x")
        wait_until(lambda: peer.state(failed) == "failed", "it has failed")


def test_a_second_connection_takes_over_what_was_relayed(engine: Engine, peer: Peer, name: str) -> None:
    ids = owned_by(1, name, 4)
    with engine.proxy_peer(name, 0) as zero:
        zero.ok("ready credit=4")
        _post(peer, ids, name)
        assert _ids(zero.pushed(4)) == ids
        with engine.proxy_peer(name, 1) as one:
            one.ok("ready credit=4")
            assert _ids(one.pushed(4)) == ids
            _done(zero, ids)
            more = owned_by(1, f"{name}-more", 8)
            _post(peer, more, name)
            assert _ids(one.pushed(4)) == more[:4], "what was reported elsewhere takes no credit here"
            _done(one, more[:4])
            assert _ids(one.pushed(4)) == more[4:]
            _done(one, more[4:])
            wait_until(lambda: {peer.state(i) for i in ids + more} == {"complete"}, "all are complete")


def test_a_proxy_that_leaves_and_comes_back_is_given_what_came_meanwhile(
    engine: Engine, peer: Peer, name: str
) -> None:
    with engine.proxy_peer(name, 0) as proxy:
        proxy.ok("ready credit=1")
    ids = owned_by(0, name, 3) + owned_by(1, name, 3)
    _post(peer, ids, name)
    assert {peer.state(task_id) for task_id in ids} == {"pending"}
    with engine.proxy(name):
        wait_until(lambda: {peer.state(task_id) for task_id in ids} == {"complete"}, "all are complete")


def test_a_worker_that_restarts_pushes_again(own_engine: Engine) -> None:
    """The killed worker's tasks come again, relayed by the other; nothing is doubled in the counts."""
    engine = own_engine
    with engine.proxy_peer("p", 0) as proxy, engine.peer("worker=0") as peer:
        proxy.ok("ready credit=10")
        ids = owned_by(1, "again", 3)
        _post(peer, ids, "p")
        assert _ids(proxy.pushed(3)) == ids
        pid = engine.kill_worker(1)
        engine.wait_for_worker(1, pid)
        assert sorted(_ids(proxy.pushed(3))) == ids
        _done(proxy, ids)
        wait_until(lambda: {peer.state(i) for i in ids} == {"complete"}, "all are complete")
        assert peer.ok(f"get_task task_id={ids[0]}")["done"] == "1"


def test_an_engine_that_goes_away_says_drain_first(own_engine: Engine) -> None:
    engine = own_engine
    with engine.proxy_peer("p", 0) as proxy, engine.peer("worker=1") as peer:
        peer.post("a", "type=url due=4000000000")
        assert engine.stop() == 0
        for connection in (proxy, peer):
            assert connection.push().verb == "!drain"
            with pytest.raises(Gone, match="between lines"):
                connection.line()


def test_every_worker_knows_who_registered_after_a_restart(own_engine: Engine) -> None:
    """Also those that it never spoke to: else it would call a task complete too early."""
    engine = own_engine
    for name in ("a", "b", "c"):
        engine.proxy_peer(name, 0).close()
    pid = engine.kill_worker(1)
    engine.wait_for_worker(1, pid)
    for restart in (contextlib.nullcontext, engine.restart):
        restart()
        with engine.peer() as peer:
            stem = f"all-{restart.__name__}"
            for task_id in owned_by(0, stem) + owned_by(1, stem):
                assert peer.post(task_id, "type=url due=4000000000")["total"] == "3"
