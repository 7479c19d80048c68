"""An agent that was away: what its caches' health check sees, what is merged, when everything is dropped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

import proxyd.agent
from proxyd import catching_up
from proxyd.config import CacheConfig, default_config
from proxyd.logs import Log
from tests.proxyd.fake_cache import FakeCache
from tests.proxyd.fake_engine import FakeEngine, FakeLink
from tests.proxyd.http import Answer, ask, get
from tests.proxyd.rig import run, split_address
from tests.proxyd.rig import wait_until as until
from tools.servers import Agent, Origin, Varnish, wait_until
from tools.servers.waiting import free_port

TIMEOUT_S = 20.0
CAUGHT_UP = "!caught_up\n"


class Rig:
    """An agent with a health check."""

    def __init__(self, agent: Agent, address: str, file: Path) -> None:
        self.agent = agent
        self.address = address
        self.file = file

    def check(self) -> Answer:
        """What a balancer is answered."""
        return ask(self.address, "GET", "h", "/caught-up")

    def is_fresh(self) -> bool:
        """Whether all that is shown says that the caches may serve."""
        shown = {self.check().status == 200, self.file.exists(), "(behind)" not in self.title()}
        return shown == {True}

    def title(self) -> str:
        return " ".join(psutil.Process(self.agent.pid).cmdline()).strip()

    def until_fresh(self) -> None:
        wait_until(self.is_fresh, TIMEOUT_S, f"an agent that has caught up; {self.check().body!r}")

    def until_waits(self, text: str) -> None:
        """Waits until the check says that it is behind, and why."""

        def said() -> bool:
            answer = self.check()
            return answer.status == 503 and text in answer.body.decode()

        wait_until(said, TIMEOUT_S, f"{text!r}; {self.check().body!r}")
        assert not self.file.exists()

    def logged(self, event: str) -> dict[str, object]:
        wait_until(lambda: self.agent.logged(event), TIMEOUT_S, event)
        return self.agent.logged(event)[-1]


def listens(address: str) -> bool:
    """Whether checks are answered there."""
    try:
        return bool(ask(address, "GET", "h", "/healthz"))
    except OSError:
        return False


@contextmanager
def rig(
    *fakes: FakeEngine | str, cache: FakeCache, folder: Path, settings: str = "", more: str = ""
) -> Iterator[Rig]:
    """An agent for these engines, as it starts."""
    addresses = [fake if isinstance(fake, str) else fake.address for fake in fakes]
    health = f"127.0.0.1:{free_port()}"
    file = folder / "caught-up"
    settings += f'\nhealth_listen = "{health}"\ncaught_up_file = "{file}"'
    with Agent(addresses, [("v1", "varnish", cache.address)], settings=settings, more=more) as agent:
        wait_until(lambda: listens(health), TIMEOUT_S, "the health check")
        yield Rig(agent, health, file)


def until_done(link: FakeLink, *task_ids: str) -> None:
    wait_until(lambda: set(task_ids) <= set(link.done_ids()), TIMEOUT_S, f"reports of {task_ids}")


def test_it_has_caught_up_when_all_is_said_and_done(cache: FakeCache, tmp_path: Path) -> None:
    (tmp_path / "caught-up").write_text("by an agent that was killed")
    with FakeEngine(2, tells=True) as engine, rig(engine, cache=cache, folder=tmp_path) as here:
        links = [engine.wait_link(worker) for worker in range(2)]
        here.until_waits(f"{engine.address} worker 1: has more to push")
        links[0].push("a", "http://h/a")
        links[0].push("held", "http://h/held")
        until_done(links[0], "a")
        links[1].send(CAUGHT_UP)
        here.until_waits(f"behind: {engine.address} worker 0: has more to push")
        links[0].send(CAUGHT_UP)
        links[0].push("later", "http://h/held-later", type="prefetch")
        here.until_waits(f"behind: {engine.address} worker 0: 1 tasks\n")
        assert here.title() == "proxyd: pop1 gen 1 (behind)"
        cache.release()
        here.until_fresh()
        assert here.logged("caught up")["merged"] == 0
        assert here.title() == "proxyd: pop1 gen 1"
        # It is told once; and it stays so whatever goes away.
        engine.stop()
        wait_until(lambda: here.agent.logged("link down"), TIMEOUT_S, "the loss")
        assert here.is_fresh()
        here.agent.signal(signal.SIGTERM)
        assert here.agent.wait() == 0
        assert not here.file.exists()


def test_what_came_before_the_line_is_waited_for_and_nothing_else(cache: FakeCache, tmp_path: Path) -> None:
    with FakeEngine(tells=True) as engine, rig(engine, cache=cache, folder=tmp_path) as here:
        link = engine.wait_link()
        link.send(CAUGHT_UP)
        link.push("held", "http://h/held")
        here.until_fresh()
        assert link.ended("held") is None


def test_an_engine_that_does_not_know_the_line_is_not_waited_for(cache: FakeCache, tmp_path: Path) -> None:
    with FakeEngine() as engine, rig(engine, cache=cache, folder=tmp_path) as here:
        engine.wait_link()
        here.until_fresh()


def test_an_engine_that_is_named_is_waited_for_too(cache: FakeCache, tmp_path: Path) -> None:
    with (
        FakeEngine(tells=True) as engine,
        FakeEngine(tells=True) as other,
        rig(engine, cache=cache, folder=tmp_path) as here,
    ):
        link = engine.wait_link()
        link.send(f"!engines -- {other.address}\n{CAUGHT_UP}")
        second = other.wait_link()
        here.until_waits(f"behind: {other.address} worker 0: has more to push\n")
        second.send(CAUGHT_UP)
        here.until_fresh()


def test_an_engine_that_is_not_there_is_given_up(cache: FakeCache, tmp_path: Path) -> None:
    away = f"127.0.0.1:{free_port()}"
    with (
        FakeEngine(tells=True) as engine,
        rig(engine, away, cache=cache, folder=tmp_path, settings="caught_up_wait_s = 3") as here,
    ):
        engine.wait_link().send(CAUGHT_UP)
        here.until_waits(f"{away} worker 0: no link")
        here.until_fresh()
        assert here.logged("counts as caught up, but engines could not be reached")["engines"] == [away]


def test_what_is_pushed_while_behind_is_merged_and_each_task_reported(
    cache: FakeCache, tmp_path: Path
) -> None:
    lanes = "[fast]\nconnections = 1\ndepth = 1"
    with FakeEngine(tells=True) as engine, rig(engine, cache=cache, folder=tmp_path, more=lanes) as here:
        link = engine.wait_link()
        link.push("first", "http://h/held")
        wait_until(lambda: "/held" in cache.asked, TIMEOUT_S, "the request at the cache")
        for number, target in enumerate(["a", "b/1", "a", "b/2", "a", "c"]):
            link.push(f"t{number}", f"http://h/{target}")
        link.push("warm", "http://h/b/1", type="prefetch")
        link.push("dir", "http://h/b/", type="dir")
        link.send(CAUGHT_UP)
        here.until_waits("9 tasks")
        cache.release()
        until_done(link, "first", "warm", "dir", *(f"t{number}" for number in range(6)))
        assert cache.asked[:4] == ["/held", "/a", "/b/", "/c"]
        assert cache.asked[4:] == ["/b/1"]
        here.until_fresh()
        log = here.logged("caught up")
        assert (log["tasks"], log["merged"]) == (9, 4)


@pytest.mark.needs("varnishd")
def test_after_a_replay_nothing_is_old_and_what_was_prefetched_last_is_warm(
    varnish: Varnish, origin: Origin, host: str, tmp_path: Path
) -> None:
    def is_hit(path: str) -> bool:
        return get(varnish.address, host, path).headers["x-cache"] == "hit"

    paths = [f"/{folder}/{number}" for folder in ("a", "b", "c") for number in range(20)]
    for path in paths:
        get(varnish.address, host, path)
        assert is_hit(path)
    with (
        FakeEngine(tells=True) as engine,
        # So that prefetches would be through long before the refreshes.
        Agent(
            [engine.address], [("v1", "varnish", varnish.address)], more="[fast]\nconnections = 1\ndepth = 1"
        ) as agent,
    ):
        link = engine.wait_link()
        lines = [f"!task task_id=u{n} type=url -- http://{host}{path}\n" for n, path in enumerate(paths)]
        # Refreshed, prefetched, refreshed again; then a folder as a whole, then some of that prefetched.
        lines += [f"!task task_id=p type=prefetch -- http://{host}/a/1\n"]
        lines += [line.replace("=u", "=v", 1) for line in lines[:60]]
        lines += [f"!task task_id=d type=dir -- http://{host}/b/\n"]
        lines += [f"!task task_id=q type=prefetch -- http://{host}/b/1 http://{host}/c/1\n"]
        link.send("".join(lines) + CAUGHT_UP)
        wait_until(lambda: len(link.done_ids()) == len(lines), TIMEOUT_S, "all reports")
        wait_until(lambda: agent.logged("caught up"), TIMEOUT_S, "the end of it")
        assert int(agent.logged("caught up")[-1]["merged"]) >= 60
    warm = {path for path in paths if is_hit(path)}
    # (The first prefetch came before the last refresh: it may be warm or not.)
    assert warm - {"/a/1"} == {"/b/1", "/c/1"}


@pytest.mark.parametrize("so_far", ["nothing", "said", "caught up"])
def test_it_crosses_an_upgrade(cache: FakeCache, tmp_path: Path, so_far: str) -> None:
    caught_up = so_far == "caught up"
    with FakeEngine(tells=True) as engine, rig(engine, cache=cache, folder=tmp_path) as here:
        link = engine.wait_link()
        link.push("held", "http://h/held", type="prefetch")
        wait_until(lambda: "/held" in cache.asked, TIMEOUT_S, "the request at the cache")
        if caught_up:
            cache.release()
            until_done(link, "held")
            link.send(CAUGHT_UP)
            here.until_fresh()
        elif so_far == "said":
            link.send(CAUGHT_UP)
            here.until_waits("1 tasks")
        refused = 0
        here.agent.signal(signal.SIGUSR2)
        while not here.agent.logged("upgraded"):
            # What is asked meanwhile waits, and is answered as before.
            refused += here.check().status != (200 if caught_up else 503)
            # Nor does the rehearsal touch the file.
            assert here.file.exists() is caught_up
        assert refused == 0
        assert len(link.of("hello")) == 1
        if caught_up:
            assert here.is_fresh()
            assert here.title() == "proxyd: pop1 gen 2"
            return
        if so_far == "nothing":
            here.until_waits("has more to push")
            link.send(CAUGHT_UP)
        here.until_waits("1 tasks")
        cache.release()
        here.until_fresh()
        assert here.logged("caught up")["tasks"] == 1


def test_a_reload_moves_what_is_shown(cache: FakeCache, tmp_path: Path) -> None:
    with FakeEngine(tells=True) as engine, rig(engine, cache=cache, folder=tmp_path) as here:
        engine.wait_link().send(CAUGHT_UP)
        here.until_fresh()
        moved, port = tmp_path / "moved", f"127.0.0.1:{free_port()}"
        here.agent.configure((str(here.file), str(moved)), (here.address, port))
        here.agent.signal(signal.SIGHUP)
        wait_until(lambda: here.agent.logged("reloaded"), TIMEOUT_S, "the reload")
        before, here.file, here.address = here.file, moved, port
        wait_until(lambda: listens(port), TIMEOUT_S, "the health check")
        here.until_fresh()
        assert not before.exists()


def test_a_drop_reaches_every_cache_and_is_waited_for(cache: FakeCache, tmp_path: Path) -> None:
    with (
        FakeEngine(tells=True) as engine,
        rig(engine, cache=cache, folder=tmp_path, settings="drop_after_s = 3600") as here,
    ):
        link = engine.wait_link()
        assert link.of("hello")[0].endswith(" catch_up=1 drop_after=3600 asks=1 verify=1")
        link.send(CAUGHT_UP)
        here.until_fresh()
        link.send("!drop task_id=drop:1\n")
        link.push("warm", "http://h/warm", type="prefetch")
        until_done(link, "drop:1", "warm")
        assert cache.asked == ["/", "/warm"]
        # It is done each time that it comes.
        link.send("!drop task_id=drop:1\n")
        wait_until(lambda: link.done_ids().count("drop:1") == 2, TIMEOUT_S, "the second drop")
        assert cache.asked == ["/", "/warm", "/"]
        here.until_fresh()
        # What is allowed is greeted with.
        here.agent.configure(("drop_after_s = 3600", "drop_after_s = 0"))
        here.agent.signal(signal.SIGHUP)
        fresh = engine.wait_link(newer_than=link)
        assert fresh.of("hello")[0].endswith(" catch_up=1 asks=1 verify=1")


def test_a_drop_that_was_not_allowed_fails(cache: FakeCache, tmp_path: Path) -> None:
    with FakeEngine(tells=True) as engine, rig(engine, cache=cache, folder=tmp_path):
        link = engine.wait_link()
        link.send("!drop task_id=drop:1\n")
        report = wait_until(lambda: link.ended("drop:1"), TIMEOUT_S, "the report")
        assert report is not None
        assert (report["done"], report["failed"], report["items"]) == ("0", "1", "")
        assert "does\\snot\\sallow" in report["error"]
        assert cache.asked == []


def test_a_link_that_is_back_after_long_makes_it_behind(
    cache: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catching_up, "AWAY_S", 1.0)
    file = tmp_path / "caught-up"

    async def test() -> None:
        with FakeEngine(tells=True) as engine:
            config = msgspec.structs.replace(
                default_config(),
                engines=[("127.0.0.1", engine.port)],
                caches=[CacheConfig("v1", "varnish", split_address(cache.address))],
                caught_up_file=str(file),
            )
            agent = proxyd.agent.Agent(config, Log("error"), lambda: config)
            running = asyncio.create_task(agent.run())
            await until(lambda: engine.live() is not None)
            first = engine.wait_link()
            first.send(CAUGHT_UP)
            await until(file.exists)
            port = engine.port
            engine.stop()
            await until(lambda: not agent.links.serving)
            await asyncio.sleep(1.2)
            assert file.exists()
            with FakeEngine(tells=True, port=port) as again:
                await until(lambda: again.live() is not None)
                await until(lambda: not file.exists())
                again.wait_link().send(CAUGHT_UP)
                await until(file.exists)
                agent.stop(fast=True)
                await running
            assert not file.exists()

    run(test())
