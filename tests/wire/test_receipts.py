"""Receipts: their form, and what a signature says."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import receipts
from wire.lines import format_line, parse
from wire.receipts import (
    RECEIPT_MAX_BYTES,
    BadReceipt,
    Receipt,
    Signer,
    is_genuine,
    new_seed,
    read_named,
    read_receipt,
)

SIGNER = Signer(bytes(range(32)))
PAYLOAD = '{"v":1,"proxy":"pop1","task":"t","x":"a b\\n\\u007f\\"\\\\ é"}'


def test_the_key_is_that_of_rfc_8032() -> None:
    """Its first test, so that another's library finds the same."""
    signer = Signer(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert signer.public == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signer.sign("").sig.startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


def test_what_was_signed_is_genuine_and_nothing_else() -> None:
    receipt = SIGNER.sign(PAYLOAD)
    assert is_genuine(receipt)
    other = Signer(new_seed()).sign(PAYLOAD)
    assert is_genuine(other)
    for forged in (
        msgspec.structs.replace(receipt, payload=PAYLOAD.replace("pop1", "pop2")),
        msgspec.structs.replace(receipt, payload=PAYLOAD + " "),
        msgspec.structs.replace(receipt, key=other.key),
        msgspec.structs.replace(receipt, sig=other.sig),
        msgspec.structs.replace(receipt, sig="0" * 128),
        msgspec.structs.replace(receipt, key="f" * 64),
    ):
        assert not is_genuine(forged)


@pytest.mark.parametrize("top_bit", [0, 0x80])
@pytest.mark.parametrize("key", sorted(receipts._WEAK_KEYS))
def test_a_key_that_anybody_can_sign_with_is_none(key: bytes, top_bit: int) -> None:
    """The library alone finds such a signature, made without any private key, to hold."""
    raw = key[:31] + bytes([key[31] | top_bit])
    forged = [
        Receipt(f"text {number}", raw.hex(), (point + bytes(32)).hex())
        for point in receipts._WEAK_KEYS
        for number in range(16)
    ]
    assert not any(map(is_genuine, forged))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receipts, "_WEAK_KEYS", frozenset())
        assert any(map(is_genuine, forged))


@given(st.text())
def test_it_crosses_a_line_and_a_store_byte_for_byte(text: str) -> None:
    payload = json.dumps({"proxy": "p", "task": "t", "text": text})
    receipt = SIGNER.sign(payload)
    line = format_line("receipt", {"task_id": "t"}, [receipt.text()])
    (item,) = parse(line[:-1]).items or ()
    assert read_receipt(item) == receipt == read_receipt(item.encode())
    assert is_genuine(read_receipt(item))
    assert read_named(receipt) == read_named(read_receipt(item))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "not a JSON object"),
        ("{" * 100_000, "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"payload":{},"key":"","sig":""}', "not a JSON object"),
        ('{"payload":"{}","key":"00","sig":"00"}', "key is not 64"),
        (json.dumps({"payload": "{}", "key": "A" * 64, "sig": "0" * 128}), "key is not 64"),
        (json.dumps({"payload": "{}", "key": "0" * 64, "sig": "0" * 127}), "sig is not 128"),
        ("x" * (RECEIPT_MAX_BYTES + 1), f"{RECEIPT_MAX_BYTES + 1} bytes"),
    ],
)
def test_what_is_no_receipt_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadReceipt, match=why):
        read_receipt(text)


@pytest.mark.parametrize("payload", ["", "null", "[]", "{}", '{"proxy":1,"task":"t"}', "[" * 50_000])
def test_a_payload_names_a_proxy_and_a_task(payload: str) -> None:
    receipt = Receipt(payload, "0" * 64, "0" * 128)
    with pytest.raises(BadReceipt, match="proxy and task"):
        read_named(receipt)
    assert not is_genuine(receipt)
