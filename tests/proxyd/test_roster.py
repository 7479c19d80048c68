"""Which engines are learned, which are forgotten, and when."""

from __future__ import annotations

import pytest

from proxyd.addresses import format_address, parse_address
from proxyd.roster import FORGET_AFTER_S, Address, Roster
from proxyd.settings import LIST_MAX


def at(text: str) -> Address:
    address = parse_address(text if ":" in text else f"{text}:1")
    assert address is not None
    return address


def decide(roster: Roster, up: str, now: float = 0.0, configured: str = "a") -> tuple[str, str]:
    """What is learned and forgotten; engines have names of one letter."""
    changes = roster.decide([at(each) for each in configured], {at(each) for each in up}, now)
    learned, forgotten = (
        "".join(format_address(each)[0] for each in some) for some in (changes.learned, changes.forgotten)
    )
    return learned, forgotten


def name(roster: Roster, by: str, names: str) -> bool:
    return roster.name(at(by), [f"{each}:1" for each in names])


def test_what_an_engine_names_that_is_up_is_learned() -> None:
    roster = Roster()
    assert name(roster, "a", "abc")
    assert not name(roster, "a", "abc")
    assert decide(roster, up="") == ("", "")
    assert decide(roster, up="a") == ("bc", "")
    assert decide(roster, up="abc") == ("", "")
    assert roster.learned == [at("b"), at("c")]
    assert name(roster, "b", "d")
    assert decide(roster, up="ab") == ("d", "")


def test_it_is_forgotten_when_nobody_names_it_and_it_is_away_for_a_while() -> None:
    roster = Roster()
    name(roster, "a", "bc")
    decide(roster, up="a")
    name(roster, "a", "b")
    assert decide(roster, up="ac", now=1000) == ("", "")
    assert decide(roster, up="a", now=2000) == ("", "")
    assert decide(roster, up="a", now=2000 + FORGET_AFTER_S - 1) == ("", "")
    assert decide(roster, up="a", now=2000 + FORGET_AFTER_S) == ("", "c")
    assert roster.learned == [at("b")]


@pytest.mark.parametrize("meanwhile", ["ac", ""])
def test_the_while_begins_anew_when_it_was_there_or_nobody_was(meanwhile: str) -> None:
    roster = Roster()
    name(roster, "a", "bc")
    decide(roster, up="a")
    name(roster, "a", "b")
    for now, up in ((0, "a"), (200, meanwhile), (400, "a"), (600, "a")):
        assert decide(roster, up=up, now=now) == ("", "")
    assert decide(roster, up="a", now=400 + FORGET_AFTER_S) == ("", "c")


def test_what_an_engine_names_that_is_away_or_was_let_go_does_not_count() -> None:
    for let_go in (False, True):
        roster = Roster()
        name(roster, "b", "c")
        decide(roster, up="b")
        if let_go:
            roster.let_go(at("b"))
        up = "b" if let_go else "a"
        decide(roster, up=up, now=0)
        assert decide(roster, up=up, now=FORGET_AFTER_S) == ("", "c")
        assert decide(roster, up="a", now=FORGET_AFTER_S) == ("", "")


def test_one_that_is_configured_is_not_learned() -> None:
    roster = Roster()
    name(roster, "a", "ab")
    assert decide(roster, up="a", configured="ab") == ("", "")
    assert decide(roster, up="a", configured="a") == ("b", "")
    assert decide(roster, up="a", configured="ab") == ("", "")
    assert roster.learned == []


def test_there_are_64_at_most() -> None:
    roster = Roster()
    roster.name(at("a"), [f"x{number}:1" for number in range(200)])
    assert len(roster.named_by(at("a"))) == LIST_MAX
    roster.name(at("b"), ["y:1", "z:1"])
    changes = roster.decide([at("a"), at("b")], {at("a"), at("b")}, 0.0)
    assert len(changes.learned) == LIST_MAX - 2
    assert changes.refused == 4
    assert len(roster.learned) == LIST_MAX - 2
    assert roster.decide([at(f"c{n}") for n in range(LIST_MAX)], {at("a")}, 0.0).learned == []


def test_what_is_no_address_is_passed_over() -> None:
    roster = Roster()
    roster.name(at("a"), ["", "x", "x:0", "unix:/x", "[::1]:7", "b:1"])
    assert roster.named_by(at("a")) == [("::1", 7), at("b")]


def test_some_more() -> None:
    roster = Roster()
    name(roster, "a", "b")
    assert roster.name_also(at("a"), ["c:1", "b:1"])
    assert not roster.name_also(at("a"), ["c:1"])
    assert roster.named_by(at("a")) == [at("b"), at("c")]


def test_it_crosses_an_upgrade_and_may_be_turned_off_and_on() -> None:
    roster = Roster()
    name(roster, "a", "bc")
    decide(roster, up="a")
    again = Roster()
    for address in map(at, "abc"):
        again.resume(address, address in roster.learned, roster.named_by(address))
    assert again.learned == roster.learned
    assert decide(again, up="a") == ("", "")
    again.unlearn()
    assert again.learned == []
    assert decide(again, up="a") == ("bc", "")
