"""A reference in a playlist as the target that a player would ask for (RFC 3986, 5.2). Pure.

Not `urllib.parse.urljoin`: that also makes one slash of several, and the path is the cache's key.
"""

from __future__ import annotations

import re

from proxyd.targets import split_target

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):").match
_ODD = re.compile(r"[^!#-~]")


class Elsewhere(Exception):
    """The reference leads to nothing that a cache could have: `data:`, `skd:`…"""


def resolve(host: bytes, path: bytes, reference: str) -> tuple[bytes, bytes]:
    """(Host, path with query) of a reference that stands in what was fetched from `host` and `path`.

    What cannot stand in a URL (spaces, other alphabets) is percent-encoded, as players do.
    Raises: BadTarget, Elsewhere.
    """
    text = _ODD.sub(_percent, reference.strip().partition("#")[0])
    scheme = _SCHEME(text)
    if scheme is not None:
        if scheme[1].lower() not in ("http", "https"):
            raise Elsewhere(scheme[1])
        target = "http:" + text[scheme.end() :]
    elif text.startswith("//"):
        target = "http:" + text
    else:
        return host, _join(path, text.encode("ascii"))
    host, path = split_target(target.encode("ascii"))
    return host, _join(path, path)


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _join(base: bytes, reference: bytes) -> bytes:
    base_path, _, base_query = base.partition(b"?")
    path, mark, query = reference.partition(b"?")
    if not path:
        return base_path + (mark + query if mark else b"?" + base_query if base_query else b"")
    if not path.startswith(b"/"):
        path = base_path[: base_path.rfind(b"/") + 1] + path
    joined = _remove_dots(path) + mark + query
    # The same bounds hold as for a target that somebody has posted.
    return split_target(b"http://h" + joined)[1]


def _remove_dots(path: bytes) -> bytes:
    """RFC 3986, 5.2.4. Empty segments stay."""
    if b"/." not in path:
        return path
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
