"""The snappy stream: round trips, feeding in pieces, damage, and bombs."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.compress import CHUNK_MAX_BYTES, DATA_MAX_BYTES, Compressor, Decompressor
from wire.errors import BadStream

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"


def chunk(kind: int, body: bytes, size: int | None = None) -> bytes:
    return bytes([kind]) + struct.pack("<I", len(body) if size is None else size)[:3] + body


def packed(*pieces: bytes) -> bytes:
    compressor = Compressor()
    return b"".join(compressor.compress(piece) for piece in pieces)


@given(
    st.lists(
        st.binary(max_size=200) | st.binary(min_size=1, max_size=3).map(lambda x: x * 50_000), max_size=4
    )
)
def test_what_goes_in_comes_out(pieces: list[bytes]) -> None:
    compressor, decompressor = Compressor(), Decompressor()
    for piece in pieces:
        # Nothing is kept back: what was given can be read at once.
        assert decompressor.decompress(compressor.compress(piece)) == piece


@given(st.lists(st.binary(max_size=100), max_size=4))
def test_byte_by_byte_equals_whole(pieces: list[bytes]) -> None:
    stream = packed(*pieces)
    decompressor = Decompressor()
    assert b"".join(decompressor.decompress(bytes([byte])) for byte in stream) == b"".join(pieces)
    assert Decompressor().decompress(stream) == b"".join(pieces)


def test_more_than_a_chunk_holds() -> None:
    data = random.Random(1).randbytes(3 * DATA_MAX_BYTES + 5)
    assert Decompressor().decompress(packed(data)) == data


def test_padding_skippable_and_repeated_identifiers_are_skipped() -> None:
    line = packed(b"ping\n")
    stream = line + chunk(0xFE, b"\0" * 100) + chunk(0x80, b"x") + chunk(0xFD, b"") + IDENTIFIER + line
    assert Decompressor().decompress(stream) == b"ping\nping\n"


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"ping\nping\n", "begins with 0xff"),
        (chunk(0x00, b"12345"), "begins with 0xff"),
        (chunk(0xFF, b"sNaPpX"), "identifier"),
        (chunk(0xFF, b""), "identifier"),
        (IDENTIFIER + chunk(0x02, b"x"), "reserved"),
        (IDENTIFIER + chunk(0x7F, b"x"), "reserved"),
        (IDENTIFIER + chunk(0x00, b""), "declares"),
        (IDENTIFIER + chunk(0x00, b"crc4"), "declares"),
        (IDENTIFIER + chunk(0x01, b"cr"), "declares"),
        (IDENTIFIER + chunk(0x01, b"crc4hello"), "damaged"),
        (IDENTIFIER + chunk(0x00, b"crc4\x05hello"), "damaged"),
        # A few bytes that claim to be much: refused before anything is made of them.
        (IDENTIFIER + chunk(0x00, b"crc4\xff\xff\xff\xff\x0f"), "declares"),
        (IDENTIFIER + chunk(0x00, b"crc4\x80\x80\x80\x80\x80\x80"), "declares"),
        (IDENTIFIER + chunk(0x00, b"crc4" + b"\x81\x80\x04" + b"x"), "declares 65537"),
        (IDENTIFIER + chunk(0x01, b"crc4" + b"x" * (DATA_MAX_BYTES + 1)), "declares"),
        (IDENTIFIER + chunk(0x00, b"", CHUNK_MAX_BYTES + 1), "at most"),
        (IDENTIFIER + chunk(0xFE, b"", 0xFFFFFF), "at most"),
    ],
)  # fmt: skip
def test_damage_is_found(stream: bytes, why: str) -> None:
    with pytest.raises(BadStream, match=why):
        Decompressor().decompress(stream)
    decompressor = Decompressor()
    with pytest.raises(BadStream):
        b"".join(decompressor.decompress(bytes([byte])) for byte in stream)


def test_a_flipped_bit_never_changes_what_is_read() -> None:
    data = b"post_task task_id=t1 type=url -- http://example.com/a\n" * 3 + random.Random(2).randbytes(50)
    stream = packed(data)
    for place in range(len(stream) * 8):
        damaged = bytearray(stream)
        damaged[place // 8] ^= 1 << (place % 8)
        try:
            out = Decompressor().decompress(bytes(damaged))
        except BadStream:
            continue
        # A longer length waits for more; a type that may be skipped is skipped.
        assert data.startswith(out)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_answer_or_a_bad_stream(noise: bytes) -> None:
    for stream in (noise, IDENTIFIER + noise, IDENTIFIER + b"\x00" + noise):
        try:
            Decompressor().decompress(stream)
        except BadStream:
            pass


def test_at_most_one_chunk_is_held() -> None:
    decompressor = Decompressor()
    decompressor.decompress(IDENTIFIER + chunk(0xFE, b"", CHUNK_MAX_BYTES))
    for _ in range(10):
        decompressor.decompress(b"\0" * CHUNK_MAX_BYTES + chunk(0xFE, b"", CHUNK_MAX_BYTES))
    assert len(decompressor.rest) <= CHUNK_MAX_BYTES + 8


def test_a_stream_goes_on_in_another_decompressor() -> None:
    first = Decompressor()
    stream = packed(b"ping\n")
    assert first.decompress(stream[:-3]) == b""
    second = Decompressor(first.rest, started=first.started)
    assert second.decompress(stream[-3:]) == b"ping\n"


def test_a_stream_goes_on_in_another_compressor() -> None:
    first = Compressor()
    assert not first.started
    data = first.compress(b"one\n")
    assert first.started
    second = Compressor(started=first.started)
    data += second.compress(b"two\n") + second.compress(b"three\n")
    assert data.count(IDENTIFIER) == 1
    assert Decompressor().decompress(data) == b"one\ntwo\nthree\n"
