"""Tasks that do something every second or so: their pause, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

# Whoever is woken by news, which may come in a flood, rests for at least this part of its usual time.
_REST_PART = 0.1
# A library that swallows a cancellation goes on; it is then cancelled once more.
_AGAIN_S = 0.1


async def rest(wake: asyncio.Event, usual_s: float) -> None:
    """Returns after `usual_s`, or sooner if `wake` is set."""
    await asyncio.sleep(usual_s * _REST_PART)
    try:
        async with asyncio.timeout(usual_s * (1 - _REST_PART)):
            await wake.wait()
    except TimeoutError:
        pass


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels them, and returns when all have ended."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_S)
