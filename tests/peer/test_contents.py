"""What makes two posts the same task (PROTOCOL.md: the order of fields and targets is part of nothing)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.driver import Engine, Peer
from tests.peer.raw import owned_by

TARGETS = "http://a.example/1 http://a.example/2 http://b.example/"
FULL = (
    "task_id={id} type=url scope=edge,{p} due=4000000000 ttl=60 priority=3 callback=http://c.example/ force=1"
    " verify=1 then=prefetch"
)

SAME = {
    "the same bytes": f"post_task {FULL} -- {TARGETS}",
    "a CR at the end": f"post_task {FULL} -- {TARGETS}\r",
    "fields in another order": "post_task then=prefetch verify=1 force=1 callback=http://c.example/ "
    f"priority=3 ttl=60 due=4000000000 scope=edge,{{p}} type=url task_id={{id}} -- {TARGETS}",
    "targets in another order": f"post_task {FULL} -- http://b.example/ http://a.example/2 http://a.example/1",
    "scope in another order": f"post_task {FULL.replace('edge,{p}', '{p},edge')} -- {TARGETS}",
    "an unknown field": f"post_task {FULL} colour=red -- {TARGETS}",
    "unknown fields with escapes": rf"post_task colour=\s\\\n {FULL} -- {TARGETS}",
}
OTHER = {
    "another target": f"post_task {FULL} -- {TARGETS}x",
    "one target less": f"post_task {FULL} -- http://a.example/1 http://a.example/2",
    "one target twice": f"post_task {FULL} -- {TARGETS} http://b.example/",
    "another type": f"post_task {FULL.replace('type=url', 'type=dir').replace(' then=prefetch', '')} "
    "-- http://a.example/",
    "another scope": f"post_task {FULL.replace('edge,{p}', '{p}')} -- {TARGETS}",
    "another due": f"post_task {FULL.replace('4000000000', '4000000001')} -- {TARGETS}",
    "no due": f"post_task {FULL.replace(' due=4000000000', '')} -- {TARGETS}",
    "another ttl": f"post_task {FULL.replace('ttl=60', 'ttl=61')} -- {TARGETS}",
    "another priority": f"post_task {FULL.replace('priority=3', 'priority=4')} -- {TARGETS}",
    "another callback": f"post_task {FULL.replace('c.example', 'd.example')} -- {TARGETS}",
    "no verify": f"post_task {FULL.replace(' verify=1', '')} -- {TARGETS}",
    "nothing follows": f"post_task {FULL.replace(' then=prefetch', '')} -- {TARGETS}",
    "no force": f"post_task {FULL.replace(' force=1', '')} -- {TARGETS}",
}


@pytest.fixture(params=[0, 1], ids=["at worker 0", "at worker 1"])
def posted(request: pytest.FixtureRequest, engine: Engine, peer: Peer, name: str) -> Iterator[dict[str, str]]:
    """A task, and what to put for {id} and {p} to name it."""
    with engine.proxy_peer(name, 0, "group=edge"):
        words = {"id": owned_by(request.param, name)[0], "p": name}
        peer.ok(f"post_task {FULL} -- {TARGETS}".format(**words))
        yield words
        peer.ok("cancel_task task_id={id}".format(**words))


def test_the_same_content_is_a_dup(peer: Peer, posted: dict[str, str]) -> None:
    for what, line in SAME.items():
        reply = peer.ask(line.format(**posted))
        assert reply.ok, f"{what}: {reply}"
        assert (reply["task_id"], reply["state"], reply["dup"]) == (posted["id"], "pending", "1"), what


def test_another_content_is_a_conflict(peer: Peer, posted: dict[str, str]) -> None:
    for what, line in OTHER.items():
        assert peer.code(line.format(**posted)) == "conflict", what


def test_defaults_are_the_same_as_what_they_stand_for(peer: Peer, engine: Engine, name: str) -> None:
    with engine.proxy_peer(name, 0):
        (task_id,) = owned_by(0, name)
        short = f"post_task task_id={task_id} type=url scope={name} due=4000000000 -- http://a.example/"
        peer.ok(short)
        long = short.replace(" -- ", " ttl=86400 priority=5 force=0 verify=0 -- ")
        assert peer.ok(long)["dup"] == "1"


def test_dup_and_conflict_in_one_write_with_the_first(peer: Peer, engine: Engine, name: str) -> None:
    """Before the first one is on the disk."""
    with engine.proxy_peer(name, 0):
        for task_id in owned_by(0, name) + owned_by(1, name):
            post = f"post_task task_id={task_id} type=url scope={name} due=4000000000 -- http://a.example/"
            peer.write(
                post, post, post + "x", f"get_task task_id={task_id}", f"cancel_task task_id={task_id}"
            )
            first, dup, other, task, cancelled = peer.replies(5)
            assert "dup" not in first.fields
            assert dup["dup"] == "1"
            assert other.code == "conflict"
            assert task["state"] == "pending"
            assert cancelled["state"] == "cancelled"


def test_contents_are_kept_over_a_restart(own_engine: Engine) -> None:
    engine = own_engine
    with engine.proxy("p", greeting="group=edge"):
        words = {"id": "kept", "p": "p"}
        with engine.peer() as peer:
            peer.ok(SAME["unknown fields with escapes"].format(**words))
        engine.restart()
        with engine.peer() as peer:
            for line in SAME.values():
                assert peer.ok(line.format(**words))["dup"] == "1"
            for line in OTHER.values():
                assert peer.code(line.format(**words)) == "conflict"
