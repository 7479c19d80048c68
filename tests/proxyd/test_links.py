"""The program between a fake engine and a cache: greeting, fan-out, pushes, reports, and what goes wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine, FakeLink, engines
from tools.servers import Agent, Origin, Varnish, wait_until
from wire.signatures import check_hello

TIMEOUT_S = 20.0


@contextmanager
def agent_for(*fakes: FakeEngine, cache: FakeCache, settings: str = "", more: str = "") -> Iterator[Agent]:
    """An agent linked to some engines."""
    addresses = [fake.address for fake in fakes]
    with Agent(addresses, [("v1", "varnish", cache.address)], settings=settings, more=more) as agent:
        yield agent


def until_ended(link: FakeLink, task_id: str) -> dict[str, str]:
    """The end of a task as it was reported on this link."""
    report = wait_until(lambda: link.ended(task_id), TIMEOUT_S, f"a report of {task_id}")
    assert report is not None
    return report


def test_one_link_a_worker_each_with_its_credit(cache: FakeCache) -> None:
    with FakeEngine(3) as engine, agent_for(engine, cache=cache, settings="credit = 77"):
        for worker in range(3):
            link = engine.wait_link(worker)
            assert link.lines[:2] == [
                f"hello v=1 role=proxy name=pop1 group=default layer=0 worker={worker}"
                " learn=1 catch_up=1 asks=1 verify=1",
                "ready credit=77",
            ]


def test_a_signed_hello(cache: FakeCache, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    settings = f'key = "k1"\nsecret_file = "{tmp_path}/secret"'
    with FakeEngine() as engine, agent_for(engine, cache=cache, settings=settings):
        hello = engine.wait_link().lines[0]
        fields = dict(pair.split("=", 1) for pair in hello.split(" ")[1:])
        ts = int(fields["ts"])
        check_hello(b"s3cret", "proxy", fields["key"], ts, fields["nonce"], fields["sig"], ts)


def test_many_finished_tasks_make_few_lines(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        link.send("".join(f"!task task_id=t{n} type=url -- http://h/{n}\n" for n in range(2000)))
        wait_until(lambda: len(link.done_ids()) == 2000, TIMEOUT_S, "2000 reports")
        assert sorted(link.done_ids()) == sorted(f"t{n}" for n in range(2000))
        assert len(link.of("report")) < 1000


def test_refusals_and_failures_are_told(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        link.push("tag", "news", type="tag")
        link.push("odd", "http://h/a", type="teleport")
        link.push("bad", "http://h/a#b", "http://h/fine")
        assert until_ended(link, "tag")["failed"] == "1"
        assert "this\\sagent\\scannot\\sdo\\sit" in until_ended(link, "odd")["error"]
        report = until_ended(link, "bad")
        assert (report["done"], report["failed"], report["items"]) == ("1", "1", "http://h/a#b")


def test_beats_come_by_themselves(cache: FakeCache) -> None:
    with FakeEngine(2) as engine, agent_for(engine, cache=cache):
        for worker in range(2):
            link = engine.wait_link(worker)
            [beat, *_] = wait_until(lambda link=link: link.of("beat"), 5.0, "a beat")  # type: ignore[misc]
            keys = [pair.split("=")[0] for pair in beat.split(" ")[1:]]
            assert keys == ["fast", "slow", "inflight", "cpu", "mem"]


def test_progress_of_a_long_task(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, more="[fast]\nconnections = 1\ndepth = 1"):
        link = engine.wait_link()
        link.push("long", "http://h/1", "http://h/2", "http://h/held", "http://h/3")
        wait_until(lambda: link.reports(), TIMEOUT_S, "progress")
        [active] = link.reports()
        assert (active["state"], active["done"], active["failed"]) == ("active", "2", "0")
        cache.release()
        until_ended(link, "long")


def test_a_push_again_after_a_reconnect_is_not_done_twice(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        old = engine.wait_link()
        old.push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        old.close()
        new = engine.wait_link(newer_than=old)
        new.push("a", "http://h/held")
        new.push("b", "http://h/other")
        until_ended(new, "b")
        cache.release()
        assert until_ended(new, "a") == {"state": "done"}
        assert cache.asked.count("/held") == 1
        new.push("a", "http://h/held")
        wait_until(lambda: new.done_ids().count("a") == 2, TIMEOUT_S, "a second report")
        assert cache.asked.count("/held") == 2


def test_what_ended_while_the_link_was_down_is_reported_when_it_is_back(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        old = engine.wait_link()
        old.push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        engine.stop()
        wait_until(lambda: old.closed)
        cache.release()
        with FakeEngine(port=engine.port) as again:
            link = again.wait_link()
            until_ended(link, "a")
            assert link.lines[1] == "report state=done ms=" + link.lines[1].split("ms=")[1]
            assert link.lines[2].startswith("ready ")


def test_cancel_drops_what_has_not_begun(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, more="[fast]\nconnections = 1\ndepth = 1"):
        link = engine.wait_link()
        link.push("first", "http://h/held")
        link.push("gone", "http://h/gone")
        link.push("last", "http://h/last")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the first at the cache")
        link.send("!cancel -- gone\n")
        link.send("!task task_id=x type=regex -- http://h/(\n")
        until_ended(link, "x")
        cache.release()
        until_ended(link, "last")
        assert cache.asked == ["/held", "/last"]
        assert link.ended("gone") is None


def test_one_engines_trouble_is_not_the_others(cache: FakeCache) -> None:
    with engines(1, 1) as (good, bad):
        bad.answer = lambda link, line: "err code=busy retry_ms=50 msg=no\n"
        with agent_for(good, bad, cache=cache):
            link = good.wait_link()
            wait_until(lambda: len(bad.links) >= 3, TIMEOUT_S, "the bad one is asked again")
            link.push("a", "http://h/1")
            until_ended(link, "a")
            assert len(good.links) == 1


def test_an_engine_that_speaks_nonsense(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.send("SSH-2.0-OpenSSH_9.2\r\n")
        engine.wait_link(newer_than=link)
        down = [line for line in agent.log_lines() if line["event"] == "link down"]
        assert "does not speak the protocol" in down[0]["error"]


def test_a_silent_engine_is_given_up(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, settings="silence_s = 5") as agent:
        link = engine.wait_link()
        link.silent = True
        wait_until(lambda: engine.live() is not link and engine.live(), TIMEOUT_S, "a new link")
        assert any("silent" in line.get("error", "") for line in agent.log_lines())


def test_more_and_fewer_workers(cache: FakeCache) -> None:
    with FakeEngine(1) as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        engine.workers = 3
        link.close()
        links = [engine.wait_link(worker, newer_than=link) for worker in range(3)]
        engine.workers = 1
        for worker in (2, 1, 0):
            live = links[worker]
            live.close()
        link = engine.wait_link(0, newer_than=live)
        link.push("a", "http://h/1")
        until_ended(link, "a")
        asked = len(engine.links)
        link.push("b", "http://h/1")
        until_ended(link, "b")
        assert len(engine.links) - asked <= 2


def test_an_engine_that_gets_more_workers_while_links_stay(cache: FakeCache) -> None:
    with FakeEngine(1) as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        engine.workers = 3
        for worker in (1, 2):
            engine.wait_link(worker)
        assert not link.closed
        assert len(engine.links) == 3


def test_fewer_workers_keep_the_other_links(cache: FakeCache) -> None:
    """As an engine does it: what belonged to the last worker is told to go, and its number is refused."""
    with FakeEngine(3) as engine, agent_for(engine, cache=cache):
        links = [engine.wait_link(worker) for worker in range(3)]
        links[2].push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        engine.workers = 2
        links[2].close()
        wait_until(lambda: len(engine.links) == 4, TIMEOUT_S, "it is asked for")
        cache.release()
        wait_until(lambda: "a" in links[0].done_ids(), TIMEOUT_S, "worker 0 is told")
        assert not links[0].closed
        assert not links[1].closed


def test_drain_waits_for_the_answer_to_its_reports(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.silent = True
        answered = len(link.lines)
        link.push("a", "http://h/1")
        wait_until(lambda: link.done_ids() == ["a"], TIMEOUT_S, "the report")
        beats = len(link.of("beat"))
        link.send("!drain\n")
        wait_until(lambda: len(link.of("beat")) > beats, TIMEOUT_S, "another beat")
        assert not link.closed
        link.send("ok n=1\n" * (len(link.lines) - answered))
        wait_until(lambda: link.closed, TIMEOUT_S, "the link closed")
        [down] = agent.logged("link down")
        assert down["error"] == "closed by this agent"
        assert engine.wait_link(newer_than=link).reports() == []


def test_drain_ends_what_is_in_hand_and_goes_elsewhere(cache: FakeCache) -> None:
    with engines(1, 1) as (leaving, other), agent_for(leaving, cache=cache):
        link = leaving.wait_link()
        link.push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        link.send(f"!drain to={other.address}\n")
        assert not link.closed
        cache.release()
        until_ended(link, "a")
        wait_until(lambda: link.closed, TIMEOUT_S, "the link closed")
        elsewhere = other.wait_link()
        elsewhere.push("b", "http://h/1")
        until_ended(elsewhere, "b")
        other.stop()
        leaving.wait_link(newer_than=link)


def test_what_comes_after_a_drain_is_left_to_the_next_link(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        link.send(
            "!task task_id=before type=url -- http://h/before\n!drain\n"
            "!task task_id=after type=url -- http://h/after\n"
        )
        until_ended(link, "before")
        wait_until(lambda: link.closed, TIMEOUT_S, "the link closed")
        again = engine.wait_link(newer_than=link)
        again.push("after", "http://h/after")
        until_ended(again, "after")
        assert cache.asked == ["/before", "/after"]


def test_a_drain_that_takes_too_long_loses_nothing(cache: FakeCache) -> None:
    """What is left goes on; who pushes it again joins; the engine that drained is told once it is back."""
    with engines(1, 1, store="s") as (leaving, other), agent_for(leaving, other, cache=cache):
        link, second = leaving.wait_link(), other.wait_link()
        link.push("a", "http://h/held-a")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        link.send("!drain\n")
        leaving.stop()
        second.push("a", "http://h/held-a")
        second.push("b", "http://h/b")
        until_ended(second, "b")
        cache.release()
        until_ended(second, "a")
        assert cache.asked == ["/held-a", "/b"]
        with FakeEngine(port=leaving.port, store="s") as back:
            until_ended(back.wait_link(), "a")


# ── several engines ───────────────────────────────────────────────────────────────────────


def test_two_engines_push_one_task_and_both_are_told(cache: FakeCache) -> None:
    with engines(1, 1, store="s") as both, agent_for(*both, cache=cache):
        links = [engine.wait_link() for engine in both]
        for number, link in enumerate(links):
            link.push("a", "http://h/held-a")
            wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
            link.push(f"b{number}", f"http://h/b{number}")
            until_ended(link, f"b{number}")
        cache.release()
        for link in links:
            assert until_ended(link, "a") == {"state": "done"}
        assert cache.asked == ["/held-a", "/b0", "/b1"]
        for link in links:
            link.push("a", "http://h/held-a")
            wait_until(lambda link=link: link.done_ids().count("a") == 2, TIMEOUT_S, "a report")  # type: ignore[misc]
        assert len(cache.asked) == 3


def test_what_an_engine_pushed_that_died_is_reported_to_the_next(cache: FakeCache) -> None:
    with engines(1, 1, store="s") as (dying, other), agent_for(dying, other, cache=cache):
        link, second = dying.wait_link(), other.wait_link()
        link.silent = True
        link.push("a", "http://h/a")
        until_ended(link, "a")
        dying.stop()
        second.push("a", "http://h/a", priority=9, ttl=60)
        assert until_ended(second, "a") == {"state": "done"}
        assert cache.asked == ["/a"]


def test_engines_that_share_nothing_do_not_speak_of_one_task(cache: FakeCache) -> None:
    with FakeEngine(store="s1") as one, FakeEngine(store="s2") as two, agent_for(one, two, cache=cache):
        for link in (one.wait_link(), two.wait_link()):
            link.push("a", "http://h/a")
            until_ended(link, "a")
        assert cache.asked == ["/a", "/a"]


def test_in_a_higher_layer_what_was_done_is_done_again(cache: FakeCache) -> None:
    with (
        FakeEngine(store="s") as engine,
        Agent([engine.address], [("v1", "varnish", cache.address)], layer=1),
    ):
        link = engine.wait_link()
        for count in (1, 2):
            link.push("a", "http://h/a")
            wait_until(lambda count=count: len(link.done_ids()) == count, TIMEOUT_S, "a report")  # type: ignore[misc]
            assert len(cache.asked) == count


def test_an_engine_whose_store_was_emptied_begins_anew(cache: FakeCache) -> None:
    with FakeEngine(store="s1") as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.push("done", "http://h/done")
        until_ended(link, "done")
        link.push("a", "http://h/held-a")
        wait_until(lambda: "/held-a" in cache.asked, TIMEOUT_S, "the purge at the cache")
        engine.stop()
        with FakeEngine(port=engine.port, id=engine.id, store="s2") as emptied:
            again = emptied.wait_link()
            again.push("done", "http://h/done")
            until_ended(again, "done")
            assert cache.asked.count("/done") == 2
            again.push("a", "http://h/held-a")
            wait_until(lambda: cache.asked.count("/held-a") == 2, TIMEOUT_S, "the purge at the cache")
            cache.release()
            until_ended(again, "a")
            again.push("b", "http://h/b")
            until_ended(again, "b")
            # Nobody waits for what the older store's task came to.
            assert again.done_ids().count("a") == 1
            assert agent.logged("engine has another store; what is in hand is not reported there")


def test_reports_an_engine_could_not_take_come_again(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache):
        link = engine.wait_link()
        refusals = ["err code=busy retry_ms=20 msg=full\n"]

        def once(link: FakeLink, line: str) -> str:
            if line.startswith("report") and refusals:
                return refusals.pop()
            return engine.answer_well(link, line)

        engine.answer = once
        link.push("a", "http://h/1")
        wait_until(lambda: link.done_ids() == ["a", "a"], TIMEOUT_S, "the report came again")


def test_overfull_stops_reading_and_goes_on(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, settings="credit = 100"):
        link = engine.wait_link()
        link.push("plug", *(f"http://h/held{n}" for n in range(300)))
        wait_until(lambda: cache.asked, TIMEOUT_S, "purges at the cache")
        ids = [f"t{n}" for n in range(5000)]
        link.send("".join(f"!task task_id={task_id} type=url -- http://h/{task_id}\n" for task_id in ids))
        assert link.done_ids() == []
        cache.release()
        wait_until(lambda: len(link.done_ids()) == 5001, TIMEOUT_S, "all reports")


def test_a_graceful_stop_reports_what_is_in_hand(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        agent.signal(signal.SIGTERM)
        cache.release()
        assert agent.wait() == 0
        assert until_ended(link, "a") == {"state": "done"}


def test_a_fast_stop_waits_for_nothing(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.push("a", "http://h/held")
        wait_until(lambda: cache.asked, TIMEOUT_S, "the purge at the cache")
        agent.signal(signal.SIGINT)
        assert agent.wait() == 0
        assert link.ended("a") is None


@pytest.mark.needs("varnishd")
def test_quick_work_passes_slow_work(varnish: Varnish, origin: Origin, host: str) -> None:
    """With every connection of the slow lane stuck in an origin that never answers, a purge goes through."""
    origin.silent |= {b"/never/%d" % number for number in range(50)}
    caches = [("v1", "varnish", varnish.address)]
    with FakeEngine() as engine, Agent([engine.address], caches, more="[slow]\nconnections = 2") as agent:
        link = engine.wait_link()
        link.push("slow", *(f"http://{host}/never/{number}" for number in range(50)), type="prefetch")
        wait_until(
            lambda: any(path.startswith(b"/never/") for _, path in origin.asked), TIMEOUT_S, "a prefetch"
        )
        link.push("quick", f"http://{host}/a")
        assert until_ended(link, "quick") == {"state": "done"}
        assert link.ended("slow") is None
        agent.signal(signal.SIGINT)
        agent.wait()
