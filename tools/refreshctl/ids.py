"""Task ids that nobody chose: their order is that of time, and no two are the same."""

from __future__ import annotations

import secrets

# Crockford's base 32, lower case: no letter that reads like a digit.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_DIGITS = 10  # milliseconds, good for the next 35,000 years
_RANDOM_DIGITS = 10  # 50 bits: a million in one millisecond meet with odds of 1 to 2,000


def make_id(now_ms: int) -> str:
    """An id such as `01khx2m3qz-7d0sw3bq9e`."""
    return f"{_base32(now_ms, _TIME_DIGITS)}-{_base32(secrets.randbits(5 * _RANDOM_DIGITS), _RANDOM_DIGITS)}"


def _base32(number: int, digits: int) -> str:
    return "".join(_DIGITS[number >> (5 * place) & 31] for place in reversed(range(digits)))


def ids_for(count: int, given: str | None, now_ms: int) -> list[str]:
    """Ids for so many tasks: the one that was given, with a number behind it if there are several."""
    base = make_id(now_ms) if given is None else given
    return [base] if count == 1 else [f"{base}-{number}" for number in range(1, count + 1)]
