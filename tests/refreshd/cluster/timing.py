"""Short leases, and waiting in a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from refreshd.cluster.lease import Timing
from refreshd.cluster.names import Names

# So short that tests are quick, and long enough for a loop that is kept waiting for 0.2 s.
TIMING = Timing(
    lease_ms=700,
    renew_ms=175,
    poll_ms=60,
    margin_ms=70,
    retry_ms=40,
    call_ms=200,
    boot_ms=2_100,
    truth_ms=400,
    own_row_ms=120,
)
NAMES = Names("test")
UNTIL_S = 20.0


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Returns what `condition` returned once it is true."""
    try:
        async with asyncio.timeout(UNTIL_S):
            while not (result := condition()):
                await asyncio.sleep(0.01)
            return result
    except TimeoutError:
        raise AssertionError(f"it did not come true: {what or condition}") from None


def run(test: Awaitable[None], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Runs a test's coroutine; `loop` makes the loop to run it in."""

    async def whole() -> None:
        async with asyncio.timeout(60):
            await test

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(whole())
