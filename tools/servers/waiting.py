"""Waiting for something to become true, with a deadline: what tests do in place of a sleep."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

# Short enough not to be felt, long enough not to take the CPU from what is waited for.
POLL_S = 0.01


def wait_until(
    condition: Callable[[], Result], timeout_s: float = 20.0, what: str = "the condition"
) -> Result:
    """Returns what `condition` returned once it is true.

    Raises: TimeoutError, naming `what`, after `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    while not (result := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come true within {timeout_s} s; last: {result!r}")
        time.sleep(POLL_S)
    return result


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
