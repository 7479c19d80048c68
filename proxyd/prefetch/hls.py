"""What an HLS playlist names (RFC 8216, and its draft's low-latency parts). Pure.

Read are: the URI lines of segments and of EXT-X-STREAM-INF, and the URIs of EXT-X-MEDIA,
EXT-X-I-FRAME-STREAM-INF, EXT-X-MAP, EXT-X-KEY, EXT-X-SESSION-KEY, EXT-X-SESSION-DATA and EXT-X-PART;
variables of EXT-X-DEFINE (NAME and VALUE) are put in. A segment behind EXT-X-GAP is not there.
EXT-X-BYTERANGE names a part of a file: the file is what the cache keeps, so it is named as a whole. What
EXT-X-PRELOAD-HINT names is not there yet, and what EXT-X-RENDITION-REPORT names stands in the master.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from proxyd.prefetch.errors import BadPlaylist

_WITH_URI = re.compile(
    r"#EXT-X-(?:MEDIA|I-FRAME-STREAM-INF|MAP|KEY|SESSION-KEY|SESSION-DATA|PART):(.*)", re.DOTALL
).match
_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=(?:"([^"]*)"|([^,]*))')
_VARIABLE = re.compile(r"\{\$([A-Za-z0-9_-]+)\}")
# A playlist defines a handful.
VARIABLES_MAX = 100


def list_references(text: str) -> Iterator[str]:
    """The references, in order, as they stand there. Raises: BadPlaylist, maybe after some."""
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if not text.startswith("#EXTM3U"):
        raise BadPlaylist(f"it begins with {text[:20]!r}, wanted #EXTM3U")
    variables: dict[str, str] = {}
    gap = False
    for line in _lines(text):
        if not line.startswith("#"):
            if not gap:
                yield _fill(line, variables)
            gap = False
        elif line == "#EXT-X-GAP":
            gap = True
        elif line.startswith("#EXT-X-DEFINE:"):
            _define(line, variables)
        elif (match := _WITH_URI(line)) and (uri := _attributes(match[1]).get("URI")):
            yield _fill(uri, variables)


def _lines(text: str) -> Iterator[str]:
    """The lines that hold something, one at a time: a list of them would be as large again."""
    at = 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        if line := text[at:end].strip():
            yield line
        at = end + 1


def _attributes(text: str) -> dict[str, str]:
    return {name: quoted or plain for name, quoted, plain in _ATTRIBUTE.findall(text)}


def _define(line: str, variables: dict[str, str]) -> None:
    attributes = _attributes(line.partition(":")[2])
    name = attributes.get("NAME")
    if name is None or len(variables) >= VARIABLES_MAX:
        # (IMPORT and QUERYPARAM: what uses them is refused below.)
        return
    variables[name] = attributes.get("VALUE", "")


def _fill(reference: str, variables: dict[str, str]) -> str:
    if "{$" not in reference:
        return reference
    try:
        return _VARIABLE.sub(lambda match: variables[match[1]], reference)
    except KeyError as error:
        raise BadPlaylist(f"the variable {error.args[0]!r} is not defined in it") from None
