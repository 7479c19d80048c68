"""A worker that is one too many: its connections go to the others, which number them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from refreshd import control
from refreshd.worker.handover.connections import QUIET_S, Leaver

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

# How long a proxy that was told `!drain` may take to finish and close; then it is closed.
PROXIES_S = 5.0
_POLL_S = 0.01


async def retire(hub: Hub, workers: int) -> None:
    """Lets go of everything that is left here; this worker owns no shard. Tells the master."""
    began = hub.loop.time()
    hub.handing.stop_listening()
    hub.proxies.send_away()
    leaver = Leaver(hub, hub.shards.slot % workers)
    await _until(lambda: not hub.proxies.sessions, PROXIES_S)
    for session in list(hub.proxies.sessions.values()):
        session.close()
    await leaver.move_all()
    await _until(lambda: hub.mesh.is_quiet, QUIET_S)
    ms = round((hub.loop.time() - began) * 1000)
    log.info("retired", connections=leaver.moved, closed=leaver.closed, ms=ms)
    hub.say(control.Moved(leaver.moved, leaver.closed, ms))


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        if condition():
            return
        await asyncio.sleep(_POLL_S)
