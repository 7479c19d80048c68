"""Requests of clients: one table from verb to answer, and the way to the owner of a shard.

`run` takes all lines of a turn. What belongs to a shard of a sibling is gathered
and crosses the mesh as the raw line; the sibling runs it through the same table.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

import structlog

from refreshd.shard import SERIAL_MAX
from refreshd.task import STATE_BY_TEXT, State, Task
from refreshd.worker import figures, views
from refreshd.worker.accepting import conflict, same_content
from refreshd.worker.callers import Caller
from refreshd.worker.turns import Turn
from wire.errors import BadLine, Refused, WireError
from wire.lines import Line, format_line, format_refused, parse
from wire.verbs import VERBS, read_fields

if TYPE_CHECKING:
    from refreshd.store.base import Stored
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

_POST = b"post_task task_id="
_DONE = b"report state=done "
DEFAULT_LIMIT = 100
# A listing of what is pending or active looks at this many unfinished tasks at a time.
_PAGE = 1000
# Receipts that are read for one reply; each has 256 KiB at the most, and usually one.
RECEIPTS_PAGE = 16
MESH_DEADLINE_S = 5.0

Foreign = dict[int, tuple[list[int], list[bytes]]]
"""Sibling → places in the turn and the lines for it."""


class Requests:
    """Answers requests, here or through a sibling."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._handlers: dict[str, Callable[[Caller, Turn, Line, dict[str, Any]], None]] = {
            "ping": self._ping,
            "get_task": self._get_task,
            "task_detail": self._task_detail,
            "task_receipt": self._task_receipt,
            "cancel_task": self._cancel_task,
            "watch_task": self._watch_task,
            "list_tasks": self._list_tasks,
            "stats": self._stats,
            "list_proxies": self._list_proxies,
            "ask_proxies": self._ask_proxies,
            "forget_proxy": self._forget_proxy,
            "list_quotas": self._list_quotas,
            "list_engines": self._list_engines,
            "ready": self._ready,
            "report": self._report,
            "receipt": self._receipt,
            "answer": self._answer,
            "beat": self._beat,
        }

    # ── all lines of a turn ───────────────────────────────────────────────────────────────

    def run(self, caller: Caller, turn: Turn, lines: list[bytes], plain: bool) -> None:
        """Answers every line, in its place of the turn; the caller then releases the turn."""
        hub = self.hub
        slot = hub.shards.slot
        owner_by_shard = hub.shards.owner_by_shard
        post = hub.engine.post
        posts, key = caller.posts, caller.key
        foreign: Foreign = {}
        for raw in lines:
            try:
                if posts and raw.startswith(_POST):
                    # Cut by hand: which worker owns a task is asked for each line that comes in.
                    owner = owner_by_shard[crc32(raw[18 : raw.find(b" ", 18)]) & 63]
                    if owner == slot:
                        post(turn, raw, plain, key)
                    else:
                        self._leave_to(owner, turn, raw, foreign)
                elif plain and caller.session is not None and raw.startswith(_DONE):
                    caller.session.report_done(turn, raw)
                else:
                    self._run_one(caller, turn, raw, plain, foreign)
            except Refused as refused:
                turn.parts.append(format_refused(refused))
            except WireError as error:
                turn.parts.append(format_refused(Refused("bad_line", str(error))))
            except Exception as error:
                turn.parts.append(self._fault(raw, error))
        for owner, (places, raws) in foreign.items():
            hub.mesh.forward(owner, turn, places, raws, caller.context(), plain)

    def _fault(self, raw: bytes, error: Exception) -> bytes:
        """A fault of ours: it is logged, and the reply says where to look."""
        ref = secrets.token_hex(4)
        line = raw[:200].decode("utf-8", "replace")
        log.error("a request could not be handled", ref=ref, line=line, exc_info=error)
        return format_refused(
            Refused("internal", "a fault of the engine; it is in its log", ref=ref, retry_ms=1000)
        )

    def _leave_to(self, owner: int, turn: Turn, raw: bytes, foreign: Foreign) -> None:
        self.hub.mesh.check_room(owner)
        if owner not in foreign:
            foreign[owner] = ([], [])
        places, raws = foreign[owner]
        places.append(len(turn.parts))
        raws.append(raw)
        turn.parts.append(b"")

    def _run_one(self, caller: Caller, turn: Turn, raw: bytes, plain: bool, foreign: Foreign) -> None:
        """Any line, strictly parsed."""
        line = parse(raw)
        verb = VERBS.get(line.verb)
        if verb is None:
            raise Refused("unknown_verb", f"{line.verb[:40]}; wanted one of {', '.join(sorted(_OFFERED))}")
        if verb.masters:
            raise Refused(
                "denied",
                f"{line.verb} is the master's: send it first on a connection of its own to the admin socket",
            )
        if line.verb == "hello":
            raise BadLine("hello is the first request of a connection or is left out")
        caller.check(verb)
        values = read_fields(verb, line)
        if "task_id" in line.fields and line.verb in _ROUTED:
            owner = self.hub.shards.owner(values["task_id"].encode())
            if owner != self.hub.shards.slot:
                self.hub.mesh.check_room(owner)
                if line.verb == "watch_task":
                    caller.watch(values["task_id"].encode())
                    turn.watch(values["task_id"].encode())
                self._leave_to(owner, turn, raw, foreign)
                return
        if line.verb == "post_task":
            self.hub.engine.post(turn, raw, plain=False, key=caller.key)
        else:
            self._handlers[line.verb](caller, turn, line, values)

    # ── tasks ─────────────────────────────────────────────────────────────────────────────

    def _on_task(
        self,
        turn: Turn,
        task_id: bytes,
        in_memory: Callable[[Task], bytes],
        in_store: Callable[[Stored], bytes],
        elsewhere: Callable[[Stored], Awaitable[bytes]],
        *,
        unpark: bool = False,
    ) -> None:
        """Answers from memory where the task is unfinished, from the store where it is final or parked.

        An unfinished task of another engine is answered `elsewhere`. `unpark`: one that
        is parked is to be in memory from now on.
        """
        task = self.hub.engine.tasks.get(task_id)

        async def ask() -> bytes:
            stored = await self.hub.queries.find(task_id)
            if stored is None:
                raise Refused("not_found", f"no task is called {task_id.decode()}")
            if self.hub.cluster.elsewhere.is_not_here(stored):
                here = self.hub.engine.tasks.get(task_id)
                # It may have been taken in while the store was asked.
                return in_memory(here) if here is not None else await elsewhere(stored)
            if unpark and stored.parked is not None:
                here = await self.hub.parking.fetch(task_id)
                if here is not None:
                    return in_memory(here)
                # It has ended meanwhile.
                stored = await self.hub.queries.find(task_id) or stored
            return in_store(stored)

        if task is None:
            self.hub.queries.submit(turn, ask)
        elif task.state is State.NEW:
            self.hub.engine.when_saved(
                task_id, turn, in_memory, lambda place, _: self.hub.queries.submit_at(turn, place, ask)
            )
        else:
            turn.parts.append(in_memory(task))

    def _get_task(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        self._on_task(
            turn,
            values["task_id"].encode(),
            lambda task: views.ok(views.describe(task)),
            _describe_stored,
            lambda stored: self.hub.cluster.elsewhere.answer(stored, line, _describe_stored),
        )

    def _task_detail(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        self._on_task(
            turn,
            values["task_id"].encode(),
            views.detail,
            views.stored_detail,
            lambda stored: self.hub.cluster.elsewhere.answer(stored, line, views.stored_detail),
        )

    def _task_receipt(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        task_id = values["task_id"].encode()

        async def ask() -> bytes:
            owner = self.hub.shards.owner(task_id)
            if owner != self.hub.shards.slot:
                # Asked of, not left to: what a connection may have unanswered is counted where that is.
                raw = format_line(line.verb, {**values})[:-1]
                return await self.hub.mesh.ask(owner, raw, MESH_DEADLINE_S, caller.context())
            # It shows what came before it, as listings do.
            await self.hub.catch_up()
            serial = await self._serial_of(task_id)
            after = values.get("after", "")
            rows = await self.hub.queries.receipts(task_id, serial, after, RECEIPTS_PAGE)
            return views.receipts(rows, may_be_more=len(rows) == RECEIPTS_PAGE)

        caller.begin_listing()
        try:
            self.hub.queries.submit(turn, ask, caller.end_listing)
        except Refused:
            caller.end_listing()
            raise

    async def _serial_of(self, task_id: bytes) -> int:
        """Raises: Refused, `not_found`; StoreError."""
        task = self.hub.engine.tasks.get(task_id)
        if task is not None and task.state is not State.NEW:
            return task.serial
        stored = await self.hub.queries.find(task_id)
        if stored is None:
            raise Refused("not_found", f"no task is called {task_id.decode()}")
        return stored.serial

    def _watch_task(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        def in_memory(task: Task) -> bytes:
            caller.watch(task.id)
            self.hub.watches.add(caller, task.id)
            return views.ok(views.describe(task))

        turn.watch(values["task_id"].encode())
        self._on_task(
            turn,
            values["task_id"].encode(),
            in_memory,
            _describe_stored,
            lambda stored: self.hub.cluster.elsewhere.watch(caller, stored),
            unpark=True,
        )

    def _cancel_task(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        task_id = values["task_id"].encode()
        task = self.hub.engine.tasks.get(task_id)
        if task is not None and task.state is State.NEW:
            # Its row is on the way to the disk: ask again once it is there.
            place = turn.hold()
            self.hub.engine.after_saved(task_id, lambda _: self._cancel_now(turn, place, task_id, line))
        else:
            self._cancel_now(turn, turn.hold(), task_id, line)

    def _cancel_now(self, turn: Turn, place: int, task_id: bytes, line: Line) -> None:
        def reply(state: State) -> bytes:
            return b"ok task_id=%b state=%b\n" % (task_id, state.text.encode())

        async def ask() -> bytes:
            stored = await self.hub.queries.find(task_id)
            if stored is not None and self.hub.cluster.elsewhere.is_not_here(stored):
                return await self.hub.cluster.elsewhere.cancel(stored, line)
            if stored is not None and stored.parked is not None:
                here = await self.hub.parking.fetch(task_id)
                if here is not None:
                    return reply(await self._cancelled(here))
                stored = await self.hub.queries.find(task_id)
            if stored is None or stored.result is None:
                raise Refused("not_found", f"no task is called {task_id.decode()}")
            return reply(stored.result.state)

        task = self.hub.engine.tasks.get(task_id)
        if task is None:
            self.hub.queries.submit_at(turn, place, ask)
        else:
            self.hub.engine.cancel(task, lambda ended: turn.fill(place, reply(ended.state)))

    async def _cancelled(self, task: Task) -> State:
        """Cancels a task; returns the state in which it ended."""
        ended: asyncio.Future[State] = self.hub.loop.create_future()
        self.hub.engine.cancel(task, lambda task: ended.set_result(task.state))
        # Shielded: the engine sets the result whether or not anyone still waits for it.
        return await asyncio.shield(ended)

    def compare_with_finished(self, task: Task, serial: int, turn: Turn, place: int) -> None:
        """A new task has the id of a finished one: a repeat, or a conflict."""

        async def ask() -> bytes:
            stored = await self.hub.queries.by_serial(task.id, serial)
            # Without a result it is another engine's, or on its way here.
            if stored is None or not same_content(task.line, stored.line):
                raise conflict(task.id)
            fields = views.describe_stored(stored)
            return views.ok({key: fields[key] for key in ("task_id", "state", "total")} | {"dup": 1})

        self.hub.queries.submit_at(turn, place, ask)

    # ── listings over all workers ─────────────────────────────────────────────────────────

    def _list_tasks(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        async def ask() -> bytes:
            before = SERIAL_MAX
            if "after" in values:
                before = await self.hub.siblings.serial_of(values["after"])
            page = await self.hub.siblings.page(
                before, values.get("limit", DEFAULT_LIMIT), values.get("state")
            )
            return b"ok n=%d\n" % len(page) + b"".join(page)

        caller.begin_listing()
        try:
            self.hub.queries.submit(turn, ask, caller.end_listing)
        except Refused:
            caller.end_listing()
            raise

    async def own_page(self, before: int, limit: int, state: str | None) -> list[tuple[int, bytes]]:
        """This worker's part of a listing: (serial, row), newest first.

        It shows what was asked for before it, on the same connection or another.
        """
        await self.hub.catch_up()
        wanted = STATE_BY_TEXT[state] if state else None
        unfinished = wanted in (State.PENDING, State.ACTIVE)
        out: list[tuple[int, bytes]] = []
        while len(out) < limit:
            size = _PAGE if unfinished else limit - len(out)
            page = await self.hub.queries.page(before, size, None if unfinished else wanted, unfinished)
            rows = await self._rows([await self._read_again(stored) for stored in page], wanted)
            out += rows[: limit - len(out)]
            if len(page) < size:
                break
            before = page[-1].serial
        return out

    async def _read_again(self, stored: Stored) -> Stored:
        """A task that ended after it was read is neither in memory nor has it a result."""
        if stored.result is not None or stored.parked is not None or stored.id in self.hub.engine.tasks:
            return stored
        if stored.owner not in (0, self.hub.cluster.number):
            # Its owner is asked.
            return stored
        if self.hub.shards.owner(stored.id) != self.hub.shards.slot:
            return stored
        return await self.hub.queries.by_serial(stored.id, stored.serial) or stored

    async def _rows(self, page: list[Stored], wanted: State | None) -> list[tuple[int, bytes]]:
        """The rows of a listing, without what is not this worker's or not in the wanted state."""
        elsewhere = self.hub.cluster.elsewhere
        known: dict[int, views.Fields] = {}
        others: list[Stored] = []
        for stored in page:
            if self.hub.shards.owner(stored.id) != self.hub.shards.slot:
                continue
            task = self.hub.engine.tasks.get(stored.id)
            if task is not None and task.state is not State.NEW:
                known[stored.serial] = views.describe(task)
            elif stored.result is not None or (
                stored.parked is not None and not elsewhere.is_not_here(stored)
            ):
                known[stored.serial] = views.describe_stored(stored)
            elif elsewhere.is_not_here(stored):
                others.append(stored)
        if others:
            told = await elsewhere.describe(others)
            known.update((stored.serial, fields) for stored, fields in zip(others, told, strict=True))
        return [
            (serial, views.row(known[serial]))
            for serial in sorted(known, reverse=True)
            if wanted is None or known[serial]["state"] == wanted.text
        ]

    def _stats(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        async def ask() -> bytes:
            return views.rows(figures.to_rows(await self.hub.siblings.stats()))

        self.hub.queries.submit(turn, ask)

    def _list_proxies(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        async def ask() -> bytes:
            return views.rows(await self.hub.siblings.proxies())

        self.hub.queries.submit(turn, ask)

    def _ask_proxies(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        self.hub.asking.begin(turn, line, values)

    def _forget_proxy(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        async def ask() -> bytes:
            await self.hub.proxies.forget(values["name"])
            return b"ok\n"

        self.hub.queries.submit(turn, ask)

    def _list_quotas(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        turn.parts.append(views.rows(self.hub.quotas.rows()))

    def _list_engines(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        async def ask() -> bytes:
            return views.rows(await self.hub.siblings.engines())

        self.hub.queries.submit(turn, ask)

    # ── proxies ───────────────────────────────────────────────────────────────────────────

    def _ready(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        if caller.session is not None:
            caller.session.ready(values["credit"])
            turn.parts.append(b"ok\n")

    def _report(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        if caller.session is not None:
            caller.session.report(turn, line, values)

    def _receipt(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        if caller.session is not None:
            caller.session.receipt(line, values)
            turn.parts.append(b"ok\n")

    def _answer(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        if caller.session is not None:
            self.hub.asking.answered(caller.session, values["ask"], line.items or ())
            turn.parts.append(b"ok\n")

    def _beat(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        if caller.session is not None:
            caller.session.beat(values)
            now_and_workers = (self.hub.engine.clock.wall_ms, self.hub.shards.workers)
            rate = self.hub.proxies.prefetch_bytes_per_s
            budget = b" prefetch_bytes_per_s=%d" % rate if rate else b""
            turn.parts.append(b"ok now=%d workers=%d%b\n" % (*now_and_workers, budget))

    def _ping(self, caller: Caller, turn: Turn, line: Line, values: dict[str, Any]) -> None:
        draining = b" draining=1" if self.hub.engine.draining else b""
        turn.parts.append(b"ok now=%d%b\n" % (self.hub.engine.clock.wall_ms, draining))


def _describe_stored(stored: Stored) -> bytes:
    return views.ok(views.describe_stored(stored))


_ROUTED = frozenset({"post_task", "get_task", "task_detail", "cancel_task", "watch_task"})
_OFFERED = frozenset(name for name, verb in VERBS.items() if not verb.masters)
