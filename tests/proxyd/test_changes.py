"""What is different between two configurations, and that no setting is forgotten."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxyd.changes import Change, compare
from proxyd.config import AgentConfig, CacheConfig, default_config
from proxyd.settings import LIST_SECTIONS, TABLE, Reload

OLD = default_config()
OTHER = {str: "other", bytes: b"other", int: 7, float: 7.5, list: [("other", 7)], tuple: (("other",),)}


def other(config: AgentConfig, section: str, key: str) -> AgentConfig:
    """The configuration with another value in one place."""
    name = "secret" if key == "secret_file" else key
    if section == "agent":
        return msgspec.structs.replace(config, **{name: another(getattr(config, name))})
    lane = getattr(config, section)
    lane = msgspec.structs.replace(lane, **{name: another(getattr(lane, name))})
    return msgspec.structs.replace(config, **{section: lane})


def another(value: Any) -> Any:
    """Another value of the same type."""
    return not value if isinstance(value, bool) else OTHER[type(value)]


@pytest.mark.parametrize(
    ("section", "key", "reload"),
    [(row.section, row.key, row.reload) for row in TABLE if row.section not in LIST_SECTIONS],
)
def test_each_setting_is_compared(section: str, key: str, reload: Reload) -> None:
    [change] = compare(OLD, other(OLD, section, key))
    assert (change.name, change.reload) == (f"{section}.{key}", reload)


def test_the_same_is_no_change() -> None:
    assert compare(OLD, default_config()) == []


def test_how_a_change_reads() -> None:
    [layer] = compare(OLD, other(OLD, "agent", "layer"))
    assert str(layer) == "agent.layer: 0 → 7"
    [engines] = compare(OLD, other(OLD, "agent", "engines"))
    assert str(engines) == "agent.engines: 127.0.0.1:7070 → other:7"


def test_a_secret_is_not_shown() -> None:
    [change] = compare(OLD, other(OLD, "agent", "secret_file"))
    assert change == Change("agent.secret_file", Reload.GREETING, "it is another")


def test_the_order_of_engines_and_caches_means_nothing() -> None:
    first = msgspec.structs.replace(
        OLD,
        engines=[("a", 1), ("b", 2)],
        caches=[CacheConfig("v", "varnish", ("a", 1)), CacheConfig("w", "varnish", ("a", 2))],
    )
    second = msgspec.structs.replace(first, engines=first.engines[::-1], caches=first.caches[::-1])
    assert compare(first, second) == []


def test_caches_come_go_and_change() -> None:
    was = msgspec.structs.replace(
        OLD, caches=[CacheConfig("gone", "varnish", ("a", 1)), CacheConfig("moved", "varnish", ("a", 2))]
    )
    now = msgspec.structs.replace(
        OLD, caches=[CacheConfig("moved", "ats", ("b", 3)), CacheConfig("new", "ats", ("a", 1))]
    )
    assert [str(change) for change in compare(was, now)] == [
        "cache moved: kind varnish → ats, address a:2 → b:3",
        "cache new: added",
        "cache gone: removed",
    ]


def test_a_long_list_stays_short() -> None:
    many = msgspec.structs.replace(OLD, engines=[(f"engine{number}.example", 7070) for number in range(64)])
    [change] = compare(OLD, many)
    assert len(change.text) < 500
