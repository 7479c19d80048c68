"""What is the matter with a cache, in one word, so that a report tells one trouble from another. Pure.

The word stands before the text of an error: `cache v1: killed: cannot connect: Connection refused`. It is
what is seen from here; docs/agent.md, "When a cache is down", says what to look at for each.
"""

from __future__ import annotations

import enum
import errno

from proxyd.blame import Death


class Cause(enum.Enum):
    """The words."""

    KILLED = "killed"
    """Nobody is there, or whoever was there went amid a request."""
    FROZEN = "frozen"
    """It takes requests and says nothing."""
    FULL = "full"
    """It is there and has no room: it answers 5xx, or takes no connection."""
    SLOW = "slow"
    """It goes on, but not in time."""
    GARBLED = "garbled"
    """What it says is no answer."""
    AWAY = "away"
    """There is no way to it: the network."""
    BEHIND = "origin"
    """It answers; the trouble is the origin's, most likely."""

    def of(self, text: str) -> str:
        """The text with its word."""
        return f"{self.value}: {text}"


_DEATHS = {
    Death.CLOSED: Cause.KILLED,
    Death.RESET: Cause.KILLED,
    Death.GARBAGE: Cause.GARBLED,
    Death.OVERSIZE: Cause.GARBLED,
    Death.SILENT: Cause.FROZEN,
    Death.SLOW: Cause.SLOW,
}
_NO_WAY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


def cause_of_death(death: Death) -> Cause:
    """Of the end of a connection."""
    return _DEATHS[death]


def cause_of_error(error: OSError) -> Cause:
    """Of a connection that was not to be had."""
    if error.errno in _NO_WAY:
        return Cause.AWAY
    return Cause.KILLED
