"""The greeting: workers, signatures, nonces, domains (PROTOCOL.md, "Greeting")."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import Engine, Peer
from tests.peer.raw import owned_by
from tests.peer.snappy_frames import SnappyPeer

SECRETS = {"acme": b"k1-secret", "free": b"another"}
_nonces = itertools.count()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """It wants signatures; `acme` is bound to two domains, `free` to none."""
    folder: Path = tmp_path_factory.mktemp("secrets")
    more = ""
    for key, secret in SECRETS.items():
        (folder / key).write_bytes(secret + b"\n")
        domains = '["example.com", "shop.example.org"]' if key == "acme" else "[]"
        more += f'[[key]]\nname = "{key}"\nsecret_file = "{folder / key}"\ndomains = {domains}\n'
    with Engine(settings='auth = "required"', more=more, proxies=["p1"]) as engine:
        yield engine
        assert "Traceback" not in engine.log()


def _signed(key: str = "acme", role: str = "client", **other: str) -> str:
    """The fields of a greeting; `other` replaces some after signing."""
    fields = {"role": role, "key": key, "ts": other.pop("at", f"{time.time():.0f}")}
    fields["nonce"] = other.pop("once", f"n{next(_nonces)}-{time.monotonic_ns()}")
    text = f"hello\n{role}\n{key}\n{fields['ts']}\n{fields['nonce']}".encode()
    fields["sig"] = hmac.new(SECRETS.get(key, b""), text, hashlib.sha256).hexdigest()
    return " ".join(f"{name}={value}" for name, value in {**fields, **other}.items())


def _greet(engine: Engine, fields: str) -> Peer:
    peer = engine.peer()
    peer.ok(f"hello v=1 {fields}")
    return peer


def test_without_a_greeting_only_ping_is_answered(engine: Engine, peer: Peer) -> None:
    peer.ok("ping")
    for request in ("get_task task_id=a", "post_task task_id=a type=url -- http://a/", "stats", "list_tasks"):
        assert peer.code(request) == "auth"


@pytest.mark.parametrize(
    "fields",
    [
        "role=client",
        "role=proxy name=p1",
        _signed(sig="0" * 64),
        _signed(role="proxy", name="p1").replace("role=proxy", "role=client"),
        _signed(key="nobody"),
        _signed(nonce="other"),
        _signed(at=f"{time.time() - 1000:.0f}"),
        _signed(at=f"{time.time() + 1000:.0f}"),
    ],
    ids=[
        "unsigned",
        "unsigned proxy",
        "wrong sig",
        "other role",
        "no such key",
        "other nonce",
        "late",
        "early",
    ],
)
def test_a_greeting_that_does_not_hold(engine: Engine, fields: str) -> None:
    with engine.peer() as peer:
        assert peer.code(f"hello v=1 {fields}") == "auth"
        assert peer.code("stats") == "auth"


@pytest.mark.parametrize("left_out", ["ts", "nonce", "sig"])
def test_a_key_needs_all_of_it(engine: Engine, left_out: str) -> None:
    fields = " ".join(field for field in _signed().split(" ") if not field.startswith(f"{left_out}="))
    with engine.peer() as peer:
        assert peer.code(f"hello v=1 {fields}") in ("missing_field", "auth")


def test_a_nonce_is_good_once_whatever_the_worker(engine: Engine) -> None:
    for first, second in ((0, 0), (0, 1), (1, 0)):
        fields = _signed(once=f"once{first}{second}")
        _greet(engine, f"{fields} worker={first}").close()
        with engine.peer() as peer:
            assert peer.code(f"hello v=1 {fields} worker={second}") == "auth"
        _greet(engine, _signed("free", once=f"once{first}{second}")).close()


def test_a_greeting_in_any_shape(engine: Engine) -> None:
    """Five minutes off, fields in another order, unknown fields, compressed, as a proxy."""
    _greet(engine, _signed(at=f"{time.time() - 290:.0f}")).close()
    _greet(engine, _signed(at=f"{time.time() + 290:.0f}")).close()
    _greet(engine, " ".join(reversed(_signed().split(" "))) + " colour=red").close()
    with SnappyPeer(engine.address(), _signed()) as peer:
        peer.ok("stats")
    with _greet(engine, _signed("free", "proxy", name="p1")) as proxy:
        proxy.ok("ready credit=1")


def test_a_key_may_touch_its_domains_only(engine: Engine) -> None:
    allowed = [
        "http://example.com/",
        "https://www.example.com:8443/a",
        "http://EXAMPLE.com/a",
        "http://shop.example.org/",
    ]
    denied = [
        "http://example.org/",
        "http://badexample.com/",
        "http://example.com.evil.net/",
        "http://[::1]/",
    ]
    denied += [
        "http://evil.net/?http://example.com/",
        "http://evil.net/example.com",
        "http://example.com./x.evil.net",
    ]
    with _greet(engine, _signed() + " worker=0") as peer:
        for number, target in enumerate(allowed):
            for task_id in owned_by(0, f"d{number}") + owned_by(1, f"d{number}"):
                peer.post(task_id, "type=url due=4000000000", target)
        for target in denied[:-1]:
            for task_id in owned_by(0, "deny") + owned_by(1, "deny"):
                post = f"post_task task_id={task_id} type=url -- "
                assert peer.code(post + target) == "denied", target
                assert peer.code(post + f"http://example.com/ {target}") == "denied", target
                assert peer.code(f"get_task task_id={task_id}") == "not_found"
        assert peer.code("post_task task_id=deny type=tag -- news") == "denied"
        assert peer.code("post_task task_id=deny type=regex -- http://.*/") in ("denied", "bad_field")
    with _greet(engine, _signed("free")) as peer:
        peer.post("anything", "type=url due=4000000000", denied[0])


def test_signed_hello_and_posts_in_one_write(engine: Engine) -> None:
    """Though the signature is checked at the other worker meanwhile."""
    with engine.peer() as peer:
        posts = [
            f"post_task task_id=one{i} type=url due=4000000000 -- http://example.com/" for i in range(50)
        ]
        peer.write(f"hello v=1 {_signed()} worker=1", *posts, f"hello v=1 {_signed()}")
        hello, *replies, late = peer.replies(52)
        assert hello["worker"] == "1"
        assert all(reply.ok for reply in replies)
        assert late.code == "bad_line"


def test_a_greeting_that_failed_may_be_mended_or_not_but_never_counts(engine: Engine) -> None:
    with engine.peer() as peer:
        peer.write(f"hello v=1 {_signed(sig='0' * 64)}", "stats")
        assert [reply.code for reply in peer.replies(2)] == ["auth", "auth"]


def test_the_ok_tells_who_serves(engine: Engine) -> None:
    for worker in (0, 1, None):
        at = "" if worker is None else f" worker={worker}"
        with engine.peer() as peer:
            hello = peer.ok(f"hello v=1 {_signed()}{at}")
            assert hello.fields.keys() >= {"v", "engine", "worker", "workers", "shards", "line_max"}
            assert (hello["v"], hello["workers"], hello["shards"]) == ("1", "2", "64")
            assert worker is None or hello["worker"] == str(worker)
            peer.ok("stats")


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ("hello", "missing_field"),
        ("hello v=1", "missing_field"),
        ("hello v=2 role=client", "bad_field"),
        ("hello v=1 role=admin", "bad_field"),
        ("hello v=1 role=client worker=2", "bad_field"),
        ("hello v=1 role=client worker=-1", "bad_field"),
        ("hello v=1 role=client zip=gzip", "bad_field"),
        ("hello v=1 v=1 role=client", "bad_line"),
        ("hello  v=1 role=client", "bad_line"),
    ],
)
def test_a_greeting_of_the_wrong_form(engine: Engine, peer: Peer, hello: str, code: str) -> None:
    assert peer.code(hello) == code
    peer.ok("ping")


def test_many_connections_ask_for_their_worker_at_once(engine: Engine) -> None:
    peers = [engine.peer() for _ in range(60)]
    for number, peer in enumerate(peers):
        peer.write(f"hello v=1 {_signed()} worker={number % 2}", "ping", "stats")
    for number, peer in enumerate(peers):
        assert peer.reply()["worker"] == str(number % 2)
        assert peer.reply().ok
        assert peer.reply(listing=True).ok
        peer.close()
