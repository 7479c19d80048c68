"""The table of codes, and what a refusal says."""

import pytest

from wire import errors
from wire.errors import CODES, LocalError, Refused, WireError


def test_codes_that_may_be_retried() -> None:
    assert {code for code, row in CODES.items() if row.retry} == {
        "limited", "busy", "draining", "unavailable", "internal",
    }  # fmt: skip


@pytest.mark.parametrize(("code", "retry"), [("busy", True), ("conflict", False), ("new_one", False)])
def test_a_refusal_knows_whether_to_retry(code: str, retry: bool) -> None:
    refused = Refused(code, "why")
    assert refused.retry is retry
    assert str(refused) == f"{code}: why"


def test_one_tree() -> None:
    """The tree that the module opens with is the tree that is there."""
    drawn = {word for word in (errors.__doc__ or "").split() if word.isidentifier() and word[0].isupper()}
    there = {kind.__name__ for kind in WireError.__subclasses__()}
    assert there <= drawn
    assert not issubclass(LocalError, WireError)
