"""What is done to the engine, one thing after the other: what operators do, and what happens to them.

After each, every slot has a worker and no other process is about, or the soak ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from tools.soak.engine import Engine, Outcome
from tools.soak.proxies import Proxy
from tools.soak.tally import Tally

# A worker that is stopped is killed after so long without a beat. Longer than what two noisy cores do to one.
HEARTBEAT_TIMEOUT_S = 4
_REPLACED_S = 30.0
_WHOLE_S = 90.0
# How long a roll may last that a fault is put into the middle of, when none was seen yet.
_FIRST_ROLL_S = 4.0
# How soon tasks and connections have moved, once a new worker is there; and how closely that is looked for.
_MOVES_S = 0.1
_POLL_S = 0.005
_LINE_MAX = 1 << 20
# How long a proxy stays away: its tasks are parked, and others things are done meanwhile.
_AWAY_S = (2.0, 12.0)
# What is wrong, and a word that the refusal must have beside the number of the line.
_BROKEN = (
    ("[engine]\nworkerz = 2", "line"),
    ("[store]\nretention_s = 1", "line"),
    ('[[proxy]]\nnam = "x"', "line"),
    ("[engine", "line"),
)


class Done(NamedTuple):
    """One action."""

    name: str
    at_s: float
    seconds: float
    fault: str
    """What was wrong with how it went, or ""."""


class Actions:
    """Chooses and does them. `only`: of these names."""

    def __init__(
        self,
        engine: Engine,
        tally: Tally,
        rng: random.Random,
        only: tuple[str, ...],
        proxies: Sequence[Proxy],
    ):
        self.done: list[Done] = []
        self._engine = engine
        self._tally = tally
        self._rng = rng
        self._began = time.monotonic()
        self._reloads = 0
        self._roll_s = _FIRST_ROLL_S
        self._only = only
        self._proxies = proxies

    def choose(self, wanted: Counter[str]) -> str:
        """One of those that are still `wanted`, or any when that is empty, the likelier ones first."""
        if wanted:
            return self._rng.choice(sorted(wanted.elements()))
        weights = [ACTIONS[name].weight for name in self._only]
        return self._rng.choices(self._only, weights)[0]

    async def do(self, name: str) -> Done:
        """Does it, and waits until the engine is whole. Raises: SoakError when it does not become so."""
        began = time.monotonic()
        fault = await ACTIONS[name].run(self)
        seconds = time.monotonic() - began
        await self._engine.all_ready(_WHOLE_S)
        done = Done(name, round(began - self._began, 1), round(seconds, 2), fault)
        self.done.append(done)
        return done

    # ── what operators do ─────────────────────────────────────────────────────────────────

    async def reload(self) -> str:
        """New workers, one slot after the other."""
        return await self._roll("reload")

    async def upgrade(self) -> str:
        """A new master and new workers."""
        return await self._roll("upgrade")

    async def _roll(self, word: str) -> str:
        before = self._engine.children()
        self._change()
        began = time.monotonic()
        with self._tally.rolling():
            outcome = await self._engine.refreshctl(word, "--wait")
        self._roll_s = time.monotonic() - began
        if outcome.status:
            return f"exit status {outcome.status}: {outcome.text}"
        left = before & self._engine.children()
        return f"{len(left)} workers are the old ones" if left else ""

    def _change(self) -> None:
        """Another value of a setting that needs new workers."""
        self._reloads += 1
        self._engine.configure(f"line_max = {_LINE_MAX + self._reloads % 2}")

    async def bad_reload(self) -> str:
        """A configuration that is wrong: refused with its line, and nothing happens."""
        before = self._engine.children()
        broken, wanted = self._rng.choice(_BROKEN)
        self._engine.configure(broken=broken)
        outcome = await self._engine.refreshctl("reload", "--wait")
        self._engine.configure(f"line_max = {_LINE_MAX + self._reloads % 2}")
        if not outcome.status or wanted not in outcome.text:
            return f"a wrong configuration got {outcome}"
        return "" if self._engine.children() == before else "workers came or went"

    # ── what happens to them ──────────────────────────────────────────────────────────────

    async def kill(self) -> str:
        """kill -9 of a worker."""
        return await self._strike(signal.SIGKILL)

    async def stop(self) -> str:
        """SIGSTOP of a worker, until its silence is noticed."""
        return await self._strike(signal.SIGSTOP)

    async def _strike(self, number: signal.Signals) -> str:
        slot = self._rng.randrange(self._engine.workers)
        pid = int((await self._engine.rows())[slot]["pid"])
        with self._tally.faulty():
            os.kill(pid, number)
            await self._engine.until(
                f"a new worker {slot}",
                lambda rows: rows[slot]["state"] == "ready" and int(rows[slot]["pid"]) != pid,
                _REPLACED_S,
            )
        return ""

    async def kill_amid_roll(self) -> str:
        """kill -9 of a process that takes over, or of one that hands over."""
        return await self._strike_amid_roll(signal.SIGKILL)

    async def absence(self) -> str:
        """A proxy goes away, and is back while other things happen."""
        proxy = self._rng.choice(self._proxies)
        if not proxy.ready:
            # It is away already, or its worker is being replaced.
            return ""
        proxy.leave()
        asyncio.get_running_loop().call_later(self._rng.uniform(*_AWAY_S), proxy.connect)
        return ""

    async def stop_amid_roll(self) -> str:
        """SIGSTOP of one of the two."""
        return await self._strike_amid_roll(signal.SIGSTOP)

    async def _strike_amid_roll(self, number: signal.Signals) -> str:
        before = self._engine.children()
        self._change()
        with self._tally.faulty():
            rolling = asyncio.create_task(self._engine.refreshctl("reload", "--wait"))
            await self._moment(rolling, before)
            hit = await self._hit(before, number)
            outcome = await rolling
            # One that is stopped may look well until its silence is noticed.
            await self._engine.until(
                f"process {hit} is gone", lambda _: hit not in self._engine.children(), _REPLACED_S
            )
            await self._engine.all_ready(_WHOLE_S)
        # Whether the reload got through or not: both are fine, but it must have come to an end.
        return "the reload did not end" if outcome.status < 0 else ""

    async def _moment(self, rolling: asyncio.Task[Outcome], before: set[int]) -> None:
        """Waits for some moment of a roll; every other time for one while things move, which is soon over."""
        if self._rng.random() < 0.5:
            await asyncio.wait([rolling], timeout=self._rng.uniform(0, self._roll_s))
            return
        while not rolling.done() and not await self._ready() - before:
            await asyncio.wait([rolling], timeout=_POLL_S)
        await asyncio.wait([rolling], timeout=self._rng.uniform(0, _MOVES_S))

    async def _ready(self) -> set[int]:
        """The workers that are not starting."""
        return {int(row["pid"]) for row in await self._engine.rows() if row["state"] != "starting"}

    async def _hit(self, before: set[int], number: signal.Signals) -> int:
        """Sends the signal to one of the old processes, or of the new ones; its pid."""
        now = self._engine.children()
        if number == signal.SIGSTOP:
            # One that is starting has no heartbeat yet: for its silence the engine has minutes.
            now &= await self._ready()
        old, new = sorted(now & before), sorted(now - before)
        pool = self._rng.choice([some for some in (old, new) if some])
        pid = self._rng.choice(pool)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        return pid


class Action(NamedTuple):
    """How it is done, and how often among the others."""

    run: Callable[[Actions], Awaitable[str]]
    weight: int


ACTIONS: dict[str, Action] = {
    "reload": Action(Actions.reload, 6),
    "upgrade": Action(Actions.upgrade, 3),
    "bad-reload": Action(Actions.bad_reload, 1),
    "kill": Action(Actions.kill, 2),
    "kill-amid-roll": Action(Actions.kill_amid_roll, 4),
    "stop": Action(Actions.stop, 1),
    "absence": Action(Actions.absence, 4),
    "stop-amid-roll": Action(Actions.stop_amid_roll, 1),
}
HARMLESS = frozenset({"reload", "upgrade", "bad-reload"})
"""Those that explain no failed request and no lost connection."""
