"""The snappy framing format around a connection (`zip=snappy` in a hello).

Both directions become a stream of chunks: one byte of type, three bytes of
length (little-endian), the body. Declared lengths are checked before anything
is decompressed, so a few bytes can never become many. Source: google/snappy,
framing_format.txt.
"""

from __future__ import annotations

import cramjam
import snappy

from wire.errors import BadStream

_IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
# The format's own limits: a chunk holds at most 64 KiB of data; an encoder's
# worst case makes that 76,490 bytes, and four bytes of checksum stand before it.
DATA_MAX_BYTES = 65536
CHUNK_MAX_BYTES = 76490 + 4
_COMPRESSED, _UNCOMPRESSED, _PADDING, _STREAM = 0x00, 0x01, 0xFE, 0xFF


class Compressor:
    """One direction of a connection, outward."""

    def __init__(self, *, started: bool = False) -> None:
        """`started`: another compressor has begun this stream."""
        self._stream = snappy.StreamCompressor()
        self._begun_elsewhere = started
        self.started = started
        """Whether the stream's identifier was sent."""

    def compress(self, data: bytes) -> bytes:
        """The bytes to send for `data`; everything given so far can be read by the peer."""
        packed = bytes(self._stream.compress(data))
        self.started = True
        if self._begun_elsewhere:
            self._begun_elsewhere = False
            packed = packed.removeprefix(_IDENTIFIER)
        return packed


class Decompressor:
    """One direction of a connection, inward. Holds at most one unfinished chunk."""

    def __init__(self, held: bytes = b"", *, started: bool = False) -> None:
        """`held`, `started`: what another decompressor had of this stream, see `rest`."""
        self._held = bytearray(held)
        self.started = started
        """Whether the stream's identifier came."""

    def decompress(self, data: bytes) -> bytes:
        """What `data` completes. Raises: BadStream; the connection cannot go on then."""
        held = self._held
        held += data
        out: list[bytes] = []
        at = 0
        while len(held) - at >= 4:
            kind = held[at]
            size = int.from_bytes(held[at + 1 : at + 4], "little")
            self._check_header(kind, size)
            if len(held) - at < 4 + size:
                break
            chunk = bytes(held[at : at + 4 + size])
            at += 4 + size
            if kind in (_COMPRESSED, _UNCOMPRESSED):
                out.append(_read_chunk(chunk))
            elif kind == _STREAM and chunk != _IDENTIFIER:
                raise BadStream("the stream identifier is not sNaPpY")
            self.started = True
        del held[:at]
        return b"".join(out)

    def _check_header(self, kind: int, size: int) -> None:
        if not self.started and kind != _STREAM:
            raise BadStream(f"a snappy stream begins with 0xff, got 0x{kind:02x}; was zip=snappy meant?")
        if 0x02 <= kind <= 0x7F:
            raise BadStream(f"chunk type 0x{kind:02x} is reserved and may not be skipped")
        if size > CHUNK_MAX_BYTES:
            raise BadStream(f"a chunk of {size} bytes; at most {CHUNK_MAX_BYTES} are allowed")

    @property
    def rest(self) -> bytes:
        """The unfinished chunk, for a connection that moves elsewhere."""
        return bytes(self._held)


def _read_chunk(chunk: bytes) -> bytes:
    """Checks the declared length, then lets the library decompress and check the CRC."""
    declared = _declared_length(chunk[8:13]) if chunk[0] == _COMPRESSED else len(chunk) - 8
    if not 0 <= declared <= DATA_MAX_BYTES:
        raise BadStream(f"a chunk that declares {declared} bytes; at most {DATA_MAX_BYTES} are allowed")
    try:
        return bytes(cramjam.snappy.decompress(_IDENTIFIER + chunk))
    except cramjam.DecompressionError as error:
        raise BadStream(f"a damaged chunk: {error}") from None


def _declared_length(data: bytes) -> int:
    """The little-endian base-128 length a compressed block begins with, -1 if cut."""
    value = 0
    for shift, byte in enumerate(data):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value
    return -1
