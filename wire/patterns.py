"""Patterns of `regex` targets: what counts as one is what RE2 compiles, within bounds.

RE2 knows nothing that takes exponential time, and what it compiles is a regular expression by
itself: put into a group, as caches' own engines (PCRE2) get it, it cannot close that
group, refer to it, or look around it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

PATTERN_MAX = 2048
# RE2 quotes from \Q to \E or the end: what a cache's expression has behind the pattern would be quoted, too.
_REFUSED = ("\\Q", "\\C")


def pattern_fault(pattern: str) -> str | None:
    """Why this is not a pattern, or None if it is one."""
    if len(pattern) > PATTERN_MAX:
        return f"the pattern has {len(pattern)} characters; at most {PATTERN_MAX} are taken"
    for sequence in _REFUSED:
        if sequence in pattern.replace("\\\\", ""):
            return f"{sequence} is not taken in a pattern"
    re2, options = _re2()
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        return f"the pattern is not a regular expression that RE2 takes: {why}"
    return None


@cache
def _re2() -> tuple[Any, Any]:
    # Only here: it costs 15 ms of CPU at each start, and most never post a pattern.
    re2 = importlib.import_module("re2")
    options = re2.Options()
    options.log_errors = False
    return re2, options
