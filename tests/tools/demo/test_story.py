"""The story holds where the system works and breaks where it does not, saying what was got and wanted."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tools.demo.caches import choose
from tools.demo.http1 import Request, Server, fetch
from tools.demo.littlecache import LittleCache
from tools.demo.origin import Origin
from tools.demo.show import Show
from tools.demo.stage import ROOT, Stage
from tools.demo.story import StepFailed, Story

DEADLINE_S = 20.0
Refreshctl = Callable[[Stage, str, str], Awaitable[tuple[int, str]]]


class PlayedStage(Stage):
    """A stage without engine and agent: `act` stands for both."""

    act: Refreshctl

    async def refreshctl(self, *words: str, timeout_s: float) -> tuple[int, str]:
        async with asyncio.timeout(timeout_s):
            type_ = "prefetch" if "prefetch" in words else "url"
            return await self.act(self, type_, words[-1])

    async def task_took_ms(self, task_id: str) -> int:
        return 3


async def honest(stage: Stage, type_: str, url: str) -> tuple[int, str]:
    target = "/" + url.split("/", 3)[3]
    method = {"url": "PURGE", "prefetch": "GET"}[type_]
    await fetch(stage.cache_address, Request(method, target.encode(), {"host": "www.example.com"}))
    return 0, "complete"


async def lazy(stage: Stage, type_: str, url: str) -> tuple[int, str]:
    return 0, "complete"


async def lazy_prefetch(stage: Stage, type_: str, url: str) -> tuple[int, str]:
    return 0 if type_ == "prefetch" else (await honest(stage, type_, url))[0], "complete"


async def refusing(stage: Stage, type_: str, url: str) -> tuple[int, str]:
    return 3, "cannot reach the engine"


async def hanging(stage: Stage, type_: str, url: str) -> tuple[int, str]:
    await asyncio.Event().wait()
    return 0, ""


def played(act: Refreshctl) -> str:
    """What the story prints when ACT does the work of engine and agent; its failure is part of that."""

    async def run() -> str:
        printed = io.StringIO()
        origin = Origin()
        async with (
            asyncio.timeout(DEADLINE_S),
            Server(origin.handle) as server,
            Server(LittleCache(server.address).handle) as cache,
        ):
            folder = ROOT / ".run" / "x"
            stage = PlayedStage(folder, origin, server.address, choose("little"), cache.address)
            stage.act = act
            try:
                await Story(stage, Show(printed)).play()
            except StepFailed:
                printed.write("(ended)\n")
        return printed.getvalue()

    return asyncio.run(run())


def test_it_holds_where_the_work_is_done() -> None:
    printed = played(honest)
    assert printed.count("✓") == 7
    assert "✗" not in printed
    assert "\x1b" not in printed
    assert "submit --wait --id news-2 http://www.example.com/news.html" in printed


@pytest.mark.parametrize(
    ("act", "steps_before", "said"),
    [
        (lazy, 4, "got:    200 b'edition 1\\n', the origin asked 0 times"),
        (lazy_prefetch, 5, "got:    0 visits at the origin"),
        (refusing, 3, "cannot reach the engine"),
    ],
)
def test_it_breaks_where_it_is_not(act: Refreshctl, steps_before: int, said: str) -> None:
    printed = played(act)
    assert printed.count("✓") == steps_before
    assert printed.count("✗") == 1
    assert said in printed
    assert printed.endswith("(ended)\n")


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.demo.story.TASK_S", 0.05)
    assert "no end of" in played(hanging)


def test_colours_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    Show(terminal).done("it works", 0.001, [])
    assert "\x1b[32m✓\x1b[0m" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    Show(terminal).done("it works", 0.001, [])
    assert "\x1b" not in terminal.getvalue()


def test_the_socket_is_named_from_the_root() -> None:
    stage = Stage(ROOT / ".run" / "demo-x", Origin(), ("127.0.0.1", 1), choose("little"))
    assert stage.socket == Path(".run/demo-x/data/admin.sock")
