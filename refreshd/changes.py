"""What is different between two configurations, and what it takes for each difference to take effect.

Pure. The table of settings says the class of each (`settings.Reload`); tenants and
proxies are compared by name, so their order in the file means nothing. What is
shown never holds a secret: not a key's, and not a URL in which a password may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from refreshd.config import Config
from refreshd.settings import SECTIONS, Reload, Setting, settings_of
from refreshd.toml_lines import Path, TomlLines

# A list of domains may be as long as the file.
_VALUE_MAX = 80
# A fleet of thousands may change at once; the log and an operation's outcome are one line.
_NAMES_MAX = 8
# Where a section's tables stand in a `Config`, if not under the section's own name.
_ARRAYS = {"key": "keys", "proxy": "proxies"}
# A `Config` has what the file holds, not where it is.
_ATTRIBUTES = {("key", "secret_file"): "secret"}
# What is not shown: a secret, and what may have a password in it.
_HIDDEN = {("key", "secret_file"): "secret", ("store", "url"): "", ("redis", "url"): ""}
_ORDER = list(Reload)


class Change(NamedTuple):
    """One setting, tenant or proxy that is different.

    `name` is "engine.workers", "key acme" or "proxy pop1"; `text` says what was and
    what is; `path` is where it stands in the new file, as `TomlLines` counts.
    """

    name: str
    reload: Reload
    text: str
    path: Path


class Changes:
    """All differences, in the order of the table of settings."""

    def __init__(self, changes: tuple[Change, ...]) -> None:
        self.all = changes

    def __repr__(self) -> str:
        return f"<Changes {self.summary()}>"

    @property
    def is_empty(self) -> bool:
        """Whether the two configurations mean the same."""
        return not self.all

    @property
    def in_place(self) -> tuple[str, ...]:
        """The names of what takes effect in running workers."""
        return self._names(Reload.IN_PLACE)

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of what new workers are needed for; "engine.workers" is their number."""
        return self._names(Reload.WORKERS)

    @property
    def restart(self) -> tuple[str, ...]:
        """The names of what only a restart brings about: a reload refuses the configuration."""
        return self._names(Reload.RESTART)

    def _names(self, reload: Reload) -> tuple[str, ...]:
        return tuple(change.name for change in self.all if change.reload is reload)

    def summary(self) -> str:
        """One line for a log, with at most a few names of each class."""
        if self.is_empty:
            return "no setting changed"
        classes = (("in place", self.in_place), ("with new workers", self.workers), ("restart", self.restart))
        return "; ".join(f"{title}: {_few(names)}" for title, names in classes if names)

    def lines(self) -> list[str]:
        """One line a change: what was, what is, and when that takes effect."""
        return [f"{change.name}: {change.text} ({change.reload.value})" for change in self.all]

    def restart_faults(self, text: str) -> list[str]:
        """A fault, as in `ConfigError`, for each change that a reload refuses; `text` is the new file's."""
        lines = TomlLines(text)
        return [
            f"line {lines.of(*change.path)}: {change.name}: {change.text} needs a restart of the engine; "
            "a reload changes nothing while this stands here"
            for change in self.all
            if change.reload is Reload.RESTART
        ]


def compare(old: Config, new: Config) -> Changes:
    """What is different in `new`."""
    changes: list[Change] = []
    for section in SECTIONS:
        if section.is_array:
            name = _ARRAYS[section.name]
            changes += _compare_tables(section.name, getattr(old, name), getattr(new, name))
        else:
            changes += _compare_settings(section.name, getattr(old, section.name), getattr(new, section.name))
    return Changes(tuple(changes))


def _compare_settings(section: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterator[Change]:
    for row, was, now in _different(section, old, new):
        text = "it is different" if (section, row.key) in _HIDDEN else f"{_shown(was)} → {_shown(now)}"
        yield Change(f"{section}.{row.key}", row.reload, text, (section, row.key))


def _compare_tables(section: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[Change]:
    was = {table.name: table for table in old}
    comes_or_goes = settings_of(section)["name"].reload
    for number, table in enumerate(new):
        before = was.pop(table.name, None)
        if before is None:
            yield Change(f"{section} {table.name}", comes_or_goes, "added", (section, number))
        elif differences := list(_different(section, before, table)):
            reload = max((row.reload for row, _, _ in differences), key=_ORDER.index)
            text = ", ".join(_difference(*difference) for difference in differences)
            yield Change(f"{section} {table.name}", reload, text, (section, number))
    for name in was:
        yield Change(f"{section} {name}", comes_or_goes, "removed", (section,))


def _different(section: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterator[tuple[Setting, Any, Any]]:
    for row in settings_of(section).values():
        attribute = _ATTRIBUTES.get((section, row.key), row.key)
        was, now = getattr(old, attribute), getattr(new, attribute)
        if was != now:
            yield row, was, now


def _difference(row: Setting, was: Any, now: Any) -> str:
    hidden = _HIDDEN.get((row.section, row.key))
    return f"{row.key} {_shown(was)} → {_shown(now)}" if hidden is None else f"{hidden} changed"


def _shown(value: Any) -> str:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    text = msgspec.json.encode(whole).decode()
    return text if len(text) <= _VALUE_MAX else text[: _VALUE_MAX - 1] + "…"


def _few(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (f" and {more:,} more" if more > 0 else "")
