"""What is different between two configurations. Pure.

How each difference takes effect stands in the table of settings. Caches are compared
by name and engines by address: their order in the file means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from proxyd.addresses import format_address
from proxyd.config import AgentConfig
from proxyd.settings import LIST_SECTIONS, TABLE, Reload, Setting

# A configuration may list 64 engines, and all may change at once; the log line stays a line.
SHOWN_MAX_CHARS = 200
UNSHOWN = frozenset({"secret_file", "receipt_key_file", "variants"})
"""Secrets, and headers, of which one may be."""


class Change(NamedTuple):
    """One setting that is different: "agent.layer", or "cache v1"."""

    name: str
    reload: Reload
    text: str
    """What was and what is; of a secret, only that it is another."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def compare(old: AgentConfig, new: AgentConfig) -> list[Change]:
    """All differences, in the order of the table."""
    changes = [
        change for row in TABLE if row.section not in LIST_SECTIONS for change in _compare_row(row, old, new)
    ]
    return changes + list(_compare_caches(old, new))


def _compare_row(row: Setting, old: AgentConfig, new: AgentConfig) -> Iterator[Change]:
    was, now = _value(row, old), _value(row, new)
    if was != now:
        text = "it is another" if row.key in UNSHOWN else f"{_shown(was)} → {_shown(now)}"
        yield Change(f"{row.section}.{row.key}", row.reload, text)


def _value(row: Setting, config: AgentConfig) -> Any:
    """What counts: a secret, not the path of its file; engines in any order."""
    if row.key == "receipt_key_file":
        # Where it is counts, too: without a file there is another key at each start.
        return config.receipt_key_file, config.receipt_seed
    section = config if row.section == "agent" else getattr(config, row.section)
    value = getattr(section, "secret" if row.key == "secret_file" else row.key)
    return sorted(map(format_address, value)) if row.key == "engines" else value


def _compare_caches(old: AgentConfig, new: AgentConfig) -> Iterator[Change]:
    was = {cache.name: cache for cache in old.caches}
    for cache in new.caches:
        before = was.pop(cache.name, None)
        if before is None:
            yield Change(f"cache {cache.name}", Reload.COMES_AND_GOES, "added")
        elif before != cache:
            parts = [
                f"{name} {old_part} → {new_part}"
                for name, old_part, new_part in (
                    ("kind", before.kind, cache.kind),
                    ("address", format_address(before.address), format_address(cache.address)),
                )
                if old_part != new_part
            ]
            if before.requests != cache.requests:
                # Not which: there may be a secret in a header.
                parts.append("other requests")
            yield Change(f"cache {cache.name}", Reload.COMES_AND_GOES, ", ".join(parts))
    for name in was:
        yield Change(f"cache {name}", Reload.COMES_AND_GOES, "removed")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(value)
    else:
        text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= SHOWN_MAX_CHARS else text[: SHOWN_MAX_CHARS - 1] + "…"
