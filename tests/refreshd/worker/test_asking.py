"""Questions to proxies, without processes: who is not asked, what is left out, what a sibling is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from refreshd.worker import asking as module
from refreshd.worker.asking import Asking
from wire.errors import Refused
from wire.lines import parse


class Session:
    """A proxy's connection; `says` is what it answers at once."""

    def __init__(self, asking: Asking, name: str, says: str = "", *, full: bool = False) -> None:
        self.name = name
        self.answers = True
        self.asked: list[str] = []
        self.wire = SimpleNamespace(full=full, send=self._take)
        self._asking = asking
        self._says = says

    def _take(self, data: bytes) -> None:
        line = parse(data[:-1])
        self.asked.append(line.fields["what"])
        if self._says:
            number = int(line.fields["ask"])
            asyncio.get_running_loop().call_soon(self._asking.answered, self, number, (self._says,))


Test = Callable[[Asking, dict[str, Any]], Coroutine[Any, Any, None]]


def run(test: Test, monkeypatch: pytest.MonkeyPatch, ask_s: float = 0.05) -> None:
    """With a worker that has no connections yet."""
    monkeypatch.setattr(module, "ASK_S", ask_s)

    async def bounded() -> None:
        sessions: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        hub: Any = SimpleNamespace(loop=loop, generation=2, proxies=SimpleNamespace(sessions=sessions))
        async with asyncio.timeout(20):
            await test(Asking(hub), sessions)

    asyncio.run(bounded())


def states(answers: dict[str, module.Answer]) -> dict[str, str]:
    return {name: answer.state for name, answer in answers.items()}


def test_who_does_not_read_or_is_about_to_leave_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asking: Asking, sessions: dict[str, Any]) -> None:
        sessions |= {"a": Session(asking, "a", "{}"), "full": Session(asking, "full", "{}", full=True)}
        found = states(await asking.ask_here(["a", "full", "gone"], b"what=caches"))
        assert found == {"a": "answered", "full": "silent", "gone": "offline"}
        assert sessions["full"].asked == []
        asking.leave()
        assert states(await asking.ask_here(["a"], b"what=caches")) == {"a": "silent"}
        assert sessions["a"].asked == ["caches"]

    run(test, monkeypatch)


def test_what_is_asked_ends_when_connections_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asking: Asking, sessions: dict[str, Any]) -> None:
        sessions["a"] = Session(asking, "a")
        asked = asyncio.ensure_future(asking.ask_here(["a"], b"what=caches"))
        while not sessions["a"].asked:
            await asyncio.sleep(0)
        asking.leave()
        assert states(await asked) == {"a": "silent"}

    run(test, monkeypatch, ask_s=60)


def test_all_answers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asking: Asking, sessions: dict[str, Any]) -> None:
        monkeypatch.setattr(module, "ANSWERS_MAX_BYTES", 100)
        for name in "abc":
            sessions[name] = Session(asking, name, json.dumps({"text": "x" * 40}))
        answers = await asking.ask_here(list("abc"), b"what=caches")
        assert [json.loads(answers[name].text).get("cut", False) for name in "abc"] == [False, True, True]

    run(test, monkeypatch)


def test_a_sibling_is_told_what_came_and_asks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(asking: Asking, sessions: dict[str, Any]) -> None:
        sessions |= {"a": Session(asking, "a", '{"x":"ä"}'), "b": Session(asking, "b")}
        line = parse(b"mesh_ask names=a,b,c what=explain type=url -- http://h/a\\sb")
        answers = module._decoder.decode(await asking.asked_by_sibling(line))
        assert states(answers) == {"a": "answered", "b": "silent", "c": "offline"}
        assert answers["a"].text == '{"x":"ä"}'
        assert sessions["a"].asked == ["explain"]

    run(test, monkeypatch)


@pytest.mark.parametrize("items", [(), ("{}", "{}"), ("[]",), ("{",), ("x" * (module.ANSWER_MAX_BYTES + 1),)])
def test_what_is_no_answer_is_refused_and_not_taken(
    items: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(asking: Asking, sessions: dict[str, Any]) -> None:
        sessions["a"] = Session(asking, "a")
        asked = asyncio.ensure_future(asking.ask_here(["a"], b"what=caches"))
        while not sessions["a"].asked:
            await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            asking.answered(sessions["a"], (2 << 16) + 1, items)
        assert (caught.value.code, caught.value.field) == ("bad_field", "answer")
        assert len(caught.value.msg) < 300
        assert states(await asked) == {"a": "silent"}

    run(test, monkeypatch)
