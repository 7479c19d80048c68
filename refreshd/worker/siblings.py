"""What workers ask each other on their own behalf, and the answers.

Requests have one answer and come from `mesh.ask`; tellings have none. Both are
lines, in tables of their own: no peer outside can use them.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from refreshd.fleet import Proxy
from refreshd.shard import GIVEN, PREDECESSOR, SUCCESSOR
from refreshd.worker import figures
from refreshd.worker.figures import Figures
from refreshd.worker.turns import Turn
from wire.errors import Refused
from wire.lines import Line, Value, format_line, format_refused, parse, read_refused

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()
DEADLINE_S = 5.0
KEEPER = 0
"""The slot whose worker keeps the engine's lease, and leads where this engine does."""


class Siblings:
    """Questions over all workers, and what siblings ask this one."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._asked: dict[str, Callable[[Line], Awaitable[bytes]]] = {
            "mesh_serial": self._answer_serial,
            "mesh_page": self._answer_page,
            "mesh_stats": self._answer_stats,
            "mesh_proxies": self._answer_proxies,
            "mesh_join": self._answer_join,
            "mesh_forget": self._answer_forget,
            "mesh_engines": self._answer_engines,
            "mesh_nonce": self._answer_nonce,
            "mesh_fence": self._answer_fence,
            "mesh_ping": self._answer_ping,
        }

    # ── asking ────────────────────────────────────────────────────────────────────────────

    async def serial_of(self, task_id: str) -> int:
        """The serial of any task. Raises: Refused, `not_found`."""
        owner = self.hub.shards.owner(task_id.encode())
        line = format_line("mesh_serial", {"task_id": task_id})[:-1]
        if owner == self.hub.shards.slot:
            return int(await self._answer(parse(line), line))
        return int(_checked(await self.hub.mesh.ask(owner, line, DEADLINE_S)))

    async def page(self, before: int, limit: int, state: str | None) -> list[bytes]:
        """Rows of a listing over all workers, newest first."""
        fields: dict[str, Value] = {"before": before, "limit": limit, "state": state}
        line = format_line("mesh_page", fields)[:-1]
        own, others = await asyncio.gather(
            self.hub.requests.own_page(before, limit, state), self.hub.mesh.ask_all(line, DEADLINE_S)
        )
        rows = list(own)
        for answer in others:
            for row in _checked(answer).splitlines(keepends=True):
                serial, _, text = row.partition(b" ")
                rows.append((int(serial), text))
        rows.sort(reverse=True)
        return [text for _, text in rows[:limit]]

    async def stats(self) -> Figures:
        """The engine's figures."""
        answers = await self.hub.mesh.ask_all(b"mesh_stats", DEADLINE_S)
        return figures.add_up([figures.collect(self.hub), *(msgspec.json.decode(a) for a in answers)])

    async def proxies(self) -> list[dict[str, Value]]:
        """The fleet, a row a proxy."""
        answers = await self.hub.mesh.ask_all(b"mesh_proxies", DEADLINE_S)
        views = [figures.proxies(self.hub), *(msgspec.json.decode(answer) for answer in answers)]
        return [_proxy_row(name, [view[name] for view in views if name in view]) for name in sorted(views[0])]

    async def engines(self) -> list[dict[str, Value]]:
        """The engines that share the store, a row each, as the worker sees them that keeps the lease."""
        if self.hub.shards.slot == KEEPER:
            return await self.hub.cluster.rows()
        answer = _checked(await self.hub.mesh.ask(KEEPER, b"mesh_engines", DEADLINE_S))
        rows: list[dict[str, Value]] = msgspec.json.decode(answer)
        return rows

    async def join(self, proxy: Proxy, deadline_s: float) -> None:
        """Every sibling takes a proxy into the fleet. Raises: Refused; TimeoutError where none answers."""
        fields: dict[str, Value] = {"name": proxy.name, "group": proxy.group, "layer": proxy.layer}
        for answer in await self.hub.mesh.ask_all(format_line("mesh_join", fields)[:-1], deadline_s):
            _checked(answer)

    async def use_nonce(self, key: str, nonce: str) -> None:
        """Marks a nonce as used, at the one worker that keeps it. Raises: Refused."""
        # By the rule, not by who owns the shard just now: nonces move all at once.
        keeper = self.hub.shards.home(f"{key} {nonce}".encode())
        line = format_line("mesh_nonce", {"key": key, "nonce": nonce})[:-1]
        if keeper == self.hub.shards.slot:
            await self._answer(parse(line), line)
        else:
            _checked(await self.hub.mesh.ask(keeper, line, DEADLINE_S))

    # ── answering ─────────────────────────────────────────────────────────────────────────

    def asked(self, turn: Turn, raw: bytes) -> None:
        """A sibling asks; fills the turn's next place."""
        line = parse(raw)
        if line.verb == "mesh_ask":
            # Not one of `queries`: it waits for proxies, and what is asked of the store must not wait for it.
            self.hub.background(self._ask_proxies(turn, turn.hold(), line))
            return
        answer = self._asked.get(line.verb)
        if answer is None:
            refused = Refused("unknown_verb", f"{line.verb}: a worker of another version asks")
            turn.parts.append(format_refused(refused))
        else:
            self.hub.queries.submit_of_sibling(turn, lambda: self._answer(line, raw))

    async def _ask_proxies(self, turn: Turn, place: int, line: Line) -> None:
        turn.fill(place, await self.hub.asking.asked_by_sibling(line))

    async def _answer(self, line: Line, raw: bytes) -> bytes:
        """What this worker says, with what its successor says while there is one (docs/handover.md)."""
        giver = self.hub.moves.giver
        own = self._asked[line.verb]
        if giver is None:
            return await own(line)
        if line.verb == "mesh_serial":
            to_ask = self.hub.shards.owner(line.fields["task_id"].encode()) in GIVEN
        else:
            to_ask = line.verb != "mesh_nonce" or giver.nonces_gone
        if not to_ask:
            return await own(line)
        theirs = _checked(await self.hub.mesh.ask(SUCCESSOR, raw, DEADLINE_S))
        add = _ADDED.get(line.verb)
        return theirs if add is None else add(await own(line), theirs)

    async def _answer_serial(self, line: Line) -> bytes:
        task_id = line.fields["task_id"].encode()
        task = self.hub.engine.tasks.get(task_id)
        if task is not None:
            return b"%d" % task.serial
        stored = await self.hub.queries.find(task_id)
        if stored is None:
            raise Refused("not_found", f"after: no task is called {line.fields['task_id']}", field="after")
        return b"%d" % stored.serial

    async def _answer_page(self, line: Line) -> bytes:
        fields = line.fields
        page = await self.hub.requests.own_page(
            int(fields["before"]), int(fields["limit"]), fields.get("state")
        )
        return b"".join(b"%d %b" % row for row in page)

    async def _answer_stats(self, line: Line) -> bytes:
        return msgspec.json.encode(figures.collect(self.hub))

    async def _answer_proxies(self, line: Line) -> bytes:
        return msgspec.json.encode(figures.proxies(self.hub))

    async def _answer_join(self, line: Line) -> bytes:
        fields = line.fields
        await self.hub.proxies.admit(
            Proxy(fields["name"], fields["group"], int(fields["layer"]), listed=False)
        )
        return b"ok"

    async def _answer_forget(self, line: Line) -> bytes:
        await self.hub.proxies.leave(line.fields["name"])
        return b"ok"

    async def _answer_engines(self, line: Line) -> bytes:
        return msgspec.json.encode(await self.hub.cluster.rows())

    async def _answer_nonce(self, line: Line) -> bytes:
        now_s = self.hub.engine.clock.mono_ms / 1000
        self.hub.nonces.use(line.fields["key"], line.fields["nonce"], now_s)
        return b"ok"

    async def _answer_fence(self, line: Line) -> bytes:
        """All that the sibling has asked before was passed on, and has come where it belongs."""
        await self.hub.mesh.ask_all(b"mesh_ping", DEADLINE_S)
        return b"ok"

    async def _answer_ping(self, line: Line) -> bytes:
        return b"ok"

    # ── tellings ──────────────────────────────────────────────────────────────────────────

    def told(self, slot: int, raw: bytes) -> None:
        """A sibling says something that wants no answer."""
        if raw.startswith(b"report "):
            self.hub.proxies.report_passed_on(raw)
            return
        if raw.startswith(b"receipt "):
            self.hub.proxies.receipt_passed_on(raw)
            return
        line = parse(raw)
        if line.verb == "link":
            # Which links the predecessor has it tells in the hand-over itself.
            if slot != PREDECESSOR:
                self.hub.proxies.sibling_link(slot, line.fields["name"], line.fields["up"] == "1")
        elif line.verb == "heard":
            self.hub.proxies.heard_elsewhere(line.items or ())
        elif line.verb == "closed":
            self.hub.watches.forget(int(line.fields["slot"]), int(line.fields["connection"]))
            if self.hub.moves.giver is not None:
                self.hub.mesh.tell(raw, SUCCESSOR)
        elif line.verb == "watch_again":
            self.hub.watching.sibling_forgot(slot)
        else:
            log.warning("a sibling of another version says", verb=line.verb)


def _add_stats(own: bytes, theirs: bytes) -> bytes:
    return msgspec.json.encode(figures.add_up([msgspec.json.decode(own), msgspec.json.decode(theirs)]))


def _add_proxies(own: bytes, theirs: bytes) -> bytes:
    return msgspec.json.encode(figures.add_views(msgspec.json.decode(own), msgspec.json.decode(theirs)))


_ADDED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "mesh_page": operator.add,
    "mesh_stats": _add_stats,
    "mesh_proxies": _add_proxies,
    "mesh_join": lambda own, _: own,
    "mesh_forget": lambda own, _: own,
}
"""How the answers of a worker and of its successor become one; of other verbs the successor's counts."""


def _checked(answer: bytes) -> bytes:
    """Raises: Refused, if that is what the sibling answered."""
    if answer.startswith(b"err "):
        raise read_refused(parse(answer.rstrip(b"\n")))
    return answer


def _proxy_row(name: str, views: list[dict[str, Any]]) -> dict[str, Value]:
    links = sum(view["links"] for view in views)
    seen = [view["seen"] for view in views if view["seen"] is not None]
    return {
        "proxy": name,
        "group": views[0]["group"],
        "layer": views[0]["layer"],
        "listed": int(views[0]["listed"]),
        "online": int(links > 0),
        "links": links,
        "credit": sum(view["credit"] for view in views),
        "outstanding": sum(view["outstanding"] for view in views),
        "waiting": sum(view["waiting"] for view in views),
        # A sibling of an older version does not know it.
        "parked": sum(view.get("parked", 0) for view in views),
        "seen": min(seen) if seen else None,
        "receipt_key": max((view.get("receipt_key", "") for view in views), default="") or None,
    }
