"""Replies come in the order of the requests, however they are cut, whoever answers them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.driver import Engine, FakeProxy, Peer
from tests.peer.raw import LISTINGS, owned_by
from tests.peer.snappy_frames import SnappyPeer


@pytest.fixture
def worker(engine: Engine, name: str) -> Iterator[FakeProxy]:
    with engine.proxy(name, credit=100_000) as proxy:
        yield proxy


def _mix(name: str, count: int) -> list[tuple[str, str]]:
    """Requests of every kind for both workers, each with what its reply must show."""
    chance = random.Random(count)
    mix = []
    for zero, one in zip(owned_by(0, name, count), owned_by(1, name, count), strict=True):
        for task_id in (zero, one):
            mix.append((f"post_task task_id={task_id} type=url scope={name} -- http://a.example/", task_id))
            mix.append((f"get_task task_id={task_id}", task_id))
            mix.append((f"get_task task_id=no-{task_id}", "not_found"))
        mix.append(("ping", "now"))
        mix.append(("list_tasks limit=2", "n"))
        mix.append(("nonsense", "unknown_verb"))
        mix.append(("ping\tping", "bad_line"))
        mix.append((f"post_task task_id={zero} type=url scope={name} -- http://b.example/", "conflict"))
    # Requests stay in their order, but for some that move: a reply then belongs to an unknown task or a dup.
    for _ in range(count):
        mix.append((f"get_task task_id=no-{chance.random()}", "not_found"))
    return mix


def _check(peer: Peer, mix: list[tuple[str, str]]) -> None:
    for request, wanted in mix:
        reply = peer.reply(listing=request.split(" ")[0] in LISTINGS)
        shown = reply.code or reply.fields.get("task_id") or next(iter(reply.fields))
        assert shown == wanted or reply.code == "busy", (request, reply)


def test_a_mix_in_one_write(engine: Engine, peer: Peer, worker: FakeProxy, name: str) -> None:
    mix = _mix(name, 40)
    peer.write(*[request for request, _ in mix])
    _check(peer, mix)


def test_a_mix_in_pieces_cut_anywhere(engine: Engine, peer: Peer, worker: FakeProxy, name: str) -> None:
    mix = _mix(name, 10)
    data = "".join(f"{request}\n" for request, _ in mix).encode()
    chance = random.Random(1)
    while data:
        size = chance.choice((1, 2, 3, 50, 500))
        peer.write_bytes(data[:size])
        data = data[size:]
    _check(peer, mix)


@pytest.mark.parametrize("first", ["", "hello v=1 role=client worker=1", "hello v=1 role=client worker=0"])
def test_whole_and_byte_by_byte_are_answered_alike(
    engine: Engine, worker: FakeProxy, name: str, first: str
) -> None:
    """Also a greeting that moves the connection to the other worker in the middle of the bytes."""
    requests = [first] if first else []
    requests += [
        "ping",
        "",
        "get_task task_id=nobody",
        f"ping x={chr(0xE4)}\\s\\\\",
        "ping\r",
        "a b",
        "stats x",
    ]
    requests += [
        f"post_task task_id={i} type=url scope={name} due=4000000000 -- http://a/" for i in ("ID", "ID")
    ]
    requests += ["list_tasks after=nobody", "cancel_task task_id=ID"]
    answers = []
    for pieces in (1 << 20, 1):
        text = "\n".join(requests).replace("ID", f"{name}-{pieces}") + "\n"
        data = text.encode()
        with engine.peer() as peer:
            for at in range(0, len(data), pieces):
                peer.write_bytes(data[at : at + pieces])
            replies = peer.replies(len(requests))
            answers.append([(reply.code, sorted(reply.fields)) for reply in replies])
            assert not first or replies[0]["worker"] == first[-1]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("compressed", [True, False])
def test_snappy_both_ways(engine: Engine, worker: FakeProxy, name: str, compressed: bool) -> None:
    mix = _mix(name, 20)
    with SnappyPeer(engine.address(), "role=client worker=1", compressed=compressed) as peer:
        assert peer.hello["worker"] == "1"
        peer.write(*[request for request, _ in mix])
        _check(peer, mix)
        big = "http://a.example/" + "x" * 200_000
        peer.ok(f"post_task task_id={name}-big type=url scope={name} -- {big}")


def test_snappy_cut_anywhere(engine: Engine) -> None:
    with SnappyPeer(engine.address()) as peer:
        sent: list[bytes] = []
        peer.write_raw = sent.append  # type: ignore[method-assign, assignment]
        peer.write("ping", "nonsense", "ping")
        del peer.write_raw
        for byte in b"\xff\x06\x00\x00sNaPpY" + sent[0]:
            peer.socket.sendall(bytes([byte]))
        assert [reply.code for reply in peer.replies(3)] == ["", "unknown_verb", ""]


def test_pushes_follow_the_reply_to_their_watch(
    engine: Engine, peer: Peer, worker: FakeProxy, name: str
) -> None:
    """Though the proxy is done before the reply could leave."""
    ids = owned_by(0, name, 100) + owned_by(1, name, 100)
    lines = []
    for task_id in ids:
        lines.append(f"post_task task_id={task_id} type=url scope={name} -- http://a.example/")
        lines.append(f"watch_task task_id={task_id}")
    peer.write(*lines)
    watched: set[str] = set()
    ended: set[str] = set()
    replies = 0
    while replies < len(lines) or ended < watched:
        line = peer.line()
        task_id = line.fields["task_id"]
        if line.verb == "!state":
            assert task_id in watched, f"{line} before the reply to its watch_task"
        elif "created" in line.fields:
            watched.add(task_id)
        replies += line.verb == "ok"
        if line.fields["state"] == "complete":
            ended.add(task_id)
    assert watched == set(ids)


def test_a_client_may_send_as_much_as_it_likes_before_it_reads(
    engine: Engine, peer: Peer, worker: FakeProxy, name: str
) -> None:
    ids = [f"{name}-{i}" for i in range(20_000)]
    peer.socket.settimeout(60)
    peer.write(
        *[f"post_task task_id={i} type=url scope={name} due=4000000000 -- http://a.example/" for i in ids]
    )
    assert [reply["task_id"] for reply in peer.replies(len(ids))] == ids


def test_escapes_in_replies_are_those_of_the_page(peer: Peer) -> None:
    r"""The message quotes what was sent: backslash, space, and what is not printable, escaped or replaced."""
    reply = peer.ask(r"get_task task_id=a\s\\\t\n\rb")
    assert reply.code == "bad_field"
    assert "\n" in reply["msg"] or "\\n" in reply["msg"]
    assert peer.code(r"ping x=\s\t\n\r\\") == ""
    for bad in (r"ping x=\x", "ping x=\\", r"ping x=\\\ ", r"ping -- \q", r"ping -- a\ "):
        assert peer.code(bad) == "bad_line", bad


def test_dashes(peer: Peer) -> None:
    for line in ("ping --", "ping -- a", "ping -- -- --", "ping -- x=1", "ping a=-- b=1", "ping a=--"):
        assert peer.ask(line).ok, line
    for line in ("ping -", "ping --a", "ping -- ", "ping --  a", "ping  -- a", "ping -- a  b", "-- a", "--"):
        assert peer.code(line) == "bad_line", line
