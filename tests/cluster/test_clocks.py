"""FAULTS 17: the clock of one engine jumps by an hour, while it leads and while it does not."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct
import time
from pathlib import Path

import pytest

from tests.cluster.site import LEASE_S, Ledger, Site
from tests.driver import ROOT, Peer, Reply, wait_until
from tests.peer.raw import owned_by
from tools.servers import MariaDb, RedisServer

_INJECT = ROOT / "tests" / "cluster" / "inject"
HOUR_S = 3_600.0
KEY, SECRET = "acme", b"a secret of some length"
_nonces = itertools.count()


class Clocks:
    """The wall clock of each engine of a site that is not started yet."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._files = {name: folder / name for name in site.engines}
        for name, engine in site.engines.items():
            self.jump(name, 0.0)
            engine._before = ["env", f"PYTHONPATH={_INJECT}", f"REFRESHD_CLOCK={self._files[name]}"]

    def jump(self, name: str, to_s: float) -> None:
        """From now on it is so much ahead of the others."""
        with self._files[name].open("r+b" if self._files[name].exists() else "wb") as file:
            file.write(struct.pack("=d", to_s))


@pytest.fixture
def site(database: MariaDb, redis: RedisServer, tmp_path: Path) -> Site:
    """Its engines know a key; none has asked the other anything yet."""
    (tmp_path / "secret").write_bytes(SECRET)
    more = f'[[key]]\nname = "{KEY}"\nsecret_file = "{tmp_path / "secret"}"\n'
    return Site(database, redis, more=more)


@pytest.fixture
def clocks(site: Site, tmp_path: Path) -> Clocks:
    return Clocks(site, tmp_path)


def greet(peer: Peer) -> Reply:
    """A client's greeting, signed by the test's clock."""
    ts, nonce = f"{time.time():.0f}", f"n{next(_nonces)}"
    sig = hmac.new(SECRET, f"hello\nclient\n{KEY}\n{ts}\n{nonce}".encode(), hashlib.sha256).hexdigest()
    return peer.ask(f"hello v=1 role=client key={KEY} ts={ts} nonce={nonce} sig={sig}")


def wait_leases(site: Site) -> None:
    """Waits for so long that whoever had lost its lease, or the lead, would have been fenced, or outdone."""
    from_ms = site.redis_ms()
    wait_until(lambda: site.redis_ms() > from_ms + 1_200 * LEASE_S, "a lease and a bit has passed")
    site.wait_together()


def test_leases_and_serials_take_no_notice_of_a_clock(site: Site, clocks: Clocks, ledger: Ledger) -> None:
    """Under load; one engine after the other is an hour ahead, then one behind. Then one dies.

    A worker that gave out a serial twice would end of it: all go on.
    """
    with site, site.fleet(ledger) as fleet:
        leader = site.leader()
        (other,) = site.others(leader)
        epochs, terms = site.epochs(), site.leader_epoch()
        pids = {name: engine.pids() for name, engine in site.engines.items()}
        with site.load(ledger, clients=2, batch=5) as load:
            for name in (other, leader):
                for to_s in (HOUR_S, -HOUR_S):
                    clocks.jump(name, to_s)
                    wait_leases(site)
                    ledger.wait_for(60)
            assert (site.epochs(), site.leader(), site.leader_epoch()) == (epochs, leader, terms)
            assert {name: engine.pids() for name, engine in site.engines.items()} == pids
            assert (load.gone, ledger.refused) == (0, {}), load.why_gone
            # The leader is an hour behind, and what it takes over is of times to come.
            clocks.jump(other, HOUR_S)
            due = int(time.time() + HOUR_S) + 600
            ids = [f"last{number}" for number in range(100)]
            with site[other].peer() as peer:
                peer.write(*[f"post_task task_id={i} type=url due={due} -- http://e.com/{i}" for i in ids])
                for task_id, reply in zip(ids, peer.replies(len(ids)), strict=True):
                    ledger.reply(task_id, reply)
            site.kill(other)
            wait_until(lambda: site.unfinished(other) == 0, "its tasks are taken over", 5 * LEASE_S)
            ledger.wait_for(60)
            assert not [proxy for proxy in fleet if "last0" in proxy.effects], "begun before their time"
            clocks.jump(leader, 2 * HOUR_S)
        site[other].start()
        site.wait_together()
        assert site.epochs()[leader] == epochs[leader]
        with site.load(ledger):
            ledger.wait_for(60)
        site.settle(ledger)


@pytest.mark.parametrize("to_s", [HOUR_S, -HOUR_S])
def test_signatures_are_refused_clearly_and_questions_answered_from_the_store(
    site: Site, clocks: Clocks, ledger: Ledger, to_s: float
) -> None:
    """Between engines and of clients; all is as before once the clock is right again."""
    with site, site["e1"].peer() as one, site["e2"].peer() as two:
        clocks.jump("e1", to_s)
        (task_id,) = owned_by(0, "asked")
        ledger.reply(task_id, one.post(task_id, target=f"http://example.com/{task_id}"))
        with site["e1"].proxy("p1", on_effect=ledger.effect):
            wait_until(lambda: one.state(task_id) == "active", "it is begun")
        with site["e1"].peer() as client:
            refused = greet(client)
            word = "behind" if to_s > 0 else "ahead of"
            assert refused.code == "auth"
            assert f"s {word} this engine's clock" in refused["msg"], refused.fields
        with site["e2"].peer() as client:
            assert greet(client).ok
        # e2's greeting is refused at e1: the store says that it is not final.
        assert two.state(task_id) == "pending"
        assert two.code(f"cancel_task task_id={task_id}") == "unavailable"
        (said,) = site["e2"].logged("another engine does not answer")
        assert f"s {word} this engine's clock" in said["error"], said
        clocks.jump("e1", 0.0)
        wait_until(lambda: two.state(task_id) == "active", "the owner is asked again")
        with site["e1"].peer() as client:
            assert greet(client).ok
        with site.fleet(ledger):
            site.settle(ledger)
