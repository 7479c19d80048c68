"""Shards out of the store, in a worker that serves: another process had them, and is gone.

What was acknowledged is in the store; what was only in memory (who has reported, who
watches) is not, so proxies are pushed again what they may have done already, which is
harmless. Requests for the shards are kept until all their tasks are there.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import structlog

from refreshd import control
from refreshd.shard import HELD
from refreshd.worker.loading import Loader

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()


async def take_back(hub: Hub, shards: list[int], gone: int) -> None:
    """Owns the shards that the process known as `gone` had; answers what waited for it. Tells the master.

    Raises: StoreError; this process cannot go on then.
    """
    began = time.monotonic()
    hub.shards.give(shards, HELD)
    hub.mesh.forget(gone)
    hub.quotas.alone()
    tasks = 0
    lanes = sorted({hub.shards.lane_by_shard[shard] for shard in shards})
    for lane in lanes:
        await _find_ids(hub, lane, frozenset(shards))
    loader = Loader(lambda task_id: hub.shards.owner(task_id) == HELD)
    async for some in loader.slices(hub.openings(lanes)):
        hub.engine.clock.turn()
        for task in some:
            hub.engine.load(task)
        hub.engine.start_all(some)
        tasks += len(some)
        await asyncio.sleep(0)
    hub.engine.adopted()
    hub.shards.give(shards, hub.shards.slot)
    hub.moves.end()
    hub.proxies.push_again()
    hub.mesh.ask_held()
    await hub.watching.forgotten_here()
    ms = round((time.monotonic() - began) * 1000)
    log.info("taken back", shards=len(shards), tasks=tasks, ms=ms)
    hub.say(control.Resumed(tasks, ms))


async def _find_ids(hub: Hub, lane: int, shards: frozenset[int]) -> None:
    """Ids of finished tasks that were in the other's memory only come here, between commits."""
    saver = hub.engine.savers[lane]
    while await saver.call(partial(saver.lane.index_some, shards)):
        pass
