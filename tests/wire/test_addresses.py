"""Addresses as people write them."""

import pytest

from wire.addresses import Address, is_unix, read_address
from wire.errors import LocalError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7070", Address("127.0.0.1", 7070)), ("a.example:1", Address("a.example", 1)),
        ("[::1]:65535", Address("::1", 65535)), ("unix:a.sock", Address("", 0, "a.sock")),
        ("./data/admin.sock", Address("", 0, "./data/admin.sock")), ("/run/x:1", Address("", 0, "/run/x:1")),
    ],
)  # fmt: skip
def test_good_addresses(text: str, address: Address) -> None:
    assert read_address(text) == address
    assert is_unix(text) == (address.path is not None)


@pytest.mark.parametrize(
    "text", ["", "a", "a:", ":1", "a:0", "a:65536", "a:x", "::1:70", "a:9999999999", "a:٣"]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(LocalError, match="address"):
        read_address(text)
