"""Every client verb and its replies (PROTOCOL.md, "Client verbs"), for tasks of either worker."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.driver import Engine, FakeProxy, Peer, wait_until
from tests.peer.raw import owned_by

TASK_KEYS = {"task_id", "type", "state", "total", "done", "failed", "created", "updated"}
UNTIL_LATER = "due=4000000000"


@pytest.fixture
def worker(engine: Engine, name: str) -> Iterator[FakeProxy]:
    """A proxy of the test's own that does everything."""
    with engine.proxy(name) as proxy:
        yield proxy


@pytest.fixture(params=[0, 1], ids=["at worker 0", "at worker 1"])
def task_id(request: pytest.FixtureRequest, name: str) -> str:
    """An id that is owned by either worker, wherever the peer is connected."""
    return owned_by(request.param, f"{name}-task")[0]


def test_ping_tells_the_time(peer: Peer) -> None:
    assert abs(int(peer.ok("ping")["now"]) / 1000 - time.time()) < 60


def test_a_task_from_post_to_complete(peer: Peer, worker: FakeProxy, task_id: str) -> None:
    before = time.time() - 1
    reply = peer.post(task_id, f"type=url scope={worker.name}", "http://example.com/a http://example.com/b")
    assert reply.fields == {"task_id": task_id, "state": "pending", "total": "2"}
    task = wait_until(lambda: _final(peer, task_id), "the task is final")
    assert task.keys() == TASK_KEYS
    assert (task["type"], task["state"], task["total"], task["done"], task["failed"]) == (
        "url", "complete", "2", "2", "0",
    )  # fmt: skip
    assert before * 1000 < int(task["created"]) <= int(task["updated"]) < (time.time() + 1) * 1000
    (row,) = peer.ok(f"task_detail task_id={task_id}").rows
    assert int(row.pop("ms")) >= 0
    assert row == {"proxy": worker.name, "layer": "0", "state": "complete", "done": "2", "failed": "0"}
    assert peer.ok(f"cancel_task task_id={task_id}")["state"] == "complete", "a finished task keeps its state"


def _final(peer: Peer, task_id: str) -> dict[str, str]:
    task = peer.ok(f"get_task task_id={task_id}").fields
    return task if task["state"] not in ("pending", "active") else {}


@pytest.mark.parametrize(
    ("type_", "targets"),
    [
        ("url", "https://example.com:8443/a%2Fb?x=%2F+&y=[1]~"),
        ("url", "http://[::1]:8080/x http://example.com?q"),
        ("dir", "http://example.com/pictures/"),
        ("regex", "http://example.com/.*[.](jpg|png)$"),
        ("tag", "article-7 front/page"),
        ("prefetch", "http://example.com/new"),
    ],
)
def test_every_type_reaches_the_proxy_byte_for_byte(
    engine: Engine, peer: Peer, name: str, type_: str, targets: str
) -> None:
    (task_id,) = owned_by(0, f"{name}-{type_}")
    with engine.proxy_peer(name, 0) as proxy:
        proxy.ok("ready credit=10")
        more = f"type={type_} scope={name} ttl=77 priority=7 force=1 callback=http://example.com/done"
        peer.post(task_id, more, targets)
        push = proxy.push()
        assert push.verb == "!task"
        assert push.fields == {"task_id": task_id, "type": type_, "ttl": "77", "priority": "7", "force": "1"}
        assert push.items == targets.split(" ")


def test_watch_tells_every_change_until_the_end(
    engine: Engine, peer: Peer, proxies: list[Peer], name: str, task_id: str
) -> None:
    peer.post(task_id, f"type=url scope={name}", "http://example.com/a http://example.com/b")
    task = peer.ok(f"watch_task task_id={task_id}").fields
    assert task.keys() == TASK_KEYS
    assert task["state"] == "pending"
    owner = proxies[0] if task_id in owned_by(0, f"{name}-task") else proxies[1]
    owner.ok("ready credit=10")
    owner.push()
    assert _seen(peer) == ("active", "0", "0", "2")
    owner.ok(f"report state=active task_id={task_id} done=1 failed=0")
    assert _seen(peer) == ("active", "1", "0", "2")
    owner.ok(f"report state=done -- {task_id}")
    while (seen := _seen(peer))[0] == "active":
        pass
    assert seen == ("complete", "2", "0", "2")
    assert peer.ok(f"watch_task task_id={task_id}")["state"] == "complete"
    assert peer.is_quiet(), "a final task has nothing more to tell"


def _seen(peer: Peer) -> tuple[str, ...]:
    fields = peer.push().fields
    return fields["state"], fields["done"], fields["failed"], fields["total"]


def test_cancel_before_the_start_is_idempotent(peer: Peer, worker: FakeProxy, task_id: str) -> None:
    peer.post(task_id, f"type=url scope={worker.name} {UNTIL_LATER}")
    for _ in range(2):
        assert peer.ok(f"cancel_task task_id={task_id}").fields == {"task_id": task_id, "state": "cancelled"}
    task = peer.ok(f"get_task task_id={task_id}")
    assert (task["state"], task["done"], task["failed"]) == ("cancelled", "0", "0")
    assert task_id not in worker.effects
    dup = peer.post(task_id, f"type=url scope={worker.name} {UNTIL_LATER}")
    assert dup.fields == {"task_id": task_id, "state": "cancelled", "total": "1", "dup": "1"}


def test_list_is_newest_first_and_pages(peer: Peer, worker: FakeProxy, name: str) -> None:
    ids = [f"{name}-{i}" for i in range(30)]
    for task_id in ids:
        peer.post(task_id, f"type=url scope={worker.name} {UNTIL_LATER}")
        _next_millisecond(peer)
    rows = peer.ok("list_tasks limit=30").rows
    assert [row["task_id"] for row in rows] == ids[::-1]
    assert rows[0].keys() >= {"task_id", "state"}
    paged: list[str] = []
    while len(paged) < 30:
        after = f" after={paged[-1]}" if paged else ""
        paged += [row["task_id"] for row in peer.ok(f"list_tasks state=pending limit=7{after}").rows]
    assert paged[:30] == ids[::-1]


def test_a_listing_shows_what_was_accepted_before_it(peer: Peer, worker: FakeProxy, name: str) -> None:
    """In one write with it, and while the task is about to end."""
    for number in range(300):
        task_id = f"{name}-{number}"
        post = f"post_task task_id={task_id} type=url scope={worker.name} -- http://a.example/"
        if number % 2:
            peer.write(post, "list_tasks limit=3")
            peer.reply()
            rows = peer.reply(listing=True).rows
        else:
            peer.ok(post)
            rows = peer.ok("list_tasks limit=3").rows
        assert task_id in [row["task_id"] for row in rows]


def _next_millisecond(peer: Peer) -> None:
    """Tasks of one millisecond, accepted by two workers, are in no order."""
    now = peer.ok("ping")["now"]
    wait_until(lambda: peer.ok("ping")["now"] > now, "time passes")


def test_list_by_state(peer: Peer, worker: FakeProxy, name: str) -> None:
    for state in ("complete", "cancelled", "pending"):
        due = "" if state == "complete" else f" {UNTIL_LATER}"
        for task_id in owned_by(0, f"{name}-{state}", 2) + owned_by(1, f"{name}-{state}", 2):
            peer.post(task_id, f"type=url scope={worker.name}{due}")
            if state == "cancelled":
                peer.ok(f"cancel_task task_id={task_id}")
    wait_until(lambda: len(_listed(peer, "complete", name)) == 4, "four are complete")
    assert len(_listed(peer, "cancelled", name)) == 4
    assert len(_listed(peer, "pending", name)) == 4
    assert _listed(peer, "failed", name) == []


def _listed(peer: Peer, state: str, name: str) -> list[str]:
    rows = peer.ok(f"list_tasks state={state} limit=10000").rows
    assert {row["state"] for row in rows} <= {state}
    return [row["task_id"] for row in rows if row["task_id"].startswith(f"{name}-")]


def test_stats_have_the_names_of_old(peer: Peer) -> None:
    figures = {row["name"]: float(row["value"]) for row in peer.ok("stats").rows}
    queues = ["alert_queue", "input_task_queue", "notify_queue", "pushing_queue", "reporting_queue"]
    queues += ["saver_queue", "tasks_in_cache", "timer_tasks", "timestamp"]
    rates = [
        f"{rate}.{key}" for rate in ("qps_proxy", "qps_boss") for key in ("1m", "5m", "15m", "avg", "count")
    ]
    assert figures.keys() >= {*queues, *rates}
    assert all(value >= 0 for value in figures.values())


def test_a_finished_task_is_a_dup_however_often_it_is_sent(
    peer: Peer, worker: FakeProxy, task_id: str
) -> None:
    """In one write, so that the repeats share a commit."""
    post = f"post_task task_id={task_id} type=url scope={worker.name} -- http://example.com/a"
    peer.ok(post)
    wait_until(lambda: _final(peer, task_id), "final")
    peer.write(post, post, post, f"get_task task_id={task_id}", post.replace("/a", "/b"))
    *repeats, task, other = peer.replies(5)
    assert [(reply["state"], reply["dup"]) for reply in repeats] == [("complete", "1")] * 3
    assert task["state"] == "complete"
    assert other.code == "conflict"


ERRORS = {
    "nonsense": "unknown_verb",
    "ping2": "unknown_verb",
    "hellox v=1 role=client": "unknown_verb",
    "!task task_id=a": "unknown_verb",
    "get_task": "missing_field",
    "get_task task_id=": "bad_field",
    "get_task task_id=nobody": "not_found",
    "get_task task_id=a/b": "bad_field",
    "watch_task task_id=nobody": "not_found",
    "cancel_task task_id=nobody": "not_found",
    "task_detail task_id=nobody": "not_found",
    "list_tasks state=gone": "bad_field",
    "list_tasks limit=0": "bad_field",
    "list_tasks after=nobody": "not_found",
    "post_task": "missing_field",
    "post_task task_id=e": "missing_field",
    "post_task task_id=e type=url": "missing_field",
    "post_task task_id=e type=url --": "missing_field",
    "post_task task_id=e type=url -- ": "bad_line",
    "post_task task_id=e type=url -- http://a/  http://b/": "bad_line",
    "post_task task_id=e type=url  -- http://a/": "bad_line",
    "post_task task_id=e type=page -- http://a/": "bad_field",
    "post_task task_id=e type=url -- a": "bad_field",
    "post_task task_id=e type=url -- ftp://a/": "bad_field",
    "post_task task_id=e type=url -- http://a/ b": "bad_field",
    "post_task task_id=e type=url -- http://u:p@a/": "bad_field",
    "post_task task_id=e type=dir -- http://a/b": "bad_field",
    "post_task task_id=e type=url ttl=0 -- http://a/": "bad_field",
    "post_task task_id=e type=url ttl=1e3 -- http://a/": "bad_field",
    "post_task task_id=e type=url due=tomorrow -- http://a/": "bad_field",
    "post_task task_id=e type=url priority=10 -- http://a/": "bad_field",
    "post_task task_id=e type=url force=yes -- http://a/": "bad_field",
    "post_task task_id=e type=url callback=a -- http://a/": "bad_field",
    "post_task task_id=e type=url scope=nowhere -- http://a/": "bad_field",
    "post_task task_id=e type=url scope= -- http://a/": "bad_field",
    "post_task task_id=e type=url type=url -- http://a/": "bad_line",
    "post_task task_id=" + "e" * 65 + " type=url -- http://a/": "bad_field",
    "report state=done -- e": "auth",
    "ready credit=1": "auth",
    "beat": "auth",
    "hello v=1 role=client": "bad_line",
    "list_proxies": "denied",
    "list_quotas": "denied",
    "forget_proxy name=a": "denied",
    "list_engines": "denied",
    "reload": "denied",
    "upgrade": "denied",
    "operation": "denied",
    "drain": "denied",
    "undrain": "denied",
    "engine_status": "denied",
}


@pytest.mark.parametrize(("request_", "code"), ERRORS.items(), ids=list(ERRORS))
def test_every_error_has_its_code(engine: Engine, worker: FakeProxy, request_: str, code: str) -> None:
    """As the only request, and amid others; a field is named where the code promises it."""
    with engine.peer() as peer:
        peer.ok("ping")
        reply = peer.ask(request_)
        assert reply.code == code
        assert ("field" in reply.fields) or code not in ("missing_field", "bad_field")
        if "target" in reply.fields.get("field", ""):
            assert reply["field"] == "target"
        peer.ok("ping")


def test_a_refused_request_changed_nothing(peer: Peer, worker: FakeProxy, task_id: str) -> None:
    post = f"post_task task_id={task_id} type=url scope={worker.name} {UNTIL_LATER}"
    assert peer.code(f"{post} priority=11 -- http://a/") == "bad_field"
    assert peer.code(f"{post} -- a") == "bad_field"
    assert peer.code(f"get_task task_id={task_id}") == "not_found"
    peer.ok(f"{post} -- http://a/")


def test_an_empty_fleet_is_a_bad_scope(own_engine: Engine) -> None:
    with own_engine.peer() as peer:
        reply = peer.ask("post_task task_id=a type=url -- http://a/")
        assert (reply.code, reply["field"]) == ("bad_field", "scope")


def test_thousands_of_watches_of_nothing_do_not_use_a_connection_up(engine: Engine) -> None:
    with engine.peer("worker=0") as peer:
        for ids in (owned_by(1, "nothing", 5500), owned_by(1, "no-thing", 5500)):
            peer.write(*[f"watch_task task_id={task_id}" for task_id in ids])
            assert {reply.code for reply in peer.replies(len(ids))} == {"not_found"}


def test_workers_that_ask_each_other_do_not_wait_for_each_other(engine: Engine) -> None:
    with engine.peer("worker=0") as zero, engine.peer("worker=1") as one:
        for peer in (zero, one):
            peer.write(*["stats", "list_tasks limit=3"] * 100)
        for peer in (zero, one):
            codes = [peer.reply(listing=True).code for _ in range(200)]
            assert set(codes[0::2]) == {""}
            assert set(codes[1::2]) <= {"", "busy"}
