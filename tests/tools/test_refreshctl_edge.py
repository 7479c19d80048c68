"""refreshctl against what stands at the edge: a real engine, a real agent, a real Varnish."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.driver import Engine
from tests.tools.test_refreshctl_engine import ctl
from tools.servers import Agent, Origin, Varnish, wait_until
from wire.receipts import Signer, is_genuine, new_seed, read_receipt

pytestmark = pytest.mark.needs("varnishd")


class Edge(NamedTuple):
    """All of it. The agent has a second cache, which is not there."""

    engine: Engine
    agent: Agent
    varnish: Varnish

    def ctl(self, *args: str) -> tuple[int, Any]:
        return ctl(self.engine, *args)

    def links(self, name: str) -> int:
        """Connections of a proxy; 0 where nobody knows it."""
        rows = {row["proxy"]: row for row in self.engine.admin("list_proxies").rows}
        return int(rows[name]["links"]) if name in rows else 0


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    with Origin() as origin, Varnish(origin.address) as varnish, Engine() as engine:
        host, port = engine.address()
        settings = 'receipt_key_file = "receipts.key"'
        caches = [("v1", "varnish", varnish.address)]
        with Agent([f"{host}:{port}"], caches, name="pop1", group="eu", settings=settings) as agent:
            made = Edge(engine, agent, varnish)
            wait_until(lambda: made.links("pop1") == 2, 20, "the agent is linked")
            yield made


def rows(document: Any, proxy: str = "pop1") -> Any:
    """What a proxy answered."""
    return next(row for row in document["proxies"] if row["proxy"] == proxy)["answer"]


def test_caches_and_breakers(edge: Edge) -> None:
    code, said = edge.ctl("caches")
    assert code == 0
    (cache,) = rows(said)["caches"]
    assert (cache["cache"], cache["kind"], cache["address"]) == ("v1", "varnish", edge.varnish.address)
    assert cache["state"] == "up"
    code, said = edge.ctl("breakers", "--scope", "eu")
    assert code == 0
    lanes = {lane["lane"]: lane for lane in rows(said)["caches"][0]["lanes"]}
    assert {"fast", "slow"} <= lanes.keys()
    for name in (
        "state", "concurrency", "successes", "failures", "timeouts", "consecutive_errors", "error_rate",
        "for_s", "why",
    ):  # fmt: skip
        assert name in lanes["fast"]
    assert edge.ctl("caches", "--scope", "nobody")[0] == 1


def test_what_an_explain_says_of_a_ban_is_the_ban_and_nothing_is_changed(edge: Edge) -> None:
    before, added = edge.varnish.bans(), edge.varnish.counter("MAIN.bans_added")
    # (Probes of the agent are among its requests.)
    fetched = edge.varnish.counter("MAIN.backend_req")
    for task_type, target in (
        ("dir", "http://Explain.example/a.b/(c)/"),
        ("regex", "http://explain.example/x.*[.]png"),
        ("tag", "explain;1"),
    ):
        code, said = edge.ctl("explain", "--type", task_type, target)
        assert code == 0
        (cache,) = rows(said)["targets"][0]["caches"]
        assert edge.varnish.bans() == before
        assert edge.varnish.counter("MAIN.backend_req") == fetched
        code, _ = edge.ctl("submit", "--type", task_type, "--wait", target)
        assert code == 0
        assert [ban for ban in edge.varnish.bans() if ban not in before] == [cache["ban"]]
        before = edge.varnish.bans()
        added += 1
    assert edge.varnish.counter("MAIN.bans_added") == added


def test_explain_tells_of_each_step_and_of_who_is_away(edge: Edge) -> None:
    code, said = edge.ctl("explain", "--verify", "--then", "prefetch", "http://e.example/a?b")
    assert code == 0
    first, then = rows(said)["targets"][0]["caches"]
    assert (first["method"], first["verified_by"]) == ("PURGE", "LOOK")
    assert then["request"].startswith("GET /a?b HTTP/1.1\n")
    assert edge.ctl("explain", "--type", "dir", "http://e.example/a")[0] == 2
    assert edge.ctl("explain", "--type", "tag", "--then", "prefetch", "x")[0] == 2
    with edge.engine.proxy_peer("old", 0):
        code, said = edge.ctl("explain", "http://e.example/a")
        assert (code, {row["proxy"]: row["state"] for row in said["proxies"]}) == (
            4, {"pop1": "answered", "old": "unable"},
        )  # fmt: skip
    wait_until(lambda: edge.links("old") == 0, 10, "it is gone")
    code, said = edge.ctl("caches", "--scope", "old")
    assert (code, said["proxies"][0]["state"]) == (1, "offline")
    assert edge.ctl("proxies", "--forget", "old")[0] == 0


def test_receipts(edge: Edge) -> None:
    submit = ("submit", "--wait", "--verify", "--scope", "pop1")
    urls = [f"http://r.example/{number}" for number in range(3)]
    assert edge.ctl(*submit, "--then", "prefetch", "--id", "r1", *urls)[0] == 0
    code, said = edge.ctl("receipt", "r1", "--check")
    assert (code, said["missing"]) == (0, [])
    assert edge.ctl("show", "r1")[1]["proxies"][0]["verified"] is True
    (receipt,) = said["receipts"]
    assert (receipt["genuine"], receipt["key_is_announced"]) == (True, True)
    payload = receipt["payload"]
    assert (payload["done"], payload["listed"], payload["of"]) == (3, 3, 3)
    for evidence in payload["evidence"]:
        assert evidence["purged_ms"] <= evidence["verified_ms"]
        assert payload["began_ms"] <= evidence["purged_ms"] <= payload["ended_ms"]
    # Anybody can check it, with what it brings along.
    assert is_genuine(read_receipt(receipt["receipt"]))
    _, said = edge.ctl("proxies")
    assert [row["receipt_key"] for row in said["proxies"] if row["proxy"] == "pop1"] == [receipt["key"]]
    # The key is the file's: neither an upgrade nor a new process has another.
    edge.agent.signal(signal.SIGUSR2)
    wait_until(lambda: any(line["event"] == "upgraded" for line in edge.agent.log_lines()), 20, "an upgrade")
    assert edge.ctl(*submit, "--id", "r2", urls[0])[0] == 0
    assert edge.ctl("receipt", "r2", "--check")[1]["receipts"][0]["key"] == receipt["key"]
    assert edge.ctl("submit", "--wait", "--scope", "pop1", "--id", "r3", urls[0])[0] == 0
    code, said = edge.ctl("receipt", "r3")
    assert (code, said.get("missing") if isinstance(said, dict) else None) == (1, ["pop1"])
    assert edge.ctl("receipt", "nothing")[0] == 1


def test_a_receipt_that_is_missing_and_one_that_is_forged(edge: Edge) -> None:
    with edge.engine.proxy_peer("forger", 0, "group=eu") as forger:
        forger.ok("ready credit=10")
        assert edge.ctl("submit", "--verify", "--scope", "eu", "--id", "f1", "http://f.example/")[0] == 0
        forger.push()
        wait_until(lambda: edge.ctl("receipt", "f1")[1]["receipts"], 10, "the agent's receipt")
        code, said = edge.ctl("receipt", "f1", "--check")
        assert (code, said["missing"], len(said["receipts"])) == (4, ["forger"], 1)
        good = Signer(new_seed()).sign(json.dumps({"proxy": "forger", "task": "f1", "evidence": 7}))
        forged = good.text().replace("7", "8")
        forger.ok("receipt task_id=f1 -- " + forged.replace("\\", "\\\\").replace(" ", "\\s"))
        wait_until(lambda: len(edge.ctl("receipt", "f1")[1]["receipts"]) == 2, 10, "the forger's receipt")
        assert edge.ctl("receipt", "f1")[0] == 0, "nobody has looked at the signature"
        code, said = edge.ctl("receipt", "f1", "--check")
        assert (code, [each["genuine"] for each in said["receipts"]]) == (1, [False, True])
        forger.ok("receipt task_id=f1 -- " + good.text().replace("\\", "\\\\").replace(" ", "\\s"))
        code, said = edge.ctl("receipt", "f1", "--check")
        assert [each["genuine"] for each in said["receipts"]] == [True, True]
        forger.ok("report state=done -- f1")
