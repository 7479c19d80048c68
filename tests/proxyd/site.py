"""The part of an agent that acts on caches, without links: tasks are pushed by the test, and awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxyd.config import AgentConfig, build
from proxyd.dispatch import Dispatcher
from proxyd.evidence import Evidence
from proxyd.lanes import Caches
from proxyd.outbox import Outbox
from proxyd.tasks import Task
from tests.proxyd.rig import wait_until
from wire.lines import parse
from wire.tasks import PushHead


class Ended:
    """How a task ended: `error` and `failed` as reported, and what evidence there was."""

    def __init__(self, fields: dict[str, str], evidence: list[Evidence]) -> None:
        self.done = fields["state"] == "done"
        self.error = fields.get("error", "")
        self.failed = int(fields.get("failed", "0"))
        self.evidence = evidence

    def __repr__(self) -> str:
        return f"<Ended {'well' if self.done else self.error} {self.evidence}>"


class _Box(Outbox):
    """Keeps the evidence that engines would be told."""

    __slots__ = ("evidence",)

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.evidence: dict[bytes, list[Evidence]] = {}

    def add_evidence(self, task: Task) -> None:
        self.evidence[task.id] = list(task.evidence or ())


class Site:
    """Caches as a proxyd.toml says, and who dispatches to them. To be used on a running loop."""

    def __init__(self, *caches: dict[str, Any], **sections: dict[str, Any]) -> None:
        document = {"cache": list(caches), "agent": {"name": "p"}, **sections}
        self.config: AgentConfig = build(document, "", "test", Path())
        self.box = _Box()
        self.dispatcher = Dispatcher(lambda on: None)
        self.caches = Caches(self.dispatcher.ended)
        self._numbers = iter(range(1_000_000))

    def __enter__(self) -> Self:
        self.caches.apply(self.config)
        self.dispatcher.use_caches(self.caches.in_use)
        self.dispatcher.verify_all = self.config.verify
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.caches.close()

    def push(self, head: PushHead, *targets: str) -> bytes:
        """Pushes a task and returns its id."""
        task_id = b"t%d" % next(self._numbers)
        raw = [target.encode() for target in targets]
        self.dispatcher.push(self.box, task_id, head, raw, asyncio.get_running_loop().time())
        return task_id

    async def end_of(self, *ids: bytes) -> list[Ended]:
        """Waits until these have ended, in any order, and nothing else is in hand."""
        await wait_until(lambda: not self.dispatcher.tasks, f"the end of {self.dispatcher}")
        found: dict[bytes, dict[str, str]] = {}
        for line in self._reports():
            fields = dict(line.fields)
            for task_id in [fields["task_id"]] if "task_id" in fields else list(line.items or ()):
                found[task_id.encode()] = fields
        return [Ended(found[task_id], self.box.evidence.get(task_id, [])) for task_id in ids]

    def _reports(self) -> Iterable[Any]:
        kept, _ = self.box.take(asyncio.get_running_loop().time(), 1 << 20)
        return [parse(line[:-1]) for line in kept]

    async def do(self, head: PushHead, *targets: str) -> Ended:
        """Pushes a task and waits for its end."""
        (ended,) = await self.end_of(self.push(head, *targets))
        return ended
