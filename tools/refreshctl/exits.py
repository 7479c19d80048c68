"""Exit codes, and what an error is turned into: a code and one line that says what to do."""

from __future__ import annotations

import enum

from wire.errors import ConnectionLost, LocalError, PeerMisbehaved, Refused, TimedOut


class Exit(enum.IntEnum):
    """How refreshctl ends."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    PARTLY = 4
    DENIED = 5
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class Failure(Exception):
    """The end of the command; `str()` is the line for the user."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def usage(message: str) -> Failure:
    """The user asked for what cannot be."""
    return Failure(Exit.USAGE, message)


_NEXT_STEPS = {
    "not_found": "see `refreshctl list` and `refreshctl proxies`",
    "limited": "try again later",
    "busy": "try again later, or look at `refreshctl stats`",
    "draining": "it stops, or was drained (see `refreshctl status`); try again in a moment, or elsewhere",
    "unavailable": "nothing was accepted; look at the engine's log and disk, then try again",
    "internal": "look in the engine's log for that ref",
    "denied": "use a socket or key that may",
    "too_long": "split it with --per-task",
}


def code_of(error: Exception) -> Exit:
    """The exit code that an error alone would end with."""
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, Refused):
        return Exit.DENIED if error.code in ("auth", "denied") else Exit.FAILED
    if isinstance(error, ConnectionLost):
        return Exit.DENIED if isinstance(error.__cause__, PermissionError) else Exit.UNREACHABLE
    if isinstance(error, TimedOut):
        return Exit.UNREACHABLE
    return Exit.USAGE if isinstance(error, LocalError) else Exit.FAILED


def explain(error: Exception, socket: str) -> str:
    """One line: what happened, and what to do about it."""
    if isinstance(error, Refused):
        step = _NEXT_STEPS.get(error.code)
        ref = f" (ref {error.ref})" if error.ref else ""
        text = f"{error.code}: {error.msg}{ref}" + (f"; {step}" if step else "")
    elif isinstance(error, ConnectionLost) and isinstance(error.__cause__, PermissionError):
        text = f"may not open {socket}; run as the user or group that owns it"
    elif isinstance(error, ConnectionLost):
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        what = f"cannot connect to {socket} ({reason})" if reason else str(error)
        text = f"{what}; start refreshd, or name its socket with --socket or REFRESHCTL_SOCKET"
    elif isinstance(error, PeerMisbehaved):
        text = f"{error}; does refreshd listen on {socket}, and is it of this version?"
    else:
        text = str(error)
    return " ".join(text.split())
