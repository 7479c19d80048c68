"""The book of reloads and upgrades."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from refreshd.errors import ConfigError
from refreshd.master.operations import (
    FAULTS_MAX,
    REMEMBERED_MAX,
    TEXT_MAX,
    Kind,
    Operations,
    OutOfTurn,
    State,
    config_refused,
)


def test_an_operation_from_asking_to_its_end() -> None:
    book = Operations()
    operation = book.ask(Kind.RELOAD)
    assert (operation.number, operation.state, operation.took_ms(5.0)) == (1, State.WAITING, 0)
    assert book.begin(5.0, 5000) is operation
    book.step("worker 0 of 2 hands over")
    assert (operation.state, operation.step, operation.took_ms(5.25)) == (
        State.RUNNING,
        "worker 0 of 2 hands over",
        250,
    )
    assert book.done("2 workers were replaced", 6.0, 6000) is operation
    assert (operation.is_over, operation.why, operation.took_ms(99.0)) == (
        True,
        "2 workers were replaced",
        1000,
    )
    assert (operation.started_ms, operation.ended_ms) == (5000, 6000)
    assert book.running is None
    assert book.get(1) is operation


def test_what_comes_while_one_runs_waits_and_what_comes_while_one_waits_joins() -> None:
    book = Operations()
    book.ask(Kind.RELOAD)
    first = book.begin(0.0, 0)
    assert first is not None
    second = book.ask(Kind.RELOAD)
    assert second is not first
    assert book.ask(Kind.RELOAD) is second
    assert book.begin(1.0, 0) is None, "one runs at a time"
    book.fail("a worker did not come up", 1.0, 0)
    assert book.begin(2.0, 0) is second


def test_an_upgrade_takes_a_waiting_reload_with_it_and_a_reload_joins_a_waiting_upgrade() -> None:
    book = Operations()
    waiting = book.ask(Kind.RELOAD)
    assert book.ask(Kind.UPGRADE) is waiting
    assert waiting.kind is Kind.UPGRADE
    assert book.ask(Kind.RELOAD) is waiting
    assert waiting.kind is Kind.UPGRADE


def test_an_engine_that_stops_fails_what_runs_and_what_waits() -> None:
    book = Operations()
    book.ask(Kind.RELOAD)
    running = book.begin(0.0, 0)
    waiting = book.ask(Kind.UPGRADE)
    book.fail_all("the engine stops", 1.0, 1000)
    assert running is not None
    assert [(one.state, one.why) for one in (running, waiting)] == [(State.FAILED, "the engine stops")] * 2
    book.fail_all("again", 2.0, 2000)
    assert waiting.why == "the engine stops"


def test_nothing_can_be_told_of_an_operation_that_does_not_run() -> None:
    book = Operations()
    book.ask(Kind.RELOAD)
    for tell in (lambda: book.step("x"), lambda: book.done("", 0.0, 0), lambda: book.fail("", 0.0, 0)):
        with pytest.raises(OutOfTurn, match="no operation runs"):
            tell()
    operation = book.begin(0.0, 0)
    assert operation is not None
    with pytest.raises(OutOfTurn, match="begin of reload 1, which is running"):
        operation.move("begin")


def test_texts_are_cut() -> None:
    book = Operations()
    book.ask(Kind.RELOAD)
    book.begin(0.0, 0)
    book.step("s" * 2 * TEXT_MAX)
    operation = book.fail("w" * 2 * TEXT_MAX, 0.0, 0)
    assert (len(operation.step), len(operation.why)) == (TEXT_MAX, TEXT_MAX)


def test_the_refusal_of_a_configuration_has_a_line_for_each_fault_up_to_a_bound() -> None:
    refused = config_refused("refreshd.toml", ConfigError(["line 2: a", "line 3: b"]))
    assert (refused.code, refused.field) == ("bad_field", "config")
    assert refused.msg == "refreshd.toml: line 2: a\nrefreshd.toml: line 3: b"
    many = config_refused(None, ConfigError([f"line {n}: x" for n in range(FAULTS_MAX + 3)]))
    assert many.msg.splitlines()[-1] == "and 3 more"


class Book(RuleBasedStateMachine):
    """Any order of asking, working and being re-executed."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Operations()
        self.asked: list[int] = []
        self.now = 0.0

    @rule(kind=st.sampled_from(Kind))
    def ask(self, kind: Kind) -> None:
        operation = self.book.ask(kind)
        assert operation.state is State.WAITING
        assert operation.kind is kind or operation.kind is Kind.UPGRADE
        if operation.number not in self.asked:
            self.asked.append(operation.number)

    @rule()
    def begin(self) -> None:
        could = self.book.waiting is not None and self.book.running is None
        assert (self.book.begin(self.now, 0) is not None) == could

    @precondition(lambda self: self.book.running is not None)
    @rule(well=st.booleans())
    def end(self, well: bool) -> None:
        (self.book.done if well else self.book.fail)("said", self.now, 0)

    @rule()
    def is_executed_again(self) -> None:
        plain = json.loads(json.dumps(self.book.to_plain()))
        again = Operations.from_plain(plain)
        assert again.to_plain() == self.book.to_plain()
        self.book = again

    @invariant()
    def at_most_one_each_and_no_number_twice(self) -> None:
        known = [number for number in self.asked if self.book.get(number) is not None]
        states = [operation.state for number in known if (operation := self.book.get(number)) is not None]
        assert states.count(State.RUNNING) <= 1
        assert states.count(State.WAITING) <= 1
        assert self.asked == list(range(1, len(self.asked) + 1))
        assert known == self.asked[-REMEMBERED_MAX:], "the last ones are remembered"
        newest = self.book.newest()
        assert (newest.number if newest else 0) == len(self.asked)


TestBook = Book.TestCase
