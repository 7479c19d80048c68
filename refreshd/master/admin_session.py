"""The admin socket's side of a connection, without I/O: what is the master's to answer, what a worker's.

The master answers a few verbs itself, so that they work when no worker does. At
the first other one the whole connection goes to a worker, with the bytes that
were read and not used. Which it is, the first word of a line tells: a line of any
length is handed over before it has come whole.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from wire.errors import BadLine, Refused
from wire.lines import Line, parse
from wire.verbs import MASTER_VERBS

# A line with one of our verbs has hardly any fields.
LINE_MAX_BYTES = 4096
# The start of a line that has to be refused because no worker can take it.
HELD_MAX_BYTES = 64 * 1024
_WORD = re.compile(rb"[a-z_]*")
_VERBS = tuple(verb.encode() for verb in MASTER_VERBS)


class Ask(NamedTuple):
    """A request for the master to answer."""

    line: Line


class Bad(NamedTuple):
    """A line of the master's that must be refused; `fatal`: the connection ends after that."""

    refused: Refused
    fatal: bool = False


class HandOver(NamedTuple):
    """The next request is a worker's. It stays until `take_rest` or `skip_line`."""


Event = Ask | Bad | HandOver


class AdminSession:
    """Feed it what came; `next_event` until that is None."""

    def __init__(self) -> None:
        self._held = bytearray()

    def __repr__(self) -> str:
        return f"<AdminSession {len(self._held)} bytes held>"

    def feed(self, data: bytes) -> None:
        """Bytes came. The caller feeds no more while `next_event` has something."""
        self._held += data

    def next_event(self) -> Event | None:
        """The next request, or None: more bytes are needed."""
        word = _WORD.match(self._held)
        assert word is not None  # noqa: S101 (the pattern matches the empty word)
        if word.end() == len(self._held) and any(verb.startswith(word[0]) for verb in _VERBS):
            return None
        if word[0] not in _VERBS or self._held[word.end()] not in b" \r\n":
            return HandOver()
        return self._own_line()

    def _own_line(self) -> Event | None:
        end = self._held.find(b"\n", 0, LINE_MAX_BYTES)
        if end < 0:
            if len(self._held) < LINE_MAX_BYTES:
                return None
            return Bad(Refused("too_long", f"at most {LINE_MAX_BYTES} bytes, LF included"), fatal=True)
        raw = bytes(self._held[:end])
        del self._held[: end + 1]
        try:
            return Ask(parse(raw))
        except BadLine as error:
            return Bad(Refused("bad_line", str(error)))

    def take_rest(self) -> bytes:
        """All that was fed and not used, for the worker that takes the connection."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def skip_line(self) -> bool | None:
        """Drops the line that no worker can take: True once that is done, False while its end has not come.

        None: it is so long that its end cannot be waited for.
        """
        end = self._held.find(b"\n")
        if end >= 0:
            del self._held[: end + 1]
            return True
        return False if len(self._held) < HELD_MAX_BYTES else None
