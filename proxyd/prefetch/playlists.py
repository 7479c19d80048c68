"""Which answers are playlists, and what they name as targets. Pure.

A playlist is told by its Content-Type, or by its path (`.m3u8`, `.mpd`) where the type says nothing.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator

import cramjam

from proxyd.errors import BadTarget
from proxyd.prefetch import dash, hls
from proxyd.prefetch.errors import BadPlaylist
from proxyd.prefetch.urls import Elsewhere, resolve

Address = tuple[bytes, bytes]
"""Host, and path with query."""
Child = Address | Elsewhere | BadTarget
"""What a playlist names: where it is, or why nobody can fetch it."""

# 10,000 segments with names of 200 bytes; as it came, and decoded.
PLAYLIST_MAX_BYTES = 2 << 20

_TYPES = {
    b"application/vnd.apple.mpegurl": "hls",
    b"application/x-mpegurl": "hls",
    b"audio/mpegurl": "hls",
    b"audio/x-mpegurl": "hls",
    b"application/dash+xml": "dash",
}
_ENDINGS = {b".m3u8": "hls", b".mpd": "dash"}
# What servers say that do not know.
_VAGUE_TYPES = frozenset(
    {b"", b"application/octet-stream", b"binary/octet-stream", b"text/plain", b"text/xml", b"application/xml"}
)


@functools.lru_cache(256)
def _kind_of_type(content_type: bytes) -> str | None:
    """`hls`, `dash`, empty for another type, or None where it says nothing."""
    plain = content_type.partition(b";")[0].strip().lower()
    return None if plain in _VAGUE_TYPES else _TYPES.get(plain, "")


def kind_of(content_type: bytes, path: bytes) -> str:
    """`hls`, `dash`, or empty for all that is no playlist."""
    kind = _kind_of_type(content_type)
    if kind is not None or b".m" not in path.lower():
        return kind or ""
    plain = path.partition(b"?")[0].lower()
    return next((kind for ending, kind in _ENDINGS.items() if plain.endswith(ending)), "")


def list_children(kind: str, body: bytes, address: Address) -> Iterator[Child]:
    """What a playlist names that was fetched from `address`. Raises: BadPlaylist, maybe after some."""
    if kind == "hls":
        text = body.decode("utf-8", "replace")
        return (_resolve(address, (), reference) for reference in hls.list_references(text))
    return (_resolve(address, bases, reference) for bases, reference in dash.list_references(body))


def _resolve(address: Address, bases: tuple[str, ...], reference: str) -> Child:
    try:
        for base in bases:
            address = resolve(*address, base)
        return resolve(*address, reference)
    except (BadTarget, Elsewhere) as error:
        return error


def decode(body: bytes, encoding: bytes) -> bytes:
    """The body without its Content-Encoding. Raises: BadPlaylist; so for one that is too large."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return body
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise BadPlaylist(f"its Content-Encoding is {encoding[:40]!r}, wanted gzip, br, deflate or none")
    try:
        return decoder(body)
    except (zlib.error, cramjam.DecompressionError) as error:
        text = f"it cannot be decoded from {name.decode()} to at most {PLAYLIST_MAX_BYTES} bytes: {error}"
        raise BadPlaylist(text) from None


def _inflate(body: bytes) -> bytes:
    # 32 more than the window's size: with the header of gzip or of zlib, whichever stands there.
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
    text = decoder.decompress(body, PLAYLIST_MAX_BYTES)
    if not decoder.eof:
        raise zlib.error("too large" if decoder.unconsumed_tail else "it is cut")
    return text


def _unbrotli(body: bytes) -> bytes:
    text = bytearray(PLAYLIST_MAX_BYTES)
    # (What is too large raises, too.)
    count = cramjam.brotli.decompress_into(body, text)
    return bytes(memoryview(text)[:count])


_DECODERS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": _inflate,
    b"x-gzip": _inflate,
    b"deflate": _inflate,
    b"br": _unbrotli,
}
