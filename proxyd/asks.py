"""Questions of operators that come over a link (PROTOCOL.md, "Questions"), and their answers.

A question does nothing to a cache and is never in the way of what is pushed: what can be told at once is
told at once; to ask caches for sizes takes a while, a few such questions at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from proxyd.documents import encode
from proxyd.explain import Sizes, explain
from proxyd.logs import Log
from proxyd.route import Lanes
from proxyd.session import Ask, LinkSession
from wire.tasks import PushHead

# What an engine takes.
ANSWER_MAX_BYTES = 256 * 1024
# Questions that wait for caches; more are told to come again.
RUNNING_MAX = 4

Document = dict[str, Any]
Describe = Callable[[Sequence[Lanes], float], list[dict[str, Any]]]


class Asker(Protocol):
    """The link that a question came on."""

    session: LinkSession

    def write(self, data: bytes) -> None:
        """Sends, unless the connection is gone."""


class Asks:
    """Answers for one agent. `describe` says how caches are, `as_configured` what is made of a head."""

    def __init__(self, describe: Describe, as_configured: Callable[[PushHead], PushHead], log: Log) -> None:
        self.caches: Sequence[Lanes] = ()
        """What the agent acts on now."""
        self._describe = describe
        self._as_configured = as_configured
        self._log = log
        self._sizes = Sizes()
        self._running: set[asyncio.Task[None]] = set()

    def take(self, link: Asker, ask: Ask) -> None:
        """Answers a question, now or later."""
        if ask.fault or (ask.what == "explain" and ask.head is None):
            answer(link, ask.number, {"error": ask.fault or "a question of what=explain needs a type"})
        elif ask.what == "caches":
            now = asyncio.get_running_loop().time()
            answer(link, ask.number, {"caches": self._describe(self.caches, now)})
        elif ask.what == "explain":
            self._begin(link, ask)
        else:
            answer(link, ask.number, {"error": f"this agent cannot be asked for {ask.what[:40]!r}"})

    def _begin(self, link: Asker, ask: Ask) -> None:
        if len(self._running) >= RUNNING_MAX:
            answer(link, ask.number, {"error": f"{RUNNING_MAX} questions are being answered; ask again"})
            return
        task = asyncio.get_running_loop().create_task(self._explain(link, ask))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _explain(self, link: Asker, ask: Ask) -> None:
        assert ask.head is not None  # noqa: S101 (for mypy: `take` has seen to it)
        try:
            document = explain(self.caches, self._as_configured(ask.head), ask.targets)
            await self._sizes.add(self.caches, document)
        except Exception as error:
            self._log.fault("a question could not be answered", error)
            document = {"error": f"a fault of the agent, it is in its log: {error!r}"}
        answer(link, ask.number, document)

    def close(self) -> None:
        """What is not answered is not."""
        for task in self._running:
            task.cancel()


def answer(link: Asker, number: int, document: Document) -> None:
    """Sends an answer, cut to what the engine takes."""
    session = link.session
    if not session.greeted:
        # That connection has ended; this is another's beginning.
        return
    # Escapes make a character two at the most, and there are no others in a line but these few.
    text = fit(document, min(ANSWER_MAX_BYTES, (session.line_max - 64) // 2))
    link.write(session.answer(number, text))


def fit(document: Document, most_bytes: int) -> str:
    """The document as JSON of at most `most_bytes`: of its list, the last are left out, and `cut` is set."""
    text = encode(document)
    if len(text) <= most_bytes:
        return text.decode()
    of_list = next((key for key, value in document.items() if isinstance(value, list)), None)
    if of_list is None:
        return encode({"error": "the answer is too long", "cut": True}).decode()
    rows = document[of_list]
    room = most_bytes - len(encode({**document, of_list: [], "cut": True, "of": len(rows)}))
    kept: list[Any] = []
    for row in rows:
        room -= len(encode(row)) + 1
        if room < 0:
            break
        kept.append(row)
    return encode({**document, of_list: kept, "cut": True, "of": len(rows)}).decode()
