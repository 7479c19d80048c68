"""What the demo shows, step by step. Each is timed, and holds or ends the demo, telling what was got."""

from __future__ import annotations

import shlex
import time
from collections.abc import Awaitable, Callable

from tools.demo.http1 import HttpError
from tools.demo.show import Show
from tools.demo.stage import SITE, Stage
from wire.errors import WireError

NEWS = "/news.html"
#: Targets that a cache must not rewrite: the escapes in it are part of its key.
OFFER = "/offers/sale%2F50.html"
#: How long one task may take; it takes milliseconds.
TASK_S = 20.0

Details = list[str]


class StepFailed(Exception):
    """A step was not seen to work."""

    def __init__(self, got: str, wanted: str) -> None:
        super().__init__(f"got:    {got}\nwanted: {wanted}")


class Story:
    """Plays on STAGE, prints to SHOW."""

    def __init__(self, stage: Stage, show: Show) -> None:
        self._stage = stage
        self._show = show

    async def play(self) -> None:
        """Raises: StepFailed (already shown) at the first step that does not hold."""
        await self.step("the first visitor asks; the cache asks the origin", self._first_visit)
        await self.step("the second visitor is served by the cache", self._second_visit)
        await self.step("the page changes at the origin; the cache still has the old one", self._change)
        await self.step("a refresh is posted, and every cache has done it", self._refresh)
        await self.step("the next visitor gets the new page", self._new_page)
        await self.step("a page that nobody has asked for yet is prefetched", self._prefetch)
        await self.step("its first visitor is a hit: the origin is not asked", self._first_is_hit)

    async def step(self, title: str, act: Callable[[], Awaitable[Details]]) -> None:
        """Shows one step. Raises: StepFailed, after it was shown."""
        began = time.perf_counter()
        try:
            details = await act()
        except StepFailed as failure:
            self._show.failed(title, str(failure))
            raise
        self._show.done(title, time.perf_counter() - began, details)
        self._stage.check()

    async def _first_visit(self) -> Details:
        self._stage.origin.objects[NEWS.encode()] = b"edition 1\n"
        return [await self._visit(NEWS, b"edition 1\n", asks_origin=True)]

    async def _second_visit(self) -> Details:
        return [await self._visit(NEWS, b"edition 1\n", asks_origin=False)]

    async def _change(self) -> Details:
        self._stage.origin.objects[NEWS.encode()] = b"edition 2\n"
        return ["the origin has: edition 2", await self._visit(NEWS, b"edition 1\n", asks_origin=False)]

    async def _refresh(self) -> Details:
        return await self._submit("news-2", url(NEWS))

    async def _new_page(self) -> Details:
        return [await self._visit(NEWS, b"edition 2\n", asks_origin=True)]

    async def _prefetch(self) -> Details:
        self._stage.origin.objects[OFFER.encode()] = b"half price\n"
        details = await self._submit("offer-1", "--type", "prefetch", url(OFFER))
        if self._stage.origin.visits[OFFER.encode()] != 1:
            raise StepFailed(f"{self._stage.origin.visits[OFFER.encode()]} visits at the origin", "one")
        return details

    async def _first_is_hit(self) -> Details:
        return [await self._visit(OFFER, b"half price\n", asks_origin=False)]

    async def _submit(self, task_id: str, *words: str) -> Details:
        """Post a task with refreshctl and wait for its end; gives the command and its last words."""
        words = ("submit", "--wait", "--id", task_id, *words)
        command = shlex.join(self._stage.refreshctl_command(*words))
        try:
            code, output = await self._stage.refreshctl(*words, timeout_s=TASK_S)
            if code != 0:
                raise StepFailed(f"exit code {code} of `{command}`: {output or '(nothing)'}", "exit code 0")
            took_ms = await self._stage.task_took_ms(task_id)
        except TimeoutError:
            raise StepFailed(f"no end of `{command}` within {TASK_S:.0f} s", "exit code 0") from None
        except WireError as error:
            raise StepFailed(f"no answer about {task_id}: {error}", "its state") from error
        took = f"accepted to complete: {took_ms} ms; the rest is refreshctl starting"
        return [f"$ {command}", *output.splitlines()[-3:], took]

    async def _visit(self, target: str, body: bytes, *, asks_origin: bool) -> str:
        """Ask the cache for TARGET as a visitor; one line of what was seen. The origin's own count of visits
        is the proof of who answered."""
        visits = self._stage.origin.visits
        before = visits[target.encode()]
        try:
            response = await self._stage.visit(target)
        except (OSError, TimeoutError, HttpError) as error:
            raise StepFailed(f"no answer from the cache: {str(error) or 'too late'}", "a page") from error
        asked = visits[target.encode()] - before
        got = f"{response.status} {response.body!r}, the origin asked {asked} times"
        if (response.status, response.body, asked) != (200, body, int(asks_origin)):
            raise StepFailed(got, f"200 {body!r}, the origin asked {int(asks_origin)} times")
        by = "from the origin" if asks_origin else f"from the cache, age {response.headers.get('age', '?')} s"
        return f"GET {url(target)} -> {body.decode().strip()}, {by}"


def url(target: str) -> str:
    return f"http://{SITE}{target}"
