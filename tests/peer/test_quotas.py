"""Quotas of keys as clients see them: `limited` with a time to try again, over all workers and their ends."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver import Engine, Peer, Reply, wait_until
from tests.peer.raw import owned_by

SECRET = b"k1-secret"
_nonces = itertools.count()


class Keyed(Engine):
    """An engine with the key `acme`, and clients that greet with it."""

    def __init__(self, folder: Path, limits: str, **how: object) -> None:
        self._secret = folder / "acme"
        self._secret.write_bytes(SECRET)
        super().__init__(more=self.keys(limits), proxies=["p1"], **how)  # type: ignore[arg-type]

    def keys(self, limits: str) -> str:
        return f'[[key]]\nname = "acme"\nsecret_file = "{self._secret}"\n{limits}\n'

    def client(self, worker: int = 0) -> Peer:
        at, nonce = int(time.time()), f"q{next(_nonces)}-{time.monotonic_ns()}"
        text = f"hello\nclient\nacme\n{at}\n{nonce}".encode()
        sig = hmac.new(SECRET, text, hashlib.sha256).hexdigest()
        return self.peer(f"key=acme ts={at} nonce={nonce} sig={sig} worker={worker}")

    def quotas(self) -> dict[str, str]:
        (row,) = self.admin("list_quotas").rows
        return row

    def limit(self, limits: str) -> None:
        """Other limits, by a reload; no worker is replaced."""
        self.more = self.keys(limits)
        self.configure()
        assert "in place" in self.outcome(self.begin("reload"))["why"]


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Keyed]:
    """Not started yet, and without limits."""
    engine = Keyed(tmp_path, "")
    try:
        yield engine
        assert "Traceback" not in engine.log()
    finally:
        engine.__exit__()


def start(engine: Keyed, limits: str) -> Keyed:
    engine.more = engine.keys(limits)
    engine.start()
    return engine


def post(peer: Peer, ids: list[str], targets: int = 1, fields: str = "type=url") -> list[Reply]:
    """Tasks of so many targets, all at once."""
    items = " ".join(f"http://a.example/{number}" for number in range(targets))
    peer.write(*[f"post_task task_id={task_id} {fields} -- {items}" for task_id in ids])
    return peer.replies(len(ids))


def names(stem: str, number: int) -> list[str]:
    return [f"{stem}-{at}" for at in range(number)]


def codes(replies: list[Reply]) -> list[str]:
    return sorted(reply.code for reply in replies)


def wait_out(reply: Reply) -> None:
    """Waits as long as a refusal says."""
    end = time.monotonic() + int(reply["retry_ms"]) / 1000
    wait_until(lambda: time.monotonic() >= end, "the time to try again")


@pytest.mark.parametrize("worker", [0, 1])
def test_a_burst_then_limited_then_accepted_when_it_says(keyed: Keyed, worker: int) -> None:
    """30 tasks of both workers at once on one connection: 20 fit, whoever owns them."""
    with start(keyed, "rate = 1\nburst = 20").client(worker) as peer:
        ids = names("burst", 30)
        replies = post(peer, ids)
        refused = [(i, reply) for i, reply in zip(ids, replies, strict=True) if not reply.ok]
        # Two workers that look in the same microsecond may both take the last one; a slow run earns some.
        assert 8 <= len(refused) <= 10
        assert {reply.code for _, reply in refused} == {"limited"}
        peer.write(*[f"get_task task_id={i}" for i, _ in refused])
        assert codes(peer.replies(len(refused))) == ["not_found"] * len(refused)
        row = keyed.quotas()
        assert (int(row["taken"]), int(row["refused"])) == (30 - len(refused), len(refused))
        again = peer.ask(f"post_task task_id={refused[0][0]} type=url -- http://a.example/0")
        assert again.code == "limited"
        assert 0 < int(again["retry_ms"]) <= 2000
        wait_out(again)
        assert post(peer, [refused[0][0]])[0].ok


def test_all_of_a_task_or_nothing(keyed: Keyed) -> None:
    with start(keyed, "rate = 1\nburst = 1000").client() as peer:
        assert post(peer, ["first"], 900)[0].ok
        (refused,) = post(peer, ["second"], 200)
        assert refused.code == "limited"
        assert 90_000 < int(refused["retry_ms"]) <= 100_000
        assert post(peer, ["third"], 100)[0].ok
        (large,) = post(peer, ["larger than the burst".replace(" ", "-")], 5000)
        assert large.code == "limited"
        assert int(large["retry_ms"]) > 900_000


def test_a_repeat_costs_nothing(keyed: Keyed) -> None:
    """One of a task that has ended needs the room, as only the store knows of it; it is given back."""
    with start(keyed, "rate = 1\nburst = 6\nin_flight = 5").client() as peer:
        assert codes(post(peer, names("r", 5))) == [""] * 5
        assert [reply["dup"] for reply in post(peer, names("r", 5))] == ["1"] * 5
        assert post(peer, ["r-0"], 2)[0].code == "conflict"
        with keyed.proxy("p1"):
            wait_until(lambda: peer.state("r-0") == "complete", "the task ends")
        taken = keyed.quotas()["taken"]
        assert post(peer, ["r-0"])[0]["dup"] == "1"
        assert keyed.quotas()["taken"] == taken


def test_other_refusals_cost_nothing(keyed: Keyed) -> None:
    with start(keyed, "rate = 1\nburst = 5").client() as peer:
        for fields in ("type=url scope=nowhere", "type=moon", "type=url ttl=0"):
            assert post(peer, ["x"], 5, fields)[0].code == "bad_field"
        assert keyed.admin("drain").ok
        wait_until(lambda: post(peer, ["x"], 5)[0].code == "draining", "the engine drains")
        assert keyed.admin("undrain").ok
        wait_until(lambda: post(peer, ["x"], 5)[0].ok, "the engine serves")


def test_a_client_without_a_key_has_no_quota(keyed: Keyed) -> None:
    with start(keyed, "rate = 1\nburst = 5").peer() as peer:
        assert codes(post(peer, names("n", 50))) == [""] * 50


def test_a_day(keyed: Keyed) -> None:
    with start(keyed, "per_day = { url = 100, dir = 1 }").client() as peer:
        assert post(peer, ["too-much"], 101)[0].code == "denied"
        assert post(peer, ["d-1"], 99)[0].ok
        (refused,) = post(peer, ["d-2"], 2)
        assert refused.code == "limited"
        midnight_ms = (int(time.time()) // 86_400 + 1) * 86_400_000
        assert abs(time.time() * 1000 + int(refused["retry_ms"]) - midnight_ms) < 60_000
        assert post(peer, ["d-2"], 1)[0].ok
        assert post(peer, ["p-1"], 500, "type=prefetch")[0].ok
    assert keyed.stop() == 0
    with keyed.start().client(1) as peer:
        assert post(peer, ["d-3"])[0].code == "limited", "a restart is no new day"
        assert (keyed.quotas()["url"], keyed.quotas()["prefetch"]) == ("100", "500")
        pid = keyed.kill_worker(0)
        keyed.wait_for_worker(0, pid)
        assert post(peer, ["d-3"])[0].code == "limited"


def test_tasks_in_flight_through_kills_and_hand_overs(keyed: Keyed) -> None:
    """What is unfinished is counted wherever it is: after each of these a sixth task is one too many."""
    start(keyed, "in_flight = 5")
    ids = names("flight", 5)

    def full(stem: str) -> None:
        with keyed.client() as peer:
            replies = post(peer, names(stem, 4))
            assert codes(replies) == ["limited"] * 4
            assert all(reply["retry_ms"] == "1000" for reply in replies)
        assert keyed.quotas()["in_flight"] == "5"

    with keyed.client(1) as peer:
        assert codes(post(peer, ids)) == [""] * 5
        full("more")
        for slot in (0, 1):
            keyed.wait_for_worker(slot, keyed.kill_worker(slot))
            full(f"killed-{slot}")
        keyed.roll()
        full("rolled")
        keyed.workers = 3
        keyed.configure()
        keyed.roll()
        full("three")
        keyed.workers = 2
        keyed.configure()
        keyed.roll()
        full("two")
    keyed.restart()
    full("restarted")
    with keyed.proxy("p1"), keyed.client() as peer:
        wait_until(lambda: keyed.quotas()["in_flight"] == "0", "they end")
        assert codes(post(peer, names("after", 2))) == [""] * 2


def test_a_cancelled_task_makes_room(keyed: Keyed) -> None:
    with start(keyed, "in_flight = 1").client() as peer:
        assert [reply.ok for reply in post(peer, ["one", "two"])].count(True) == 1
        (held,) = (row["task_id"] for row in peer.ask("list_tasks").rows)
        peer.ok(f"cancel_task task_id={held}")
        assert post(peer, ["three"])[0].ok


def test_limits_change_with_a_reload(keyed: Keyed) -> None:
    with start(keyed, "").client() as zero, keyed.client(1) as one:
        assert codes(post(zero, names("free", 100))) == [""] * 100
        keyed.limit("rate = 1\nburst = 10")
        began = time.monotonic()
        accepted = codes(post(one, names("bound", 30))).count("")
        # Both workers may look at once; and what time gives comes on top.
        assert 10 <= accepted <= 12 + time.monotonic() - began
        keyed.limit("")
        assert codes(post(one, names("free-again", 100))) == [""] * 100


def test_workers_have_one_quota_between_them(keyed: Keyed) -> None:
    """Asked in turn, so that nothing is at the same moment: exactly the burst, and what time gave."""
    start(keyed, "rate = 1\nburst = 40")
    began = time.monotonic()
    with keyed.client(0) as zero, keyed.client(1) as one:
        ids = [i for pair in zip(owned_by(0, "a", 40), owned_by(1, "b", 40), strict=True) for i in pair]
        accepted = sum(
            post(peer, [i])[0].ok for i, peer in zip(ids, itertools.cycle((zero, one)), strict=False)
        )
        earned = time.monotonic() - began
    assert 40 <= accepted <= 41 + earned


def test_what_is_listed(keyed: Keyed) -> None:
    with start(keyed, "rate = 5\nper_day = { url = 100 }\nin_flight = 9").client() as peer:
        post(peer, ["l-1"], 3)
        row = keyed.quotas()
        expected = {
            "key": "acme", "rate": "5", "burst": "5", "taken": "3", "refused": "0",
            "url": "3", "url_max": "100", "dir": "0", "in_flight": "1", "in_flight_max": "9",
        }  # fmt: skip
        assert {key: row[key] for key in expected} == expected
        assert "rate_here" not in row
        assert 2 <= int(row["spare"]) <= 5
