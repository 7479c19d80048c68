"""What each kind of cache can be asked, as docs/agent.md shows it: `python -m proxyd.caches.table`."""

from __future__ import annotations

from collections.abc import Iterator

from proxyd.caches import KINDS, CacheKind
from proxyd.caches.ats import ats_kind
from proxyd.caches.nginx import nginx_kind
from proxyd.proving import provable_types
from wire.fields import TASK_TYPES

COLUMNS = (*TASK_TYPES, "drop")


def render_table() -> str:
    """A row for each kind, in Markdown."""
    lines = [
        f"| kind | {' | '.join(f'`{column}`' for column in COLUMNS)} | `verify=1` |",
        "| --- " * (len(COLUMNS) + 2) + "|",
    ]
    for name, kind in _rows():
        cells = [_cell(kind, column) for column in COLUMNS]
        verified = ", ".join(f"`{task_type}`" for task_type in provable_types(kind)) or "refused"
        lines.append(f"| {name} | {' | '.join(cells)} | {verified} |")
    return "\n".join(lines) + "\n"


def _rows() -> Iterator[tuple[str, CacheKind]]:
    """What a Traffic Server or an nginx can be asked depends on its settings."""
    for kind in KINDS.values():
        if kind.name == "nginx":
            yield "`nginx` with `path`", nginx_kind("/", purge=False)
            yield "`nginx` with `purge`", nginx_kind("", purge=True)
            yield "`nginx` without", nginx_kind("", purge=False)
        elif kind.name == "ats":
            yield "`ats` with `rules`", ats_kind(rules=True)
            yield "`ats` without", ats_kind(rules=False)
        else:
            yield f"`{kind.name}`", kind


def _cell(kind: CacheKind, column: str) -> str:
    if column in kind.configurable:
        return "[as configured](#beside-anything-else)"
    deed, why_not = kind.deed_of(column)
    if deed is None:
        return f"refused: {why_not}"
    how = "exact" if deed.exact else "emulated"
    return f"{how}: `{deed.method.decode()}`" + (f", {deed.note}" if deed.note else "")


if __name__ == "__main__":
    print(render_table(), end="")
