"""Proxies: their greeting, credit, reports and heartbeats; and which way leads to each.

A proxy counts as online while any of its connections, to any worker, has brought
a line within OFFLINE_AFTER_MS. Each worker reaches it by its own connection or, where
it has none, through a sibling that has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from refreshd.fanout import Segment
from refreshd.fleet import Proxy
from refreshd.shard import GIVEN
from refreshd.store.base import ProxyRow
from refreshd.task import Failure, Task, failure_mark, mark, merged_mark, verified_mark
from refreshd.worker.links import Link, Relayed
from refreshd.worker.proxy_session import ERROR_MAX_CHARS, ProxySession
from wire.errors import Refused
from wire.fields import bad_field
from wire.heads import is_id
from wire.lines import Value, format_line, parse
from wire.sessions import Hello

if TYPE_CHECKING:
    from refreshd.worker.hub import Hub

log = structlog.get_logger()

OFFLINE_AFTER_MS = 15_000
# Siblings are told this often which proxies were heard here.
HEARD_EVERY_MS = 2_000
JOIN_DEADLINE_S = 5.0


class RelayWire:
    """Writes to a proxy through the sibling that it is connected to."""

    full = False

    def __init__(self, hub: Hub, slot: int, name: str) -> None:
        self._hub = hub
        self._slot = slot
        self._name = name

    def send(self, data: bytes) -> None:
        """See `links.Wire`."""
        self._hub.mesh.relay(self._slot, self._name, data)


class Proxies:
    """All proxies, as seen by one worker."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.sessions: dict[str, ProxySession] = {}
        self.reports = 0
        """(proxy, task) pairs reported at this worker's connections."""
        self._ways: dict[str, set[int]] = {}
        """Proxy → siblings that have a connection to it."""
        self._joined: dict[str, Proxy] = {}
        """Proxies that registered here and that every sibling is known to have taken in."""
        self._heard_elsewhere: dict[str, int] = {}
        self._told_ms = 0

    # ── greeting ──────────────────────────────────────────────────────────────────────────

    async def register(self, hello: Hello) -> Proxy:
        """Takes a proxy into the fleet if it is not there yet; every worker knows it then.

        Raises: Refused; TimeoutError when a sibling does not answer.
        """
        fleet = self.hub.fleet
        known = fleet.get(hello.name)
        if known is not None and known.listed:
            _check_listed(known, hello)
            return known
        if not self.hub.config.engine.open_fleet:
            raise Refused(
                "denied", f"{hello.name} is not in the fleet; list it as [[proxy]] in the configuration"
            )
        group = hello.group if hello.group is not None else (known.group if known else "default")
        layer = hello.layer if hello.layer is not None else (known.layer if known else 0)
        proxy = Proxy(hello.name, group, layer, listed=False)
        if self._joined.get(proxy.name) != proxy:
            # Every worker keeps it in its lanes before it knows it, so each finds it again after its death.
            await self.admit(proxy)
            await self.hub.siblings.join(proxy, JOIN_DEADLINE_S)
            self._joined[proxy.name] = proxy
        return proxy

    async def admit(self, proxy: Proxy) -> None:
        """Keeps a proxy in this worker's lanes, then takes it into the fleet. Raises: Refused."""
        await self.hub.save_proxy(ProxyRow(proxy.name, proxy.group, proxy.layer))
        self.join(proxy)

    def join(self, proxy: Proxy) -> None:
        """The fleet has one more."""
        if self.hub.fleet.add(proxy):
            self.hub.engine.fleet_changed()

    async def forget(self, name: str) -> None:
        """Takes a proxy out of the fleet, at every worker and in the store. Raises: Refused."""
        proxy = self.hub.fleet.get(name)
        if proxy is None:
            raise Refused("not_found", f"no proxy is called {name}")
        if proxy.listed:
            raise Refused("denied", f"{name} is listed in the configuration; take its [[proxy]] out there")
        if name in self.sessions or self._ways.get(name):
            raise Refused("denied", f"{name} is connected; stop it first")
        await self.hub.mesh.ask_all(format_line("mesh_forget", {"name": name})[:-1], JOIN_DEADLINE_S)
        await self.leave(name)

    async def leave(self, name: str) -> None:
        """The fleet has one less."""
        await self.hub.forget_proxy(name)
        self._joined.pop(name, None)
        if self.hub.fleet.remove(name):
            self.hub.engine.fleet_changed()

    def forgotten_elsewhere(self, names: set[str]) -> None:
        """Other engines have forgotten all unlisted proxies but these: so does this one."""
        gone = [
            proxy.name
            for proxy in self.hub.fleet
            if not proxy.listed
            and proxy.name not in names
            and proxy.name not in self.sessions
            and not self._ways.get(proxy.name)
        ]
        for name in gone:
            self._joined.pop(name, None)
            self.hub.fleet.remove(name)
        if gone:
            self.hub.engine.fleet_changed()

    # ── ways ──────────────────────────────────────────────────────────────────────────────

    def connected(self, session: ProxySession) -> None:
        """A proxy has greeted here; its older connection, if any, is closed."""
        before = self.sessions.get(session.name)
        self.sessions[session.name] = session
        self._choose_way(session.name)
        if before is not None:
            # What siblings pushed through the older connection is to be pushed again.
            self.hub.mesh.tell(format_line("link", {"name": session.name, "up": 0})[:-1])
        self.hub.mesh.tell(format_line("link", {"name": session.name, "up": 1})[:-1])
        log.info("proxy connected", proxy=session.name, replaces=before is not None)
        session.tell_engines(self.hub.cluster.engines_push)
        if before is not None:
            before.close()

    def moved_in(self, session: ProxySession) -> None:
        """A connection came from the predecessor; siblings reach the proxy by the same way as before."""
        self.sessions[session.name] = session
        if self.hub.pusher.links.get(session.name) is session.link:
            self.hub.pusher.due(session.link)
        else:
            self.hub.pusher.attach(session.link, moved=True)

    def moved_out(self, session: ProxySession) -> None:
        """A connection goes to the successor."""
        if self.sessions.get(session.name) is session:
            del self.sessions[session.name]
            self.hub.pusher.detach(session.link)

    def disconnected(self, session: ProxySession) -> None:
        """A connection to a proxy has ended."""
        if self.sessions.get(session.name) is not session:
            return
        del self.sessions[session.name]
        self.hub.mesh.tell(format_line("link", {"name": session.name, "up": 0})[:-1])
        log.info("proxy disconnected", proxy=session.name)
        self._choose_way(session.name)

    def way_to(self, name: str) -> int | None:
        """The slot of a worker that has a connection to a proxy, this one's if it can be."""
        if name in self.sessions:
            return self.hub.shards.slot
        return min(self._ways.get(name, ()), default=None)

    def sibling_link(self, slot: int, name: str, up: bool) -> None:
        """A sibling has, or no longer has, a connection to a proxy."""
        ways = self._ways.setdefault(name, set())
        if up:
            ways.add(slot)
        else:
            ways.discard(slot)
            self._drop_way(name, slot)
        self._choose_way(name)

    def sibling_joined(self, slot: int) -> None:
        """A sibling is to know which proxies are connected here."""
        for name in self.sessions:
            self.hub.mesh.tell(format_line("link", {"name": name, "up": 1})[:-1], slot)

    def sibling_left(self, slot: int) -> None:
        """A sibling's connections are gone with it."""
        self.hub.pusher.forget_sibling(slot)
        for name, ways in list(self._ways.items()):
            if slot in ways:
                self.sibling_link(slot, name, up=False)

    def _drop_way(self, name: str, slot: int) -> None:
        link = self.hub.pusher.links.get(name)
        if link is not None and link.via == slot:
            self.hub.pusher.detach(link)

    def _choose_way(self, name: str) -> None:
        """The own connection if there is one, else through the sibling in use, else any."""
        pusher = self.hub.pusher
        link = pusher.links.get(name)
        session = self.sessions.get(name)
        if session is not None:
            if link is not session.link:
                pusher.attach(session.link)
            return
        if link is not None and link.awaited:
            return
        ways = self._ways.get(name)
        if link is not None and (link.via is None or not ways or link.via not in ways):
            pusher.detach(link)
            link = None
        if link is None and ways:
            slot = min(ways)
            pusher.attach(Link(name, RelayWire(self.hub, slot, name), via=slot))

    # ── reports ───────────────────────────────────────────────────────────────────────────

    def done(
        self, name: str, ids: list[bytes], ms: int | None, *, verifies: bool = False, merged_into: str = ""
    ) -> list[bytes]:
        """Each of these tasks is done at the proxy. Returns the ids that are not in memory here.

        `verifies`: what was to be verified was. `merged_into`: the task that was done in their place.

        Whichever connection the report came on, what is freed is the link that the
        task was pushed on: the one in use, if its cursor has read the task.

        0.35 µs a (task, proxy) pair (tools/bench fanout): attributes are read and
        written in place, and a layer's place for the proxy is looked up once a run.
        """
        engine = self.hub.engine
        if engine.moving:
            ids = self._leave_to_successor(name, ids, ms, verifies, merged_into)
        tasks = engine.tasks
        watched = self.hub.watches
        link = self.hub.pusher.links.get(name)
        now_ms = engine.clock.wall_ms
        missing: list[bytes] = []
        changed: list[Task] = []
        last: Segment | None = None
        read_to = 0
        layer = None
        byte = bit = rank = freed = pairs = 0
        known = False
        shared = b""
        for task_id in ids:
            task = tasks.get(task_id)
            if task is None:
                missing.append(task_id)
                continue
            if task.layer is not layer:
                layer = task.layer
                place = layer.places.get(name)
                known = place is not None
                if place is not None:
                    byte, bit, rank = place
                    shared = mark(rank, ms) if ms is not None else b""
            # A task that is in no log is not saved yet, not due yet, or closing: not the proxy's.
            segment = task.segment
            if not known or segment is None:
                continue
            if segment is not last:
                last, read_to = segment, 0 if link is None else link.has_read(segment)
            mask = task.mask
            if mask is None:
                mask = task.mask = bytearray(layer.full)
            value = mask[byte]
            if not value & bit:
                continue
            mask[byte] = value ^ bit
            pairs += 1
            if task.place < read_to:
                freed += task.count
            else:
                # Done on an earlier connection, and not read on this one: it must not be pushed again.
                segment.uniform = False
            if merged_into or (verifies and task.terms.verify):
                task_ms = ms if ms is not None else max(now_ms - task.updated_ms, 0)
                task.add_mark(_mark_of_more(task, rank, task_ms, verifies, merged_into))
            else:
                task.add_mark(shared or mark(rank, max(now_ms - task.updated_ms, 0)))
            if task.extra is not None:
                task.extra.progress.pop(rank, None)
            task.left -= 1
            if watched and task_id in watched:
                changed.append(task)
            if not task.left:
                engine.layer_done(task)
        engine.counters.pairs += pairs
        if link is not None and freed:
            self._free(link, freed)
        for task in changed:
            watched.changed(task)
        return missing

    def _leave_to_successor(
        self, name: str, ids: list[bytes], ms: int | None, verifies: bool, merged_into: str
    ) -> list[bytes]:
        """Reports for tasks that went to the successor go there, too. Returns the other ids."""
        owner = self.hub.shards.owner
        kept = [task_id for task_id in ids if owner(task_id) not in GIVEN]
        if len(kept) == len(ids):
            return ids
        for to in GIVEN:
            gone = [task_id for task_id in ids if owner(task_id) == to]
            if gone:
                self.hub.mesh.tell(_done_line(name, gone, ms, verifies, merged_into), to)
        return kept

    def one(self, name: str, task: Task, values: dict[str, Any]) -> None:
        """A single task failed, or is part-way, at the proxy. Raises: Refused."""
        done, failed = values["done"], values["failed"]
        if done + failed > task.count:
            wanted = f"done + failed up to {task.count}, the task's targets"
            raise bad_field("done", f"{done} + {failed}", wanted)
        place = task.layer.places.get(name)
        if place is None or task.segment is None or not task.owes(place):
            return
        rank = place[2]
        if values["state"] == "active":
            task.extras().progress[rank] = (done, failed)
        else:
            task.extras().progress.pop(rank, None)
            task.take_bit(place)
            failure = Failure(done, task.count - done, values.get("error", "")[:ERROR_MAX_CHARS])
            ms = values.get("ms", max(self.hub.engine.clock.wall_ms - task.updated_ms, 0))
            task.add_mark(failure_mark(rank, ms, failure) if failure.failed else mark(rank, ms))
            task.failed += failure.failed
            self.hub.engine.counters.pairs += 1
            link = self.hub.pusher.links.get(name)
            if link is not None and task.place < link.has_read(task.segment):
                self._free(link, task.count)
            else:
                task.segment.uniform = False
            if not task.left:
                self.hub.engine.layer_done(task)
        self.hub.watches.changed(task)

    def _free(self, link: Link, targets: int) -> None:
        link.freed(targets)
        self.hub.pusher.due(link)

    def reported(
        self,
        link: Link,
        missing: list[bytes],
        ms: int | None,
        *,
        verifies: bool = False,
        merged_into: str = "",
    ) -> None:
        """Passes on reports for tasks that live at siblings."""
        if link.replay is not None and link.replay.drop_id in missing:
            missing.remove(link.replay.drop_id)
            link.replay.dropped()
        for task_id in missing:
            self._free_relayed(link, task_id)
        known = [task_id for task_id in missing if is_id(task_id)]
        self._tell_owners(link.name, known, ms, verifies, merged_into)

    def _tell_owners(
        self, name: str, ids: list[bytes], ms: int | None, verifies: bool, merged_into: str
    ) -> None:
        """Passes on a report to whoever has the tasks; what is this worker's and not here is finished."""
        shards = self.hub.shards
        by_owner: dict[int, list[bytes]] = {}
        for task_id in ids:
            owner = shards.owner(task_id)
            if owner != shards.slot:
                by_owner.setdefault(owner, []).append(task_id)
        for owner, some in by_owner.items():
            self.hub.mesh.tell(_done_line(name, some, ms, verifies, merged_into), owner)

    def pass_on_one(self, link: Link, task_id: bytes, values: dict[str, Any]) -> None:
        """As `reported`, for a report that is about one task."""
        if values["state"] == "failed":
            if link.replay is not None and task_id == link.replay.drop_id:
                link.replay.not_dropped(values.get("error", "")[:ERROR_MAX_CHARS])
                return
            self._free_relayed(link, task_id)
        owner = self.hub.shards.owner(task_id)
        if owner != self.hub.shards.slot:
            fields = {"proxy": link.name, **values}
            fields["error"] = values.get("error", "")[:ERROR_MAX_CHARS]
            self.hub.mesh.tell(format_line("report", fields)[:-1], owner)

    def _free_relayed(self, link: Link, task_id: bytes) -> None:
        relayed = link.relayed.pop(task_id, None)
        if relayed is not None:
            self._free(link, relayed[0])

    def report_passed_on(self, raw: bytes) -> None:
        """A report that a proxy gave to a sibling, which may not know yet that a task has a new owner."""
        line = parse(raw)
        name = line.fields["proxy"]
        if line.fields["state"] == "done":
            ms = int(line.fields["ms"]) if line.fields.get("ms") else None
            verifies = line.fields.get("verified") == "1"
            merged_into = line.fields.get("merged_into", "")
            ids = [item.encode() for item in line.items or ()]
            missing = self.done(name, ids, ms, verifies=verifies, merged_into=merged_into)
            self._tell_owners(name, missing, ms, verifies, merged_into)
            return
        task_id = line.fields["task_id"].encode()
        owner = self.hub.shards.owner(task_id)
        if owner != self.hub.shards.slot:
            self.hub.mesh.tell(raw, owner)
            return
        task = self.hub.engine.tasks.get(task_id)
        if task is not None:
            values: dict[str, Any] = dict(line.fields)
            for key in ("done", "failed", "ms"):
                if key in values:
                    values[key] = int(values[key])
            try:
                self.one(name, task, values)
            except Refused as refused:
                log.warning("a proxy reported nonsense", proxy=name, error=str(refused))

    def receipt(self, name: str, task_id: bytes, text: str) -> None:
        """A proxy's receipt goes where its reports go; of a task that is not there it is dropped."""
        owner = self.hub.shards.owner(task_id)
        if owner != self.hub.shards.slot:
            fields: dict[str, Value] = {"proxy": name, "task_id": task_id.decode()}
            self.hub.mesh.tell(format_line("receipt", fields, [text])[:-1], owner)
            return
        task = self.hub.engine.tasks.get(task_id)
        if task is not None and any(name in layer.places for layer in task.layer.plan.layers):
            self.hub.engine.keep_receipt(task, name, text.encode())

    def receipt_passed_on(self, raw: bytes) -> None:
        """A receipt that a proxy gave to a sibling, which may not know yet that a task has a new owner."""
        line = parse(raw)
        self.receipt(line.fields["proxy"], line.fields["task_id"].encode(), (line.items or ("",))[0])

    def send_away(self) -> None:
        """Proxies are to connect elsewhere: siblings reach them through this worker no more."""
        for session in self.sessions.values():
            self.hub.pusher.detach(session.link)
            self.hub.mesh.tell(format_line("link", {"name": session.name, "up": 0})[:-1])
            session.wire.send(b"!drain\n")

    # ── moving to another process ─────────────────────────────────────────────────────────

    def known_elsewhere(self) -> tuple[dict[str, list[int]], dict[str, int], list[tuple[str, str, int]]]:
        """What siblings told: ways to proxies, when these were heard; and proxies that all have taken in."""
        ways = {name: sorted(slots) for name, slots in self._ways.items() if slots}
        joined = [(proxy.name, proxy.group, proxy.layer) for proxy in self._joined.values()]
        return ways, self._heard_elsewhere, joined

    def know(
        self, ways: dict[str, list[int]], heard: dict[str, int], joined: list[tuple[str, str, int]]
    ) -> None:
        """The inverse, in the process that takes over."""
        self._ways = {name: set(slots) for name, slots in ways.items()}
        self._heard_elsewhere = dict(heard)
        self._joined = {name: Proxy(name, group, layer, listed=False) for name, group, layer in joined}

    def choose_ways(self) -> None:
        """After shards or links have come and gone: every proxy is reached if it can be."""
        for name in {*self.sessions, *self._ways, *self.hub.pusher.links}:
            self._choose_way(name)

    def tell_links(self) -> None:
        """Siblings are to know which proxies are connected here, whatever they heard before."""
        for name in self.sessions:
            self.hub.mesh.tell(format_line("link", {"name": name, "up": 1})[:-1])

    def push_again(self) -> None:
        """Reports were lost with another process: every proxy is pushed again what it owes."""
        pusher = self.hub.pusher
        for link in list(pusher.links.values()):
            link.outstanding = sum(targets for targets, _ in link.relayed.values())
            pusher.attach(link)

    # ── pushes of siblings ────────────────────────────────────────────────────────────────

    def relay(self, slot: int, name: str, data: bytes) -> None:
        """A sibling's pushes for a proxy that is connected here."""
        session = self.sessions.get(name)
        if session is None:
            if self.hub.moves.taker is not None:
                self.hub.moves.taker.keep_relayed(slot, name, data)
            return
        pushes: list[Relayed] = []
        for raw in data.split(b"\n"):
            if raw.startswith(b"!task task_id="):
                task_id = raw[14 : raw.find(b" ", 14)]
                count = raw.partition(b" -- ")[2].count(b" ") + 1
                pushes.append(Relayed(task_id, count, raw + b"\n", slot))
            elif raw:
                self._cancel_relayed(session.link, raw)
        self.hub.pusher.relay(session.link, pushes)

    def _cancel_relayed(self, link: Link, raw: bytes) -> None:
        """`!cancel -- ID…`: what has not gone out here is dropped, the rest is passed on."""
        ids = set(raw.partition(b" -- ")[2].split(b" "))
        kept = [push for push in link.relay if push.task_id not in ids]
        link.relay.clear()
        link.relay.extend(kept)
        for task_id in ids:
            self._free_relayed(link, task_id)
        link.wire.send(raw + b"\n")

    # ── heartbeats ────────────────────────────────────────────────────────────────────────

    def heard_elsewhere(self, names: tuple[str, ...]) -> None:
        """A sibling has had lines from these proxies."""
        now_ms = self.hub.engine.clock.mono_ms
        for name in names:
            self._heard_elsewhere[name] = now_ms

    def sweep(self) -> None:
        """Closes the connections of proxies that have fallen silent. To be called every second or so."""
        now_ms = self.hub.engine.clock.mono_ms
        for session in list(self.sessions.values()):
            heard_ms = max(session.heard_ms, self._heard_elsewhere.get(session.name, 0))
            if now_ms - heard_ms > OFFLINE_AFTER_MS:
                log.warning("proxy silent, counts as offline", proxy=session.name, for_ms=now_ms - heard_ms)
                session.close()
                self.disconnected(session)
        if now_ms - self._told_ms >= HEARD_EVERY_MS:
            heard = [s.name for s in self.sessions.values() if s.heard_ms >= self._told_ms]
            self._told_ms = now_ms
            if heard:
                self.hub.mesh.tell(format_line("heard", {}, heard)[:-1])

    @property
    def prefetch_bytes_per_s(self) -> int:
        """What prefetches may bring to each proxy: its part of what they may to all. 0: no bound."""
        # A proxy connects to every worker, so one of the two mostly is all of them.
        online = max(1, len(self.sessions), len(self._ways))
        whole = self.hub.config.engine.prefetch_bytes_per_s
        return max(1, whole // online) if whole else 0

    def seen_ms_ago(self, name: str) -> int | None:
        """Milliseconds since this worker had a line from the proxy; None: it is not connected here."""
        session = self.sessions.get(name)
        return None if session is None else self.hub.engine.clock.mono_ms - session.heard_ms


def _mark_of_more(task: Task, rank: int, ms: int, verifies: bool, merged_into: str) -> bytes:
    """The mark of a proxy that says more than that all is done."""
    verified = verifies and task.terms.verify
    if merged_into:
        return merged_mark(rank, ms, task.count, merged_into, verified=verified)
    return verified_mark(rank, ms)


def _done_line(name: str, ids: list[bytes], ms: int | None, verifies: bool, merged_into: str) -> bytes:
    """A report of a proxy, as workers pass it on."""
    more = b"" if ms is None else b" ms=%d" % ms
    more += b" verified=1" if verifies else b""
    more += b" merged_into=%b" % merged_into.encode() if merged_into else b""
    return b"report proxy=%b state=done%b -- %b" % (name.encode(), more, b" ".join(ids))


def _check_listed(known: Proxy, hello: Hello) -> None:
    """A listed proxy must be what the configuration says: layers are what order rests on."""
    for field, said, wanted in (("group", hello.group, known.group), ("layer", hello.layer, known.layer)):
        if said is not None and said != wanted:
            raise bad_field(field, str(said), f"{wanted}, as the engine's configuration lists {known.name}")
