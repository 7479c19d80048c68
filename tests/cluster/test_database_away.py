"""FAULTS 13 at its length: the database is away for a while, under load at every engine, with real agents.

REFRESHD_TEST_AWAY_S=60 makes it the 60 s of FAULTS.md; without it, it is as long as shows the same:
several times the deadline of a commit, and of a lease.
"""

from __future__ import annotations

import os
import signal
import time

from tests.cluster.pops import pops
from tests.cluster.site import Ledger, Site
from tests.driver import UNIT_S
from tests.peer.raw import owned_by

AWAY_S = float(os.environ.get("REFRESHD_TEST_AWAY_S", 8 * UNIT_S))
# What a worker may grow by meanwhile, however long that is: 500 tasks whose ends wait, and buffers. Measured
# are 1 to 3 MiB in 8 s, and 4 in 60; what it refuses is some 20 MiB in the shortest of times.
GROWTH_MIB_MAX = 8.0
IN_HAND = 1_000
# In each request: to keep them would show.
_FILLER = "filler=" + "x" * 6_000


def memory_mib(site: Site) -> dict[tuple[str, int], float]:
    """What each worker holds."""
    return {
        (name, slot): engine.memory_mib(slot)
        for name, engine in site.engines.items()
        for slot in range(engine.workers)
    }


def test_what_a_database_that_is_away_for_long_costs(site: Site, ledger: Ledger) -> None:
    """`unavailable`; tasks in hand are done; no worker grows; all goes on by itself and nothing is lost."""
    epochs = site.epochs()
    pids = {name: engine.pids() for name, engine in site.engines.items()}
    with pops(site, ledger) as at, site["e1"].peer() as one, site["e2"].peer() as two:
        due = int(time.time()) + 3
        in_hand = {
            peer: [f"{name}-hand{n}" for n in range(IN_HAND)] for name, peer in (("e1", one), ("e2", two))
        }
        for peer, ids in in_hand.items():
            peer.write(*[f"post_task task_id={i} type=url due={due} -- http://example.com/{i}" for i in ids])
            for task_id, reply in zip(ids, peer.replies(IN_HAND), strict=True):
                ledger.reply(task_id, reply)
        with site.load(ledger, clients=4, pause_s=0.02, terms=f"type=url {_FILLER}") as load:
            ledger.wait_for(500)
            before = memory_mib(site)
            grown: dict[tuple[str, int], float] = {}
            asked = 0
            site.database.signal(signal.SIGSTOP)
            try:
                end = time.monotonic() + AWAY_S
                while time.monotonic() < end:
                    for peer in in_hand:
                        (task_id,) = owned_by(asked % 2, f"no-{asked}")
                        assert (
                            peer.code(f"post_task task_id={task_id} type=url -- http://e.com/")
                            == "unavailable"
                        )
                        assert peer.ask("ping").ok
                    asked += 1
                    for worker, mib in memory_mib(site).items():
                        grown[worker] = max(grown.get(worker, 0.0), mib - before[worker])
                    time.sleep(0.05)
                for peer, ids in in_hand.items():
                    assert at.have_done(ids), "tasks in hand wait for the database"
                    # Those that were reported wait for the database to hear it.
                    assert peer.state(ids[0]) == "active"
                refused = ledger.refused["unavailable"]
            finally:
                site.database.signal(signal.SIGCONT)
            ledger.wait_for(500)
        print(
            f"away {AWAY_S:.0f} s, {refused} refused, grown by at most {max(grown.values()):.1f} MiB: "
            + ", ".join(f"{name}/{slot} {mib:.1f}" for (name, slot), mib in grown.items())
        )
        assert load.gone == 0, load.why_gone
        assert ledger.refused.keys() == {"unavailable"}
        site.wait_together()
        site.settle(ledger)
    assert max(grown.values()) < GROWTH_MIB_MAX, grown
    assert {name: engine.pids() for name, engine in site.engines.items()} == pids
    assert site.epochs() == epochs
