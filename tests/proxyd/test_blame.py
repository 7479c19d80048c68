"""Who is blamed when a connection dies."""

import pytest

from proxyd.blame import Death, share_blame
from proxyd.caches import KINDS
from proxyd.tasks import Exchange
from tests.proxyd.rig import make_exchange


def flight(*tries: int) -> list[Exchange]:
    exchanges = []
    for number, tried in enumerate(tries):
        exchange = make_exchange(b"http://h/%d" % number, KINDS["varnish"].deeds["url"])
        exchange.tries = tried
        exchanges.append(exchange)
    return exchanges


@pytest.mark.parametrize("death", [Death.CLOSED, Death.RESET, Death.GARBAGE, Death.OVERSIZE])
def test_only_the_first_is_blamed(death: Death) -> None:
    first, second, third = flight(0, 0, 0)
    assert share_blame(death, [first, second, third]) == ([], [first], [second, third])
    assert [first.tries, second.tries] == [1, 0]


def test_silence_is_everybodys() -> None:
    first, second = flight(0, 0)
    assert share_blame(Death.SILENT, [first, second]) == ([], [first, second], [])


def test_the_second_time_is_the_last() -> None:
    [alone] = flight(1)
    assert share_blame(Death.RESET, [alone]) == ([alone], [], [])


def test_nothing_in_flight() -> None:
    assert share_blame(Death.CLOSED, []) == ([], [], [])
