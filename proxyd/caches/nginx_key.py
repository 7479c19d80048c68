"""The key that nginx stores an object under, from the template that is its `proxy_cache_key`. Pure.

A key is bytes, and its md5 names the file. A target does not say all that stands in a key: whether a
visitor came by http or https, in which case he wrote the host, or which slice he got. So a target is sought
under each key that it can have, or by a pattern where those are without number.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

import msgspec

DEFAULT_KEY = "$scheme$proxy_host$request_uri"
"""What nginx takes where no proxy_cache_key stands."""

VARIABLES = (
    "scheme", "host", "http_host", "proxy_host", "request_uri", "uri", "args", "query_string", "is_args",
    "slice_range",
)  # fmt: skip
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(.?))")
_SCHEMES = (b"http", b"https")


class BadKey(ValueError):
    """A template that no key can be computed from; the text says why."""


class Open(msgspec.Struct, frozen=True):
    """A part of a key that is not known: a regular expression for it."""

    pattern: bytes


_ANYTHING = Open(rb".*")
_SLICE = Open(rb"(?:bytes=[0-9]+-[0-9]+)?")
Part = bytes | Open


class Pattern(msgspec.Struct, frozen=True):
    """Keys that begin with `head`, and match `whole` where that is not None."""

    head: bytes
    whole: re.Pattern[bytes] | None

    def fits(self, key: bytes) -> bool:
        """Whether a key is one of them."""
        return key.startswith(self.head) and (self.whole is None or self.whole.fullmatch(key) is not None)


class Sought(msgspec.Struct, frozen=True):
    """The keys that one target can have: those, and where they cannot be counted those that fit a pattern."""

    keys: tuple[bytes, ...] = ()
    patterns: tuple[Pattern, ...] = ()

    def fits(self, key: bytes) -> bool:
        """Whether a key is one of them."""
        return key in self.keys or any(pattern.fits(key) for pattern in self.patterns)


class KeyTemplate:
    """A `proxy_cache_key`. Raises: BadKey."""

    def __init__(self, text: str, proxy_host: str) -> None:
        self._parts: list[tuple[bytes, str]] = []
        """(what stands before it, variable)"""
        self._proxy_host = proxy_host.encode()
        at = 0
        for match in _VARIABLE.finditer(text):
            name = match[1] or match[2] or ""
            if name not in VARIABLES:
                raise BadKey(
                    f"{match[0]} is not one of ${', $'.join(VARIABLES)}: what it stands for only nginx knows"
                )
            self._parts.append((text[at : match.start()].encode(), name))
            at = match.end()
        self._end = text[at:].encode()
        used = {name for _, name in self._parts}
        if not used & {"request_uri", "uri"}:
            raise BadKey("neither $request_uri nor $uri stands in it: all objects would have one key")
        if "proxy_host" in used and not proxy_host:
            raise BadKey(
                "$proxy_host stands in it: say in proxy_host what stands behind http:// in your proxy_pass"
            )

    def of_url(self, host: bytes, path: bytes) -> Sought:
        """Where the object of a URL can be. Empty where nginx takes no such URL."""
        path, _, args = path.partition(b"?")
        return self._seek(host, path, args, [b"?" if args else b""], path + (b"?" if _ else b"") + args, [])

    def of_directory(self, host: bytes, prefix: bytes) -> Sought:
        """Where all is that begins with a prefix, which ends in a slash."""
        path, query, args = prefix.partition(b"?")
        if query:
            return self._seek(host, path, args, [b"?"], prefix, ["request_uri", "args", "query_string"])
        return self._seek(
            host, path, args, [_ANYTHING], prefix, ["request_uri", "uri", "args", "query_string"]
        )

    def _seek(
        self, host: bytes, path: bytes, args: bytes, is_args: Sequence[Part], whole: bytes, opened: list[str]
    ) -> Sought:
        uri = normalise(path)
        if uri is None:
            return Sought()
        values: dict[str, Sequence[Part]] = {
            "scheme": _SCHEMES,
            "host": [_bare(host)],
            "http_host": sorted({host, host.lower()}),
            "proxy_host": [self._proxy_host],
            "request_uri": [whole],
            "uri": [uri],
            "args": [args],
            "query_string": [args],
            "is_args": is_args,
            "slice_range": [_SLICE],
        }
        # Each variable means the same wherever it stands.
        names = list(dict.fromkeys(name for _, name in self._parts))
        keys: list[bytes] = []
        patterns: list[Pattern] = []
        for combination in itertools.product(*(values[name] for name in names)):
            chosen = dict(zip(names, combination, strict=True))
            parts: list[Part] = []
            for before, name in self._parts:
                parts += [before, chosen[name]]
                if name in opened:
                    parts.append(_ANYTHING)
            fixed, rest = _cut([*parts, self._end])
            if rest:
                patterns.append(_pattern(fixed, rest))
            else:
                keys.append(fixed)
        return Sought(tuple(keys), tuple(patterns))


def _bare(host: bytes) -> bytes:
    """nginx's $host: in lower case, without a port and a dot at the end."""
    name, colon, port = host.lower().rpartition(b":")
    if not colon or b"]" in port:
        name = host.lower()
    return name.removesuffix(b".")


def _cut(parts: Iterable[Part]) -> tuple[bytes, list[Part]]:
    """What is known of a key from its beginning, and the rest."""
    rest = list(parts)
    fixed = b""
    while rest and isinstance(part := rest[0], bytes):
        fixed += part
        del rest[0]
    return fixed, rest


def _pattern(fixed: bytes, rest: list[Part]) -> Pattern:
    patterns: list[bytes] = []
    for part in rest:
        text = re.escape(part) if isinstance(part, bytes) else part.pattern
        # ".*" twice over is the same, and slow.
        if text and not (patterns and patterns[-1] == text == _ANYTHING.pattern):
            patterns.append(text)
    swallows_all = patterns[0] == _ANYTHING.pattern and all(
        not isinstance(part, bytes) or not part for part in rest
    )
    if swallows_all:
        return Pattern(fixed, None)
    return Pattern(fixed, re.compile(re.escape(fixed) + b"".join(patterns), re.DOTALL))


def normalise(path: bytes) -> bytes | None:
    """What nginx makes of a path for `$uri` (ngx_http_parse_complex_uri, merge_slashes on); None: 400.

    Percent-encodings are decoded, `//` is one slash, and `.` and `..` are resolved, decoded ones too. But a
    decoded `%`, `#` or `?` is a plain byte.
    """
    segments: list[bytes] = []
    segment = bytearray()
    # How many bytes the segment has that were plain: such a segment is not "." or "..".
    plain = False
    at, end = 1, len(path)
    while at <= end:
        if at == end:
            byte, at = 0x2F, at + 1
            last = True
        else:
            byte, last, at = path[at], False, at + 1
            if byte == 0x25:
                try:
                    byte = int(_TWO_HEX(path, at)[0], 16)  # type: ignore[index]
                except TypeError:
                    return None
                at += 2
                if byte == 0:
                    return None
                if byte in b"%#?":
                    segment.append(byte)
                    plain = True
                    continue
        if byte != 0x2F:
            segment.append(byte)
            continue
        name, segment = bytes(segment), bytearray()
        was_plain, plain = plain, False
        if name == b".." and not was_plain:
            if not segments:
                return None
            segments.pop()
            name = b""
        elif name == b"." and not was_plain:
            name = b""
        if name or last:
            segments.append(name)
    return b"/" + b"/".join(segments)


_TWO_HEX = re.compile(rb"[0-9A-Fa-f]{2}").match
