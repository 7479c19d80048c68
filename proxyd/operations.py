"""What an operator asks for by a signal: one at a time; what is asked for meanwhile is done next, once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxyd.errors import ConfigError
from proxyd.upgrade import UpgradeRefused, upgrade

if TYPE_CHECKING:
    from proxyd.agent import Agent


class Operations:
    """Reloads and upgrades of one agent. An upgrade reads the configuration too, so it is both."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._asked = asyncio.Event()
        self._new_code = False

    def ask_reload(self) -> None:
        """The configuration is to be read anew."""
        self._asked.set()

    def ask_upgrade(self) -> None:
        """The code that is on disk is to take over."""
        self._new_code = True
        self._asked.set()

    async def run(self) -> None:
        """Does what is asked for, for ever. A fault of ours ends the operation, not the agent."""
        agent = self._agent
        while True:
            await self._asked.wait()
            self._asked.clear()
            new_code, self._new_code = self._new_code, False
            agent.notifier.reloading(asyncio.get_running_loop().time())
            try:
                await (self._upgrade() if new_code else self._reload())
            except Exception as error:
                agent.log.fault("upgrade failed" if new_code else "reload failed", error)
            agent.say_ready()

    async def _reload(self) -> None:
        """Makes the configuration hold that the file has now, or says what is wrong with it."""
        agent = self._agent
        began = asyncio.get_running_loop().time()
        try:
            config = agent.read_config()
        except ConfigError as error:
            agent.log.warning("reload refused", generation=agent.generation, faults=error.faults)
            return
        changes = agent.apply(config)
        agent.next_generation()
        settled = await agent.links.settle()
        took_ms = round((asyncio.get_running_loop().time() - began) * 1000)
        agent.log.info(
            "reloaded", generation=agent.generation, changed=[str(change) for change in changes],
            settled=settled, took_ms=took_ms,
        )  # fmt: skip

    async def _upgrade(self) -> None:
        agent = self._agent
        agent.log.info("upgrade begins", generation=agent.generation)
        try:
            await upgrade(agent)
        except UpgradeRefused as error:
            agent.log.warning("upgrade refused", generation=agent.generation, why=str(error))
