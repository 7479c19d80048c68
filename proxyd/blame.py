"""Who is to blame when a connection to a cache dies with requests on it. Pure.

Requests are pipelined, so those in flight differ: the first of them is the one
whose answer was due. A cache answers in order, so where a connection was closed or spoilt,
the first one may be the cause and those behind it are not; where the cache fell silent,
none of them was answered in time.

A request that was blamed once is tried once more, alone on a connection with
nothing else in flight, so that the second time leaves no doubt; blamed
twice, it has failed. Those that were spared go back to the front of the
queue. All that goes through here is harmless when repeated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from proxyd.tasks import Exchange

# Tried at most this often; see above.
TRIES_MAX = 2


class Death(enum.Enum):
    """How a connection ended, worded for the report of the request that is blamed for it."""

    CLOSED = "the cache closed the connection before its answer was whole"
    RESET = "the connection was reset before the answer was whole"
    GARBAGE = "what the cache answered is not HTTP"
    OVERSIZE = "the cache's answer is too large"
    SILENT = "the cache gave no answer in time"
    SLOW = "the cache's answer took too long as a whole"


_OF_ALL = (Death.SILENT, Death.SLOW)


def share_blame(
    death: Death, in_flight: Iterable[Exchange]
) -> tuple[list[Exchange], list[Exchange], list[Exchange]]:
    """Sorts what was in flight, in order, into (failed, to be tried alone, spared)."""
    failed: list[Exchange] = []
    again: list[Exchange] = []
    spared: list[Exchange] = []
    for number, exchange in enumerate(in_flight):
        if number and death not in _OF_ALL:
            spared.append(exchange)
            continue
        exchange.tries += 1
        (failed if exchange.tries >= TRIES_MAX else again).append(exchange)
    return failed, again, spared
