"""FAULTS 11, for engines that share a database: rows that were changed behind their backs.

What that row says of the SQLite files' tails does not apply: an engine keeps no task in files of its own,
and InnoDB has checksums of its pages and a log that it reads up to its last whole entry. What an engine can
and does check is that a request line is the one that it wrote.
"""

from __future__ import annotations

import pytest

from tests.cluster.site import LEASE_S, Ledger, Site
from tests.driver import EngineFailed, wait_until

REFUSED = "the request line of task {} is not what was written"


def change(site: Site, task_id: str, was: str, now: str) -> None:
    """Another host in the request line, which reads as well as before."""
    site.ask(f"UPDATE task SET body=REPLACE(body, '{was}', '{now}') WHERE id='{task_id}'")


def test_a_request_line_that_was_changed_is_refused_and_never_pushed(site: Site, ledger: Ledger) -> None:
    """By its engine at a start, by the one that takes it over, and to who asks; with the task's number."""
    ids = [f"bent{number}" for number in range(20)]
    with site["e1"].peer() as peer:
        for task_id in ids:
            ledger.reply(task_id, peer.post(task_id, target=f"http://example.com/{task_id}"))
    change(site, "bent7", "example.com", "changed.com")
    ((serial,),) = site.ask("SELECT serial FROM task WHERE id='bent7'")
    # While Redis is away nobody takes anything over: it starts with what is its own.
    site.redis.pause()
    try:
        site.kill("e1")
        with pytest.raises(EngineFailed, match=REFUSED.format(serial)):
            site["e1"].start()
    finally:
        site.redis.resume()
    two = site["e2"]
    with site.fleet(ledger, engines=["e2"]) as fleet, two.peer() as peer:
        wait_until(lambda: site.unfinished("e1") == 0, "its tasks are taken over", 10 * LEASE_S)
        # Of the other worker, whose tasks are all well.
        wait_until(lambda: peer.state("bent8") == "complete", "those that are well are done")
        refused = "tasks that were given to this engine cannot be read"
        wait_until(lambda: two.logged(refused), "it says what it refuses")
        assert REFUSED.format(serial) in two.logged(refused)[0]["error"]
        reply = peer.ask("get_task task_id=bent7")
        assert (reply.code, REFUSED.format(serial) in reply["msg"]) == ("unavailable", True), reply.fields
        assert not [proxy for proxy in fleet if "bent7" in proxy.effects]
        # As restoring the database would.
        change(site, "bent7", "changed.com", "example.com")
        site.settle(ledger, "e2")
        assert {proxy.effects["bent7"] for proxy in fleet} == {1}
