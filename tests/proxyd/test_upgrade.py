"""Upgrades of the program: the same process, the same connections, other code; and code that is no good."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

import proxyd.agent
from proxyd import upgrade
from proxyd.carry import CARRIED_FDS
from proxyd.config import CacheConfig, default_config
from proxyd.logs import Log
from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine, FakeLink, engines
from tests.proxyd.rig import run, split_address
from tests.proxyd.rig import wait_until as until
from tools.servers import Agent, wait_until
from wire.lines import parse
from wire.receipts import is_genuine, read_receipt

TIMEOUT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the code that a test may change while the agent runs."""
    for package in ("proxyd", "wire"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} does not stand in {path.name}"
    path.write_text(text.replace(old, new))


@contextmanager
def agent_for(*fakes: FakeEngine, cache: FakeCache, root: Path = ROOT, settings: str = "") -> Iterator[Agent]:
    """An agent linked to some engines, with one cache, v1."""
    addresses = [fake.address for fake in fakes]
    with Agent(addresses, [("v1", "varnish", cache.address)], settings=settings, root=root) as agent:
        yield agent


def upgraded(agent: Agent, event: str = "upgraded") -> dict[str, object]:
    """Asks for an upgrade and waits for the outcome; its log line."""
    before = len(agent.logged(event))
    agent.signal(signal.SIGUSR2)
    wait_until(lambda: len(agent.logged(event)) > before, TIMEOUT_S, event)
    return agent.logged(event)[-1]


def until_done(link: FakeLink, task_id: str) -> None:
    wait_until(lambda: task_id in link.done_ids(), TIMEOUT_S, f"a report of {task_id}")


def hold_one(link: FakeLink, cache: FakeCache, task_id: str, **how: object) -> None:
    """A task that the cache holds back."""
    link.push(task_id, f"http://h/held-{task_id}", **how)  # type: ignore[arg-type]
    wait_until(lambda: f"/held-{task_id}" in cache.asked, TIMEOUT_S, "the request at the cache")


# ── what goes on ──────────────────────────────────────────────────────────────────────────


def test_the_same_process_and_connections_with_other_code(cache: FakeCache, code: Path) -> None:
    with FakeEngine(2) as engine, agent_for(engine, cache=cache, root=code) as agent:
        links = [engine.wait_link(worker) for worker in range(2)]
        links[0].push("a", "http://h/a")
        until_done(links[0], "a")
        # In the middle of a line, and of a character of it.
        links[1].send("!task task_id=b type=url -- http://h/")
        edit(code / "proxyd" / "__init__.py", '__version__ = "0.1.0"', '__version__ = "0.9.9"')
        said = upgraded(agent)
        assert (said["before"], said["code"], said["links"], said["generation"]) == ("0.1.0", "0.9.9", 2, 2)
        links[1].send("b\n")
        until_done(links[1], "b")
        assert cache.asked == ["/a", "/b"]
        assert agent.process is not None
        assert agent.process.poll() is None
        assert psutil.Process(agent.pid).cmdline()[0] == "proxyd: pop1 gen 2"
        assert [len(link.of("hello")) for link in engine.links] == [1, 1]
        assert not any(link.closed for link in links)


def test_the_key_of_receipts_crosses_and_so_does_who_takes_them(cache: FakeCache) -> None:
    with engines(1, 1) as (takes, does_not):
        takes.receipts = True
        with agent_for(takes, does_not, cache=cache) as agent:
            link, other = takes.wait_link(), does_not.wait_link()
            for number in range(2):
                link.push(f"a{number}", "http://h/a", type="prefetch")
                other.push(f"b{number}", "http://h/b", type="prefetch")
                until_done(link, f"a{number}")
                until_done(other, f"b{number}")
                upgraded(agent)
            assert other.of("receipt") == []
            lines = [parse(line.encode()) for line in link.of("receipt")]
            assert [line.fields["task_id"] for line in lines] == ["a0", "a1"]
            receipts = [read_receipt((line.items or ("",))[0]) for line in lines]
            assert all(map(is_genuine, receipts))
            assert len({receipt.key for receipt in receipts}) == 1
            at = link.lines.index
            assert at(link.of("receipt")[0]) < at(link.of("report")[0])
            assert "receipt_key=" not in link.of("hello")[0], "there was none yet"
            # One that greets anew is told which key it is.
            link.close()
            assert f"receipt_key={receipts[0].key}" in takes.wait_link(newer_than=link).of("hello")[0]


def test_what_is_in_hand_is_begun_again_and_reported_once(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.push("long", "http://h/1", "http://h/2#no", "http://h/held", type="prefetch", ttl=60, priority=9)
        wait_until(lambda: "/held" in cache.asked, TIMEOUT_S, "the request at the cache")
        assert upgraded(agent)["tasks"] == 1
        wait_until(lambda: cache.asked.count("/held") == 2, TIMEOUT_S, "it is begun again")
        # The engine knows nothing of all that, and may push it again or take it back.
        link.push("long", "http://h/1", "http://h/2#no", "http://h/held", type="prefetch", ttl=60, priority=9)
        cache.release()
        ended = wait_until(lambda: link.ended("long"), TIMEOUT_S, "its report")
        assert ended is not None
        assert (ended["done"], ended["failed"], ended["items"]) == ("2", "1", "http://h/2#no")
        assert cache.asked.count("/1") == 1


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_done_is_remembered_unless_the_caches_are_others(cache: FakeCache, changed: bool) -> None:
    second = FakeCache()
    with FakeEngine(store="s") as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.push("a", "http://h/a")
        until_done(link, "a")
        hold_one(link, cache, "b")
        if changed:
            agent.configure((cache.address, second.address))
        upgraded(agent)
        used = second if changed else cache
        # Begun again, as it was in hand.
        wait_until(lambda: "/held-b" in used.asked[not changed :], TIMEOUT_S, "the request at the cache")
        used.release()
        until_done(link, "b")
        asked = len(used.asked)
        for task_id, target in (("a", "http://h/a"), ("b", "http://h/held-b")):
            link.push(task_id, target)
            wait_until(lambda task_id=task_id: link.done_ids().count(task_id) == 2, TIMEOUT_S, "a report")  # type: ignore[misc]
        assert len(used.asked) - asked == 2 * changed
    second.close()


def test_what_was_taken_back_is_not_begun_again(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        hold_one(link, cache, "gone", type="prefetch")
        link.send("!cancel -- gone\n")
        link.push("a", "http://h/a")
        until_done(link, "a")
        assert upgraded(agent)["tasks"] == 0
        assert cache.asked.count("/held-gone") == 1


def test_reports_that_were_not_answered_are_kept(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        link.silent = True
        link.push("a", "http://h/a")
        until_done(link, "a")
        upgraded(agent)
        link.close()
        # They come again on the next connection, as those of every connection that is lost.
        until_done(engine.wait_link(newer_than=link), "a")


def test_reports_for_an_engine_that_is_away_are_kept(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        hold_one(link, cache, "a")
        engine.stop()
        wait_until(lambda: link.closed, TIMEOUT_S, "the engine is gone")
        cache.release()
        assert upgraded(agent)["links"] == 0
        with FakeEngine(port=engine.port) as again:
            until_done(again.wait_link(), "a")


def test_what_the_file_says_now_holds_afterwards(cache: FakeCache) -> None:
    second = FakeCache()
    with engines(1, 1) as (kept, gone), agent_for(kept, gone, cache=cache) as agent:
        link, last = kept.wait_link(), gone.wait_link()
        hold_one(last, cache, "held")
        agent.configure(
            (f'"{kept.address}", "{gone.address}"', f'"{kept.address}"'),
            ('group = "default"', 'group = "eu"'),
            (cache.address, second.address),
        )
        agent.signal(signal.SIGUSR2)
        new = kept.wait_link(newer_than=link)
        assert "group=eu" in new.lines[0]
        # The other engine's link finishes: what it had in hand was begun again, at the cache that counts now.
        wait_until(lambda: "/held-held" in second.asked, TIMEOUT_S, "the request at the second cache")
        second.release()
        until_done(last, "held")
        wait_until(lambda: last.closed, TIMEOUT_S, "its link is closed")
    second.close()


def test_signals_while_code_changes_are_not_lost(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        for _ in range(3):
            agent.signal(signal.SIGUSR2)
            count = len(agent.logged("reloaded"))
            while len(agent.logged("reloaded")) < count + 5:
                agent.signal(signal.SIGHUP)
        wait_until(lambda: agent.logged("upgraded"), TIMEOUT_S, "an upgrade")
        link.push("a", "http://h/a")
        until_done(link, "a")
        agent.signal(signal.SIGUSR2)
        wait_until(lambda: agent.logged("upgrade begins")[-1] is not None, TIMEOUT_S, "it begins")
        agent.signal(signal.SIGTERM)
        assert agent.wait() == 0
        assert agent.logged("agent stopped")


# ── what is refused ───────────────────────────────────────────────────────────────────────


def goes_on(agent: Agent, link: FakeLink, task_id: str) -> None:
    """The old code serves as before, on the same connection."""
    link.push(task_id, f"http://h/{task_id}")
    until_done(link, task_id)
    assert psutil.Process(agent.pid).cmdline()[0] == "proxyd: pop1 gen 1"
    assert not link.closed


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("agent.py", "import signal\n", "import signal\nimport nonsense\n", "No module named 'nonsense'"),
        ("dispatch.py", "class Dispatcher:", "class Dispatcher", "SyntaxError"),
        ("agent.py", "        self.notifier = ", "        self.notifier = 1 / 0 or ", "ZeroDivisionError"),
        (
            "links.py",
            "        self.count_slots()\n",
            "        self.count_them()\n",
            "no attribute 'count_them'",
        ),
        ("__main__.py", "def main(", "sys.exit(3)\n\n\ndef main(", "the new code ended with 3"),
        ("carry.py", "    fd: int", "    fd: int | bool | list[int] | tuple[int]", "TypeError"),
    ],
)
def test_code_that_does_not_start(
    cache: FakeCache, code: Path, file: str, old: str, new: str, says: str
) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, root=code) as agent:
        link = engine.wait_link()
        edit(code / "proxyd" / file, old, new)
        assert says in str(upgraded(agent, "upgrade refused")["why"])
        goes_on(agent, link, "a")
        edit(code / "proxyd" / file, new, old)
        assert upgraded(agent)["generation"] == 2


def test_a_wrong_configuration(cache: FakeCache) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        agent.configure(("layer = 0", "layer = 99"))
        why = upgraded(agent, "upgrade refused")["why"]
        assert "ended with 78: " in str(why)
        assert "proxyd.toml:4: layer: 99 is not 0 to 15" in str(why)
        goes_on(agent, link, "a")


def test_code_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = psutil.Process().children()

    async def test() -> None:
        monkeypatch.setattr(upgrade, "REHEARSAL_S", 0.5)
        script = "import sys, time; print('so far', file=sys.stderr, flush=True); time.sleep(60)"
        with pytest.raises(upgrade.UpgradeRefused, match=r"did not start within 0\.5 s: so far$"):
            await upgrade.rehearse([sys.executable, "-c", script])

    run(test())
    # Other tests' servers may be there, too.
    assert set(psutil.Process().children()) <= set(before)


def test_last_words_are_bounded() -> None:
    script = "import sys; sys.stderr.write('x' * 1000000 + 'the end'); sys.exit(4)"
    with pytest.raises(upgrade.UpgradeRefused, match=r"ended with 4: x{1993}the end$"):
        run(upgrade.rehearse([sys.executable, "-c", script]))


def test_an_exec_that_fails_changes_nothing(cache: FakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    async def rehearse(command: list[str]) -> None:
        asked.append(command)

    def execv(path: str, command: list[str]) -> None:
        # What would be there for the next code.
        assert os.get_inheritable(int(os.environ[CARRIED_FDS].split(",")[1]))
        asked.append(command)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(upgrade, "rehearse", rehearse)
    monkeypatch.setattr(upgrade.os, "execv", execv)

    async def test() -> None:
        with FakeEngine() as engine:
            config = msgspec.structs.replace(
                default_config(),
                engines=[("127.0.0.1", engine.port)],
                caches=[CacheConfig("v1", "varnish", split_address(cache.address))],
            )
            agent = proxyd.agent.Agent(config, Log("error"), default_config)
            running = asyncio.create_task(agent.run())
            await until(lambda: engine.live() is not None)
            link = engine.live()
            assert link is not None
            link.push("long", "http://h/held", type="prefetch")
            await until(lambda: cache.asked == ["/held"])
            fds = os.listdir("/proc/self/fd")
            with pytest.raises(upgrade.UpgradeRefused, match=r"cannot execute .*: No such file"):
                await upgrade.upgrade(agent)
            assert asked == [[*asked[1], "--rehearse"], asked[1]]
            assert CARRIED_FDS not in os.environ
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
            assert sorted(os.listdir("/proc/self/fd")) == sorted(fds)
            link.push("a", "http://h/a")
            cache.release()
            await until(lambda: {"a", "long"} <= set(link.done_ids()))
            assert cache.asked.count("/held") == 1
            agent.stop(fast=True)
            await running

    run(test())


# ── what cannot cross ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("carry.py", "\nVERSION = 1\n", "\nVERSION = 2\n", "it is of version 1; this code reads 2"),
        ("carry.py", "    worker: int\n", "    worker: str\n", "Expected `str`"),
        ("slot.py", "        made.outbox.restore(", "        made.inbox.restore(", "no attribute 'inbox'"),
    ],
)
def test_code_that_cannot_read_what_is_left_greets_anew(
    cache: FakeCache, code: Path, file: str, old: str, new: str, says: str
) -> None:
    with FakeEngine() as engine, agent_for(engine, cache=cache, root=code) as agent:
        link = engine.wait_link()
        hold_one(link, cache, "a", type="prefetch")
        edit(code / "proxyd" / file, old, new)
        agent.signal(signal.SIGUSR2)
        again = engine.wait_link(newer_than=link)
        wait_until(lambda: link.closed, TIMEOUT_S, "the old connection is closed")
        assert says in (agent.folder / "log").read_text()
        cache.release()
        again.push("a", "http://h/held-a", type="prefetch")
        until_done(again, "a")


# ── nothing is left behind ────────────────────────────────────────────────────────────────


def test_upgrades_leave_nothing_behind(cache: FakeCache) -> None:
    with FakeEngine(2) as engine, agent_for(engine, cache=cache) as agent:
        link = engine.wait_link()
        engine.wait_link(1)

        def cycle() -> tuple[int, int]:
            upgraded(agent)
            before = len(link.done_ids())
            for number in range(200):
                link.push(f"t{number}", f"http://h/{number}")
            wait_until(lambda: len(link.done_ids()) == before + 200, TIMEOUT_S, "all reports")
            process = psutil.Process(agent.pid)
            return process.num_fds(), process.memory_info().rss

        fds, memory = cycle()
        for _ in range(3):
            fds_now, memory_now = cycle()
            assert fds_now <= fds
            assert memory_now < memory * 1.05
        assert len(engine.links) == 2
        assert set(os.listdir(f"/proc/{agent.pid}/task")) == {str(agent.pid)}
        assert psutil.Process(agent.pid).children() == []


def test_the_loop_is_not_held_up_by_a_rehearsal() -> None:
    async def test() -> None:
        turns = 0
        task = asyncio.create_task(upgrade.rehearse([sys.executable, "-c", "import time; time.sleep(0.3)"]))
        while not task.done():
            turns += 1
            await asyncio.sleep(0.01)
        await task
        assert turns > 5

    run(test())
