"""Receipts and questions of proxies (PROTOCOL.md): what is kept, what is refused, what nobody waits for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from tests.driver import Engine, Peer, Reply, wait_until
from tests.peer.raw import Gone, owned_by

KIB = 1024


def receipt(proxy: str, task: str, note: str = "") -> str:
    """One whose signature nobody has made: an engine looks at none."""
    payload = json.dumps({"proxy": proxy, "task": task, "note": note})
    return json.dumps({"payload": payload, "key": "ab" * 32, "sig": "cd" * 64})


def item(text: str) -> str:
    return text.replace("\\", "\\\\").replace(" ", "\\s").replace("\n", "\\n")


def give(proxy: Peer, task: str, text: str) -> Reply:
    return proxy.ask(f"receipt task_id={task} -- {item(text)}")


def kept(peer: Peer, task: str) -> dict[str, str]:
    """Proxy → receipt, of all pages."""
    found: dict[str, str] = {}
    after = ""
    while True:
        reply = peer.ok(f"task_receipt task_id={task}{after}")
        found |= {row["proxy"]: row["receipt"] for row in reply.rows}
        assert all(row["bytes"] == str(len(row["receipt"].encode())) for row in reply.rows)
        if reply.fields.get("more") != "1" or not reply.rows:
            return found
        after = f" after={reply.rows[-1]['proxy']}"


# ── receipts ──────────────────────────────────────────────────────────────────────────────


def test_an_engine_says_that_it_takes_them_to_proxies_only(engine: Engine, name: str) -> None:
    with Peer(engine.address()) as proxy, Peer(engine.address()) as client:
        assert proxy.ok(f"hello v=1 role=proxy name={name} receipt_key={'0f' * 32}")["receipts"] == "1"
        assert "receipts" not in client.ok("hello v=1 role=client").fields
        rows = {row["proxy"]: row for row in engine.admin("list_proxies").rows}
        assert rows[name]["receipt_key"] == "0f" * 32
        with Peer(engine.address()) as odd:
            assert odd.code("hello v=1 role=proxy name=x receipt_key=0F") == "bad_field"


@pytest.mark.parametrize("connection", [0, 1])
@pytest.mark.parametrize("owner", [0, 1])
def test_one_is_kept_on_whichever_connection_it_comes(
    peer: Peer, proxies: list[Peer], name: str, owner: int, connection: int
) -> None:
    for proxy in proxies:
        proxy.ok("ready credit=10")
    (task,) = owned_by(owner, f"{name}{connection}", 1)
    peer.post(task, f"type=url verify=1 scope={name}")
    assert kept(peer, task) == {}
    first, second = receipt(name, task), receipt(name, task, "ä \\ \n later")
    assert give(proxies[connection], task, first).fields == {}
    wait_until(lambda: kept(peer, task) == {name: first}, "the first is kept")
    give(proxies[connection], task, second)
    proxies[connection].ok(f"report state=done -- {task}")
    wait_until(lambda: peer.state(task) == "complete", "it is complete")
    assert kept(peer, task) == {name: second}
    # What comes once it is final changes nothing.
    give(proxies[connection], task, first)
    assert kept(peer, task) == {name: second}
    assert peer.code("task_receipt task_id=none") == "not_found"
    assert proxies[0].code(f"task_receipt task_id={task}") == "denied"
    assert peer.code(f"receipt task_id={task} -- {item(first)}") in ("auth", "denied")


def test_what_is_no_receipt_is_refused_clearly(peer: Peer, proxies: list[Peer], name: str) -> None:
    (task,) = owned_by(0, name, 1)
    peer.post(task, f"type=url scope={name}")
    proxy = proxies[0]
    good = receipt(name, task)
    for text in (
        "rubbish",
        "{}",
        "[]",
        receipt("another", task),
        receipt(name, "another"),
        good.replace("ab" * 32, "AB" * 32),
        good.replace("cd" * 64, "cd" * 63),
        receipt(name, task, "x" * 256 * KIB),
    ):
        reply = give(proxy, task, text)
        assert (reply.code, reply["field"]) == ("bad_field", "receipt"), text[:100]
        assert len(reply["msg"]) < 500
    assert proxy.code(f"receipt task_id={task}") == "missing_field"
    assert proxy.code(f"receipt task_id={task} -- {item(good)} {item(good)}") == "bad_field"
    assert proxy.code(f"receipt -- {item(good)}") == "missing_field"
    assert give(proxy, "nobodys", receipt(name, "nobodys")).ok
    assert kept(peer, task) == {}
    proxy.write(f"receipt task_id={task} -- {'x' * (2 << 20)}")
    assert proxy.reply().code == "too_long"
    with pytest.raises(Gone):
        proxy.line()


def test_many_large_ones_come_by_pages(engine: Engine, peer: Peer, name: str) -> None:
    names = [f"{name}.{number:02}" for number in range(12)]
    proxies = [engine.proxy_peer(each, 0, f"group={name}") for each in names]
    try:
        (task,) = owned_by(1, name, 1)
        peer.post(task, f"type=url scope={name}")
        texts = {each: receipt(each, task, "x" * 120_000) for each in names}
        for proxy, each in zip(proxies, names, strict=True):
            assert give(proxy, task, texts[each]).ok
        wait_until(lambda: len(kept(peer, task)) == 12, "all are kept")
        assert kept(peer, task) == texts
        first = peer.ok(f"task_receipt task_id={task}")
        assert first["more"] == "1"
        assert 0 < len(first.rows) < 12
    finally:
        for proxy in proxies:
            proxy.close()


def test_they_survive_a_reload_an_upgrade_and_a_kill(own_engine: Engine) -> None:
    engine = own_engine
    tasks = owned_by(0, "k", 3) + owned_by(1, "k", 3)
    with engine.proxy_peer("p", 0, "verify=1") as proxy, engine.peer() as peer:
        proxy.ok("ready credit=100")
        for task in tasks:
            peer.post(task, "type=url verify=1")
        engine.roll("reload")
        for task in tasks[::2]:
            assert give(proxy, task, receipt("p", task)).ok
        engine.roll("upgrade")
        for task in tasks[1::2]:
            assert give(proxy, task, receipt("p", task)).ok
        assert [kept(peer, task) for task in tasks] == [{"p": receipt("p", task)} for task in tasks]
        proxy.ok("report state=done -- " + " ".join(tasks))
        wait_until(lambda: all(peer.state(task) == "complete" for task in tasks), "all are complete")
    engine.restart()
    with engine.peer() as peer:
        assert [kept(peer, task) for task in tasks] == [{"p": receipt("p", task)} for task in tasks]
        for task in tasks:
            assert peer.ok(f"task_detail task_id={task}").rows[0]["verified"] == "1"


def test_what_was_seen_is_told_apart_from_what_was_said(engine: Engine, peer: Peer, name: str) -> None:
    """Only of a proxy that knows what verify=1 means, of such a task, and only if all went well."""
    fields = f"group={name}"
    with (
        engine.proxy_peer(f"{name}.new", 0, f"{fields} verify=1") as new,
        engine.proxy_peer(f"{name}.bad", 0, f"{fields} verify=1") as bad,
        engine.proxy_peer(f"{name}.old", 0, fields) as old,
    ):
        asked_for = [*owned_by(0, name, 2), *owned_by(1, name, 2)]
        plain = owned_by(0, f"{name}x", 1)
        for task in asked_for + plain:
            peer.post(task, f"type=url scope={name}" + (" verify=1" if task in asked_for else ""))
        for proxy in (new, bad, old):
            proxy.ok("ready credit=100")
        new.ok("report state=done ms=0 -- " + " ".join(asked_for[::2]))
        new.ok("report state=done -- " + " ".join([*asked_for[1::2], *plain]))
        old.ok("report state=done ms=12 -- " + " ".join(asked_for + plain))
        for task in asked_for + plain:
            bad.ok(f"report state=failed task_id={task} done=0 failed=1 error=old\\scopy")
        for task in asked_for + plain:
            wait_until(lambda task=task: peer.state(task) == "failed", "it has ended")
            rows = {row["proxy"]: row for row in peer.ok(f"task_detail task_id={task}").rows}
            wanted = "1" if task in asked_for else None
            assert rows[f"{name}.new"].get("verified") == wanted
            assert "verified" not in rows[f"{name}.old"]
            assert "verified" not in rows[f"{name}.bad"]
            assert (rows[f"{name}.old"]["ms"], rows[f"{name}.old"]["state"]) == ("12", "complete")
            assert rows[f"{name}.new"]["ms"].isdigit()


# ── questions ─────────────────────────────────────────────────────────────────────────────


@contextmanager
def asked(engine: Engine, question: str) -> Iterator[Future[Reply]]:
    """An operator who waits for the answers."""
    future: Future[Reply] = Future()
    with Peer(str(engine.data / "admin.sock")) as admin:
        thread = threading.Thread(target=lambda: future.set_result(admin.ask(f"ask_proxies {question}")))
        thread.start()
        try:
            yield future
        finally:
            thread.join()


def states(reply: Reply) -> dict[str, str]:
    return {row["proxy"]: row["state"] for row in reply.rows}


def test_every_one_that_can_is_asked_once(engine: Engine, name: str) -> None:
    fields = f"group={name} asks=1"
    with (
        engine.proxy_peer(f"{name}.a", 0, f"{fields} layer=1") as a,
        engine.proxy_peer(f"{name}.b", 1, fields) as b,
        engine.proxy_peer(f"{name}.b", 0, fields) as b_again,
        engine.proxy_peer(f"{name}.c", 0, f"group={name}") as old,
        engine.proxy_peer(f"{name}.d", 0, fields) as silent,
        engine.proxy_peer(f"{name}.e", 1, fields) as other_worker,
        asked(
            engine, f"what=explain type=url scope={name} force=1 then=prefetch -- http://a/b http://c/d"
        ) as said,
    ):
        push = a.push()
        assert (push.verb, push.items) == ("!ask", ["http://a/b", "http://c/d"])
        number = push.fields.pop("ask")
        assert push.fields == {"what": "explain", "type": "url", "force": "1", "then": "prefetch"}
        # Of two connections, one.
        both = [b, b_again]
        wait_until(lambda: any(not each.is_quiet(0.05) for each in both), "b is asked")
        at = next(each for each in both if not each.is_quiet(0.05))
        assert all(each.is_quiet(0.05) for each in both if each is not at)
        assert old.is_quiet(0.05)
        assert a.ok(f"answer ask={number} -- " + item('{"targets": [1]}')).fields == {}
        assert at.ok(f"answer ask={at.push().fields['ask']} -- {{}}")
        # One of them is asked through another worker than the one that the operator is connected to.
        assert other_worker.ok(f'answer ask={other_worker.push().fields["ask"]} -- {{"by":1}}')
        # Twice, of a question that is not there, of rubbish.
        assert a.ok(f"answer ask={number} -- {{}}").ok
        assert a.ok("answer ask=123456789 -- {}").ok
        for bad in ("rubbish", "[1]", "{} {}", '"' * 100, "[" * 100_000):
            assert silent.code(f"answer ask={number} -- {bad}") == "bad_field"
        assert silent.code("answer ask=0 -- {}") == "bad_field"
        assert silent.code("answer -- {}") == "missing_field"
        assert silent.code(f'answer ask={number} -- {{"x":"{"y" * 256 * KIB}"}}') == "bad_field"
        reply = said.result(10)
    assert states(reply) == {
        f"{name}.a": "answered", f"{name}.b": "answered", f"{name}.c": "unable", f"{name}.d": "silent",
        f"{name}.e": "answered",
    }  # fmt: skip
    rows = {row["proxy"]: row for row in reply.rows}
    assert (rows[f"{name}.a"]["layer"], rows[f"{name}.a"]["group"]) == ("1", name)
    assert json.loads(rows[f"{name}.a"]["answer"]) == {"targets": [1]}
    assert "answer" not in rows[f"{name}.d"]
    assert [row["layer"] for row in reply.rows] == ["0", "0", "0", "0", "1"]


def test_a_question_needs_no_credit_and_stops_no_push(engine: Engine, peer: Peer, name: str) -> None:
    with engine.proxy_peer(name, 0, "asks=1") as proxy:
        first, second = owned_by(0, name, 2)
        proxy.ok("ready credit=1")
        peer.post(first, f"type=url scope={name}")
        peer.post(second, f"type=url scope={name}")
        assert proxy.push().fields["task_id"] == first
        assert proxy.is_quiet(0.1), "the credit is used up"
        with asked(engine, f"what=caches scope={name}") as said:
            push = proxy.push()
            assert (push.verb, push.fields["what"], push.items) == ("!ask", "caches", [])
            # While it is not answered, all else goes on.
            proxy.ok(f"report state=done -- {first}")
            assert proxy.push().fields["task_id"] == second
            proxy.ok(f"report state=done -- {second}")
            proxy.ok(f'answer ask={push.fields["ask"]} -- {{"caches":[]}}')
            assert states(said.result(10)) == {name: "answered"}
    wait_until(lambda: peer.state(second) == "complete", "it is complete")


def test_what_cannot_be_asked_is_refused(engine: Engine, name: str) -> None:
    with engine.proxy_peer(name, 0, "asks=1") as proxy, Peer(str(engine.data / "admin.sock")) as admin:
        admin.ok("stats")
        for question, code, field in (
            ("", "missing_field", "what"),
            ("what=weather", "bad_field", "what"),
            ("what=explain", "missing_field", "type"),
            ("what=explain type=url", "missing_field", "target"),
            ("what=explain type=url -- ftp://x", "bad_field", "target"),
            ("what=explain type=dir then=prefetch -- http://a/", "bad_field", "then"),
            ("what=explain type=url -- " + " ".join(["http://a/"] * 101), "bad_field", "target"),
            ("what=explain type=url -- http://a/" + "x" * 70_000, "bad_field", "target"),
            ("what=caches -- http://a/", "bad_field", "target"),
            ("what=caches scope=nobody", "bad_field", "scope"),
        ):
            reply = admin.ask(f"ask_proxies {question}".rstrip())
            assert (reply.code, reply["field"]) == (code, field), question
        with engine.peer() as client:
            assert client.code("ask_proxies what=caches") == "denied"
        assert proxy.is_quiet(0.05)


def test_no_more_than_a_few_at_a_time_and_each_ends(engine: Engine, name: str) -> None:
    with (
        engine.proxy_peer(name, 0, "asks=1"),
        engine.proxy_peer(f"{name}.old", 0),
        Peer(str(engine.data / "admin.sock")) as admin,
    ):
        admin.ok("stats")
        began = time.monotonic()
        admin.write(*[f"ask_proxies what=caches scope={name}"] * 5)
        replies = [admin.reply(listing=True) for _ in range(5)]
        assert [reply.ok for reply in replies] == [True] * 4 + [False]
        assert replies[4].code == "busy"
        assert [states(reply) for reply in replies[:4]] == [{name: "silent"}] * 4
        assert time.monotonic() - began >= 3
        assert states(admin.ok(f"ask_proxies what=caches scope={name}.old")) == {f"{name}.old": "unable"}


def test_a_reload_waits_for_no_answer() -> None:
    patience = {"refreshd.worker.asking": {"ASK_S": 60}}
    with (
        Engine(constants=patience) as engine,
        engine.proxy_peer("p", 0, "asks=1") as proxy,
        asked(engine, "what=caches") as said,
    ):
        number = proxy.push().fields["ask"]
        engine.roll("reload")
        reply = said.result(20)
        assert states(reply) == {"p": "silent"}
        # The new process does not take it for an answer to what it has asked itself.
        with asked(engine, "what=caches") as again:
            push = proxy.push()
            assert push.fields["ask"] != number
            assert proxy.ok(f'answer ask={number} -- {{"old":1}}').ok
            assert proxy.ok(f'answer ask={push.fields["ask"]} -- {{"new":1}}').ok
            assert json.loads(again.result(20).rows[0]["answer"]) == {"new": 1}
