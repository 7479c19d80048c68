r"""Lines: reading, writing, and the five escapes (PROTOCOL.md, "Lines").

    line  = verb *(SP key=value) [SP "--" *(SP item)] LF

`parse` is strict and makes text; it serves every line that is not hot. The few
hot lines are cut by `heads.py`, which falls back to `parse` whenever it is not
sure. `LineReader` cuts a stream into lines and says of each read whether it was
*plain*: nothing but printable ASCII and no backslash, so that no value in it
can need unescaping and no byte in it can make a line bad.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from wire import DEFAULT_LINE_MAX_BYTES
from wire.errors import BadLine, LocalError, Refused, TooLong

Value = str | int | float | None

_VERB = re.compile(r"[!+]?[a-z][a-z0-9_]*|\+").fullmatch
_KEY = re.compile(r"[a-z][a-z0-9_]*").fullmatch
_COUNT = re.compile(r"[0-9]{1,18}").fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNCARRIED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_UNESCAPED = re.compile(r"[ \t\n\r\\]")
_BAD_ESCAPE = re.compile(r"\\(?:[^stnr\\]|\Z)")
_ESCAPE = re.compile(r"\\(.)")
_FROM_ESCAPE = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
_TO_ESCAPE = {value: "\\" + key for key, value in _FROM_ESCAPE.items()}
# Numbers on the wire have no exponent; six places are more than any figure here needs.
_FLOAT_PLACES = 6
_PLAIN_BYTES = bytes(set(range(0x20, 0x7F)) - {0x5C}) + b"\n"


class Line(NamedTuple):
    """One parsed line. Values and items are unescaped.

    `items` is None where the line has no `--`, and may be empty where it has.
    """

    verb: str
    fields: dict[str, str]
    items: tuple[str, ...] | None = None


def parse(raw: bytes) -> Line:
    """Reads one line, without its LF (one CR at its end is dropped).

    Raises: BadLine, saying what was got and what was wanted.
    """
    if raw.endswith(b"\r"):
        raw = raw[:-1]
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8 at byte {error.start}") from None
    if not text:
        raise BadLine("an empty line; send a verb, such as ping")
    if control := _CONTROL.search(text):
        raise BadLine(f"raw byte 0x{ord(control[0]):02x} at character {control.start()}; escape it")
    head, dashes, tail = text.partition(" -- ")
    items: tuple[str, ...] | None = None
    if dashes:
        items = tuple(unescape(item, "item") for item in tail.split(" "))
        if "" in items:
            raise BadLine("an empty item; put exactly one space between items")
    elif head.endswith(" --"):
        head, items = head[:-3], ()
    verb, *pairs = head.split(" ")
    if not _VERB(verb):
        raise BadLine(f"{_shown(verb)} is not a verb; wanted lower-case letters, digits and _")
    return Line(verb, _read_fields(pairs), items)


def _read_fields(pairs: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not _KEY(key):
            raise BadLine(f"{_shown(pair)} is not key=value; parts are parted by exactly one space")
        if key in fields:
            raise BadLine(f"the key {_shown(key)} stands there twice")
        fields[key] = unescape(value, key) if "\\" in value else value
    return fields


def _shown(text: str) -> str:
    """The text as an error may quote it: bounded, and unmistakable at its ends."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def unescape(text: str, where: str = "value") -> str:
    r"""Turns `\s \t \n \r \\` back into what they stand for.

    Raises: BadLine for any other escape and for a lone backslash at the end.
    """
    if "\\" not in text:
        return text
    # Pairs are consumed from the left, so `\\s` is a backslash and an s.
    if (bad := _BAD_ESCAPE.search(text.replace("\\\\", "\0\0"))) is not None:
        raise BadLine(f"unknown escape {_shown(text[bad.start() : bad.start() + 2])} in {where}")
    return _ESCAPE.sub(lambda match: _FROM_ESCAPE[match[1]], text)


def escape(text: str) -> str:
    """Makes any text fit for a value or an item; the inverse of `unescape`.

    Raises: LocalError for what no escape can carry (NUL and its like, 0x7f).
    A lone surrogate is found by `format_line`.
    """
    if _UNESCAPED.search(text):
        text = _UNESCAPED.sub(lambda match: _TO_ESCAPE[match[0]], text)
    if control := _CONTROL.search(text):
        raise LocalError(f"a line cannot carry the character 0x{ord(control[0]):02x}")
    return text


def carriable(text: str) -> str:
    """`text` with `?` for each character that no line can carry (see `escape`)."""
    return _UNCARRIED.sub("?", text)


def format_line(
    verb: str, fields: Mapping[str, Value] | None = None, items: Iterable[str] | None = None
) -> bytes:
    """Makes one line, LF included. A field whose value is None is left out.

    Raises: LocalError for an empty item or a character that no line can carry.
    """
    parts = [verb]
    for key, value in (fields or {}).items():
        if value is not None:
            parts.append(f"{key}={escape(value) if isinstance(value, str) else _number(value)}")
    if items is not None:
        parts.append("--")
        for item in items:
            if not item:
                raise LocalError("an item may not be empty")
            parts.append(escape(item))
    try:
        return " ".join(parts).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise LocalError(
            f"a line is UTF-8 and cannot carry the surrogate at character {error.start}"
        ) from None


def _number(value: float) -> str:
    """A whole or decimal number, without exponent; a flag is 0 or 1."""
    if isinstance(value, int):
        return str(int(value))
    if not math.isfinite(value):
        raise LocalError(f"a line cannot carry the number {value}")
    return f"{value:.{_FLOAT_PLACES}f}".rstrip("0").rstrip(".")


def format_refused(refused: Refused) -> bytes:
    """The `err` line for a refusal, LF included."""
    return format_line(
        "err",
        {
            "code": refused.code,
            "field": refused.field,
            "retry_ms": refused.retry_ms,
            "ref": refused.ref,
            "msg": carriable(refused.msg),
        },
    )


def read_refused(line: Line) -> Refused:
    """The refusal that an `err` line tells of; the inverse of `format_refused`."""
    fields = line.fields
    return Refused(
        fields.get("code", "internal"),
        fields.get("msg", ""),
        field=fields.get("field"),
        retry_ms=read_count(fields.get("retry_ms", "")),
        ref=fields.get("ref"),
    )


def read_count(text: str) -> int | None:
    """The whole number in a field of a reply, None if there is none of 1 to 18 digits."""
    return int(text) if _COUNT(text) else None


def is_plain(data: bytes) -> bool:
    """Whether `data` is printable ASCII and LF only, without a backslash.

    0.09 µs a 330-byte line; a regular expression takes 1 µs (tools/bench micro).
    """
    return not data.translate(None, _PLAIN_BYTES)


class LineReader:
    """Cuts a stream of bytes into lines, holding at most one unfinished line.

    Feeding the same bytes whole or one by one gives the same lines.
    """

    __slots__ = ("_tail", "line_max", "overflow", "plain")

    def __init__(self, line_max: int = DEFAULT_LINE_MAX_BYTES) -> None:
        self.line_max = line_max
        self.plain = True
        """Whether the lines of the last `feed` were plain, see `is_plain`."""
        self.overflow: TooLong | None = None
        """Set once a line was too long: the lines before it were returned, nothing follows."""
        self._tail = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Returns the lines that `data` completes, without their LF (a CR stays).

        After a line over `line_max` it returns what came before it, sets
        `overflow`, and from then on returns nothing.
        """
        if self.overflow is not None:
            return []
        tail = self._tail
        if b"\n" not in data:
            # Appended, never joined anew: a line that comes in single bytes costs no more.
            tail += data
            if len(tail) >= self.line_max:
                self._overflowed()
            return []
        if tail:
            data = bytes(tail) + data
            tail.clear()
        lines = data.split(b"\n")
        rest = lines.pop()
        if rest:
            tail += rest
        self.plain = is_plain(data)
        if len(data) > self.line_max:
            lines = self._cut_at_overflow(lines)
        return lines

    def _cut_at_overflow(self, lines: list[bytes]) -> list[bytes]:
        for number, line in enumerate(lines):
            if len(line) >= self.line_max:
                self._overflowed()
                return lines[:number]
        if len(self._tail) >= self.line_max:
            self._overflowed()
        return lines

    def _overflowed(self) -> None:
        self._tail.clear()
        self.overflow = TooLong(f"a line has at most {self.line_max} bytes, LF included")

    @property
    def holds_part(self) -> bool:
        """Whether the beginning of a line is held."""
        return bool(self._tail)

    @property
    def rest(self) -> bytes:
        """The unfinished line, for a connection that moves elsewhere."""
        return bytes(self._tail)

    def __repr__(self) -> str:
        state = "overflow" if self.overflow else f"{len(self._tail)} bytes held"
        return f"<LineReader {state}>"
