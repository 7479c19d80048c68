"""The running agent: puts the parts together, beats, and stops in order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import psutil

from proxyd.config import AgentConfig
from proxyd.dispatch import Dispatcher
from proxyd.lanes import Caches
from proxyd.links import Links
from proxyd.logs import Log
from proxyd.waiting import wait_until

# PROTOCOL.md asks for a beat every 5 s at least.
BEAT_EVERY_S = 2.5
PROGRESS_EVERY_S = 1.0


class Agent:
    """One agent. `run` returns when it was told to stop and has stopped."""

    def __init__(self, config: AgentConfig, log: Log) -> None:
        self._config = config
        self._log = log
        self._stop = asyncio.Event()
        self._fast_stop = False
        self._dispatcher = Dispatcher(self._hold)
        self._caches = Caches(self._dispatcher.ended)
        self._links = Links(config, self._dispatcher, log)
        self._process = psutil.Process()
        self._cpu_at = (time.monotonic(), time.process_time())

    def stop(self, *, fast: bool = False) -> None:
        """Asks it to stop: gracefully, or at once."""
        self._fast_stop |= fast
        self._stop.set()

    async def run(self) -> None:
        """Serves the engines until told to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, lambda: self.stop(fast=True))
        config = self._config
        self._caches.apply(config)
        self._dispatcher.use_caches(self._caches.in_use)
        self._links.apply(config)
        self._log.info(
            "agent started", name=config.name, group=config.group, layer=config.layer,
            engines=len(config.engines), caches=[cache.name for cache in config.caches],
        )  # fmt: skip
        timers = [
            loop.create_task(self._every(BEAT_EVERY_S, self._beat)),
            loop.create_task(self._every(PROGRESS_EVERY_S, self._dispatcher.tell_progress)),
        ]
        await self._stop.wait()
        await self._finish()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)
        self._log.info("agent stopped", left=self._dispatcher.tasks)

    async def _finish(self) -> None:
        """Takes nothing new, ends and reports what is in hand, closes. What is left is pushed again later."""
        self._links.refuse_pushes()
        await wait_until(
            lambda: self._fast_stop or (not self._dispatcher.tasks and self._links.flushed),
            self._config.stop_timeout_s,
        )
        await self._links.stop()
        self._caches.close()

    def _hold(self, on: bool) -> None:
        self._links.hold(on)
        if on:
            self._log.sampled("hold", "overfull: engines are not read", targets=self._dispatcher.open_targets)

    async def _every(self, seconds: float, act: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            act()

    def _beat(self) -> None:
        now, cpu = time.monotonic(), time.process_time()
        was, was_cpu = self._cpu_at
        self._cpu_at = (now, cpu)
        figures = self._dispatcher.figures()
        figures["cpu"] = round((cpu - was_cpu) / max(now - was, 0.001), 3)
        figures["mem"] = self._process.memory_info().rss
        self._links.beat(figures, asyncio.get_running_loop().time())
