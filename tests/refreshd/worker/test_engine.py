"""The engine: accept, start, push, report, end; alone and against a model with kills of the process."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from refreshd.fanout import Segment
from refreshd.fleet import Plan, Proxy
from refreshd.task import FINAL, TRANSITIONS, State, Task
from refreshd.worker import parking, replay
from refreshd.worker.turns import Turn
from tests.refreshd.worker.core import START_WALL_MS, Client, Core, Table, TableReader, Time, Wire
from wire.lines import parse

FLEET = [Proxy("a0", "origin", 0, True), Proxy("a1", "origin", 0, True), Proxy("b0", "edge", 1, True)]
ONE = FLEET[:1]
NOW_S = START_WALL_MS // 1000


def post(number: int, fields: str = "type=url", count: int = 1) -> bytes:
    targets = " ".join(f"http://a/{number}/{i}" for i in range(count))
    return f"post_task task_id=t{number} {fields} -- {targets}".encode()


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def core(patch: pytest.MonkeyPatch) -> Core:
    return Core(patch, ONE)


# ── accept ────────────────────────────────────────────────────────────────────────────────


def test_ok_comes_after_the_commit_and_not_before(core: Core) -> None:
    client = core.post(post(1), post(2, count=3))
    assert client.replies is None
    core.commit()
    assert client.reply == "ok task_id=t1 state=pending total=1\nok task_id=t2 state=pending total=3\n"
    assert [task[0] for task in core.table.tasks.values()] == [b"t1", b"t2"]


def test_a_repeat_is_answered_no_earlier_than_the_first(core: Core) -> None:
    first, again = core.post(post(1)), core.post(post(1))
    other = core.post(post(1, count=2))
    assert "code=conflict" in other.reply
    assert first.replies is again.replies is None
    core.commit()
    assert again.reply == "ok task_id=t1 state=pending total=1 dup=1\n"
    assert core.post(post(1)).reply == again.reply
    core.commit()
    assert len(core.table.tasks) == 1


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (b"type=url -- http://a/ http://b/", b"type=url -- http://b/ http://a/", True),
        (b"type=url -- http://a/ http://a/", b"type=url -- http://a/", False),
        (b"type=url ttl=86400 priority=5 -- http://a/", b"force=0 type=url -- http://a/", True),
        (b"type=url scope=a0,origin -- http://a/", b"type=url scope=origin,a0,a0 -- http://a/", True),
        (b"type=url scope=a0 -- http://a/", b"type=url -- http://a/", False),
        (b"type=url force=1 -- http://a/", b"type=url -- http://a/", False),
        (b"type=url due=1 -- http://a/", b"type=url -- http://a/", False),
        (b"type=url callback=http://c/ -- http://a/", b"type=url -- http://a/", False),
        (b"type=url unknown=1 -- http://a/", b"type=url -- http://a/", True),
        (b"type=url -- http://a/", b"type=prefetch -- http://a/", False),
        (b"type=tag -- a b", rb"type=tag -- b a", True),
    ],
)
def test_the_same_content(core: Core, one: bytes, two: bytes, same: bool) -> None:
    core.post(b"post_task task_id=t " + one)
    core.commit()
    reply = core.post(b"post_task task_id=t " + two, plain=b"\\" not in two).reply
    assert ("dup=1" in reply) == same
    assert ("code=conflict" in reply) != same


def test_a_refused_task_changed_nothing(core: Core) -> None:
    for line, code in [
        (b"post_task task_id=t type=nix -- http://a/", "bad_field"),
        (b"post_task task_id=t type=url -- ftp://a/", "bad_field"),
        (b"post_task task_id=t type=url -- http://a/ ", "bad_line"),
        (b"post_task task_id=t type=url -- http://a/  http://b/", "bad_line"),
        (b"post_task task_id=t type=url --", "missing_field"),
        (b"post_task task_id=t -- http://a/", "missing_field"),
        (b"post_task task_id=t type=dir -- http://a/b", "bad_field"),
        (b"post_task task_id=t type=url scope=nobody -- http://a/", "bad_field"),
        (b"post_task task_id= type=url -- http://a/", "bad_field"),
    ]:
        assert f"code={code}" in core.post(line).reply, line
    assert not core.engine.tasks
    assert not len(core.saver.batch)


def test_a_store_that_cannot_write_refuses_and_forgets(core: Core) -> None:
    client, repeat = core.post(post(1), post(2)), core.post(post(1))
    core.commit("no room")
    assert client.reply.count("code=unavailable") == 2
    assert "nothing was accepted" in parse(client.replies[0][:-1]).fields["msg"] if client.replies else False
    assert "code=unavailable" in repeat.reply
    assert not core.engine.tasks
    # Nobody waits for a store that is known to be away.
    assert "code=unavailable" in core.post(post(1)).reply
    assert not len(core.saver.batch)
    core.commit()
    again = core.post(post(1))
    core.commit()
    assert "ok task_id=t1 state=pending" in again.reply


def test_queues_that_are_full(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE, toml="[engine]\nsaver_queue_max = 100\ntasks_max = 150\n")
    first = core.post(*(post(i) for i in range(101)))
    core.commit()
    assert first.reply.count("ok ") == 100
    assert "code=busy retry_ms=" in first.reply
    second = core.post(*(post(i) for i in range(100, 160)))
    core.commit()
    assert second.reply.count("ok ") == 50
    assert second.reply.count("engine.tasks_max") == 10
    # A repeat takes no room, and what is refused was not taken in.
    assert "dup=1" in core.post(post(5)).reply
    assert len(core.engine.tasks) == 150


def test_request_lines_are_bounded_in_bytes_too(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE)
    core.engine._bytes_max = 10 * len(post(1))
    first = core.post(*(post(i) for i in range(10, 30)))
    core.commit()
    taken = first.reply.count("ok ")
    assert 8 <= taken <= 11
    assert first.reply.count("engine.tasks_bytes_max") == 20 - taken
    assert core.engine.held_bytes == sum(len(task.line) for task in core.engine.tasks.values())
    for task in list(core.engine.tasks.values()):
        core.engine.withdraw(task, State.CANCELLED)
    core.commit()
    assert core.engine.held_bytes == 0
    again = core.post(post(40))
    core.commit()
    assert "ok task_id=t40 " in again.reply


def test_a_full_queue_before_a_store_that_fails_says_so(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE, toml="[engine]\nsaver_queue_max = 100\n")
    core.commit("no room")
    client = core.post(*(post(i) for i in range(101)))
    core.commit("no room")
    assert client.reply.count("code=unavailable") == 101


def test_draining(core: Core) -> None:
    core.post(post(1))
    core.commit()
    core.engine.draining = True
    assert "code=draining retry_ms=" in core.post(post(2)).reply
    assert "dup=1" in core.post(post(1)).reply


ACME = '[[key]]\nname = "acme"\nsecret_file = "f"\n'


def spent(core: Core, name: str = "acme") -> tuple[int, int, int]:
    """Targets let in, targets of URLs today, tasks in flight."""
    spent = core.engine.book.usage(name).spent(core.time.wall_ms)
    return spent.taken, spent.today[0], spent.in_flight


def test_a_quota_is_the_last_check(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE, toml=ACME + "rate = 1\nburst = 5\n")
    for refused in (post(1, "type=url scope=nowhere", 5), post(1, "type=url ttl=x", 5)):
        assert "code=bad_field" in core.post(refused, key="acme").reply
    core.engine.draining = True
    assert "code=draining" in core.post(post(1, count=5), key="acme").reply
    core.engine.draining = False
    assert spent(core) == (0, 0, 0)
    client = core.post(post(1, count=5), post(2), key="acme")
    core.commit()
    assert client.reply.startswith("ok task_id=t1 ")
    assert "code=limited retry_ms=1000 " in client.reply
    assert spent(core) == (5, 5, 1)
    assert b"t2" not in core.engine.tasks
    assert "dup=1" in core.post(post(1, count=5), key="acme").reply
    assert "code=conflict" in core.post(post(1), key="acme").reply
    assert spent(core) == (5, 5, 1)


def test_a_task_that_is_not_saved_gives_its_quota_back(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE, toml=ACME)
    client = core.post(post(1, count=3), key="acme")
    assert spent(core) == (3, 3, 1)
    core.commit("no room")
    assert "code=unavailable" in client.reply
    assert spent(core) == (0, 0, 0)
    # The saver tries again; until then all is refused.
    core.commit()
    core.post(post(1, count=3), key="acme")
    core.commit()
    core.engine.withdraw(core.engine.tasks[b"t1"], State.CANCELLED)
    assert spent(core) == (3, 3, 1)
    core.commit()
    assert spent(core) == (3, 3, 0)
    again = core.post(post(1, count=3), key="acme")
    core.commit()
    assert "dup=1" in again.reply, "a finished task, which only the store knows"
    assert spent(core) == (3, 3, 0)


def test_whose_a_task_is_survives_the_process(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE, toml=ACME)
    core.post(post(1), key="acme")
    core.post(post(2))
    core.commit()
    again = Core(patch, ONE, core.table, ACME, core.time)
    assert spent(again) == (0, 0, 1)
    assert again.engine.tasks[b"t1"].line == post(1)
    assert [again.engine.tasks[task].key for task in (b"t1", b"t2")] == ["acme", None]
    wire = Wire()
    again.connect("a0", 10, wire)
    again.report("a0", b"t1", b"t2")
    again.commit()
    assert spent(again) == (0, 0, 0)


def test_a_key_keeps_to_its_domains(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE)
    core.engine._domains = {"acme": ("example.com",), "any": ()}
    for target, allowed in [
        ("http://example.com/", True),
        ("http://EXAMPLE.com:80/x", True),
        ("https://img.example.com./", True),
        ("http://badexample.com/", False),
        ("http://example.com.evil.org/", False),
        ("http://[::1]:80/", False),
        ("http://evil.org/?http://example.com/", False),
    ]:
        line = f"post_task task_id={target.__hash__() % 999} type=url -- {target}".encode()
        assert ("code=denied" not in core.post(line, key="acme").reply) == allowed, target
    assert "code=denied" in core.post(b"post_task task_id=g type=tag -- x", key="acme").reply
    two = b"post_task task_id=h type=url -- http://example.com/ http://evil.org/"
    assert "code=denied" in core.post(two, key="acme").reply
    assert core.post(two, key="any").replies is None


# ── ids of finished tasks ─────────────────────────────────────────────────────────────────


def finished(core: Core, *numbers: int) -> None:
    core.post(*(post(number) for number in numbers))
    core.commit()
    core.connect("a0", 10_000)
    core.report("a0", *(b"t%d" % number for number in numbers))
    core.commit()
    assert not core.engine.tasks


def test_the_id_of_a_finished_task(core: Core) -> None:
    finished(core, 1)
    client = core.post(post(2), post(1), post(1), post(3))
    other = core.post(post(1, count=2))
    assert "code=conflict" in other.reply
    core.commit()
    assert client.reply == (
        "ok task_id=t2 state=pending total=1\n"
        "ok task_id=t1 state=final dup=1\n"
        "ok task_id=t1 state=final dup=1\n"
        "ok task_id=t3 state=pending total=1\n"
    )
    assert set(core.engine.tasks) == {b"t2", b"t3"}
    assert len(core.table.tasks) == 3


def test_many_repeats_of_finished_tasks_over_many_turns(core: Core) -> None:
    """Linear: with a walk over all replies for each repeat this takes minutes."""
    numbers = range(20_000)
    finished(core, *numbers)
    clients = [
        core.post(*(post(number) for number in numbers[at : at + 2000])) for at in range(0, 20_000, 2000)
    ]
    core.commit()
    assert all(client.reply.count("dup=1") == 2000 for client in clients)


def test_a_waiter_that_is_refused_harms_nobody_else(core: Core) -> None:
    """Such as a watch for which the connection has no room: those behind it are answered all the same."""
    from wire.errors import Refused

    core.post(post(1))
    refused, answered = Client(), Client()

    def no_room(task: Task) -> bytes:
        raise Refused("busy", "no room")

    for client, reply in ((refused, no_room), (answered, lambda task: b"ok\n")):
        turn = Turn(client)
        core.engine.when_saved(b"t1", turn, reply, lambda place, serial: None)
        turn.release()
    core.commit()
    assert "code=busy" in refused.reply
    assert answered.reply == "ok\n"


# ── due, ttl, clocks ──────────────────────────────────────────────────────────────────────


def test_a_task_starts_at_its_due_time(core: Core) -> None:
    session = core.connect("a0", 10)
    wire = session.link.wire
    assert isinstance(wire, Wire)
    core.post(post(1, f"type=url due={NOW_S + 5} ttl=3"))
    core.commit()
    core.pass_time(4900)
    assert not wire.pushed
    core.pass_time(200)
    assert wire.pushed == [b"t1"]
    # ttl counts from there.
    core.pass_time(2800)
    assert core.engine.tasks[b"t1"].state is State.ACTIVE
    core.pass_time(300)
    core.commit()
    assert core.table.results.popitem()[1][1] == State.EXPIRED
    assert wire.cancelled == [b"t1"]
    assert session.link.outstanding == 0


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_the_wall_clock_jumps(core: Core, jump_s: int) -> None:
    """A task that waits for its due time follows the clock; a ttl that runs does not. Each starts once."""
    session = core.connect("a0", 0)
    core.post(post(1, f"type=url due={NOW_S + 1800}"), post(2, "type=url ttl=60"))
    core.commit()
    core.time.wall_ms += jump_s * 1000
    core.pass_time(1000)
    started = jump_s > 0
    assert (core.engine.tasks[b"t1"].segment is not None) == started
    assert core.engine.tasks[b"t2"].closing is None
    core.pass_time(60_000)
    core.commit()
    assert list(core.engine.tasks) == [b"t1"]
    # The old setting of the timer does nothing any more.
    core.time.wall_ms -= jump_s * 1000
    core.pass_time(2_000_000)
    session.ready(10)
    core.loop.run()
    wire = session.link.wire
    assert isinstance(wire, Wire)
    assert wire.pushed == [b"t1"]
    core.report("a0", b"t1")
    core.commit()
    assert not core.engine.tasks
    assert all(log.live == 0 for log in core.engine.logs)
    assert len(core.engine.wheel) == 0


def test_slow_drift_of_the_wall_clock_starts_nothing_early(core: Core) -> None:
    core.post(post(1, f"type=url due={NOW_S + 60}"))
    core.commit()
    for _ in range(59):
        core.time.wall_ms -= 50
        core.pass_time(1000)
    core.pass_time(1100)
    assert core.engine.tasks[b"t1"].segment is None
    core.pass_time(3100)
    assert core.engine.tasks[b"t1"].segment is not None


def test_a_segment_timer_serves_many_deadlines(core: Core) -> None:
    core.post(*(post(i, f"type=url ttl={1 + i % 5}") for i in range(300)))
    core.commit()
    assert len(core.engine.wheel) == 2
    for second in range(1, 6):
        core.pass_time(1000 if second > 1 else 1100)
        core.commit()
        assert len(core.engine.tasks) == 300 - 60 * second
    assert len(core.engine.wheel) == 0
    assert {row[1] for row in core.table.results.values()} == {State.EXPIRED}
    assert {row[2:4] for row in core.table.results.values()} == {(0, 1)}


def test_a_task_that_expired_while_no_engine_ran(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, ONE)
    core.post(post(1, "type=url ttl=60"), post(2))
    core.commit()
    core.time.wall_ms += 3_600_000
    core.time.mono_ms = 1000
    again = Core(patch, ONE, core.table, time=core.time)
    session = again.connect("a0", 10)
    again.commit()
    wire = session.link.wire
    assert isinstance(wire, Wire)
    assert wire.pushed == [b"t2"]
    assert list(again.engine.tasks) == [b"t2"]
    again.pass_time(1000)
    assert again.engine.tasks[b"t2"].closing is None


# ── layers, cancel ────────────────────────────────────────────────────────────────────────


def test_a_layer_begins_when_the_one_before_has_finished(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, FLEET)
    wires = {proxy.name: Wire() for proxy in FLEET}
    for name, wire in wires.items():
        core.connect(name, 10, wire)
    core.post(post(1))
    core.commit()
    assert [wires[name].pushed for name in wires] == [[b"t1"], [b"t1"], []]
    # What a proxy of a later layer says before its turn is not about this push.
    core.report("b0", b"t1")
    core.report("a0", b"t1", b"t1")
    assert not wires["b0"].pushed
    core.report("a1", b"t1", state="failed", done=0, failed=1, error="x\u00a0y")
    assert wires["b0"].pushed == [b"t1"]
    core.report("b0", b"t1")
    core.commit()
    (result,) = core.table.results.values()
    assert result[1:4] == (State.FAILED, 2, 1)
    assert [session.link.outstanding for session in core.proxies.sessions.values()] == [0, 0, 0]


@pytest.mark.parametrize("how", ["done", "failed"])
def test_what_an_earlier_connection_had_is_not_pushed_once_it_is_done(
    patch: pytest.MonkeyPatch, how: str
) -> None:
    core = Core(patch, FLEET[:2])
    wire = Wire()
    session = core.connect("a0", 1, wire)
    core.post(post(1), post(2), post(3))
    core.commit()
    assert wire.pushed == [b"t1"]
    if how == "done":
        core.report("a0", b"t2", b"t3")
    else:
        core.report("a0", b"t2", state="failed", done=0, failed=1)
        core.report("a0", b"t3", state="failed", done=0, failed=1)
    core.post(post(4))
    core.commit()
    session.ready(10)
    core.loop.run()
    assert wire.pushed == [b"t1", b"t4"]
    core.report("a0", b"t1", b"t4")
    assert session.link.outstanding == 0
    core.connect("a1", 10)
    core.report("a1", b"t1", b"t2", b"t3", b"t4")
    core.commit()
    assert len(core.table.results) == 4


def test_cancel_tells_only_those_who_have_it(patch: pytest.MonkeyPatch) -> None:
    core = Core(patch, FLEET)
    has, done, hasnot = Wire(), Wire(), Wire()
    core.connect("a0", 10, has)
    core.connect("a1", 10, done)
    core.connect("b0", 10, hasnot)
    core.post(post(1))
    core.commit()
    core.report("a1", b"t1")
    ended = core.cancel(b"t1")
    assert (has.cancelled, done.cancelled, hasnot.cancelled) == ([b"t1"], [], [])
    assert not ended, "not before it is saved"
    assert core.engine.tasks[b"t1"].state is State.ACTIVE
    core.report("a0", b"t1")
    core.commit("no room")
    assert not ended
    core.commit()
    assert [task.state for task in ended] == [State.CANCELLED]
    assert core.table.results.popitem()[1][1:4] == (State.CANCELLED, 1, 0)
    assert core.proxies.sessions["a0"].link.outstanding == 0


def test_cancel_while_the_task_is_closing(core: Core) -> None:
    core.connect("a0", 10)
    core.post(post(1))
    core.commit()
    core.report("a0", b"t1")
    ended = core.cancel(b"t1") + core.cancel(b"t1")
    assert not ended
    core.commit()
    assert core.table.results.popitem()[1][1] == State.COMPLETE


def test_cancel_of_a_task_that_waits_for_its_due_time(core: Core) -> None:
    core.post(post(1, f"type=url due={NOW_S + 5}"))
    core.commit()
    core.cancel(b"t1")
    core.pass_time(10_000)
    core.commit()
    assert not core.engine.tasks
    assert len(core.engine.wheel) == 0


def test_cancel_while_the_task_is_new(core: Core) -> None:
    """As requests do it: asked again once its fate is known, whatever that is."""
    fates: list[int | None] = []
    core.post(post(1))
    core.engine.after_saved(b"t1", fates.append)
    core.commit("no room")
    core.commit()
    core.post(post(1))

    def cancel(fate: int | None) -> None:
        fates.append(fate)
        core.cancel(b"t1")

    core.engine.after_saved(b"t1", cancel)
    core.commit()
    core.commit()
    assert fates == [None, None]
    assert core.table.results.popitem()[1][1] == State.CANCELLED


def test_results_that_could_not_be_saved_are_saved_later_and_once(core: Core) -> None:
    core.connect("a0", 10)
    core.post(post(1), post(2))
    core.commit()
    core.report("a0", b"t1")
    core.commit("no room")
    core.report("a0", b"t2")
    assert "state=pending" not in core.post(post(1)).reply
    core.commit()
    assert [row[1] for row in core.table.results.values()] == [State.COMPLETE, State.COMPLETE]


# ── memory ────────────────────────────────────────────────────────────────────────────────


def test_a_finished_task_is_free(core: Core) -> None:
    core.connect("a0", 10_000)
    core.post(*(post(i) for i in range(600)))
    core.commit()
    refs = [weakref.ref(task) for task in core.engine.tasks.values() if isinstance(task, Task)]
    core.report("a0", *(b"t%d" % i for i in range(0, 600, 2)))
    for i in range(1, 600, 4):
        core.cancel(b"t%d" % i)
    core.commit()
    left = [task.id for ref in refs if (task := ref()) is not None]
    assert left == [b"t%d" % i for i in range(3, 600, 4)]


def test_a_scope_that_is_used_no_more_leaves_nothing(core: Core) -> None:
    core.connect("a0", 10)
    core.post(post(1, "type=url scope=a0 priority=1"))
    core.commit()
    (log,) = core.engine.logs
    core.engine.housekeeping()
    assert core.engine.logs == {log}
    core.report("a0", b"t1")
    core.engine.housekeeping()
    assert not core.engine.logs
    assert not log.layer.logs
    assert not core.proxies.sessions["a0"].link.cursors
    # And it begins anew.
    core.post(post(2, "type=url scope=a0 priority=1"))
    core.commit()
    core.report("a0", b"t2")
    core.commit()
    assert len(core.table.results) == 2


# ── the model ─────────────────────────────────────────────────────────────────────────────

REACHABLE = {
    before: {before} | {State(b) for a in TRANSITIONS[before] for b in (a, *TRANSITIONS[a])}
    for before in TRANSITIONS
}
FIELDS = st.builds(
    lambda kind, scope, priority, ttl, due: f"type={kind}{scope}{priority}{ttl}{due}",
    st.sampled_from(["url", "prefetch"]),
    st.sampled_from(["", "", "", " scope=a0", " scope=edge", " scope=a1,b0"]),
    st.sampled_from(["", "", " priority=9", " priority=0"]),
    st.sampled_from(["", "", " ttl=1", " ttl=3"]),
    st.sampled_from(["", "", "", f" due={NOW_S}", f" due={NOW_S + 2}", f" due={NOW_S + 3600}"]),
)


class Agent:
    """A proxy: it remembers what it was given over all connections, and does it in any order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.has: dict[bytes, None] = {}
        self.did: set[bytes] = set()


class Worker(RuleBasedStateMachine):
    """One worker under everything that may happen, kills included; the table and the agents live on."""

    SETTINGS: ClassVar[str] = ""
    ROUNDS: ClassVar[int] = 20
    """What is left at the end is done in so many."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.make_small()
        self.table, self.time = Table(), Time()
        self.agents = {proxy.name: Agent(proxy.name) for proxy in FLEET}
        self.numbers = itertools.count()
        self.clients: list[tuple[Client, list[bytes]]] = []
        self.lines: dict[bytes, bytes] = {}
        self.accepted: set[bytes] = set()
        self.cancelling: list[list[Task]] = []
        self.start()

    def make_small(self) -> None:
        """Bounds that a few tasks reach."""
        self.patch.setattr("refreshd.fanout.SEGMENT_TASKS", 4)

    def start(self) -> None:
        self.core = Core(self.patch, FLEET, self.table, self.SETTINGS, self.time)
        self.states: dict[int, State] = {}

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        try:
            self.everything_ends()
        finally:
            self.patch.undo()

    # ── clients ───────────────────────────────────────────────────────────────────────────

    @rule(fields=st.lists(FIELDS, min_size=1, max_size=6), count=st.sampled_from([1, 1, 1, 3]))
    def post(self, fields: list[str], count: int) -> None:
        lines = [post(next(self.numbers), some, count) for some in fields]
        self.send(lines)

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.lines)), min_size=1, max_size=3))
        self.send([self.lines[task_id] for task_id in ids])

    def send(self, lines: list[bytes]) -> None:
        ids = [line.split(b" ")[1].removeprefix(b"task_id=") for line in lines]
        self.lines |= dict(zip(ids, lines, strict=True))
        self.clients.append((self.core.post(*lines), ids))
        self.look_at_replies()

    def look_at_replies(self) -> None:
        for client, ids in self.clients:
            if client.replies is None:
                continue
            for task_id, reply in zip(ids, client.replies, strict=True):
                if reply.startswith(b"ok "):
                    assert self.table.serial_of(task_id) is not None, "acknowledged before it was saved"
                    self.accepted.add(task_id)
                else:
                    assert b"code=unavailable" in reply
        self.clients = [(client, ids) for client, ids in self.clients if client.replies is None]

    @precondition(lambda self: any(task.state is not State.NEW for task in self.core.engine.tasks.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        saved = [task.id for task in self.core.engine.tasks.values() if task.state is not State.NEW]
        self.cancelling.append(self.core.cancel(data.draw(st.sampled_from(saved))))

    # ── the store, time, the process ──────────────────────────────────────────────────────

    @rule(fails=st.sampled_from([False, False, False, True]))
    def commit(self, fails: bool) -> None:
        self.core.commit("no room" if fails else "")
        if not fails:
            self.look_at_replies()

    @rule(ms=st.sampled_from([100, 1000, 2000, 5000]))
    def pass_time(self, ms: int) -> None:
        self.core.pass_time(ms)

    @rule(seconds=st.sampled_from([-3600, -2, 2, 3600]))
    def jump(self, seconds: int) -> None:
        self.time.wall_ms += seconds * 1000
        self.core.pass_time(100)

    @rule()
    def keep_house(self) -> None:
        self.core.engine.housekeeping()

    @rule()
    def kill(self) -> None:
        self.clients.clear()
        self.cancelling.clear()
        self.start()

    # ── proxies ───────────────────────────────────────────────────────────────────────────

    @rule(name=st.sampled_from([proxy.name for proxy in FLEET]), credit=st.sampled_from([0, 1, 2, 5, 100]))
    def connect(self, name: str, credit: int) -> None:
        wire = Wire()
        wire.on_push = lambda task_id: self.pushed(name, task_id)
        self.core.connect(name, credit, wire)

    def pushed(self, name: str, task_id: bytes) -> None:
        task = self.core.engine.tasks[task_id]
        assert task.state is State.ACTIVE
        assert task.closing is None
        assert self.table.serial_of(task_id) == task.serial
        layers = dict(task.layer.plan.ranks)
        assert layers[name] is task.layer
        self.agents[name].has[task_id] = None

    @precondition(lambda self: self.core.proxies.sessions)
    @rule(data=st.data(), credit=st.integers(1, 5))
    def ready(self, data: st.DataObject, credit: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.core.proxies.sessions)))
        self.core.proxies.sessions[name].ready(credit)
        self.core.loop.run()

    @precondition(lambda self: self.core.proxies.sessions)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self.core.disconnect(data.draw(st.sampled_from(sorted(self.core.proxies.sessions))))

    @precondition(lambda self: self.core.proxies.sessions)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.core.proxies.sessions)))
        agent = self.agents[name]
        if agent.has:
            ids = data.draw(st.lists(st.sampled_from(list(agent.has)), min_size=1, max_size=8))
            self.done(agent, ids)

    def done(self, agent: Agent, ids: list[bytes]) -> None:
        agent.did.update(ids)
        assert self.core.report(agent.name, *ids) == f"ok n={len(ids)}\n"
        for task_id in ids:
            agent.has.pop(task_id, None)

    @precondition(lambda self: self.core.proxies.sessions)
    @rule(data=st.data(), state=st.sampled_from(["failed", "active"]))
    def report_one(self, data: st.DataObject, state: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.core.proxies.sessions)))
        agent = self.agents[name]
        if agent.has:
            task_id = data.draw(st.sampled_from(list(agent.has)))
            failed = data.draw(st.integers(0, self.lines[task_id].count(b"http://")))
            assert self.core.report(name, task_id, state=state, done=0, failed=failed) == "ok n=1\n"
            if state == "failed":
                del agent.has[task_id]

    # ── what holds ────────────────────────────────────────────────────────────────────────

    @invariant()
    def states_follow_the_table(self) -> None:
        for task in self.tasks():
            before = self.states.get(task.serial, State.NEW)
            assert task.state in REACHABLE[before], f"{before.name} → {task.state.name}"
            self.states[task.serial] = task.state
            done, failed = task.counts()
            assert min(done, failed) >= 0
            assert done + failed <= task.total

    def tasks(self) -> list[Task]:
        return list(self.core.engine.tasks.values()) if hasattr(self, "core") else []

    @invariant()
    def each_task_is_in_one_place(self) -> None:
        if not hasattr(self, "core"):
            return
        engine = self.core.engine
        lie: dict[int, Segment] = {}
        for log in engine.logs:
            for segment in log.segments():
                for place, task in enumerate(segment.tasks):
                    if task is not None:
                        assert task.serial not in lie
                        assert (task.segment, task.place) == (segment, place)
                        assert log.layer is task.layer
                        lie[task.serial] = segment
                # Every segment with something in it has a timer, and no other.
                assert (segment in engine.wheel._where) == (segment.live > 0)
        closing = [task.serial for task in self.core.saver.batch.closing]
        assert len(closing) == len(set(closing))
        new = {task.serial for task in self.core.saver.batch.tasks}
        for task in self.tasks():
            places = [
                task.serial in lie,
                task in engine.wheel._where,
                task.serial in closing,
                task.serial in new,
            ]
            assert places.count(True) == 1, (task, places)
            assert (task.closing is not None) == (task.serial in closing)
            assert (task.state is State.NEW) == (task.serial in new)
        # What is parked is found by that, also when it is in memory again.
        serials = [task.serial for task in self.tasks() if task.serial not in self.table.parked]
        assert serials == sorted(serials)

    @invariant()
    def credit_is_kept(self) -> None:
        if not hasattr(self, "core"):
            return
        for name, link in self.core.pusher.links.items():
            owed = 0
            for log, cursor in link.cursors.items():
                for segment in log.segments():
                    for task in segment.tasks:
                        if task is not None and cursor.has_passed(task) and task.owes(cursor.place):
                            assert task.id in self.agents[name].has
                            owed += task.count
            assert link.outstanding == owed
            assert owed <= max(link.credit, 3)

    def everything_ends(self) -> None:
        core = self.core
        for name in self.agents:
            self.connect(name, 1_000_000)
        for _ in range(self.ROUNDS):
            core.commit()
            core.read()
            self.look_at_replies()
            for agent in self.agents.values():
                if agent.has:
                    self.done(agent, list(agent.has))
        if core.engine.tasks:
            # What is left waits for its due time.
            self.time.wall_ms = max(self.time.wall_ms, START_WALL_MS) + 4 * 3_600_000
            for _ in range(self.ROUNDS):
                core.pass_time(100)
                core.commit()
                core.read()
                for agent in self.agents.values():
                    if agent.has:
                        self.done(agent, list(agent.has))
        assert not core.engine.tasks
        assert not self.table.parked
        assert not self.clients
        assert all(ended and ended[0].state in FINAL for ended in self.cancelling)
        assert len(core.engine.wheel) == 0
        core.engine.housekeeping()
        assert not core.engine.logs
        self.all_that_was_accepted_is_final()

    def all_that_was_accepted_is_final(self) -> None:
        assert self.accepted <= {task[0] for task in self.table.tasks.values()}
        for serial, (task_id, text, body) in self.table.tasks.items():
            _, state, done, failed, _, _ = self.table.results[serial]
            plan = Plan.from_text(text)
            total = plan.size * body.count(b"http://")
            assert done + failed == total or (state == State.CANCELLED and done + failed <= total)
            if state == State.COMPLETE:
                assert failed == 0
                assert all(task_id in self.agents[name].did for name, _ in plan.ranks)


class ParkingWorker(Worker):
    """The same where memory holds nothing that only waits for proxies that are away."""

    SETTINGS = "[engine]\npark_above = 0\n"
    ROUNDS = 100

    def make_small(self) -> None:
        super().make_small()
        for name, value in (("PARK_ROWS", 3), ("LOOK_TASKS", 8), ("EXPIRE_ROWS", 2), ("AWAY_AFTER_MS", 100)):
            self.patch.setattr(parking, name, value)
        self.patch.setattr(replay, "SLICE_TASKS", 3)
        self.patch.setattr(replay, "_SHARE_MIN", 1)

    @rule()
    def read(self) -> None:
        self.core.read()

    @precondition(lambda self: self.table.parked)
    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        """As when a parked task is cancelled or watched."""
        row = self.table.parked[data.draw(st.sampled_from(sorted(self.table.parked)))]
        if row.serial not in self.table.results:
            reader = TableReader(self.table)
            self.core.parking.take_in([reader._task(row)], set())
            self.core.loop.run()


TestParkingWorker = ParkingWorker.TestCase
TestWorker = Worker.TestCase
TestParkingWorker.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorker.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
