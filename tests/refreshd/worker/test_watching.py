"""Watching again what a connection watches: what is answered is pushed, what is refused is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from refreshd.worker.callers import WATCHES_MAX, Caller
from refreshd.worker.connection import Connection
from refreshd.worker.hub import Hub
from refreshd.worker.turns import Turn
from refreshd.worker.watching import RETRY_S, Watching
from tests.peer.raw import owned_by

HERE, THERE = 0, 1
BUSY = b"err code=busy msg=later retry_ms=500\n"
NOT_FOUND = b"err code=not_found msg=no\n"


def ok(task_id: bytes, state: str) -> bytes:
    return b"ok task_id=%b type=url state=%b total=2 done=1 failed=0 created=1 updated=1\n" % (
        task_id,
        state.encode(),
    )


def push(task_id: bytes, state: str) -> bytes:
    return b"!state task_id=%b state=%b done=1 failed=0 total=2\n" % (task_id, state.encode())


class Site:
    """A worker of two, and one connection that watches some tasks."""

    def __init__(self, *task_ids: bytes) -> None:
        self.owners: dict[bytes, int] = {}
        self.asked: list[tuple[int, Turn, list[bytes]]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.pushed: list[bytes] = []
        self.aborted = 0
        self.told: list[bytes] = []
        caller = Caller(HERE, 7, must_greet=False)
        for task_id in task_ids:
            caller.watch(task_id)
        self.connection = cast(
            "Connection",
            SimpleNamespace(
                caller=caller, transport=object(), rewatches=0, push=self.pushed.append, abort=self._abort
            ),
        )
        hub: Any = SimpleNamespace(
            shards=SimpleNamespace(slot=HERE, owner=lambda task_id: self.owners.get(task_id, THERE)),
            connections={7: self.connection},
            requests=SimpleNamespace(run=self._run),
            mesh=SimpleNamespace(forward=self._forward, tell=self.told.append, others=[THERE]),
            loop=SimpleNamespace(call_later=self._later),
            met={THERE: 5},
        )
        hub.watching = self.watching = Watching(cast("Hub", hub))

    def _abort(self) -> None:
        self.aborted += 1

    def _run(self, caller: Caller, turn: Turn, lines: list[bytes], *, plain: bool) -> None:
        for line in lines:
            # As the real ones do: it is watched already, and may be in any number.
            caller.watch(line.removeprefix(b"watch_task task_id="))
            turn.hold()
        self.asked.append((HERE, turn, lines))

    def _forward(
        self, slot: int, turn: Turn, places: list[int], lines: list[bytes], context: bytes, *, plain: bool
    ) -> None:
        assert places == list(range(len(lines)))
        assert Caller.from_context(context).number == 7
        turn.waiting += 1
        self.asked.append((slot, turn, lines))

    def _later(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        self.later.append((delay_s, lambda: call(*args)))

    def answer(self, *parts: bytes) -> list[bytes]:
        """Answers the oldest question; what was asked."""
        slot, turn, lines = self.asked.pop(0)
        if slot == HERE:
            for place, part in enumerate(parts):
                turn.fill(place, part)
        else:
            turn.parts = list(parts)
            turn.release()
        return lines


def test_the_answer_is_pushed_and_the_connection_stays_until_it_has_come() -> None:
    site = Site(b"a", b"b")
    site.watching.sibling_forgot(THERE)
    assert site.connection.rewatches == 1
    assert site.answer(ok(b"a", "active"), ok(b"b", "complete")) == [
        b"watch_task task_id=a",
        b"watch_task task_id=b",
    ]
    assert site.pushed == [push(b"a", "active"), push(b"b", "complete")]
    assert (site.connection.rewatches, site.later) == (0, [])


def test_only_what_that_worker_owns_is_asked() -> None:
    site = Site(b"a", b"b")
    site.owners[b"a"] = HERE
    site.watching.sibling_forgot(THERE)
    assert [(slot, lines) for slot, _, lines in site.asked] == [(THERE, [b"watch_task task_id=b"])]


def test_what_is_refused_is_asked_again_of_whoever_owns_it_by_then() -> None:
    site = Site(b"a", b"b", b"c")
    site.watching.sibling_forgot(THERE)
    site.answer(BUSY, ok(b"b", "active"), BUSY)
    assert site.pushed == [push(b"b", "active")]
    assert site.connection.rewatches == 1, "it must not move meanwhile"
    site.owners[b"a"] = HERE
    ((delay_s, again),) = site.later
    assert delay_s == RETRY_S
    again()
    assert site.connection.rewatches == 2
    assert site.answer(ok(b"a", "complete")) == [b"watch_task task_id=a"]
    assert site.answer(ok(b"c", "complete")) == [b"watch_task task_id=c"]
    assert site.pushed[1:] == [push(b"a", "complete"), push(b"c", "complete")]
    assert site.connection.rewatches == 0


def test_what_has_ended_meanwhile_is_not_asked_again() -> None:
    site = Site(b"a")
    site.watching.sibling_forgot(THERE)
    site.answer(BUSY)
    del site.connection.caller.watching[b"a"]
    site.later.pop()[1]()
    assert (site.asked, site.connection.rewatches) == ([], 0)


def test_what_is_not_known_was_not_acknowledged() -> None:
    site = Site(b"a")
    site.watching.sibling_forgot(THERE)
    site.answer(NOT_FOUND)
    assert (site.pushed, site.later, site.connection.rewatches) == ([], [], 0)


def test_a_question_that_nobody_answers_ends_the_connection() -> None:
    site = Site(b"a")
    site.watching.sibling_forgot(THERE)
    owner: Any = site.asked[0][1].owner
    owner.abort()
    assert site.aborted == 1


def test_after_taking_back_siblings_are_told_and_own_connections_asked() -> None:
    site = Site(b"a", b"b")
    site.owners[b"a"] = HERE
    asyncio.run(site.watching.forgotten_here())
    assert site.told == [b"watch_again"]
    assert [(slot, lines) for slot, _, lines in site.asked] == [(HERE, [b"watch_task task_id=a"])]


def test_as_many_as_a_connection_may_watch() -> None:
    ids = [task_id.encode() for task_id in owned_by(HERE, "w", WATCHES_MAX)]
    site = Site(*ids)
    site.owners = dict.fromkeys(ids, HERE)
    site.watching.everywhere(site.connection)
    assert len(site.answer(*[ok(task_id, "active") for task_id in ids])) == WATCHES_MAX
    assert len(site.pushed) == WATCHES_MAX


def test_a_connection_that_moved_in_asks_siblings_that_its_predecessor_had_not_met() -> None:
    for met, asks in (({THERE: 5}, 0), ({THERE: 4}, 1), ({}, 0), ({2: 4}, 0)):
        site = Site(b"a")
        site.watching.moved_in(site.connection, met)
        assert len(site.asked) == asks, met
