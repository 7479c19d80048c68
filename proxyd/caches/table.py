"""What each kind of cache can be asked, as docs/agent.md shows it: `python -m proxyd.caches.table`."""

from __future__ import annotations

from proxyd.caches import KINDS, CacheKind
from wire.fields import TASK_TYPES

COLUMNS = (*TASK_TYPES, "drop")


def render_table() -> str:
    """A row for each kind, in Markdown."""
    lines = [
        f"| kind | {' | '.join(f'`{column}`' for column in COLUMNS)} |",
        "| --- " * (len(COLUMNS) + 1) + "|",
    ]
    for kind in KINDS.values():
        cells = [_cell(kind, column) for column in COLUMNS]
        lines.append(f"| `{kind.name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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
