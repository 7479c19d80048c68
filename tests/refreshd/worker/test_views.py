"""Tasks as the wire shows them: the same from memory and from the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from refreshd.fleet import Proxy
from refreshd.shard import created_ms
from refreshd.store.base import Stored, StoredResult
from refreshd.task import State
from refreshd.worker import views
from tests.refreshd.worker.core import Core, Table
from wire.lines import Line, parse

FLEET = [Proxy("a0", "g", 0, True), Proxy("a1", "g", 0, True), Proxy("b0", "h", 1, True)]
POST = rb"post_task task_id=t type=tag scope=a0,h,a1 -- one t\\wo"


@pytest.fixture
def core() -> Iterator[Core]:
    with pytest.MonkeyPatch.context() as patch:
        yield Core(patch, FLEET)


def listing(reply: bytes) -> list[Line]:
    head, *rows = reply.splitlines()
    assert parse(head).fields == {"n": str(len(rows))}
    return [parse(row) for row in rows]


def stored(table: Table) -> Stored:
    ((serial, (task_id, plan, body)),) = table.tasks.items()
    result = table.results.get(serial)
    read = None if result is None else StoredResult(State(result[1]), *result[2:5], result[5] or b"")
    return Stored(serial, task_id, plan, body, read)


def test_a_task_on_its_way(core: Core) -> None:
    core.post(POST, plain=False)
    core.commit()
    task = core.engine.tasks[b"t"]
    expected = {"task_id": "t", "type": "tag", "state": "pending", "total": 6, "done": 0, "failed": 0}
    assert views.describe(task).items() >= expected.items()
    assert views.describe(task)["created"] == created_ms(task.serial)
    core.connect("a0", 10)
    core.connect("a1", 10)
    core.report("a0", b"t", state="failed", done=1, failed=1, error="no\u00a0answer: x y")
    core.report("a1", b"t", state="active", done=1, failed=0)
    expected |= {"state": "active", "done": 2, "failed": 1}
    assert views.describe(task).items() >= expected.items()
    rows = [row.fields for row in listing(views.detail(task))]
    assert [row.pop("ms") for row in rows] == ["0", "0", "0"]
    assert rows == [
        {
            "proxy": "a0",
            "layer": "0",
            "state": "failed",
            "done": "1",
            "failed": "1",
            "error": "no\u00a0answer: x y",
        },
        {"proxy": "a1", "layer": "0", "state": "active", "done": "1", "failed": "0"},
        {"proxy": "b0", "layer": "1", "state": "pending", "done": "0", "failed": "0"},
    ]


def test_a_finished_task_reads_as_it_ended(core: Core) -> None:
    core.post(POST, plain=False)
    core.commit()
    for name in ("a0", "a1", "b0"):
        core.connect(name, 10)
    core.pass_time(300)
    core.report("a1", b"t")
    core.report("a0", b"t", state="failed", done=1, failed=1, error="x", ms=7)
    core.report("b0", b"t")
    task = core.engine.tasks[b"t"]
    assert views.describe(task)["state"] == "active", "a final state shows only once it is saved"
    in_memory = views.detail(task)
    core.commit()
    row = stored(core.table)
    ended = views.describe_ended(task)
    assert views.describe_stored(row) == ended
    assert ended["state"] == "failed"
    assert (ended["done"], ended["failed"], ended["total"]) == (5, 1, 6)
    assert views.stored_detail(row) == in_memory
    assert parse(views.state_push(task)[:-1]).fields == {
        "task_id": "t", "state": "failed", "done": "5", "failed": "1", "total": "6"
    }  # fmt: skip


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
def test_what_was_undone(core: Core, state: State) -> None:
    core.post(POST, plain=False)
    core.commit()
    core.connect("a0", 10)
    core.report("a0", b"t")
    core.engine.withdraw(core.engine.tasks[b"t"], state)
    core.commit()
    row = stored(core.table)
    failed = 0 if state is State.CANCELLED else 4
    shown = views.describe_stored(row)
    assert (shown["state"], shown["done"], shown["failed"]) == (state.text, 2, failed)
    rows = [line.fields for line in listing(views.stored_detail(row))]
    assert [row["state"] for row in rows] == ["complete", state.text, state.text]
    assert sum(int(row["failed"]) for row in rows) == failed


def test_a_row_without_a_result(core: Core) -> None:
    core.post(POST, plain=False)
    core.commit()
    row = stored(core.table)
    assert views.describe_stored(row)["state"] == "pending"
    assert views.describe_stored(row, State.ACTIVE)["state"] == "active"
    assert [line.fields["done"] for line in listing(views.stored_detail(row))] == ["0", "0", "0"]


def test_listings() -> None:
    assert views.rows([]) == b"ok n=0\n"
    assert views.rows([{"a": 1}, {"b": "x y"}]) == b"ok n=2\n+ a=1\n+ b=x\\sy\n"
    assert views.row({"a": 0.5, "none": None}) == b"+ a=0.5\n"
    assert views.ok({}) == b"ok\n"
