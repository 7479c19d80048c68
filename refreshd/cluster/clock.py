"""The clock of leases."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Milliseconds of a clock that never jumps and goes on while a process, or the machine, is suspended.

    Unlike the monotonic clock it counts the time that a laptop or a virtual machine
    slept through: the others' leases went on meanwhile. All processes of a machine
    read the same, so a worker can hand what it measured to its successor.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
