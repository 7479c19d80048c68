"""Tasks of other engines: what is asked here about one is asked its owner, and answered here.

The store says whose a task is; the registry says where that engine is. When it
cannot be reached, what the store knows is the answer (a task that is not final is
`pending` there), but for a cancel, which only the owner can carry out.

A question goes to one engine and no further (`hop=1`). Watches of a task by any
number of connections are one watch at its owner; they follow the task when it is handed
to another engine, and to this one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from refreshd.cluster.snapshot import Snapshot
from refreshd.errors import StoreError
from refreshd.store.base import Stored
from refreshd.task import STATE_BY_TEXT, State
from refreshd.worker import views
from wire.answers import Answer, TaskState
from wire.client import Client
from wire.errors import LocalError, Refused, WireError
from wire.lines import Line, format_line

if TYPE_CHECKING:
    from refreshd.worker.callers import Caller
    from refreshd.worker.cluster import Cluster

log = structlog.get_logger()

# A question that the owner does not answer so soon is answered from the store.
ASK_S = 3.0
RETRY_S = 1.0
# Tasks of other engines that are watched from here at a time.
WATCHES_MAX = 10_000
HOP = "hop"
KEY_OF_ENGINE = "engine:"
"""Before an engine's id: the key that it greets other engines with."""


class Elsewhere:
    """The other engines, as one worker asks them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._clients: dict[str, Client] = {}
        """By address."""
        self._watching: dict[bytes, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._silent_ones: set[int] = set()
        """Engines that did not answer; until they have a lease anew, or answer."""

    # ── who is where ──────────────────────────────────────────────────────────────────────

    def changed(self, snapshot: Snapshot) -> None:
        """The registry was read: engines that are gone are asked no more."""
        here = {entry.advert.address for entry in snapshot.engines}
        for address in self._clients.keys() - here:
            self._close(self._clients.pop(address))

    def _close(self, client: Client) -> None:
        closing = asyncio.get_running_loop().create_task(client.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _client(self, owner: int) -> Client | None:
        """None where the engine has no lease just now."""
        entry = self._cluster.snapshot.numbered(owner)
        if entry is None or owner == self._cluster.number:
            return None
        address = entry.advert.address
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = Client(
                address,
                key=f"{KEY_OF_ENGINE}{self._cluster.hub.config.engine.id}",
                secret=self._cluster.peers_secret,
                patient=False,
                timeout_s=ASK_S,
            )
        return client

    async def close(self) -> None:
        """Ends all watches and connections."""
        for watch in self._watching.values():
            watch.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)
        for client in self._clients.values():
            self._close(client)
        self._clients.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # ── asking ────────────────────────────────────────────────────────────────────────────

    def is_not_here(self, stored: Stored) -> bool:
        """Whether a task that is not in memory is to be worked on: by another engine, or here in a moment.

        Not one that this engine has parked.

        The latter is one that was handed out to this engine and is not taken in yet.
        """
        if stored.result is not None or stored.owner == 0:
            return False
        return stored.parked is None or stored.owner != self._cluster.number

    async def answer(self, stored: Stored, line: Line, otherwise: Callable[[Stored], bytes]) -> bytes:
        """The owner's reply to a question about a task; `otherwise` where it cannot be had."""
        answer = await self._ask(stored.owner, line)
        return otherwise(stored) if answer is None else _text(answer)

    async def cancel(self, stored: Stored, line: Line) -> bytes:
        """The owner's reply to a cancel. Raises: Refused."""
        answer = await self._ask(stored.owner, line)
        if answer is None:
            raise Refused(
                "unavailable",
                "the engine that has the task cannot be reached, or takes it over just now; ask again",
                retry_ms=1000,
            )
        return _text(answer)

    async def _ask(self, owner: int, line: Line) -> Answer | None:
        """None where the owner cannot be reached. Raises: Refused, if that is its answer."""
        client = self._client(owner) if HOP not in line.fields else None
        if client is None:
            return None
        try:
            answer = await client.request(line.verb, {"task_id": line.fields["task_id"], HOP: 1})
            self._silent_ones.discard(owner)
            return answer
        except Refused as refused:
            if refused.code == "auth":
                # A clock that is off, as a rule: somebody must hear of it.
                self._silent(owner, refused)
                return None
            if refused.code in ("not_found", "unavailable", "draining", "busy"):
                # It has just ended, or is being handed on: the store knows more.
                return None
            raise
        except (WireError, LocalError) as error:
            # Local: its lease ended meanwhile, and the connection was closed.
            self._silent(owner, error)
            return None

    async def describe(self, tasks: list[Stored]) -> list[views.Fields]:
        """The fields of get_task of each, as their owners say, or else as the store knows them."""

        async def one(stored: Stored) -> views.Fields:
            try:
                answer = await self._ask(stored.owner, _get(stored))
            except Refused:
                answer = None
            return views.describe_stored(stored) if answer is None else dict(answer.fields)

        return await asyncio.gather(*map(one, tasks))

    # ── watching ──────────────────────────────────────────────────────────────────────────

    async def watch(self, caller: Caller, stored: Stored) -> bytes:
        """The reply to a `watch_task` for another engine's task. Raises: Refused, `busy`."""
        hub = self._cluster.hub
        if len(self._watching) >= WATCHES_MAX and stored.id not in self._watching:
            raise Refused("busy", f"{WATCHES_MAX} tasks of other engines are watched", retry_ms=1000)
        caller.watch(stored.id)
        owner = hub.shards.owner(stored.id)
        if owner != hub.shards.slot:
            # The shard was given to another worker while the store was asked.
            line = b"watch_task task_id=%b" % stored.id
            return await hub.mesh.ask(owner, line, ASK_S, caller.context())
        hub.watches.add(caller, stored.id)
        self._begin(stored.id, stored)
        return await self.answer(stored, _get(stored), lambda s: views.ok(views.describe_stored(s)))

    def follow(self, task_id: bytes) -> None:
        """The watchers of a task that is not here came with its shard."""
        self._begin(task_id, None)

    def _begin(self, task_id: bytes, stored: Stored | None) -> None:
        before = self._watching.get(task_id)
        if before is None or before.done():
            watching = asyncio.get_running_loop().create_task(self._watch(task_id, stored))
            self._watching[task_id] = watching
            watching.add_done_callback(lambda ended: self._ended(task_id, ended))

    def _ended(self, task_id: bytes, watching: asyncio.Task[None]) -> None:
        if self._watching.get(task_id) is watching:
            del self._watching[task_id]

    async def _watch(self, task_id: bytes, now: Stored | None) -> None:
        """Until it is final, is here, or nobody here watches it any more. `now`: what is known of it."""
        hub = self._cluster.hub
        while task_id in hub.watches:
            if task_id in hub.engine.tasks:
                hub.watches.changed(hub.engine.tasks[task_id])
                return
            if now is None:
                # If the store does not answer, it is asked again.
                with contextlib.suppress(StoreError):
                    now = await hub.queries.find(task_id)
            if now is not None:
                if now.result is not None:
                    hub.watches.tell(task_id, views.stored_push(now), final=True)
                    return
                is_over = await self._follow(now)
                now = None
                if is_over:
                    # Unless somebody has come to watch it just now.
                    continue
            await asyncio.sleep(RETRY_S)

    async def _follow(self, stored: Stored) -> bool:
        """Passes on what the owner tells. Returns whether that was all: it is final, or nobody watches it."""
        client = self._client(stored.owner)
        if client is None:
            return False
        hub = self._cluster.hub
        try:
            async with contextlib.aclosing(client.watch(stored.id.decode(), timeout_s=ASK_S * 10)) as states:
                async for state in states:
                    hub.watches.tell(stored.id, _push(state), final=state.final)
                    if state.final:
                        return True
                    if stored.id not in hub.watches:
                        return True
        except (WireError, LocalError) as error:
            self._silent(stored.owner, error)
        return False

    def _silent(self, owner: int, error: WireError | LocalError) -> None:
        """Logged once for each time that it falls silent, not for each question."""
        if owner not in self._silent_ones:
            self._silent_ones.add(owner)
            log.warning("another engine does not answer", number=owner, error=str(error))


def _get(stored: Stored) -> Line:
    return Line("get_task", {"task_id": stored.id.decode()}, None)


def _text(answer: Answer) -> bytes:
    return format_line("ok", answer.fields) + b"".join(format_line("+", row) for row in answer.rows)


def _push(state: TaskState) -> bytes:
    known = STATE_BY_TEXT.get(state.state, State.PENDING)
    return b"!state task_id=%b state=%b done=%d failed=%d total=%d\n" % (
        state.task_id.encode(),
        known.text.encode(),
        state.done,
        state.failed,
        state.total,
    )
