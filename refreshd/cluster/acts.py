"""What a leader does to SQL: one call at a time, in a thread of its own, each by the leader's epoch.

A call that takes too long is given up here, but not there: until it has ended no
other is begun, so a store that hangs holds one thread and nothing else.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import structlog

from refreshd.cluster.takeover import Estate, Plan, batch_limit, next_heir
from refreshd.cluster.truth import EngineRow, Truth
from refreshd.errors import StoreError, StoreUnavailable

log = structlog.get_logger()
T = TypeVar("T")


class TruthThread:
    """Makes the calls to `truth` and keeps the loop free."""

    def __init__(self, truth: Truth, deadline_s: float) -> None:
        self.truth = truth
        self._deadline_s = deadline_s
        self._busy = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises: StoreError, for a fault of ours, too; it may have been done then."""
        if self._busy:
            raise StoreUnavailable("the call before this one has not ended")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="cluster-truth", daemon=True)
            self._thread.start()
        self._busy = True
        self._jobs.put(partial(self._run, loop, work, done))
        try:
            async with asyncio.timeout(self._deadline_s):
                return await done
        except TimeoutError:
            raise StoreUnavailable(f"the store did not answer within {self._deadline_s:g} s") from None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run(self, loop: asyncio.AbstractEventLoop, work: Callable[[], T], done: asyncio.Future[T]) -> None:
        error: StoreError | None = None
        result: list[T] = []
        try:
            result.append(work())
        except StoreError as raised:
            error = raised
        except BaseException as raised:
            error = StoreUnavailable(f"a fault of the engine while it asked the store: {raised!r}")
        try:
            loop.call_soon_threadsafe(self._settle, done, error, result)
        except RuntimeError:
            # The loop is closed: nobody waits any more.
            return

    def _settle(self, done: asyncio.Future[T], error: StoreError | None, result: list[T]) -> None:
        self._busy = False
        if done.done():
            return
        if error is None:
            done.set_result(result[0])
        else:
            done.set_exception(error)

    def close(self) -> None:
        """Ends the thread after the call that runs; does not wait for it."""
        self._jobs.put(None)


class Acts:
    """Carries plans out."""

    def __init__(
        self,
        thread: TruthThread,
        *,
        may_act: Callable[[int], bool],
        heirs: Callable[[], Sequence[int]],
        tell: Callable[[int], Awaitable[None]],
    ) -> None:
        """`may_act`: whether this engine leads by that epoch, now; `heirs`: who may be given tasks, now;
        `tell`: says to an engine that it was given some, and never raises."""
        self.fenced = 0
        """Engines that this process has fenced."""
        self.handed_out = 0
        """Tasks that this process has given to others."""
        self._thread = thread
        self._may_act = may_act
        self._heirs = heirs
        self._tell = tell

    async def carry_out(self, leader_epoch: int, plan: Plan, unfinished: dict[int, int]) -> None:
        """Does what the plan says, for as long as this engine leads by that epoch.

        `unfinished`: what engines said they had, by number. What could not be done for one
        engine (a transaction of it holds its rows) keeps none of the others waiting.
        Raises: StoreError, after all was tried; NotLeader, StoreFenced at once.
        """
        estates = list(plan.estates)
        failed: StoreUnavailable | None = None
        for row in plan.fence:
            try:
                estate = await self._fence(leader_epoch, row)
            except StoreUnavailable as error:
                failed = error
            else:
                estates += [estate] if estate is not None else []
        for estate in estates:
            try:
                await self._deal_out(leader_epoch, estate, unfinished.get(estate.number))
            except StoreUnavailable as error:
                failed = error
        if failed is not None:
            raise failed

    async def _fence(self, leader_epoch: int, row: EngineRow) -> Estate | None:
        if not self._may_act(leader_epoch):
            return None
        epoch = await self._thread.call(partial(self._thread.truth.fence, leader_epoch, row.number))
        if epoch is None:
            return None
        self.fenced += 1
        log.warning(
            "engine fenced: it has no lease", of=row.name, number=row.number, epoch=epoch, by=leader_epoch
        )
        return Estate(row.number, epoch, row.name)

    async def _deal_out(self, leader_epoch: int, estate: Estate, unfinished: int | None) -> None:
        """Until nothing is left, nobody is there to take it, or this engine leads no more."""
        given: dict[int, int] = {}
        hand_out = self._thread.truth.hand_out
        try:
            while (heirs := self._heirs()) and self._may_act(leader_epoch):
                limit = batch_limit(unfinished, len(heirs))
                heir = next_heir(heirs, given)
                moved = await self._thread.call(
                    partial(hand_out, leader_epoch, estate.number, estate.epoch, heir, limit)
                )
                if moved:
                    given[heir] = given.get(heir, 0) + moved
                    self.handed_out += moved
                    await self._tell(heir)
                if moved < limit:
                    # Should there be more (the heir was fenced just now), SQL says so when it is read next.
                    return
        finally:
            if given:
                log.warning("tasks handed out", of=estate.name, to=given, by=leader_epoch)
