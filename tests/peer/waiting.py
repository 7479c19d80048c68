"""Deadlines of the process tests. All scale with one unit, for machines that are slow."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from tools.servers.waiting import wait_until as _wait_until

Result = TypeVar("Result")

UNIT_S = float(os.environ.get("REFRESHD_TEST_UNIT_S", "1"))
# Far above what anything here takes.
PATIENCE_S = 20 * UNIT_S


def wait_until(condition: Callable[[], Result], what: str, units: float = 20) -> Result:
    """The first true value of `condition`. Raises: TimeoutError, naming `what`."""
    return _wait_until(condition, units * UNIT_S, what)
