"""What holds for every kind of cache."""

import pytest

from proxyd.caches import KINDS, PLANNED_KINDS, CacheKind
from wire.fields import TASK_TYPES


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_each_type_is_done_or_refused(kind: CacheKind) -> None:
    assert set(kind.deeds) | set(kind.refused) == set(TASK_TYPES)
    assert not set(kind.deeds) & set(kind.refused)


def test_planned_kinds_are_not_there() -> None:
    assert not set(KINDS) & set(PLANNED_KINDS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_request_is_one_request(kind: CacheKind) -> None:
    for deed in kind.deeds.values():
        request = deed.render(b"h.example", b"/p?q")
        assert request.startswith(deed.method + b" /p?q HTTP/1.1\r\nHost: h.example\r\n")
        assert request.endswith(b"\r\n\r\n")
        assert request.count(b"\r\n\r\n") == 1
        assert deed.judge(200) is None
        assert "503" in str(deed.judge(503))
