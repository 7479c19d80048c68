"""The running agent: puts the parts together, beats, does what signals ask for, and stops in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import setproctitle

from proxyd import __version__
from proxyd.asks import Asks
from proxyd.carry import Carried, ground_of
from proxyd.catching_up import CarriedCatchingUp, CatchingUp, CaughtUp, FellBehind
from proxyd.changes import Change, compare
from proxyd.config import AgentConfig
from proxyd.describe import CacheState, describe_caches, state_of
from proxyd.dispatch import Dispatcher
from proxyd.health import Health
from proxyd.lanes import Caches
from proxyd.links import Links
from proxyd.logs import Log
from proxyd.marker import Marker
from proxyd.notify import Notifier
from proxyd.operations import Operations
from proxyd.receipt_key import make_seed
from proxyd.receipts import Notary
from proxyd.upgrade import SIGNALS
from proxyd.waiting import wait_until

# PROTOCOL.md asks for a beat every 5 s at least.
BEAT_EVERY_S = 2.5
PROGRESS_EVERY_S = 1.0
# How often it is looked whether the agent has caught up: an answer to that may be so old.
LOOK_EVERY_S = 0.1
PROBE_LOOK_EVERY_S = 0.25
# Without any engine the agent is as ready as it will be: it waits for them, and a manager that restarts it
# for that would help nobody.
READY_AFTER_S = 5.0


class Agent:
    """One agent. `run` returns when it was told to stop and has stopped.

    `read_config` reads the configuration anew, for a reload. Raises: ConfigError.
    """

    def __init__(self, config: AgentConfig, log: Log, read_config: Callable[[], AgentConfig]) -> None:
        self.config = config
        self.log = log
        self.read_config = read_config
        self.generation = 1
        """Counts reloads and upgrades; the process title shows it."""
        self.notifier = Notifier(os.environ)
        self._stop = asyncio.Event()
        self._fast_stop = False
        self.dispatcher = Dispatcher(self._hold)
        self.caches = Caches(self.dispatcher.ended, log)
        self.asks = Asks(describe_caches, self.dispatcher.as_configured, log)
        self.notary = Notary(asyncio.get_running_loop().time)
        self.links = Links(config, self.dispatcher, self.asks, self.notary, log)
        self.catching_up = CatchingUp(asyncio.get_running_loop().time())
        self._replayed_before = (0, 0)
        """What `replayed` counts from."""
        self._marker = Marker(log)
        self.health = Health(self._why_not_caught_up, log, self._why_cache_may_not_serve)
        self._operations = Operations(self)
        self._carried: Carried | None = None
        self._process = psutil.Process()
        self._status = ""
        """What the service's manager was told last; empty until the agent is ready."""
        self._cpu_at = (time.monotonic(), time.process_time())

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def stop(self, *, fast: bool = False) -> None:
        """Asks it to stop: gracefully, or at once."""
        self._fast_stop |= fast
        self._stop.set()

    async def run(self) -> None:
        """Serves the engines until told to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, lambda: self.stop(fast=True))
        loop.add_signal_handler(signal.SIGHUP, self._operations.ask_reload)
        loop.add_signal_handler(signal.SIGUSR2, self._operations.ask_upgrade)
        # What came while this code was started was kept for it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        await self._resume_health()
        self.dispatcher.replay(self.catching_up.behind)
        self.apply(self.config)
        self._show_generation()
        if self._carried is None:
            self.log.info(
                "agent started", name=self.config.name, group=self.config.group, layer=self.config.layer,
                engines=len(self.config.engines), caches=[cache.name for cache in self.config.caches],
            )  # fmt: skip
        timers = [
            loop.create_task(self._every(BEAT_EVERY_S, self._beat)),
            loop.create_task(self._every(PROGRESS_EVERY_S, self._progress)),
            loop.create_task(self._every(LOOK_EVERY_S, self._look)),
            loop.create_task(self._every(PROBE_LOOK_EVERY_S, self.caches.probe)),
            loop.create_task(self._operations.run()),
            loop.create_task(self._arrive()),
        ]
        if self.notifier.watchdog_s is not None:
            timers.append(loop.create_task(self._every(self.notifier.watchdog_s, self._feed_watchdog)))
        await self._stop.wait()
        self._show_caught_up()
        self.notifier.send(STOPPING="1")
        await self._finish()
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)
        self.asks.close()
        self.notifier.close()
        self.health.close()
        self.log.info("agent stopped", left=self.dispatcher.tasks)

    def apply(self, config: AgentConfig) -> list[Change]:
        """Makes a configuration hold; what it takes of links is begun here and done by `Links.settle`."""
        changes = compare(self.config, config)
        self.config = config
        self.log.set_level(config.log_level)
        self._apply_caches(config)
        config = self.config = self._apply_key(config)
        self.links.apply(config)
        self.health.apply(config.health_listen)
        self._show_caught_up()
        return changes

    def _apply_caches(self, config: AgentConfig) -> None:
        self.caches.apply(config)
        self.dispatcher.use_caches(self.caches.in_use)
        self.dispatcher.verify_all = config.verify
        self.asks.caches = self.caches.in_use

    def _apply_key(self, config: AgentConfig) -> AgentConfig:
        """Signs with the key that is configured; one that is not there yet is made, and then configured."""
        seed = config.receipt_seed
        try:
            if config.receipt_key_file and not seed:
                seed = make_seed(Path(config.receipt_key_file))
        except (OSError, ValueError) as error:
            self.log.warning(
                "the receipts' key cannot be kept; one is used that lives as long as this process",
                file=config.receipt_key_file, error=str(error),
            )  # fmt: skip
        self.notary.use(seed)
        return msgspec.structs.replace(config, receipt_seed=seed)

    def next_generation(self) -> None:
        """A reload or an upgrade was taken."""
        self.generation += 1
        self._show_generation()

    def _show_generation(self) -> None:
        behind = " (behind)" if self.catching_up.behind else ""
        setproctitle.setproctitle(f"proxyd: {self.config.name} gen {self.generation}{behind}")

    def adopt(self, carried: Carried) -> None:
        """Goes on with what the code before this had in hand; `run` is to follow."""
        self._carried = carried
        self.generation = carried.generation + 1
        self.notary.use(carried.receipt_seed)
        self._apply_caches(self.config)
        memory = carried.memory
        if memory is not None and memory.ground == ground_of(self.config):
            now = asyncio.get_running_loop().time()
            self.dispatcher.know_done(memory.done, memory.era, now)
        else:
            self.dispatcher.era = 1 + carried.newest_era
        if carried.catching_up is not None:
            self.catching_up.resume(carried.catching_up, asyncio.get_running_loop().time())
            tasks, merged = carried.replayed
            self._replayed_before = (-tasks, -merged)
        self.dispatcher.replay(self.catching_up.behind)
        self.links.resume(carried.slots, carried.engines)

    async def abandon(self) -> None:
        """Drops everything at once."""
        await self.links.stop()
        self.caches.close()
        self.notifier.close()
        self.health.close()

    async def _arrive(self) -> None:
        """Says that the agent is ready; after an upgrade also what became of it."""
        carried = self._carried
        if carried is None:
            await wait_until(lambda: self.links.serving, READY_AFTER_S)
        else:
            await wait_until(lambda: self.links.resumed, READY_AFTER_S)
            self.log.info(
                "upgraded", generation=self.generation, code=__version__, before=carried.code,
                links=len(carried.fds), tasks=sum(len(slot.tasks) for slot in carried.slots),
                paused_ms=round((time.monotonic() - carried.paused_at) * 1000),
            )  # fmt: skip
            await self.links.settle()
        self._look()
        self.say_ready()

    def say_ready(self) -> None:
        """Tells the service's manager that the agent does its work."""
        self._status = self._describe()
        self.notifier.send(READY="1", STATUS=self._status)

    def _show_status(self) -> None:
        """Engines come and go after the manager was told."""
        if self._status and self._describe() != self._status:
            self._status = self._describe()
            self.notifier.send(STATUS=self._status)

    def _describe(self) -> str:
        up, learned = self.links.engines_up
        engines = f"{up} engine{'s' if up > 1 else ''}" + (f" ({learned} learned)" if learned else "")
        waits = self.catching_up.waits_for
        behind = f"; behind: {waits[0] if waits else 'a moment'}" if self.catching_up.behind else ""
        return f"{f'serves {engines}' if up else 'waits for an engine'}; generation {self.generation}{behind}"

    # ── catching up ───────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Whether the agent has caught up, or has fallen behind; shows it to the caches' health check."""
        now = asyncio.get_running_loop().time()
        dropping = self.dispatcher.dropping
        wait_s = self.config.caught_up_wait_s
        change = self.catching_up.look(self.links.views(), now, wait_s, dropping=dropping)
        tasks, merged = self.replayed
        match change:
            case FellBehind(why):
                self._replayed_before = (self.dispatcher.ended_tasks, self.dispatcher.merged)
                self.log.warning("behind: the caches may be old until what was missed is done", why=why)
            case CaughtUp(seconds, without):
                if without:
                    self.log.warning(
                        "counts as caught up, but engines could not be reached", engines=without,
                        waited_s=wait_s,
                    )  # fmt: skip
                self.log.info("caught up", tasks=tasks, merged=merged, took_s=round(seconds, 1))
        self.dispatcher.replay(self.catching_up.behind)
        self.links.grant(self.caches.left_behind(self.dispatcher.open_targets, now))
        self._show_caught_up()
        if change is not None:
            self._show_generation()
            self._show_status()

    @property
    def replayed(self) -> tuple[int, int]:
        """(tasks that ended, requests that merging has saved) since the agent is behind."""
        tasks, merged = self._replayed_before
        return self.dispatcher.ended_tasks - tasks, self.dispatcher.merged - merged

    def _why_not_caught_up(self) -> str | None:
        if self.stopping:
            return "the agent stops"
        if not self.catching_up.behind:
            return None
        return "; ".join(self.catching_up.waits_for) or "a moment"

    def _why_cache_may_not_serve(self, name: str) -> str | None:
        """What is shown of one cache. Raises: KeyError, if there is none of that name."""
        state, why = {lanes.name: state_of(lanes) for lanes in self.caches.in_use}[name]
        if state is not CacheState.UP:
            return f"{state.value}: {why}"
        behind = self._why_not_caught_up()
        return None if behind is None else f"behind: {behind}"

    def _show_caught_up(self) -> None:
        self._marker.show(self.config.caught_up_file, self._why_not_caught_up() is None)

    def carry_catching_up(self, now: float) -> CarriedCatchingUp:
        """What the next code needs to know of it."""
        return self.catching_up.carry(self.links.views(), now)

    async def _resume_health(self) -> None:
        """Goes on to answer checks at the sockets of the code before this."""
        if self._carried is None or self._carried.health is None:
            return
        try:
            await self.health.resume(self._carried.health)
        except OSError as error:
            self.log.warning("the health check's sockets are lost; binding anew", error=str(error))
            self.health.close()

    def _feed_watchdog(self) -> None:
        self.notifier.send(WATCHDOG="1")

    async def _finish(self) -> None:
        """Takes nothing new, ends and reports what is in hand, closes. What is left is pushed again later."""
        self.links.refuse_pushes()
        await wait_until(
            lambda: self._fast_stop or (not self.dispatcher.tasks and self.links.flushed),
            self.config.stop_timeout_s,
        )
        await self.links.stop()
        self.caches.close()

    def _hold(self, on: bool) -> None:
        self.links.hold(on)
        if on:
            self.log.sampled("hold", "overfull: engines are not read", targets=self.dispatcher.open_targets)

    async def _every(self, seconds: float, act: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            act()

    def _progress(self) -> None:
        self.dispatcher.tell_progress()
        self.dispatcher.sweep(asyncio.get_running_loop().time())
        self.links.review()
        self._show_status()

    def _beat(self) -> None:
        now, cpu = time.monotonic(), time.process_time()
        was, was_cpu = self._cpu_at
        self._cpu_at = (now, cpu)
        figures = self.dispatcher.figures()
        figures["cpu"] = round((cpu - was_cpu) / max(now - was, 0.001), 3)
        figures["mem"] = self._process.memory_info().rss
        loop_now = asyncio.get_running_loop().time()
        self.links.beat(figures, loop_now)
        # As the answers to the beat before this one had it.
        self.caches.budget.set_rate(self.links.prefetch_bytes_per_s, loop_now)
