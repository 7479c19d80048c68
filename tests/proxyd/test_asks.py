"""Questions of operators: which are answered, how long an answer may be, and when."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyd import asks as module
from proxyd import session as s
from proxyd.asks import Asks, fit
from proxyd.logs import Log
from proxyd.session import Identity, LinkSession
from tests.proxyd.rig import run, wait_until
from wire.lines import parse

OK = "ok v=1 engine=e1 worker=0 workers=1 shards=64 line_max={} receipts=1\n"


class Link:
    """A connection that was greeted; `answers` are the documents that were written on it."""

    def __init__(self, line_max: int = 1 << 20) -> None:
        self.session = LinkSession()
        self.session.greet(Identity("p", "g", 0), 0)
        (greeted,) = self.session.feed(OK.format(line_max).encode())
        assert isinstance(greeted, s.Greeted)
        assert greeted.receipts
        self.line_max = line_max
        self.answers: dict[str, Any] = {}

    def write(self, data: bytes) -> None:
        assert len(data) < self.line_max
        line = parse(data[:-1])
        assert line.verb == "answer"
        (item,) = line.items or ()
        assert len(item.encode()) <= module.ANSWER_MAX_BYTES
        self.answers[line.fields["ask"]] = json.loads(item)

    def ask(self, asks: Asks, push: str) -> None:
        (event,) = self.session.feed(f"!ask {push}\n".encode())
        assert isinstance(event, s.Ask)
        asks.take(self, event)


def make_asks(caches: int = 1) -> Asks:
    rows = [{"cache": f"c\x7f{number}"} for number in range(caches)]
    return Asks(lambda *_: rows, lambda head: head, Log("error"))


def test_each_kind_is_answered() -> None:
    async def test() -> None:
        asks, link = make_asks(), Link()
        link.ask(asks, "ask=1 what=caches")
        assert [cache["cache"] for cache in link.answers["1"]["caches"]] == ["c\x7f0"]
        link.ask(asks, "ask=2 what=explain type=url -- http://h/a")
        link.ask(asks, "ask=3 what=explain type=tag then=prefetch -- t")
        link.ask(asks, "ask=4 what=explain")
        link.ask(asks, "ask=5 what=weather colour=red")
        await wait_until(lambda: len(link.answers) == 5)
        assert link.answers["2"] == {"targets": [{"target": "http://h/a", "caches": []}]}
        assert "wanted type=url" in link.answers["3"]["error"]
        assert "needs a type" in link.answers["4"]["error"]
        assert "cannot be asked for 'weather'" in link.answers["5"]["error"]

    run(test())


def test_a_question_without_a_number_is_no_question() -> None:
    link = Link()
    for push in ("!ask", "!ask ask=0 what=caches", "!ask ask=x", "!ask ask=" + "9" * 30):
        (event,) = link.session.feed(push.encode() + b"\n")
        assert isinstance(event, s.Complaint)
    assert link.session.feed(b"!drain\n") == [s.Drain([])]
    (event,) = link.session.feed(b"!ask ask=7 what=caches\n")
    assert isinstance(event, s.Ask), "who drains may be asked on"


def test_the_engines_reply_to_an_answer_is_taken() -> None:
    link = Link()
    link.session.answer(1, "{}")
    link.session.answer(2, "{}")
    assert link.session.owes_reports is False
    (event,) = link.session.feed(b"ok\nerr code=bad_field field=answer msg=no\n")
    assert isinstance(event, s.Complaint)
    assert link.session.asked == 0


def test_too_many_at_a_time_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        asks, link, go = make_asks(), Link(), asyncio.Event()

        class Slow:
            async def add(self, *_: object) -> None:
                await go.wait()

        asks._sizes = Slow()  # type: ignore[assignment]
        for number in range(1, 7):
            link.ask(asks, f"ask={number} what=explain type=url -- http://h/a")
        assert {number: list(said) for number, said in link.answers.items()} == {
            "5": ["error"],
            "6": ["error"],
        }
        link.ask(asks, "ask=7 what=caches")
        assert "7" in link.answers, "what is told at once waits for nothing"
        go.set()
        await wait_until(lambda: len(link.answers) == 7)

    run(test())


def test_a_fault_is_told_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        asks, link = make_asks(), Link()
        asks.caches = [None]  # type: ignore[list-item]
        link.ask(asks, "ask=1 what=explain type=url -- http://h/a")
        await wait_until(lambda: link.answers)
        assert "a fault of the agent" in link.answers["1"]["error"]

    run(test())
    assert "a question could not be answered" in capsys.readouterr().err


def test_one_for_a_connection_that_is_gone_is_dropped() -> None:
    link = Link()
    link.session = LinkSession()
    module.answer(link, 1, {})
    assert link.answers == {}


@pytest.mark.parametrize("line_max", [1 << 20, 65_536, 2_000])
def test_an_answer_fits_in_a_line(line_max: int) -> None:
    async def test() -> None:
        asks, link = make_asks(20_000), Link(line_max)
        link.ask(asks, "ask=1 what=caches")
        said = link.answers["1"]
        assert (said["cut"], said["of"]) == (True, 20_000)
        assert 10 < len(said["caches"]) < 20_000

    run(test())


@given(st.lists(st.text(max_size=50), max_size=50), st.integers(100, 3000))
def test_what_is_cut_says_so(rows: list[str], most: int) -> None:
    text = fit({"by": "x", "rows": rows}, most)
    document = json.loads(text)
    assert len(text.encode()) <= most
    assert document["rows"] == rows[: len(document["rows"])]
    assert document.get("cut", False) == (document["rows"] != rows)
    assert document.get("of", len(rows)) == len(rows)


def test_what_has_no_list_cannot_be_cut() -> None:
    assert json.loads(fit({"text": "x" * 1000}, 100)) == {"error": "the answer is too long", "cut": True}
