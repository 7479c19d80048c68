"""The snappy framing format by hand (google/snappy, framing_format.txt), and a peer that speaks it."""

from __future__ import annotations

import snappy

from tests.peer.raw import Address, Gone, Peer

IDENTIFIER = b"\xff\x06\x00\x00sNaPpY"
_COMPRESSED, _UNCOMPRESSED = 0, 1


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _make_table()


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of a chunk."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def frame(data: bytes, *, compressed: bool = False) -> bytes:
    """One chunk of at most 64 KiB of data."""
    body = masked_crc32c(data) + (snappy.compress(data) if compressed else data)
    return bytes([_COMPRESSED if compressed else _UNCOMPRESSED]) + len(body).to_bytes(3, "little") + body


class SnappyPeer(Peer):
    """Greeted with `zip=snappy`: from then on both directions are frames."""

    def __init__(self, address: Address, greeting: str = "role=client", *, compressed: bool = True) -> None:
        super().__init__(address)
        self._frames = b""
        self._zipped = False
        self._compressed = compressed
        self.hello = self.ok(f"hello v=1 {greeting} zip=snappy")
        self._zipped = True
        self._began = False

    def write_raw(self, data: bytes) -> None:
        """Writes bytes as they are."""
        if not self._began and not data.startswith((IDENTIFIER, b"\xff", b"ping")):
            data = IDENTIFIER + data
        self._began = True
        super().write_bytes(data)

    def write_bytes(self, data: bytes) -> None:
        if not self._zipped:
            super().write_bytes(data)
            return
        chunks = (data[at : at + 65536] for at in range(0, len(data), 65536))
        self.write_raw(b"".join(frame(chunk, compressed=self._compressed) for chunk in chunks))

    def receive(self) -> bytes:
        """What comes next, uncompressed; every chunk's checksum is looked at."""
        if not self._zipped:
            return super().receive()
        data = b""
        while not data:
            self._frames += super().receive()
            while (chunk := self._take_chunk()) is not None:
                data += chunk
        return data

    def _take_chunk(self) -> bytes | None:
        size = int.from_bytes(self._frames[1:4], "little") + 4
        if len(self._frames) < max(size, 4):
            return None
        kind, body, self._frames = self._frames[0], self._frames[4:size], self._frames[size:]
        if kind == 0xFF:
            assert body == IDENTIFIER[4:]
            return b""
        assert kind in (_COMPRESSED, _UNCOMPRESSED), kind
        data = snappy.uncompress(body[4:]) if kind == _COMPRESSED else body[4:]
        assert masked_crc32c(data) == body[:4], "a bad checksum"
        return bytes(data)


__all__ = ["IDENTIFIER", "Gone", "SnappyPeer", "frame", "masked_crc32c"]
