"""One engine's coordinator as a process of its own: `python -m … REDIS-URL SQL-FILE NUMBER [ACT]`.

It ends with FENCED when it was fenced. With ACT it stops itself (SIGSTOP) just
before its first such act, between deciding and doing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

from tests.refreshd.cluster.rig import Engine
from tests.refreshd.cluster.sql import Sql

FENCED = 7


async def main(url: str, path: str, number: str, *pause_before: str) -> None:
    engine = Engine(Sql(Path(path)), url, int(number))
    paused = False

    def before(what: str) -> None:
        nonlocal paused
        if what in pause_before and not paused:
            paused = True
            os.kill(os.getpid(), signal.SIGSTOP)
            # Threads are stopped one after the other; this one is, here, before it goes on.
            threading.Event().wait(0.2)

    engine.truth.before = before
    while not engine.fenced:
        await asyncio.sleep(0.01)
    await engine.die()
    sys.exit(FENCED)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
