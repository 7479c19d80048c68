"""Receipts: what a proxy did to a task's targets, signed so that anybody can check it later (PROTOCOL.md).

    receipt = {"payload": "TEXT", "key": "PUBLIC KEY", "sig": "SIGNATURE"}

`payload` is a JSON object as text, and its bytes in UTF-8 are what is signed: nobody has to write JSON in
the same way twice. `key` and `sig` are Ed25519's (RFC 8032), in lower-case hex.

`cryptography` is loaded only by who signs or checks a signature: the engine does neither.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# As an item of a line, once escaped, it may be twice as long: an engine with the default `line_max` takes it.
RECEIPT_MAX_BYTES = 256 * 1024
SEED_BYTES = 32
# Keys (but for their highest bit) of which anybody can make signatures that hold, as they are points of small
# order. The library takes them; RFC 8032 leaves it to who checks to look for them.
_WEAK_KEYS = frozenset(
    {
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
        *(bytes([low]) + b"\xff" * 30 + b"\x7f" for low in (0xEC, 0xED, 0xEE)),
    }
)
_HEX = re.compile(r"[0-9a-f]*").fullmatch
_KEY_CHARS, _SIG_CHARS = 64, 128


class Receipt(msgspec.Struct, frozen=True):
    """A receipt as it stands on the wire and in the store; whether its signature holds is not looked at."""

    payload: str
    key: str
    sig: str

    def text(self) -> str:
        """As an item of a line."""
        return msgspec.json.encode(self).decode()


class Named(msgspec.Struct, frozen=True):
    """What an engine reads of a payload: whose it is, and of which task."""

    proxy: str
    task: str


class BadReceipt(ValueError):
    """Not a receipt; `str()` says why."""


def read_receipt(text: str | bytes) -> Receipt:
    """Reads the form. Raises: BadReceipt."""
    if len(text) > RECEIPT_MAX_BYTES:
        raise BadReceipt(f"{len(text)} bytes; at most {RECEIPT_MAX_BYTES}")
    try:
        receipt = msgspec.json.decode(text, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadReceipt(f"not a JSON object with payload, key and sig: {error}") from None
    for name, value, chars in (("key", receipt.key, _KEY_CHARS), ("sig", receipt.sig, _SIG_CHARS)):
        if len(value) != chars or not _HEX(value):
            raise BadReceipt(f"{name} is not {chars} lower-case hex digits")
    return receipt


def read_named(receipt: Receipt) -> Named:
    """Whose it is, as its payload says. Raises: BadReceipt."""
    try:
        return msgspec.json.decode(receipt.payload, type=Named)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadReceipt(f"its payload is not a JSON object with proxy and task: {error}") from None


def new_seed() -> bytes:
    """A fresh private key, as the 32 bytes that all of it follows from."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


class Signer:
    """Signs with one key."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: as `new_seed` makes it. Takes 16 ms and 9 MB in a process that has not done so before."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.seed = seed
        self._key: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw().hex()
        """In hex: what a checker needs to know."""

    def sign(self, payload: str) -> Receipt:
        """36 µs, of a short payload."""
        return Receipt(payload, self.public, self._key.sign(payload.encode()).hex())


def is_genuine(receipt: Receipt) -> bool:
    """Whether the signature is that of its key over its payload. Whose key that is, is another question."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        raw = bytes.fromhex(receipt.key)
        if raw[:31] + bytes([raw[31] & 0x7F]) in _WEAK_KEYS:
            return False
        key = Ed25519PublicKey.from_public_bytes(raw)
        key.verify(bytes.fromhex(receipt.sig), receipt.payload.encode())
    except (InvalidSignature, ValueError, IndexError):
        return False
    return True
