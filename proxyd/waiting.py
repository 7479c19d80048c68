"""Waiting for something to become so, with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# What is waited for here comes about in milliseconds, seldom, and in many places: looking is simpler
# than being told, and costs nothing while nobody waits.
POLL_S = 0.01


async def wait_until(condition: Callable[[], object], within_s: float) -> bool:
    """Whether the condition came true in time. It is looked at once at the least."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        left_s = deadline - loop.time()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(POLL_S, left_s))
    return True
