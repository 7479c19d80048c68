"""Overload is refused early, with a time to try again; what was refused is accepted later."""

from __future__ import annotations

from contextlib import ExitStack

from tests.driver import Engine, wait_until
from tests.peer.raw import Gone, owned_by


def test_a_worker_holds_so_many_tasks_and_no_more() -> None:
    """Each worker counts its own; the other still accepts."""
    with Engine(proxies=["p1"], settings="tasks_max = 5") as engine, engine.peer("worker=1") as peer:
        ids = owned_by(0, "full", 8)
        peer.write(*[f"post_task task_id={i} type=url -- http://a.example/" for i in ids])
        replies = peer.replies(8)
        assert [reply.code for reply in replies] == [""] * 5 + ["busy"] * 3
        assert all(int(reply["retry_ms"]) > 0 for reply in replies[5:])
        peer.write(*[f"get_task task_id={i}" for i in ids])
        assert [reply.code for reply in peer.replies(8)] == [""] * 5 + ["not_found"] * 3
        assert peer.post(ids[0], target="http://a.example/")["dup"] == "1", "a repeat takes no room"
        (other,) = owned_by(1, "free")
        peer.post(other)
        with engine.proxy("p1"):
            wait_until(
                lambda: peer.ask(f"post_task task_id={ids[7]} type=url -- http://b.example/").ok, "room"
            )


def test_more_connections_than_may_be_are_told_so() -> None:
    """Two a worker; each greets, so that it is known whether it was served."""
    with Engine(settings="connections_max = 2") as engine, ExitStack() as stack:
        served, refused = 0, 0
        for _ in range(12):
            peer = stack.enter_context(engine.peer())
            try:
                reply = peer.ask("ping")
            except (Gone, ConnectionError):
                refused += 1
                continue
            served += reply.ok
            refused += reply.code == "busy"
        assert 2 <= served <= 4
        assert served + refused == 12
        stack.close()
        wait_until(lambda: _is_served(engine), "there is room again")


def _is_served(engine: Engine) -> bool:
    with engine.peer() as peer:
        try:
            return peer.ask("ping").ok
        except (Gone, ConnectionError):
            return False


def test_a_connection_may_ask_for_some_listings_at_a_time() -> None:
    """Their pages are kept until all are there: thousands of them must not fill the memory."""
    with Engine(proxies=["p1"]) as engine, engine.peer("worker=0") as peer:
        ids = [f"listed-{i}" for i in range(3000)]
        peer.write(*[f"post_task task_id={i} type=url -- http://a.example/" for i in ids])
        assert all(reply.ok for reply in peer.replies(len(ids)))
        before = engine.memory_mib(0)
        peer.write(*["list_tasks limit=3000"] * 300)
        codes = [peer.reply(listing=True).code for _ in range(300)]
        assert set(codes) == {"", "busy"}
        assert engine.memory_mib(0) < before + 150
        assert peer.ok("list_tasks limit=1").rows
