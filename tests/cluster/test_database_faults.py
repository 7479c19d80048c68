"""FAULTS 9, 12 and 13: the database is killed amid batches, is away for a while, or refuses to write."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from refreshd.store.mysql import COMMIT_TIMEOUT_S
from tests.cluster.site import Ledger, Site
from tests.driver import UNIT_S, wait_until
from tests.peer.raw import owned_by

# Longer than what is waited for an answer.
AWAY_S = COMMIT_TIMEOUT_S + 3


@contextmanager
def _killed(site: Site) -> Iterator[None]:
    site.database.kill()
    try:
        yield
    finally:
        site.database.restart()


@contextmanager
def _stopped(site: Site) -> Iterator[None]:
    """It accepts connections and says nothing."""
    site.database.signal(signal.SIGSTOP)
    # One of its threads might still begin a commit, of which nobody would know what became.
    threads = Path(f"/proc/{site.database.pid}/task")
    wait_until(
        lambda: all(") T " in (one / "stat").read_text() for one in threads.iterdir()),
        "all threads stand still",
    )
    try:
        yield
    finally:
        site.database.signal(signal.SIGCONT)


def test_a_database_that_is_killed_amid_batches_loses_and_doubles_nothing(site: Site, ledger: Ledger) -> None:
    """Row 12, three times. Batches that were not answered are found again by their ids, or were not kept."""
    epochs = site.epochs()
    pids = {name: engine.pids() for name, engine in site.engines.items()}
    with site.fleet(ledger):
        with site.load(ledger, pause_s=0.01) as load:
            for _ in range(3):
                ledger.wait_for(200)
                with _killed(site):
                    pass
                ledger.wait_for(200)
        assert load.gone == 0
        assert ledger.refused.keys() <= {"unavailable", "busy"}
        site.settle(ledger)
    assert pids == {name: engine.pids() for name, engine in site.engines.items()}, "a worker was restarted"
    assert site.epochs() == epochs


# How long answers take is measured.
@pytest.mark.alone
@pytest.mark.parametrize("fault", [_killed, _stopped])
def test_without_the_database_all_that_needs_none_goes_on(
    site: Site, ledger: Ledger, fault: Callable[[Site], contextmanager[None]]
) -> None:
    """Row 13: refused soon and then at once, bounded; tasks in hand are pushed and reported; it resumes."""
    epochs = site.epochs()
    engine = site["e1"]
    pids = engine.pids()
    in_hand = [f"{fault.__name__}{number}" for number in range(100)]
    due = int(time.time()) + 3
    with site.fleet(ledger) as fleet, engine.peer() as peer:
        peer.write(*[f"post_task task_id={i} type=url due={due} -- http://example.com/{i}" for i in in_hand])
        for task_id, reply in zip(in_hand, peer.replies(len(in_hand)), strict=True):
            ledger.reply(task_id, reply)
        with fault(site):
            began = time.monotonic()
            took_s: list[float] = []
            while time.monotonic() < began + AWAY_S:
                asked = time.monotonic()
                # One for either worker: each finds out by itself.
                ids = [owned_by(worker, f"no-{fault.__name__}{len(took_s)}")[0] for worker in (0, 1)]
                peer.write(*[f"post_task task_id={i} type=url -- http://example.com/" for i in ids])
                for reply in peer.replies(2):
                    assert reply.code == "unavailable", reply.fields
                    assert int(reply["retry_ms"]) > 0
                took_s.append(time.monotonic() - asked)
                assert peer.ask("ping").ok
                # The pace at which it is asked.
                time.sleep(0.05)
            pushed = {task_id for proxy in fleet for task_id in proxy.effects}
            assert pushed >= set(in_hand), "tasks in hand wait for the database"
            # Those that were reported wait for the database to hear it.
            assert peer.state(in_hand[0]) == "active"
        took_s.sort()
        print(
            f"refused {len(took_s)} times, after {took_s[len(took_s) // 2]:.3f} s, at most {took_s[-1]:.2f} s"
        )
        wait_until(
            lambda: peer.ask("post_task task_id=again type=url -- http://example.com/").ok, "it resumes"
        )
        site.settle(ledger)
        assert peer.state(in_hand[0]) == "complete"
    # Who comes first waits for what the database has to answer (upkeep may be before it), nobody else.
    assert took_s[-1] < 2 * COMMIT_TIMEOUT_S + UNIT_S
    assert took_s[len(took_s) // 2] < UNIT_S / 2
    # What was refused is not there.
    assert site.ask(f"SELECT count(*) FROM task WHERE id LIKE 'no-{fault.__name__}%'") == [(0,)]
    assert engine.pids() == pids
    assert site.epochs() == epochs
    assert site.wait_together()


def test_a_database_that_refuses_to_write_is_unavailable_with_its_reason(site: Site, ledger: Ledger) -> None:
    """Row 9, as a database shows it: full, or read only. It serves again once it may."""
    with site.fleet(ledger):
        with site["e1"].peer() as peer:
            ledger.reply("before", peer.post("before"))
            site.database.query("SET GLOBAL read_only=1")
            try:
                reply = peer.ask("post_task task_id=meanwhile type=url -- http://example.com/")
                assert reply.code == "unavailable"
                assert "read-only" in reply["msg"], reply.fields
                assert peer.state("before") in ("complete", "active", "pending")
            finally:
                site.database.query("SET GLOBAL read_only=0")
            again = "post_task task_id=meanwhile type=url -- http://example.com/"
            wait_until(lambda: peer.ask(again).ok, "it serves again")
        site.settle(ledger)
