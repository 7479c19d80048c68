"""What the connections of this worker watch, and telling it anew to whoever owns the tasks.

An owner keeps who watches (watches.py) in memory only: it dies with the owner, and a final
state may be reached before anyone knows anew whom to tell. The connections live on, and
know what they watch. So they watch it again, and the present state is pushed,

    when a sibling joins the mesh             it is new, or what it has pushed may be lost
    when a worker has taken shards back       who had them is gone; siblings are told `watch_again`
    for a connection that a sibling gave      it has another number here
    for one that the predecessor gave         at siblings that the predecessor had not met

A connection does not move while an answer is awaited, and what is refused is tried again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from refreshd.worker.turns import Turn
from wire.lines import parse

if TYPE_CHECKING:
    from refreshd.worker.connection import Connection
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

RETRY_S = 0.5


class Watching:
    """Watches again what the connections here watch."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def sibling_forgot(self, slot: int) -> None:
        """A sibling may not know any more who watches its tasks."""
        for connection in self._hub.connections.values():
            self.again(connection, slot)

    async def forgotten_here(self) -> None:
        """This worker has read shards from the store; siblings are told so, too."""
        self._hub.mesh.tell(b"watch_again")
        for connection in list(self._hub.connections.values()):
            self.again(connection, self._hub.shards.slot)
            await asyncio.sleep(0)

    def everywhere(self, connection: Connection) -> None:
        """No owner knows where the connection is now."""
        for slot in [*self._hub.mesh.others, self._hub.shards.slot]:
            self.again(connection, slot)

    def moved_in(self, connection: Connection, met: dict[int, int]) -> None:
        """A connection has come from the predecessor, which had `met` these siblings (slot → generation)."""
        for slot, generation in met.items():
            if self._hub.met.get(slot, generation) != generation:
                self.again(connection, slot)

    def again(self, connection: Connection, slot: int) -> None:
        """Watches what a connection watches of one worker's tasks."""
        owner = self._hub.shards.owner
        self._ask(connection, [task_id for task_id in connection.caller.watching if owner(task_id) == slot])

    def retry(self, connection: Connection, ids: list[bytes]) -> None:
        """Watches again what was refused, wherever it is owned by now."""
        connection.rewatches -= 1
        by_owner: dict[int, list[bytes]] = {}
        for task_id in ids:
            if task_id in connection.caller.watching:
                by_owner.setdefault(self._hub.shards.owner(task_id), []).append(task_id)
        for some in by_owner.values():
            self._ask(connection, some)

    def _ask(self, connection: Connection, ids: list[bytes]) -> None:
        """Watches tasks of one owner."""
        if not ids or connection.transport is None:
            return
        hub = self._hub
        turn = Turn(_Again(hub, connection, ids))
        lines = [b"watch_task task_id=%b" % task_id for task_id in ids]
        slot = hub.shards.owner(ids[0])
        if slot == hub.shards.slot:
            hub.requests.run(connection.caller, turn, lines, plain=True)
        else:
            turn.parts = [b""] * len(ids)
            context = connection.caller.context()
            hub.mesh.forward(slot, turn, list(range(len(ids))), lines, context, plain=True)
        turn.release()


class _Again:
    """Turns the replies to repeated `watch_task` requests into pushes."""

    def __init__(self, hub: Hub, connection: Connection, ids: list[bytes]) -> None:
        self._hub = hub
        self._connection = connection
        self._ids = ids
        connection.rewatches += 1

    def turn_done(self, turn: Turn) -> None:
        """See `turns.TurnOwner`."""
        refused: list[bytes] = []
        for task_id, part in zip(self._ids, turn.parts, strict=True):
            fields = parse(part.rstrip(b"\n")).fields
            if part.startswith(b"ok "):
                push = "!state task_id={task_id} state={state} done={done} failed={failed} total={total}\n"
                self._connection.push(push.format(**fields).encode())
            elif fields["code"] != "not_found":
                refused.append(task_id)
            # One that is not found was not acknowledged either: what the client asked itself is answered.
        if refused:
            log.info("watching again was refused", caller=repr(self._connection.caller), tasks=len(refused))
            self._hub.loop.call_later(RETRY_S, self._hub.watching.retry, self._connection, refused)
        else:
            self._connection.rewatches -= 1

    def abort(self) -> None:
        """Nobody answered: the peer is not told, but it notices."""
        self._connection.abort()
