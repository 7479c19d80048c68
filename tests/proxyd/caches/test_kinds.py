"""What holds for every kind of cache."""

from pathlib import Path

import pytest

from proxyd.caches import KINDS, CacheKind
from proxyd.caches.table import render_table
from proxyd.targets import split_drop
from wire.fields import TASK_TYPES


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_each_type_is_done_or_refused(kind: CacheKind) -> None:
    assert set(kind.deeds) | set(kind.refused) == set(TASK_TYPES)
    assert not set(kind.deeds) & set(kind.refused)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_each_drops_all_it_holds_or_says_why_not(kind: CacheKind) -> None:
    deed, why = kind.deed_of("drop")
    assert (deed is None) is bool(why)
    if deed is not None:
        assert deed.render(*split_drop(b"")).startswith(deed.method + b" / HTTP/1.1\r\nHost: localhost\r\n")
        # What an origin says to a method that a cache passes on.
        for status in (200, 204, 404, 405, 501):
            assert deed.judge(status) is not None


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_request_is_one_request(kind: CacheKind) -> None:
    for deed in kind.deeds.values():
        request = deed.render(b"h.example", b"/p?q")
        line = b"%b %b/p?q HTTP/1.1\r\n" % (deed.method, deed.path_start)
        assert request.startswith(line + b"Host: h.example\r\n")
        assert request.endswith(b"\r\n\r\n")
        assert request.count(b"\r\n\r\n") == 1
        assert deed.judge(min(deed.good)) is None
        assert "503" in str(deed.judge(503))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_what_is_not_exact_says_how(kind: CacheKind) -> None:
    for deed in [*kind.deeds.values(), *filter(None, [kind.drop])]:
        assert deed.exact or deed.note


def test_the_docs_show_the_table() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs" / "agent.md"
    assert render_table() in docs.read_text(), "run: python -m proxyd.caches.table"
