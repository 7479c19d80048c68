"""Every error of the protocol, and the table of codes a peer can be answered with.

    WireError
    ├── BadLine        the peer's line is not of the form of PROTOCOL.md, "Lines"
    ├── TooLong        the peer's line is longer than `line_max`; the connection ends
    ├── BadStream      the peer's compressed stream is damaged; the connection ends
    ├── Refused        an `err` reply: made by an engine, or received from one
    ├── PeerMisbehaved the other side answered something the protocol does not allow
    ├── ConnectionLost the connection ended before the reply came
    └── TimedOut       the caller's deadline passed before the reply came

The first three are the peer's fault and are found while reading. `LocalError`
stands apart: it is a fault of the program that uses this package.
"""

from __future__ import annotations

from typing import NamedTuple


class WireError(Exception):
    """Base of all errors that talking to a peer can raise."""


class BadLine(WireError):
    """A line that is not of the form of PROTOCOL.md, "Lines". `str()` says why."""


class TooLong(WireError):
    """A line over `line_max` bytes, LF included."""


class BadStream(WireError):
    """A compressed stream that is damaged or larger than it may be."""


class PeerMisbehaved(WireError):
    """The peer sent what the protocol does not allow at this point."""


class ConnectionLost(WireError):
    """The connection ended (or could not be made) before the reply came."""


class TimedOut(WireError):
    """The caller's deadline passed; whether the request took effect is not known."""


class LocalError(ValueError):
    """The caller asked for something the protocol cannot express."""


class Code(NamedTuple):
    """One row of PROTOCOL.md, "Error codes"."""

    meaning: str
    retry: bool
    """Whether the same request may succeed later, at this engine or another."""


CODES: dict[str, Code] = {
    "bad_line": Code("the line is not of the protocol's form", False),
    "unknown_verb": Code("no such verb", False),
    "missing_field": Code("a field that is needed is not there", False),
    "bad_field": Code("a field's value is not allowed", False),
    "auth": Code("no hello where one is needed, or a signature that does not hold", False),
    "denied": Code("this peer may not do this", False),
    "limited": Code("the key's quota is used up", True),
    "busy": Code("a queue is full", True),
    "draining": Code("this engine takes no new tasks now", True),
    "conflict": Code("the task id exists with another content", False),
    "not_found": Code("no such task", False),
    "too_long": Code("the line is longer than line_max", False),
    "unavailable": Code("the store did not answer; nothing was accepted", True),
    "internal": Code("a fault of the engine", True),
}


class Refused(WireError):
    """A request that got `err`: it changed nothing.

    `code` is a key of `CODES`; `field` names the field for `missing_field` and
    `bad_field`; `retry_ms` says when to try again, where that helps; `ref` is
    what the engine logged with an `internal` fault.
    """

    def __init__(
        self,
        code: str,
        msg: str,
        *,
        field: str | None = None,
        retry_ms: int | None = None,
        ref: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {msg}")
        self.code = code
        self.msg = msg
        self.field = field
        self.retry_ms = retry_ms
        self.ref = ref

    @property
    def retry(self) -> bool:
        """Whether the same request may succeed later (an unknown code: no)."""
        code = CODES.get(self.code)
        return code is not None and code.retry
