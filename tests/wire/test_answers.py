"""Replies as values."""

import pytest

from wire import answers
from wire.answers import Accepted, OperationStatus, ProxyStatus, TaskState, TaskStatus
from wire.errors import PeerMisbehaved
from wire.lines import parse

STATUS = b"ok task_id=t type=url state=failed total=9 done=7 failed=2 created=5 updated=6 new=1"


def test_values() -> None:
    fields = parse(STATUS).fields
    assert answers.read_task_status(fields) == TaskStatus("t", "url", "failed", 9, 7, 2, 5, 6)
    assert answers.read_task_state(fields) == TaskState("t", "failed", 7, 2, 9)
    assert answers.read_task_state(fields).final
    assert answers.read_task_status(fields).final
    assert answers.read_accepted(fields) == Accepted("t", "failed", 9)
    assert answers.read_accepted(fields | {"dup": "1"}).dup
    assert answers.read_now({"now": "12"}) == 12
    row = parse(rb"+ proxy=pop1 layer=0 state=offline done=1 failed=0 ms=12 error=no\sroute").fields
    assert answers.read_proxy_status(row) == ProxyStatus("pop1", 0, "offline", 1, 0, 12, "no route")


def test_operations() -> None:
    fields = parse(rb"ok operation=3 kind=reload state=failed step= why=no\sroom ms=12").fields
    status = answers.read_operation(fields)
    assert status == OperationStatus(3, "reload", "failed", "", "no room", 12)
    assert status.over
    assert not answers.read_operation(fields | {"state": "running"}).over
    assert answers.read_operation_number(fields) == 3
    for field in ("operation", "kind", "state", "ms"):
        with pytest.raises(PeerMisbehaved, match=field):
            answers.read_operation(fields | {field: ""})


@pytest.mark.parametrize(
    "field", ["task_id", "type", "state", "total", "done", "failed", "created", "updated"]
)
@pytest.mark.parametrize("value", [None, "", "-1", "none"])
def test_what_is_missing_is_named(field: str, value: str | None) -> None:
    fields = parse(STATUS).fields
    if value is None:
        del fields[field]
    else:
        fields[field] = value
    if field in ("task_id", "type") and value:
        return
    with pytest.raises(PeerMisbehaved, match=field):
        answers.read_task_status(fields)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5), ("-5", -5), ("0.75", 0.75), ("-0.5", -0.5), ("", ""), ("nan", "nan"), ("1e5", "1e5"),
        ("1_0", "1_0"), ("1.2.3", "1.2.3"), (".5", ".5"), ("e1", "e1"), ("9" * 30, "9" * 30), ("٣", "٣"),
        ("1.", "1."), ("-", "-"),
    ],
)  # fmt: skip
def test_figures(text: str, value: object) -> None:
    assert answers.read_value(text) == value
    assert type(answers.read_value(text)) is type(value)
