"""What the demo shows with two engines that share a database: one is killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tools.demo.show import Show
from tools.demo.stage import ASK_S, POLL_S, Stage
from tools.demo.story import Details, StepFailed, Story, url
from wire.client import Client
from wire.errors import WireError
from wire.tasks import NewTask, TaskHead

#: Tasks that both are posted; one is killed when it has accepted so many of its own.
TASKS = 2_000
KILL_AT = 600
#: Others are due so much later: they are certain to be unfinished when their engine is killed.
WAITING = 300
DUE_S = 3
#: How long until all is done: the lease of the killed engine must end first.
DONE_S = 40.0
ASKED_AT_ONCE = 200


class TwoEngines:
    """Plays on STAGE, after its Story, prints to SHOW."""

    def __init__(self, stage: Stage, show: Show) -> None:
        assert stage.partner is not None
        self._stage = stage
        self._story = Story(stage, show)
        self._first, self._second = stage.socket, stage.partner.socket
        self._accepted: dict[Path, list[str]] = {self._first: [], self._second: []}
        self._enough = asyncio.Event()
        self._killed_s = 0.0

    async def play(self) -> None:
        """Raises: StepFailed (already shown) at the first step that does not hold."""
        step = self._story.step
        await step("a task of the first engine is asked for, and cancelled, at the second", self._ask_other)
        await step("both get tasks; kill -9 of the second amid them", self._kill)
        await step("all that was accepted, by either, is complete at the first", self._all_done)
        await step("the killed engine comes back and takes tasks", self._come_back)

    async def _ask_other(self) -> Details:
        due = int(time.time()) + 3600
        async with _client(self._first) as first, _client(self._second) as second:
            await first.post(_task("later-1", due))
            asked = await second.get("later-1")
            cancelled = await second.cancel("later-1")
            after = await first.get("later-1")
        states = (asked.state, cancelled, after.state)
        if states != ("pending", "cancelled", "cancelled"):
            raise StepFailed(f"{states}", "pending, cancelled, cancelled")
        return ["at the second: pending; cancelled there; at the first: cancelled"]

    async def _kill(self) -> Details:
        due = int(time.time()) + DUE_S
        posting = [
            asyncio.create_task(self._post(self._first, [_task(f"one-{n}") for n in range(TASKS)])),
            asyncio.create_task(
                self._post(
                    self._second,
                    [_task(f"wait-{n}", due) for n in range(WAITING)]
                    + [_task(f"two-{n}") for n in range(TASKS)],
                )
            ),
        ]
        try:
            await self._enough.wait()
            await self._stage.kill_partner()
            self._killed_s = time.monotonic()
            await asyncio.gather(*posting)
        finally:
            for task in posting:
                task.cancel()
        first, second = (len(self._accepted[socket]) for socket in (self._first, self._second))
        if first < TASKS or second < WAITING:
            raise StepFailed(f"{first} and {second} tasks were accepted", f"{TASKS}, and at least {WAITING}")
        return [f"{first} tasks were accepted by the first, {second} by the second before it was gone"]

    async def _post(self, socket: Path, tasks: list[NewTask]) -> None:
        accepted = self._accepted[socket]
        try:
            # A killed engine is not waited for: what it has not answered is not counted.
            async with Client(f"unix:{socket}", patient=False, timeout_s=ASK_S) as client:
                async for outcome in client.post_many(tasks):
                    if outcome.accepted is not None:
                        accepted.append(outcome.task_id)
                    if socket == self._second and len(accepted) == WAITING + KILL_AT:
                        self._enough.set()
        finally:
            if socket == self._second:
                # Should it have ended too soon, nobody waits for ever.
                self._enough.set()

    async def _all_done(self) -> Details:
        missing = [task_id for ids in self._accepted.values() for task_id in ids]
        owned = len(self._accepted[self._second])
        total = len(missing)
        end = time.monotonic() + DONE_S
        async with _client(self._first) as client:
            while missing := await self._not_complete(client, missing):
                if time.monotonic() > end:
                    raise StepFailed(
                        f"{len(missing)} of {total} are not complete, such as {missing[:3]}", "none"
                    )
                await asyncio.sleep(10 * POLL_S)
        took_s = time.monotonic() - self._killed_s
        return [f"{total} of {total}, among them {owned} of the killed one, {took_s:.1f} s after its death"]

    async def _not_complete(self, client: Client, ids: list[str]) -> list[str]:
        left = []
        for at in range(0, len(ids), ASKED_AT_ONCE):
            some = ids[at : at + ASKED_AT_ONCE]
            try:
                answers = await asyncio.gather(*(client.get(task_id) for task_id in some))
            except WireError as error:
                raise StepFailed(f"no answer about the tasks: {error}", "their states") from error
            left += [answer.task_id for answer in answers if answer.state != "complete"]
        return left

    async def _come_back(self) -> Details:
        await self._stage.restart_partner()
        async with _client(self._second) as second:
            await second.post(_task("back-1"))
            ended = await second.wait("back-1", timeout_s=DONE_S)
        if ended.state != "complete":
            raise StepFailed(ended.state, "complete")
        return ["a task that was posted there is complete"]


def _client(socket: Path) -> Client:
    return Client(f"unix:{socket}", patient=False, timeout_s=4 * ASK_S)


def _task(task_id: str, due: int | None = None) -> NewTask:
    return NewTask(task_id, TaskHead(type="url", due=due), (url(f"/{task_id}.html"),))
