"""Pushing: credit, full buffers, cancels, and what siblings give to push."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from refreshd.fleet import Proxy
from refreshd.worker import pusher as module
from refreshd.worker.links import RELAY_CREDIT, Relayed
from tests.refreshd.worker.core import Core, Wire

ONE = [Proxy("a0", "g", 0, True)]


@pytest.fixture
def core() -> Iterator[Core]:
    with pytest.MonkeyPatch.context() as patch:
        yield Core(patch, ONE)


def post(core: Core, *ids: bytes, count: int = 1) -> None:
    targets = b" ".join(b"http://a/%d" % i for i in range(count))
    core.post(*(b"post_task task_id=%b type=url -- %b" % (task_id, targets) for task_id in ids))
    core.commit()


def test_credit_is_spent_and_comes_back_with_reports(core: Core) -> None:
    wire = Wire()
    session = core.connect("a0", 2, wire)
    post(core, b"a", b"b", b"c", b"d")
    assert wire.pushed == [b"a", b"b"]
    core.report("a0", b"a")
    assert wire.pushed == [b"a", b"b", b"c"]
    session.ready(1)
    core.loop.run()
    assert wire.pushed == [b"a", b"b", b"c", b"d"]
    assert (session.link.outstanding, session.link.credit) == (3, 3)


def test_a_new_connection_is_given_all_that_is_owed(core: Core) -> None:
    first, second = Wire(), Wire()
    core.connect("a0", 2, first)
    post(core, b"a", b"b", b"c")
    core.report("a0", b"a")
    core.connect("a0", 10, second)
    assert second.pushed == [b"b", b"c"]
    core.report("a0", b"b", b"c")
    assert core.proxies.sessions["a0"].link.outstanding == 0


def test_a_buffer_that_is_full_waits_and_others_do_not(core: Core) -> None:
    core.fleet.add(Proxy("a1", "g", 0, True))
    core.engine.fleet_changed()
    slow, quick = Wire(), Wire()
    slow.full = True
    session = core.connect("a0", 10, slow)
    core.connect("a1", 10, quick)
    post(core, b"a", b"b")
    assert (slow.pushed, quick.pushed) == ([], [b"a", b"b"])
    slow.full = False
    core.pusher.due(session.link)
    core.loop.run()
    assert slow.pushed == [b"a", b"b"]


def test_a_long_backlog_goes_out_in_pieces(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WRITE_MAX_BYTES", 500)
    for i in range(5):
        post(core, *(b"t%d-%d" % (i, j) for j in range(200)))
    writes: list[int] = []

    class Measured(Wire):
        def send(self, data: bytes) -> None:
            writes.append(len(data))
            super().send(data)

    wire = Measured()
    core.connect("a0", 10_000, wire)
    assert len(wire.pushed) == len(set(wire.pushed)) == 1000
    assert len(writes) > 3


def test_a_log_that_is_gone_is_not_read(core: Core) -> None:
    core.connect("a0", 10)
    post(core, b"a")
    core.report("a0", b"a")
    core.engine.housekeeping()
    assert not core.engine.logs
    wire = core.proxies.sessions["a0"].link.wire
    post(core, b"b")
    assert isinstance(wire, Wire)
    assert wire.pushed == [b"a", b"b"]


def test_many_cancels_go_out_in_few_lines(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CANCELS_A_LINE", 3)
    wire = Wire()
    core.connect("a0", 100, wire)
    ids = [b"t%d" % i for i in range(7)]
    post(core, *ids)
    for task_id in ids:
        core.engine.cancel(core.engine.tasks[task_id], lambda _: None)
    core.loop.run()
    assert wire.cancelled == ids
    assert core.proxies.sessions["a0"].link.outstanding == 0


# ── pushes of siblings ────────────────────────────────────────────────────────────────────


def relayed(task_id: bytes, targets: int = 1, slot: int = 1) -> Relayed:
    return Relayed(task_id, targets, b"!task task_id=%b type=url -- http://a/\n" % task_id, slot)


def test_pushes_of_siblings_take_credit_too(core: Core) -> None:
    wire = Wire()
    session = core.connect("a0", 2, wire)
    core.pusher.relay(session.link, [relayed(b"x"), relayed(b"y"), relayed(b"z")])
    post(core, b"own")
    assert wire.pushed == [b"x", b"y"]
    core.report("a0", b"x", b"y")
    assert wire.pushed == [b"x", b"y", b"z", b"own"]
    # It comes again, as a sibling was replaced: it is outstanding once.
    core.report("a0", b"own")
    core.pusher.relay(session.link, [relayed(b"z")])
    core.loop.run()
    assert wire.pushed[-1] == b"z"
    assert session.link.outstanding == 1
    core.report("a0", b"z")
    assert session.link.outstanding == 0


def test_a_sibling_that_died(core: Core) -> None:
    wire = Wire()
    session = core.connect("a0", 1, wire)
    core.pusher.relay(session.link, [relayed(b"x"), relayed(b"y"), relayed(b"other", slot=2)])
    core.loop.run()
    core.pusher.forget_sibling(1)
    core.report("a0", b"x")
    assert wire.pushed == [b"x", b"other"]


def test_what_came_from_a_sibling_and_is_ours_now_counts_no_more(core: Core) -> None:
    wire = Wire()
    session = core.connect("a0", 2, wire)
    core.pusher.relay(session.link, [relayed(b"x"), relayed(b"y"), relayed(b"z"), relayed(b"w")])
    core.loop.run()
    assert wire.pushed == [b"x", b"y"]
    core.pusher.own([b"x", b"z", b"unheard of"])
    core.loop.run()
    assert wire.pushed == [b"x", b"y", b"w"]
    assert session.link.outstanding == 2
    assert set(session.link.relayed) == {b"y", b"w"}


def test_a_sibling_cancels(core: Core) -> None:
    wire = Wire()
    session = core.connect("a0", 1, wire)
    core.proxies.relay(
        1, "a0", b"!task task_id=x type=url -- http://a/\n!task task_id=y type=url -- http://a/\n"
    )
    core.loop.run()
    core.proxies.relay(1, "a0", b"!cancel -- x y\n")
    core.loop.run()
    assert (wire.pushed, sorted(wire.cancelled)) == ([b"x"], [b"x", b"y"])
    assert session.link.outstanding == 0
    assert not session.link.relay


def test_a_proxy_is_reached_through_a_sibling(core: Core) -> None:
    core.proxies.sibling_link(1, "a0", up=True)
    post(core, b"a")
    ((slot, name, data),) = core.mesh.relayed
    assert (slot, name) == (1, "a0")
    assert data == b"!task task_id=a type=url -- http://a/0\n"
    link = core.pusher.links["a0"]
    assert (link.credit, link.outstanding) == (RELAY_CREDIT, 1)
    core.proxies.report_passed_on(b"report proxy=a0 state=done -- a")
    assert link.outstanding == 0
    post(core, b"b")
    # Its own connection is better; what the sibling had is given again.
    wire = Wire()
    core.connect("a0", 10, wire)
    assert wire.pushed == [b"b"]
    core.disconnect("a0")
    core.loop.run()
    assert core.mesh.relayed[-1][2].startswith(b"!task task_id=b ")
    core.proxies.sibling_left(1)
    assert "a0" not in core.pusher.links
