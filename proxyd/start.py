"""How an agent begins: from nothing, where the code before it left off, or as a rehearsal."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from proxyd import carry
from proxyd.agent import Agent
from proxyd.config import AgentConfig
from proxyd.logs import Log


async def serve(config: AgentConfig, read_config: Callable[[], AgentConfig]) -> None:
    """Runs an agent until it is told to stop; what an upgrade has left for it, it goes on with."""
    log = Log(config.log_level)
    agent = Agent(config, log, read_config)
    carried = _read_carried(log)
    if carried is not None:
        try:
            agent.adopt(carried)
        except Exception as error:
            # Closed, so that the engines push everything again to an agent that knows nothing of it.
            log.fault("what the old code left cannot be taken over; greeting anew", error)
            await agent.abandon()
            carry.close(carried.fds)
            agent = Agent(config, log, read_config)
    await agent.run()


def _read_carried(log: Log) -> carry.Carried | None:
    try:
        return carry.read(os.environ)
    except carry.Unreadable as error:
        log.warning("what the old code left cannot be read; greeting anew", why=str(error))
    return None


async def rehearse(config: AgentConfig) -> None:
    """Starts an agent that has no engines, and stops it. Raises: whatever is wrong with this code."""
    carry.decode(carry.encode(carry.Carried("", 1, 0.0, [])))
    # (What the caches' health check looks at is that of the agent that runs.)
    alone = msgspec.structs.replace(
        config,
        engines=[],
        log_level="error",
        caught_up_file="",
        health_listen="",
        receipt_key_file="",
    )
    agent = Agent(alone, Log(alone.log_level), lambda: alone)
    agent.stop(fast=True)
    await agent.run()
