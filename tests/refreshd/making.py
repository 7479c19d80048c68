"""Tasks, plans and logs for tests, with everything that a test does not care about filled in."""

from __future__ import annotations

import itertools

from refreshd.fanout import EncodedSegments, Log
from refreshd.fleet import Layer, Plan
from refreshd.task import State, Task, Terms, push_line, read_terms
from wire.lines import parse

_serials = itertools.count(1 << 40)
_TERMS: dict[bytes, Terms] = {}


class WeakTask(Task):
    """A task that a weak reference can follow."""

    __slots__ = ("__weakref__",)


def terms(fields: bytes = b"type=url") -> Terms:
    """The terms of a task with these fields; equal fields share one object, as in an engine."""
    if fields not in _TERMS:
        _TERMS[fields] = read_terms(parse(b"post_task task_id=x " + fields))
    return _TERMS[fields]


def a_plan(*sizes: int) -> Plan:
    """A plan with layers of so many proxies: `p0-0`, `p0-1`… in the first."""
    return Plan(
        (number, tuple(f"p{number}-{i}" for i in range(size))) for number, size in enumerate(sizes or (2,))
    )


def a_task(
    task_id: bytes = b"t",
    layer: Layer | None = None,
    count: int = 1,
    fields: bytes = b"type=url",
    serial: int | None = None,
    state: State = State.PENDING,
) -> WeakTask:
    """A task of `count` targets."""
    targets = b" ".join(b"http://a/%d" % i for i in range(count))
    line = b"post_task task_id=%b %b -- %b" % (task_id, fields, targets)
    number = next(_serials) if serial is None else serial
    task = WeakTask(task_id, line, terms(fields), count, layer or a_plan().layers[0], number, 1000)
    task.state = state
    return task


def a_log(layer: Layer, priority: int = 5, encoded: EncodedSegments | None = None) -> Log:
    """A log as an engine makes it."""
    return Log(layer, priority, push_line, encoded or EncodedSegments())


def ids_in(data: bytes) -> list[bytes]:
    """The ids of the push lines in `data`; fails on anything else."""
    ids = []
    for line in data.splitlines(keepends=True):
        parsed = parse(line.removesuffix(b"\n"))
        assert line.endswith(b"\n")
        assert parsed.verb == "!task"
        ids.append(parsed.fields["task_id"].encode())
    return ids
