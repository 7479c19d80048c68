"""Signed greetings: the signature, the clock, and nonces that are good once."""

import hashlib
import hmac

import pytest

from wire import signatures
from wire.errors import Refused
from wire.signatures import CLOCK_SKEW_MAX_S, NonceBook, check_hello, sign_hello

TS = 1795250000
# openssl: printf 'hello\nclient\nacme\n1795250000\nn-1' | openssl dgst -sha256 -hmac s3cret
VECTOR = "06146693b6343a7fed58ad13023474ab41d2526c88c7013fcc8cf3e8203ee9ed"


def test_the_signature_is_what_the_page_says() -> None:
    by_hand = hmac.new(b"s3cret", b"hello\nclient\nacme\n1795250000\nn-1", hashlib.sha256).hexdigest()
    assert sign_hello(b"s3cret", "client", "acme", TS, "n-1") == by_hand == VECTOR


def check(now_s: float = TS, secret: bytes = b"s3cret", role: str = "client", nonce: str = "n-1") -> None:
    check_hello(secret, role, "acme", TS, nonce, VECTOR, now_s)


@pytest.mark.parametrize("skew_s", [0, CLOCK_SKEW_MAX_S, -CLOCK_SKEW_MAX_S])
def test_it_holds(skew_s: float) -> None:
    check(TS + skew_s)


@pytest.mark.parametrize("change", [{"secret": b"other"}, {"role": "proxy"}, {"nonce": "n-2"}])
def test_it_does_not_hold(change: dict[str, object]) -> None:
    with pytest.raises(Refused, match="does not hold") as caught:
        check(**change)  # type: ignore[arg-type]
    assert caught.value.code == "auth"
    assert VECTOR not in str(caught.value)


@pytest.mark.parametrize(("skew_s", "word"), [(301, "behind"), (-301, "ahead"), (1e9, "behind")])
def test_a_clock_that_is_off_is_told_so(skew_s: float, word: str) -> None:
    with pytest.raises(Refused, match=word) as caught:
        check(TS + skew_s)
    assert caught.value.code == "auth"


def test_the_signature_is_looked_at_before_the_clock() -> None:
    """Who has no secret learns nothing, not even this engine's time."""
    with pytest.raises(Refused, match="does not hold"):
        check(TS + 10_000, secret=b"other")


def test_a_nonce_is_good_once_for_a_key() -> None:
    book = NonceBook()
    book.use("acme", "n", 0.0)
    book.use("other", "n", 0.0)
    with pytest.raises(Refused, match="used before") as caught:
        book.use("acme", "n", 1.0)
    assert caught.value.code == "auth"


def test_a_nonce_is_remembered_as_long_as_it_could_be_replayed() -> None:
    book = NonceBook()
    book.use("acme", "n", 0.0)
    with pytest.raises(Refused):
        book.use("acme", "n", 2.0 * CLOCK_SKEW_MAX_S)
    book.use("acme", "n", 2.0 * CLOCK_SKEW_MAX_S + 0.1)
    assert len(book) == 1


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "NONCES_MAX", 10)
    book = NonceBook()
    for number in range(10):
        book.use("acme", str(number), 0.0)
    with pytest.raises(Refused) as caught:
        book.use("acme", "one more", 0.0)
    assert caught.value.code == "busy"
    assert caught.value.retry_ms
    assert len(book) == 10
    book.use("acme", "later", 2.0 * CLOCK_SKEW_MAX_S + 1)
    assert len(book) == 1
