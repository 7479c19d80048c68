r"""Text of the configuration with places for a target, so that no target can break out of them. Pure.

    {host} {path} {tag}     as they are
    {path:percent}          percent-encoded, but for A-Z a-z 0-9 . _ ~ -
    {path:json}             with a backslash before " and \: for what stands between double quotes
    {path:regex}            with a backslash before all that could mean something in a pattern
    {path:regex:json}       first the one, then the other

What a target holds was checked before (`targets.py`): a host has letters, digits and `.:_-[]`, a path and a
tag have the bytes 0x21 to 0x7e. So none can end a line, nor part two words. What else it could break out of
depends on what stands around its place. `find_fault` asks for what fits, and refuses what may not be safe:

    behind ' or <, or any of & ? = in the same word      percent
    between double quotes                                json last, or percent
    elsewhere                                            regex last, or percent
    at the end, behind letters, digits and :/._- only    also as it is

What stands between double quotes before it does not count. In a request's path only percent fits, or for
{path} as it is; what else such a path needs stands in `http.py`. Whether what is asked for *means* the target
(a path where the cache wants a pattern) is for who writes it to know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec

_PLACE = re.compile(r"\{([A-Za-z]\w*)((?::\w+)*)\}")
# Behind this a path can only go on with what was begun.
_HARMLESS = re.compile(r"[A-Za-z0-9:/._-]*").fullmatch
_PARTING = frozenset("&?=")
_QUOTING = frozenset("'<")
# The last group is missing where a string is begun and not ended.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*("?)')

_NOT_UNRESERVED = re.compile(rb"[^A-Za-z0-9._~-]")
_QUOTED = re.compile(rb'["\\]')
# As refreshd.vcl has it for a ban.
_MEANING = re.compile(rb"[^A-Za-z0-9/_-]")


def _percent(value: bytes) -> bytes:
    return _NOT_UNRESERVED.sub(lambda match: b"%%%02X" % match[0][0], value)


def _json(value: bytes) -> bytes:
    return _QUOTED.sub(rb"\\\g<0>", value)


def _regex(value: bytes) -> bytes:
    return _MEANING.sub(rb"\\\g<0>", value)


ENCODINGS: Mapping[str, Callable[[bytes], bytes]] = {"percent": _percent, "json": _json, "regex": _regex}


class Place(msgspec.Struct, frozen=True):
    """Where a value goes, and how it is encoded."""

    name: str
    encodings: tuple[str, ...] = ()


class Template(msgspec.Struct, frozen=True):
    """Text in parts: what stands there, and places."""

    parts: tuple[bytes | Place, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """The template of a text in which `find_fault` finds none."""
        return cls(tuple(part.encode() if isinstance(part, str) else part for part in _parts(text)))

    def fill(self, values: Mapping[str, bytes]) -> bytes:
        """The text, with `values` by the names of their places."""
        return b"".join(
            part if isinstance(part, bytes) else _encode(values[part.name], part.encodings)
            for part in self.parts
        )


def _encode(value: bytes, encodings: Iterable[str]) -> bytes:
    for encoding in encodings:
        value = ENCODINGS[encoding](value)
    return value


def _parts(text: str) -> list[str | Place]:
    parts: list[str | Place] = []
    at = 0
    for match in _PLACE.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        parts.append(Place(match[1], tuple(match[2].split(":")[1:])))
        at = match.end()
    if at < len(text):
        parts.append(text[at:])
    return parts


def count_places(text: str) -> int:
    """How many places a text has."""
    return sum(1 for _ in _PLACE.finditer(text))


def find_fault(text: str, names: Iterable[str], *, is_path: bool = False) -> str | None:
    """What is wrong with a template whose places may have these names; None if nothing is."""
    fitting = ("percent",) if is_path else tuple(ENCODINGS)
    known = tuple(names)
    before = ""
    parts = _parts(text)
    for number, part in enumerate(parts):
        if isinstance(part, str):
            before += part
            continue
        if part.name not in known:
            return f"got {_show(part)}, wanted {_either([f'{{{name}}}' for name in known]) or 'no place'}"
        for encoding in part.encodings:
            if encoding not in fitting:
                return f"got {_show(part)}, wanted {_either(fitting)} behind the colon"
        may_be_raw = number == len(parts) - 1 and not (is_path and part.name == "tag")
        # A host has no byte that could mean anything.
        if part.name != "host" and (wanted := _wanted(part, before, may_be_raw=may_be_raw)):
            shown = _either([_show(Place(part.name, each)) for each in wanted if {*each} <= {*fitting}])
            # What stands around it is not shown: there may be a secret in it.
            return f"got {_show(part)}, where a target could break out; wanted {shown}"
    return None


def _wanted(place: Place, before: str, *, may_be_raw: bool) -> list[tuple[str, ...]]:
    """What a place needs to be in place of what it is; empty if it is well."""
    last = place.encodings[-1] if place.encodings else ""
    if last == "percent":
        return []
    outside = _STRING.sub("", before)
    if _PARTING & {*outside.rpartition(" ")[2]} or _QUOTING & {*outside}:
        return [("percent",)]
    strings = _STRING.findall(before)
    if strings and not strings[-1]:
        return [] if last == "json" else [(*place.encodings, "json"), ("percent",)]
    if last == "json":
        return [("percent",)]
    if last == "regex" or (may_be_raw and _HARMLESS(before)):
        return []
    return [("percent",), ("regex",)]


def _show(place: Place) -> str:
    return "{" + ":".join((place.name, *place.encodings)) + "}"


def _either(words: Iterable[str]) -> str:
    return " or ".join(words)
