"""`wrk`, a load generator in C: what it gets out of a cache is what there is to get."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools.bench.errors import BenchError

DEADLINE_S = 120.0
_SCRIPT = """\
{headers}
local number = 0
request = function()
    number = number + 1
    return wrk.format("{method}", "/object/" .. number .. ".bin")
end
"""


class Load(NamedTuple):
    """What it did: `number` requests, of `/object/1.bin` and so on."""

    number: int
    rate: float
    cpu_us: float


def is_there() -> bool:
    """Whether it is installed."""
    return shutil.which("wrk") is not None


def walk(
    where: Path, address: str, seconds: int, connections: int, *, method: str, headers: dict[str, str]
) -> Load:
    """Asks for one object after the other, one request in flight a connection. Raises: BenchError."""
    script = where / "walk.lua"
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    script.write_text(_SCRIPT.format(headers=lines, method=method))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://{address}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = re.search(r"(\d+) requests in ", done.stdout)
    rate = re.search(r"Requests/sec: +([0-9.]+)", done.stdout)
    if said is None or rate is None or "Non-2xx" in done.stdout:
        raise BenchError(f"wrk failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Load(int(said[1]), float(rate[1]), cpu_s / int(said[1]) * 1e6)
