"""One soak from its beginning to its verdict."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from typing import NamedTuple

import uvloop

from tools.bench.load import undisturbed
from tools.bench.rig import folder
from tools.soak.actions import HEARTBEAT_TIMEOUT_S, Actions
from tools.soak.clients import Site
from tools.soak.crowd import Crowd
from tools.soak.engine import Engine, Held
from tools.soak.errors import SoakError
from tools.soak.ledger import GROUP_SIZE, Ledger, fails, stored_states, task_id
from tools.soak.proxies import fleet
from tools.soak.report import Found
from tools.soak.tally import Tally

_SETTLE_S = 60.0
# Little enough that a proxy need not be away for long.
_PARK_ABOVE = 100
# Asked over the wire at the end; the store is asked of all.
_ASKED = 2_000
_ASKED_AT_ONCE = 100
_NOTHING = Held(0, 0, 0)


class Plan(NamedTuple):
    """What to do. With `counts`, so many of each, in any order; else until `seconds` are over."""

    seconds: float = 600.0
    # By then a new worker's caches are full (8 MiB a lane), so that memory can be compared.
    warm_s: float = 45.0
    # How much more descriptors and memory may be at the end.
    growth_max: float = 0.02
    pause_s: tuple[float, float] = (0.5, 3.0)
    rate: int = 20_000
    clients: int = 200
    proxies: int = 100
    workers: int = 2
    seed: int = 0
    only: tuple[str, ...] = ()
    counts: Counter[str] = Counter()  # noqa: RUF012 (never changed)


def soak(plan: Plan) -> Found:
    """Does it. Raises: SoakError, BenchError, OSError when it cannot be done at all."""
    with (
        folder() as where,
        Engine(
            where,
            workers=plan.workers,
            fleet=fleet(plan.proxies),
            settings=f"heartbeat_timeout_s = {HEARTBEAT_TIMEOUT_S}\npark_above = {_PARK_ABOVE}",
        ) as engine,
        undisturbed(),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_Soak(plan, engine).run())


class _Soak:
    def __init__(self, plan: Plan, engine: Engine):
        self._plan = plan
        self._engine = engine
        self._rng = random.Random(plan.seed)
        self._tally = Tally()
        self._ledger = Ledger(plan.workers, plan.proxies // GROUP_SIZE)
        # Connections draw from a source of their own, so that the actions of a seed are always the same.
        site = Site(engine.address, self._ledger, self._tally, random.Random(plan.seed + 1))
        self._crowd = Crowd(
            site, clients=plan.clients, proxies=plan.proxies, workers=plan.workers, rate=plan.rate
        )
        self._actions = Actions(engine, self._tally, self._rng, plan.only, self._crowd.proxies)

    async def run(self) -> Found:
        began = time.monotonic()
        await self._engine.all_ready()
        await self._crowd.begin()
        posting = time.monotonic()
        broken, before, after = "", _NOTHING, _NOTHING
        try:
            before = await self._held_by_new_workers()
            await self._act(began + self._plan.seconds)
            after = await self._held_by_new_workers()
        except SoakError as error:
            broken = str(error)
            _say(broken)
        posting_s = time.monotonic() - posting
        _say("waiting until all is final")
        missing = await self._crowd.settle(_SETTLE_S)
        missing = ", ".join(filter(None, [broken, missing, await self._drained()]))
        denied = await self._asked()
        await self._crowd.close()
        _say("looking at the store")
        await asyncio.to_thread(self._engine.program.stop)
        verdict = self._ledger.compare(stored_states(self._engine.data / "store"))
        return Found(
            seed=self._plan.seed,
            seconds=time.monotonic() - began,
            rate_wanted=self._plan.rate,
            growth_max=self._plan.growth_max,
            posting_s=posting_s,
            skipped=self._crowd.skipped,
            lag_s=self._crowd.lag_s,
            actions=self._actions.done,
            tally=self._tally,
            verdict=verdict,
            missing=missing,
            denied=denied,
            repeated=self._ledger.repeated,
            before=before,
            after=after,
        )

    async def _act(self, end: float) -> None:
        """One action after the other. Raises: SoakError when one could not be made good."""
        wanted = self._plan.counts.copy()
        while wanted or (not self._plan.counts and time.monotonic() < end):
            name = self._actions.choose(wanted)
            wanted -= Counter([name])
            await self._do(name)
            await asyncio.sleep(self._rng.uniform(*self._plan.pause_s))

    async def _do(self, name: str) -> None:
        done = await self._actions.do(name)
        _say(f"{done.at_s:6.1f} s  {name}, {done.seconds:.1f} s{done.fault and ': ' + done.fault}")

    async def _held_by_new_workers(self) -> Held:
        """What the engine holds a while after a roll: each time this is asked, workers are of one age."""
        if "reload" in self._plan.only:
            await self._do("reload")
        await asyncio.sleep(self._plan.warm_s)
        return await self._engine.held()

    async def _drained(self) -> str:
        """Waits until the engine has no unfinished task."""
        end = time.monotonic() + _SETTLE_S
        while left := await self._unfinished():
            if time.monotonic() > end:
                return f"{left:.0f} unfinished tasks"
            await asyncio.sleep(0.1)
        return ""

    async def _unfinished(self) -> float:
        stats = await self._engine.stats()
        return stats["tasks_in_cache"] + stats["tasks_parked"]

    async def _asked(self) -> list[str]:
        """What the engine says of some tasks, where it is not what it should be."""
        reader, writer = await asyncio.open_connection(*self._engine.address())
        wrong = []
        numbers = self._ledger.sample(_ASKED, self._rng)
        for at in range(0, len(numbers), _ASKED_AT_ONCE):
            some = numbers[at : at + _ASKED_AT_ONCE]
            writer.write(b"".join([b"get_task task_id=%b\n" % task_id(number) for number in some]))
            for number in some:
                reply = await asyncio.wait_for(reader.readline(), _SETTLE_S)
                state = b" state=failed " if fails(number) else b" state=complete "
                if not reply.startswith(b"ok task_id=%b " % task_id(number)) or state not in reply:
                    wrong.append(f"{task_id(number).decode()}: {reply.decode().strip()}")
        writer.close()
        return wrong


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
