"""CPU time: of each process, of the generator, and of whatever else ran on the machine meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tools.bench.programs import Tree, title

GENERATOR = "generator"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Fields of /proc/stat that are work: user, nice, system, irq, softirq, steal.
_BUSY = (0, 1, 2, 5, 6, 7)


class Spent(NamedTuple):
    """What a number of operations took."""

    elapsed_s: float
    cpu_us: dict[str, float]
    """Microseconds of CPU an operation, by program; the generator is this process."""
    processes_us: dict[str, float]
    """The same by process."""
    others_pct: float
    """The share of the machine that went to nothing of ours: neighbours, the kernel's own threads."""


class Meter:
    """Measures from its making to `spent`."""

    def __init__(self, programs: Iterable[Tree] = ()) -> None:
        self._programs = list(programs)
        self._before = {program.name: program.cpu_s() for program in self._programs}
        self._busy = _machine_s()
        self._own = time.process_time()
        self._began = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self._began

    def spent(self, operations: int) -> Spent:
        """What was used since the making, shared out among so many operations."""
        elapsed = self.elapsed_s
        own = time.process_time() - self._own
        programs: dict[str, float] = {}
        processes: dict[str, float] = {}
        for program in self._programs:
            before = self._before[program.name]
            used = {pid: cpu - before.get(pid, 0.0) for pid, cpu in program.cpu_s().items()}
            programs[program.name] = sum(used.values())
            processes |= {f"{program.name}: {title(pid)} ({pid})": cpu for pid, cpu in used.items()}
        programs[GENERATOR] = own
        others = max(_machine_s() - self._busy - sum(programs.values()), 0.0)
        share = others / (elapsed * (os.cpu_count() or 1)) * 100
        return Spent(elapsed, _us(programs, operations), _us(processes, operations), round(share))


def _us(seconds_by_name: dict[str, float], operations: int) -> dict[str, float]:
    return {name: round(seconds / operations * 1e6, 2) for name, seconds in seconds_by_name.items()}


def _machine_s() -> float:
    """CPU seconds that were worked, by all CPUs and anyone, since the machine started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[at]) for at in _BUSY) * _TICK_S
