"""Pushing: once a turn of the loop, every link that can take something is given it.

Decisions are in `fanout` (what comes next) and `links` (how much, from where);
here they are carried out. A link stops being served while its credit is used up
or its connection's buffer is full, and goes on when a report frees credit or the
buffer has drained; nobody else waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from refreshd.fanout import Log
from refreshd.task import State, Task
from refreshd.worker.engine import Engine
from refreshd.worker.links import Link, Relayed

# Pushes of siblings that go out between two reads of this worker's own logs.
_RELAY_BURST = 64
_CANCELS_A_LINE = 500


class Pusher:
    """All links of one worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.links: dict[str, Link] = {}
        """Proxy → the link that is in use."""
        self.engine: Engine
        self.on_link: Callable[[Link, bool], None] | None = None
        """Told, while shards move, of links that come into use (True) and go."""
        self.knows_all = True
        """Whether it is known just now what is parked for each proxy, here and nowhere else."""
        self.on_return: Callable[[Link], None] = lambda _: None
        """Told of a link that comes into use, before anything is pushed on it."""
        self.on_loss: Callable[[Link], None] = lambda _: None
        """Told of a link that goes out of use."""
        self._loop = loop
        self._grown: dict[Log, None] = {}
        self._links_due: dict[Link, None] = {}
        self._scheduled = False

    # ── links ─────────────────────────────────────────────────────────────────────────────

    def attach(self, link: Link, *, moved: bool = False) -> None:
        """Serves a proxy on this link from now on, from the head of every log, instead of on another.

        `moved`: it came from another process, and what that pushed on it is not pushed again.
        """
        self.detach(self.links.get(link.name))
        self.links[link.name] = link
        for log in self.engine.logs:
            link.attach(log, moved=moved)
        self.on_return(link)
        self.due(link)
        if self.on_link is not None:
            self.on_link(link, True)

    def detach(self, link: Link | None) -> None:
        """Stops using a link. What was outstanding there is pushed again on the next one."""
        if link is None or self.links.get(link.name) is not link:
            return
        del self.links[link.name]
        link.detach()
        self._links_due.pop(link, None)
        self.on_loss(link)
        if self.on_link is not None:
            self.on_link(link, False)

    # ── what is to be done ────────────────────────────────────────────────────────────────

    def log_made(self, log: Log) -> None:
        """See `listener.Listener`."""
        for name in log.layer.proxies:
            link = self.links.get(name)
            if link is not None:
                link.attach(log)

    def log_gone(self, log: Log) -> None:
        """A log is no more."""
        for link in list(log.cursors):
            if isinstance(link, Link):
                link.drop(log)
        log.cursors.clear()
        self._grown.pop(log, None)

    def log_grew(self, log: Log) -> None:
        """See `listener.Listener`."""
        if log not in self._grown:
            self._grown[log] = None
            self._schedule()

    def due(self, link: Link) -> None:
        """The link may be able to take more: credit came, or its buffer has drained."""
        self._links_due[link] = None
        self._schedule()

    def withdrawn(self, task: Task) -> None:
        """See `listener.Listener.task_withdrawn`: frees credit and tells the proxies that have it."""
        if task.state is not State.ACTIVE or task.segment is None:
            return
        for cursor in task.segment.log.cursors.values():
            if cursor.has_passed(task) and task.owes(cursor.place):
                link = cursor.link
                if isinstance(link, Link):
                    link.freed(task.count)
                    link.cancelled.append(task.id)
                    self.due(link)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    # ── doing it ──────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        self._scheduled = False
        grown, self._grown = self._grown, {}
        links, self._links_due = self._links_due, {}
        for log in grown:
            for cursor in log.cursors.values():
                link = cursor.link
                if isinstance(link, Link):
                    link.note(cursor)
                    links[link] = None
        for link in links:
            self.pump(link)

    def pump(self, link: Link) -> None:
        """Gives a link what it can take now."""
        if link.held:
            return
        if link.cancelled:
            self._send_cancels(link)
        out: list[bytes] = []
        size = 0
        while not link.wire.full and size < _WRITE_MAX_BYTES:
            data = self._next_relayed(link) + self._next_own(link)
            if not data:
                break
            out.append(data)
            size += len(data)
        if out:
            link.wire.send(b"".join(out) if len(out) > 1 else out[0])
            if size >= _WRITE_MAX_BYTES and not link.wire.full:
                self.due(link)
        if link.replay is not None:
            link.replay.feed()
        elif link.tell_caught_up and self.knows_all and not self.engine.moving and link.has_caught_up:
            # Behind the last of what there was.
            link.tell_caught_up = False
            link.wire.send(b"!caught_up\n")

    def _next_own(self, link: Link) -> bytes:
        """The next push lines from this worker's logs, b"" if there is nothing or no room."""
        while (cursor := link.next_cursor()) is not None:
            room = link.credit - link.outstanding
            if room <= 0:
                return b""
            read = cursor.log.read(cursor, room, not link.outstanding, self.engine.activate)
            if read is None:
                return b""
            data, targets = read
            if data:
                link.outstanding += targets
                return data
        return b""

    def _next_relayed(self, link: Link) -> bytes:
        """The next push lines that came from siblings."""
        relay = link.relay
        lines: list[bytes] = []
        while relay and len(lines) < _RELAY_BURST:
            count = relay[0].targets
            if link.outstanding + count > link.credit and (link.outstanding or not link.credit):
                break
            push = relay.popleft()
            if push.task_id not in link.relayed:
                # It can come again, when a sibling or a connection was replaced: it is outstanding once.
                link.outstanding += count
            link.relayed[push.task_id] = (count, push.slot)
            lines.append(push.line)
        return b"".join(lines)

    def _send_cancels(self, link: Link) -> None:
        ids, link.cancelled = link.cancelled, []
        for at in range(0, len(ids), _CANCELS_A_LINE):
            link.wire.send(b"!cancel -- %b\n" % b" ".join(ids[at : at + _CANCELS_A_LINE]))

    # ── pushes of siblings ────────────────────────────────────────────────────────────────

    def relay(self, link: Link, pushes: Iterable[Relayed]) -> None:
        """Takes pushes that a sibling cannot deliver itself."""
        link.relay.extend(pushes)
        self.due(link)

    def own(self, ids: Iterable[bytes]) -> None:
        """Siblings gave us these to push, and they are this worker's by now: it pushes them itself."""
        own = frozenset(ids)
        for link in self.links.values():
            for task_id in own.intersection(link.relayed):
                link.freed(link.relayed.pop(task_id)[0])
            if link.relay:
                kept = [push for push in link.relay if push.task_id not in own]
                link.relay.clear()
                link.relay.extend(kept)
            self.due(link)

    def forget_sibling(self, slot: int) -> None:
        """A sibling died: what it gave us to push is pushed again by its successor.

        What the proxy was given already takes credit until it is reported: the proxy is at it.
        """
        for link in self.links.values():
            kept = [push for push in link.relay if push.slot != slot]
            link.relay.clear()
            link.relay.extend(kept)
            self.due(link)


# One write, at the most: a link that catches up must not hold the loop for long.
_WRITE_MAX_BYTES = 256 * 1024
