"""The limit of descriptors is raised as far as it may be, and never lowered."""

from __future__ import annotations

import resource

import pytest

from refreshd.descriptors import make_room

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "connections", "told", "then"),
    [
        ((1024, 4096), 1000, (2024, 2024), (2024, 4096)),
        ((1024, 4096), 10_000, (4096, 11_024), (4096, 4096)),
        ((1024, INFINITE), 10_000, (11_024, 11_024), (11_024, INFINITE)),
        ((65_536, 65_536), 1000, (2024, 2024), None),
        ((INFINITE, INFINITE), 1000, (2024, 2024), None),
    ],
)
def test_room(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    connections: int,
    told: tuple[int, int],
    then: tuple[int, int] | None,
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: set_to.append(to))
    assert make_room(connections) == told
    assert set_to == ([then] if then else [])
