"""Fields and items: what may stand in each, and the errors that name what may not.

A `Field` is one row of a verb's table in `verbs.py`. Reading is strict about
what it knows and blind to what it does not (PROTOCOL.md: unknown keys are
ignored), so that peers of two versions can talk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from wire.errors import Refused
from wire.patterns import pattern_fault

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}").fullmatch
_INT = re.compile(r"-?[0-9]{1,18}").fullmatch
_FLOAT = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?").fullmatch
_HEX64 = re.compile(r"[0-9a-f]{64}").fullmatch
# Scheme and authority of a target: a name or an address in brackets, an optional
# port, no user name. What follows is a path, a query, or nothing.
_URL = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?(?:[/?][!-~]*)?"
).fullmatch
_PLAIN_URL_START = re.compile(rb"https?://[A-Za-z0-9._-]{1,253}(?:/|\Z)").match
_TAG = re.compile(r"[!-~]{1,256}").fullmatch

TASK_TYPES = ("url", "dir", "regex", "tag", "prefetch")
STATES = ("pending", "active", "complete", "failed", "expired", "cancelled")
FINAL_STATES = frozenset(STATES[2:])
THEN_PREFETCH = "prefetch"
ASKS = ("caches", "explain")
DEFAULT_TTL_S = 86_400
DEFAULT_PRIORITY = 5
TTL_MAX_S = 366 * 86_400
# The year 2242: far enough for any plan, near enough to catch milliseconds given for seconds.
DUE_MAX_S = 1 << 33
COUNT_MAX = 1 << 40


class Field(NamedTuple):
    """One key of a verb. `read` turns its text into a value or raises ValueError."""

    name: str
    read: Callable[[str], Any]
    wanted: str
    """What is allowed, for errors and for the reference."""
    required: bool = False


def read_id(text: str) -> str:
    """A task id, proxy name, group or key name."""
    if not _ID(text):
        raise ValueError
    return text


def integer(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not _INT(text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return read


def read_number(text: str) -> float:
    """A number that is not negative, such as `0.75`."""
    if not _FLOAT(text):
        raise ValueError
    return float(text)


def read_flag(text: str) -> bool:
    """`0` or `1`."""
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def one_of(*words: str) -> Callable[[str], str]:
    """A reader of one of a few words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return read


def read_text(text: str) -> str:
    """Any text."""
    return text


def read_nonempty(text: str) -> str:
    """Any text but the empty one, up to 128 characters."""
    if not 0 < len(text) <= 128:
        raise ValueError
    return text


def read_sig(text: str) -> str:
    """A lower-case hex SHA-256."""
    if not _HEX64(text):
        raise ValueError
    return text


def read_key_hex(text: str) -> str:
    """A public key of 32 bytes in lower-case hex."""
    return read_sig(text)


def read_names(text: str) -> tuple[str, ...]:
    """Comma-separated names, made unique and sorted: their order is part of nothing."""
    return tuple(sorted({read_id(name) for name in text.split(",")}))


def read_url(text: str) -> str:
    """An absolute http or https URL, byte for byte as it came."""
    if url_fault(text) is not None:
        raise ValueError
    return text


def url_fault(text: str) -> str | None:
    """Why this is not a URL that a cache can be asked for, or None if it is one."""
    match = _URL(text)
    if match is None:
        return _explain_url(text)
    if match[1] and not 0 < int(match[1]) < 65536:
        return "the port is not 1 to 65535"
    if "#" in text:
        return "a fragment (#…) never reaches a cache; leave it out"
    return None


def _explain_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        return "not an absolute http:// or https:// URL"
    if any(not "!" <= char <= "~" for char in text):
        return "only the characters 0x21 to 0x7e may stand in a URL; percent-encode the others"
    authority = re.split(r"[/?#]", text.split("://", 1)[1], maxsplit=1)[0]
    if "@" in authority:
        return "a user name or password may not stand in a URL"
    return f"{authority[:80]!r} is not a host with an optional port"


def target_fault(task_type: str, target: str) -> str | None:
    """Why a task of this type cannot have this target, or None if it can."""
    if task_type == "tag":
        return None if _TAG(target) else "a tag has 1 to 256 of the characters 0x21 to 0x7e"
    fault = url_fault(target)
    if fault is not None and task_type == "regex" and "#" in target:
        fault = url_fault(target.replace("#", "."))
    if fault is None and task_type == "dir" and not target.endswith("/"):
        return "a directory ends in /"
    if fault is None and task_type == "regex":
        return _pattern_fault(target)
    return fault


def _pattern_fault(target: str) -> str | None:
    """All of a regex target that follows its host is the pattern."""
    host, slash, pattern = target.split("://", 1)[1].partition("/")
    if not slash or "?" in host or "#" in host:
        return "the pattern begins with the / of the path"
    return pattern_fault(slash + pattern)


def is_one_plain_url(targets: bytes) -> bool:
    """Whether the targets of a *plain* line (`lines.is_plain`) are one that any url task may have.

    The hot path's shortcut; False only means: ask `target_fault`. What a plain line
    cannot hold need not be looked for again: 0.48 µs, where matching each byte of a
    280-byte URL takes 0.6 (tools/bench micro).
    """
    return _PLAIN_URL_START(targets) is not None and b" " not in targets and b"#" not in targets


def bad_field(field: str, got: str, wanted: str) -> Refused:
    """The refusal for a value that is not allowed, quoting at most 80 characters of it."""
    shown = got if len(got) <= 80 else got[:77] + "..."
    return Refused("bad_field", f"{field}: got {shown!r}, wanted {wanted}", field=field)


def missing_field(field: str, wanted: str) -> Refused:
    """The refusal for a field that is needed and not there."""
    return Refused("missing_field", f"{field} is missing; wanted {wanted}", field=field)
