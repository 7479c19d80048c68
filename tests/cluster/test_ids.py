"""The same id posted at two engines at once is accepted once."""

from __future__ import annotations

from tests.cluster.site import AtOnce, Peer, Site
from tests.peer.raw import Reply

COUNT = 600
BATCH = 30


def _post_all(site: Site, engine: str, ids: list[str], target: str, replies: dict[str, Reply]) -> None:
    with site[engine].peer() as peer:
        for at in range(0, len(ids), BATCH):
            some = ids[at : at + BATCH]
            peer.write(*[f"post_task task_id={i} type=url due=4000000000 -- {target}{i}" for i in some])
            replies.update(zip(some, peer.replies(len(some)), strict=True))


def _kept(site: Site, stem: str) -> dict[str, str]:
    rows = site.ask(f"SELECT id, body FROM task WHERE id LIKE '{stem}%'")
    assert len(rows) == COUNT
    return {task_id.decode(): body.decode() for task_id, body in rows}


def test_the_same_content_is_accepted_once_and_a_repeat_everywhere_else(site: Site) -> None:
    ids = [f"same{number}" for number in range(COUNT)]
    target = "http://example.com/"
    one: dict[str, Reply] = {}
    other: dict[str, Reply] = {}
    AtOnce(
        lambda: _post_all(site, "e1", ids, target, one),
        lambda: _post_all(site, "e2", ids[::-1], target, other),
    )
    for task_id in ids:
        replies = (one[task_id], other[task_id])
        assert all(reply.ok for reply in replies), replies
        assert sorted(reply.fields.get("dup", "0") for reply in replies) == ["0", "1"], replies
    # Each has met the other's amid its way.
    assert {"0", "1"} == {reply.fields.get("dup", "0") for reply in one.values()}
    assert len(_kept(site, "same")) == COUNT


def test_another_content_is_a_conflict_whoever_comes_first(site: Site) -> None:
    ids = [f"other{number}" for number in range(COUNT)]
    targets = ("http://example.com/one/", "http://example.com/two/")
    one: dict[str, Reply] = {}
    other: dict[str, Reply] = {}
    AtOnce(
        lambda: _post_all(site, "e1", ids, targets[0], one),
        lambda: _post_all(site, "e2", ids[::-1], targets[1], other),
    )
    kept = _kept(site, "other")
    for task_id in ids:
        won, lost = (one, other) if one[task_id].ok else (other, one)
        assert (won[task_id].ok, lost[task_id].code) == (True, "conflict"), (one[task_id], other[task_id])
        assert "dup" not in won[task_id].fields
        assert targets[won is other] in kept[task_id]
    assert {True, False} == {reply.ok for reply in one.values()}
    # It stays so, at either engine.
    with site["e1"].peer() as e1, site["e2"].peer() as e2:
        _stays(e1, ids[0], kept[ids[0]], targets)
        _stays(e2, ids[0], kept[ids[0]], targets)


def _stays(peer: Peer, task_id: str, kept: str, targets: tuple[str, str]) -> None:
    for target in targets:
        reply = peer.ask(f"post_task task_id={task_id} type=url due=4000000000 -- {target}{task_id}")
        assert (reply.code == "conflict") != (target in kept)
        assert reply.fields.get("dup") == ("1" if target in kept else None)
