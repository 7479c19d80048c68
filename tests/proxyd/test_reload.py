"""Reloads of the program between fake engines and fake caches: what takes effect, and what nobody notices."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine, FakeLink, engines
from tools.servers import Agent, wait_until

TIMEOUT_S = 20.0


@contextmanager
def agent_for(*fakes: FakeEngine, cache: FakeCache, settings: str = "") -> Iterator[Agent]:
    """An agent linked to some engines, with one cache, v1."""
    with Agent(
        [fake.address for fake in fakes], [("v1", "varnish", cache.address)], settings=settings
    ) as agent:
        yield agent


def reload(agent: Agent, *changes: tuple[str, str], event: str = "reloaded") -> dict[str, object]:
    """Changes the file, reloads, waits for the outcome; returns its log line."""
    agent.configure(*changes)
    before = len(agent.logged(event))
    agent.signal(signal.SIGHUP)
    wait_until(lambda: len(agent.logged(event)) > before, TIMEOUT_S, event)
    return agent.logged(event)[-1]


def until_done(link: FakeLink, task_id: str) -> None:
    wait_until(lambda: task_id in link.done_ids(), TIMEOUT_S, f"a report of {task_id}")


def hold_one(link: FakeLink, cache: FakeCache, task_id: str = "held") -> None:
    """A task that the cache holds back."""
    link.push(task_id, f"http://h/held-{task_id}")
    wait_until(lambda: f"/held-{task_id}" in cache.asked, TIMEOUT_S, "the purge at the cache")


# ── what is wrong ─────────────────────────────────────────────────────────────────────────


def test_a_wrong_file_changes_nothing_and_every_line_is_logged(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        good = ('name = "pop1"\ngroup = "default"', 'nmae = "pop1"\ngroup = "eu"\ncredit = 0')
        said = reload(agent, good, event="reload refused")
        assert [fault.partition("proxyd.toml:")[2] for fault in said["faults"]] == [  # type: ignore[attr-defined]
            "2: unknown key 'nmae' in [agent]; did you mean 'name'?",
            "4: credit: 0 is not 1 to 1000000",
        ]
        link.push("a", "http://h/1")
        until_done(link, "a")
        assert title(agent) == "proxyd: pop1 gen 1"
        assert reload(agent, good[::-1])["generation"] == 2
        assert [line.of("hello") for line in engine.links] == [link.of("hello")]


def test_no_file_any_more(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        engine.wait_link()
        (agent.folder / "proxyd.toml").unlink()
        agent.signal(signal.SIGHUP)
        [refused] = wait_until(lambda: agent.logged("reload refused"), TIMEOUT_S, "the refusal")
        assert "cannot be read: No such file" in refused["faults"][0]


def title(agent: Agent) -> str:
    return " ".join(psutil.Process(agent.pid).cmdline()).strip()


def test_nothing_changed(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        said = reload(agent)
        assert (said["changed"], said["generation"], said["settled"]) == ([], 2, True)
        wait_until(lambda: title(agent) == "proxyd: pop1 gen 2", TIMEOUT_S, "the title")
        assert not link.closed
        assert len(engine.links) == 1


# ── caches and lanes ──────────────────────────────────────────────────────────────────────


def test_caches_come_and_go(cache: FakeCache) -> None:
    other = FakeCache()
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        hold_one(link, cache)
        second = f'[[cache]]\nname = "v2"\nkind = "varnish"\naddress = "{other.address}"\n'
        said = reload(agent, ('[[cache]]\nname = "v1"', f'{second}[[cache]]\nname = "v1"'))
        assert said["changed"] == ["cache v2: added"]
        link.push("both", "http://h/both")
        until_done(link, "both")
        assert "/both" in cache.asked
        assert other.asked == ["/both"]
        first = f'[[cache]]\nname = "v1"\nkind = "varnish"\naddress = "{cache.address}"\n'
        assert reload(agent, (first, ""))["changed"] == ["cache v1: removed"]
        link.push("second", "http://h/second")
        until_done(link, "second")
        assert "/second" not in cache.asked
        assert "held" not in link.done_ids()
        cache.release()
        until_done(link, "held")
        wait_until(lambda: cache.open == 0, TIMEOUT_S, "nothing is connected to the first cache")
        assert len(engine.links) == 1
    other.close()


def test_lane_limits_hold_at_once(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        reload(agent, ("[[cache]]", "[fast]\nconnections = 1\ndepth = 1\n[[cache]]"))
        hold_one(link, cache)
        link.push("behind", "http://h/behind")
        said = reload(agent, ("connections = 1", "connections = 2"))
        assert said["changed"] == ["fast.connections: 1 → 2"]
        until_done(link, "behind")
        cache.release()
        until_done(link, "held")


def test_the_log_level(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        engine.wait_link()
        agent.configure(('group = "default"', 'log_level = "error"'))
        agent.signal(signal.SIGHUP)
        wait_until(lambda: title(agent).endswith("gen 2"), TIMEOUT_S, "the reload")
        assert agent.logged("reloaded") == []


# ── engines ───────────────────────────────────────────────────────────────────────────────


def test_engines_come_and_go(cache: FakeCache) -> None:
    with engines(2, 1) as (staying, other), agent_for(staying, cache=cache) as agent:
        kept = [staying.wait_link(worker) for worker in range(2)]
        one, both = f'engines = ["{staying.address}"]', f'engines = ["{staying.address}", "{other.address}"]'
        reload(agent, (one, both))
        link = other.wait_link()
        hold_one(link, cache)
        reload(agent, (both, one))
        link.push("late", "http://h/late")
        kept[0].push("a", "http://h/1")
        until_done(kept[0], "a")
        cache.release()
        until_done(link, "held")
        wait_until(lambda: link.closed, TIMEOUT_S, "the link is closed")
        assert "late" not in link.done_ids()
        assert len(other.links) == 1
        assert not any(each.closed for each in kept)


def test_a_greeting_is_not_needed_for_an_engine_that_is_away(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        engine.wait_link()
        engine.stop()
        assert reload(agent, ("layer = 0", "layer = 1"))["settled"]
        with FakeEngine(port=engine.port) as again:
            assert "layer=1" in again.wait_link().lines[0]


# ── greetings ─────────────────────────────────────────────────────────────────────────────


class Watching(FakeEngine):
    """Notes how many links of each worker were up whenever one was greeted, and at worst."""

    def __init__(self, workers: int) -> None:
        self.down: list[int] = []
        super().__init__(workers)
        self.answer = self.watched

    def watched(self, link: FakeLink, line: str) -> str:
        if line.startswith("hello"):
            up = {each.worker for each in self.links if each.greeted and not each.closed}
            self.down += [worker for worker in range(self.workers) if worker not in up]
        return self.answer_well(link, line)


@pytest.mark.parametrize(
    ("old", "new", "greeted"),
    [
        ('group = "default"', 'group = "eu"', "group=eu"),
        ("layer = 0", "layer = 3", "layer=3"),
        ('name = "pop1"', 'name = "pop2"', "name=pop2"),
        ('group = "default"', 'group = "default"\ncredit = 77', "ready credit=77"),
        ('key = "k1"', 'key = "k2"', "key=k2"),
    ],
)
def test_links_greet_anew_one_at_a_time_and_none_is_down(
    cache: FakeCache, tmp_path: Path, old: str, new: str, greeted: str
) -> None:
    (tmp_path / "secret").write_text("s3cret")
    settings = f'key = "k1"\nsecret_file = "{tmp_path}/secret"'
    with Watching(3) as engine, agent_for(engine, cache=cache, settings=settings) as agent:
        before = [engine.wait_link(worker) for worker in range(3)]
        engine.down.clear()
        assert reload(agent, (old, new))["settled"]
        after = [engine.wait_link(worker) for worker in range(3)]
        assert engine.down == []
        assert [link.worker for link in engine.links[3:]] == [0, 1, 2]
        for was, now in zip(before, after, strict=True):
            assert was is not now
            assert any(greeted in line for line in now.lines)
            wait_until(lambda was=was: was.closed, TIMEOUT_S, "the old link is closed")  # type: ignore[misc]


def test_a_new_secret_is_tried_at_once(cache: FakeCache, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("first")
    settings = f'key = "k1"\nsecret_file = "{tmp_path}/secret"'
    with FakeEngine() as engine, agent_for(engine, cache=cache, settings=settings) as agent:
        link = engine.wait_link()
        (tmp_path / "secret").write_text("second")
        assert reload(agent)["changed"] == ["agent.secret_file: it is another"]
        engine.wait_link(newer_than=link)
        assert "second" not in agent.log()


def test_what_is_in_hand_is_not_done_twice_and_reported_on_the_new_link(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        old = engine.wait_link()
        hold_one(old, cache)
        hold_one(old, cache, "other")
        reload(agent, ("layer = 0", "layer = 1"))
        new = engine.wait_link(newer_than=old)
        # The engine pushes again what is outstanding; what it does not push again is reported all the same.
        new.push("held", "http://h/held-held")
        new.push("next", "http://h/next")
        until_done(new, "next")
        cache.release()
        until_done(new, "held")
        until_done(new, "other")
        assert cache.asked.count("/held-held") == 1
        assert old.reports() == []


def test_a_refused_greeting_changes_nothing_until_it_is_taken(cache: FakeCache) -> None:
    with FakeEngine(2) as engine, agent_for(engine, cache=cache) as agent:
        links = [engine.wait_link(worker) for worker in range(2)]
        taken = False

        def answer(link: FakeLink, line: str) -> str:
            if line.startswith("hello") and "layer=1" in line and not taken:
                return "err code=bad_field field=layer msg=wanted\\s0\n"
            return engine.answer_well(link, line)

        engine.answer = answer
        assert not reload(agent, ("layer = 0", "layer = 1"))["settled"]
        [warning] = agent.logged("engine does not take the new greeting; its link goes on as before")
        assert "wanted 0" in warning["error"]
        for number, link in enumerate(links):
            link.push(f"t{number}", "http://h/1")
            until_done(link, f"t{number}")
        taken = True
        for worker, link in enumerate(links):
            assert "layer=1" in engine.wait_link(worker, newer_than=link).lines[0]


def test_under_a_new_name_the_old_one_finishes(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        old = engine.wait_link()
        hold_one(old, cache)
        hold_one(old, cache, "both")
        reload(agent, ('name = "pop1"', 'name = "pop2"'))
        new = engine.wait_link(newer_than=old)
        assert not old.closed
        new.push("both", "http://h/held-both")
        old.push("late", "http://h/late")
        new.push("mine", "http://h/mine")
        until_done(new, "mine")
        cache.release()
        until_done(old, "held")
        until_done(old, "both")
        until_done(new, "both")
        wait_until(lambda: old.closed, TIMEOUT_S, "the old link is closed")
        assert "held" not in new.done_ids()
        assert cache.asked.count("/held-both") == 1
        assert "/late" not in cache.asked


def test_with_another_cache_or_name_what_was_done_is_done_again(cache: FakeCache) -> None:
    other = FakeCache()
    with FakeEngine(store="s") as engine, agent_for(engine, cache=cache) as agent:

        def push() -> None:
            link = engine.wait_link()
            reports = len(link.done_ids())
            link.push("a", "http://h/a")
            wait_until(lambda: len(link.done_ids()) > reports, TIMEOUT_S, "a report")

        push()
        reload(agent)
        push()
        assert cache.asked == ["/a"]
        reload(agent, ('name = "pop1"', 'name = "pop2"'))
        push()
        push()
        assert cache.asked == ["/a", "/a"]
        second = f'[[cache]]\nname = "v2"\nkind = "varnish"\naddress = "{other.address}"\n'
        reload(agent, ('[[cache]]\nname = "v1"', f'{second}[[cache]]\nname = "v1"'))
        push()
        push()
        assert (cache.asked, other.asked) == (["/a"] * 3, ["/a"])
    other.close()


# ── nothing is left behind ────────────────────────────────────────────────────────────────


def test_fifty_reloads_leave_nothing_behind(cache: FakeCache) -> None:
    """Every kind of change, there and back, with pushes between: descriptors and memory stay as they were."""
    second = FakeCache()
    with engines(2, 1) as (engine, other), agent_for(engine, cache=cache) as agent:
        kinds = [
            ("layer = 0", "layer = 1"),
            ('name = "pop1"', 'name = "pop2"'),
            (f'["{engine.address}"]', f'["{engine.address}", "{other.address}"]'),
            ("[[cache]]", "[fast]\nconnections = 1\n[[cache]]"),
            (
                '[[cache]]\nname = "v1"',
                f'[[cache]]\nname = "v2"\nkind = "varnish"\naddress = "{second.address}"\n'
                '[[cache]]\nname = "v1"',
            ),
        ]

        def there_and_back(old: str, new: str) -> None:
            for change in ((old, new), (new, old)):
                reload(agent, change)
                push_some(engine.wait_link(0), 200)

        def descriptors() -> int:
            return psutil.Process(agent.pid).num_fds()

        for kind in kinds:
            there_and_back(*kind)
        wait_until(lambda: second.open == 0, TIMEOUT_S, "the second cache is left")
        wait_until(lambda: other.live() is None, TIMEOUT_S, "the other engine is left")
        before, memory = descriptors(), psutil.Process(agent.pid).memory_info().rss
        for _ in range(4):
            for kind in kinds:
                there_and_back(*kind)
        wait_until(lambda: descriptors() <= before, TIMEOUT_S, "as many descriptors as before")
        assert psutil.Process(agent.pid).memory_info().rss < memory * 1.05
        assert agent.logged("reloaded")[-1]["generation"] == 51
    second.close()


def push_some(link: FakeLink, count: int) -> None:
    """Tasks on the newest link; all are done."""
    before = len(link.done_ids())
    for number in range(count):
        link.push(f"t{number}", f"http://h/{number}")
    wait_until(lambda: len(link.done_ids()) == before + count, TIMEOUT_S, "all reports")
