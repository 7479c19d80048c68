"""FAULTS 5, and an engine that dies or stops: its work goes on at the others, and nothing is lost."""

from __future__ import annotations

import time

import pytest

from tests.cluster.site import LEASE_S, PROXIES, Ledger, Site
from tests.driver import UNIT_S, wait_until
from tests.peer.raw import Reply
from tools.servers import MariaDb, RedisServer


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_the_work_of_a_killed_engine_goes_on_at_the_others(site: Site, ledger: Ledger, which: str) -> None:
    """Under load, and with tasks that no proxy had ended; the engine comes back and takes new ones."""
    leader = site.leader()
    victim = leader if which == "leader" else site.others(leader)[0]
    (survivor,) = site.others(victim)
    with site[victim].peer() as peer:
        # Nobody could end these before: they are due later.
        due = int(time.time()) + 3
        ids = [f"{which}{number}" for number in range(200)]
        peer.write(*[f"post_task task_id={i} type=url due={due} -- http://example.com/{i}" for i in ids])
        for task_id, reply in zip(ids, peer.replies(200), strict=True):
            ledger.reply(task_id, reply)
    with site.fleet(ledger):
        with site.load(ledger):
            ledger.wait_for(500)
            site.kill(victim)
            ledger.wait_for(300)
            wait_until(lambda: site.unfinished(victim) == 0, "nothing is left to the dead", 5 * LEASE_S)
            assert site.epochs()[victim][1] == 0
            assert site.wait_together(survivor) == survivor
        site.settle(ledger, survivor)
        # It is another incarnation that comes back.
        before = site.epochs()[victim]
        site[victim].start()
        site.wait_together()
        assert site.epochs()[victim] == (before[0] + 1, 1)
        with site[victim].peer() as peer:
            ledger.reply(f"{which}-back", peer.post(f"{which}-back"))
            assert peer.state(f"{which}7") == "complete"
            wait_until(lambda: peer.state(f"{which}-back") == "complete", "the new task is complete")
        assert site.leader() == survivor
        site.settle(ledger)


def test_of_three_engines_two_share_what_the_third_leaves(
    database: MariaDb, redis: RedisServer, ledger: Ledger
) -> None:
    """And two that are killed at once leave all to the one."""
    with Site(database, redis, engines=3, workers=1) as site:
        leader = site.wait_together()
        one, two = site.others(leader)
        with site[one].peer() as peer:
            peer.write(
                *[f"post_task task_id=s{n} type=url due=4000000000 -- http://e.com/" for n in range(1200)]
            )
            assert all(reply.ok for reply in peer.replies(1200))
        # The leader knows how much there is to share.
        wait_until(lambda: '"unfinished":1200' in site.advert(one), "the registry says so")
        site.kill(one)
        wait_until(lambda: site.unfinished(one) == 0, "all are given away", 5 * LEASE_S)
        shares = {name: site.unfinished(name) for name in (leader, two)}
        assert sum(shares.values()) == 1200
        assert min(shares.values()) >= 300, shares
        site.kill(leader)
        wait_until(lambda: site.unfinished(two) == 1200, "the last one has all", 8 * LEASE_S)
        with site[two].peer() as peer:
            # In SQL it is this engine's before it is in its memory.
            cancel = wait_until(lambda: _if_ok(peer.ask("cancel_task task_id=s7")), "it can be cancelled")
            assert cancel["state"] == "cancelled"


def _if_ok(reply: Reply) -> Reply | None:
    assert reply.ok or reply.code == "unavailable", reply
    return reply if reply.ok else None


def test_a_leader_that_was_paused_is_fenced_and_changes_nothing(site: Site, ledger: Ledger) -> None:
    """Row 5. Under load; what the paused engine had begun it may not end."""
    leader = site.leader()
    (other,) = site.others(leader)
    epoch, _ = site.epochs()[leader]
    terms = site.leader_epoch()
    with site.fleet(ledger) as fleet:
        with site.load(ledger, clients=4):
            ledger.wait_for(500)
            pids = site[leader].pids()
            site.pause(leader)
            wait_until(lambda: site.leader() == other, "the other leads", 5 * LEASE_S)
            wait_until(
                lambda: site.epochs()[leader] == (epoch + 1, 0), "the paused one is fenced", 5 * LEASE_S
            )
            wait_until(lambda: site.unfinished(leader) == 0, "its tasks are given away", 5 * LEASE_S)
            site.resume(leader)
            # Every worker finds out that it was fenced, and another one comes in its place.
            wait_until(lambda: not pids & site[leader].pids(), "its workers end")
            site[leader].wait_whole()
            site.wait_together()
            ledger.wait_for(500)
        assert site.epochs()[leader] == (epoch + 2, 1)
        assert (site.leader(), site.leader_epoch()) == (other, terms + 1)
        assert site.leaders_by_own_account() == [other]
        ended = [line for line in site[leader].logged("worker ended") if line["pid"] in pids]
        assert len(ended) == 2
        assert not site[other].logged("worker ended")
        site.settle(ledger)
    assert {proxy.name for proxy in fleet} == set(PROXIES)


# What it takes is measured.
@pytest.mark.alone
def test_what_a_stopped_engine_leaves_is_taken_over_at_once(site: Site, ledger: Ledger) -> None:
    """It gives its lease up: nobody waits for that to end."""
    leader = site.leader()
    (other,) = site.others(leader)
    with site[leader].peer() as peer:
        for number in range(50):
            peer.post(f"stay{number}", "type=url due=4000000000")
    with site.fleet(ledger):
        with site.load(ledger):
            ledger.wait_for(300)
            assert site[leader].stop() == 0, site[leader].log()
            stopped_at = time.monotonic()
            wait_until(lambda: site.unfinished(leader) == 0, "nothing is left to it")
            took_s = time.monotonic() - stopped_at
            ledger.wait_for(100)
        site.settle(ledger, other)
    print(f"taken over {took_s:.2f} s after its end")
    assert took_s < LEASE_S / 2 + UNIT_S
    assert site.unfinished(other) == 50
