"""Tasks on the wire: reading a head, checking targets, writing the line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from wire import fields as f
from wire.errors import LocalError, Refused
from wire.heads import split_targets
from wire.lines import format_line, parse
from wire.tasks import (
    NewTask,
    PushHead,
    TaskHead,
    check_targets,
    format_post,
    post_head_table,
    push_head_table,
    read_push_head,
    read_task_head,
)

names = st.from_regex(r"[A-Za-z0-9._:-]{1,8}", fullmatch=True)
task_heads = st.builds(
    TaskHead,
    type=st.sampled_from(f.TASK_TYPES),
    scope=st.none() | st.sets(names, min_size=1, max_size=3).map(lambda found: tuple(sorted(found))),
    due=st.none() | st.integers(0, f.DUE_MAX_S),
    ttl_s=st.integers(1, f.TTL_MAX_S) | st.just(f.DEFAULT_TTL_S),
    priority=st.integers(0, 9),
    callback=st.none() | st.just("http://a/cb?x=\\y"),
    force=st.booleans(),
    verify=st.booleans(),
)
# What `then` goes with.
refreshes = st.builds(lambda head: replace(head, type="url", then="prefetch"), task_heads)
targets = st.lists(
    st.text("/ab%\\ ", min_size=1, max_size=8).map(lambda tail: "http://h/" + tail), min_size=1
)


@given(names, task_heads | refreshes, targets)
def test_a_post_is_read_back(task_id: str, head: TaskHead, items: list[str]) -> None:
    raw = NewTask(task_id, head, tuple(items)).line()
    line = parse(raw[:-1])
    assert line.fields["task_id"] == task_id
    assert list(line.items or ()) == items
    assert read_task_head(line) == head
    cut = post_head_table().cut(raw[:-1])
    assert cut is not None
    assert cut[0] == task_id.encode()
    assert cut[1] == head


def test_defaults_need_no_field() -> None:
    assert format_post("t", TaskHead("url"), ["http://a/"]) == b"post_task task_id=t type=url -- http://a/\n"
    assert read_task_head(parse(b"post_task task_id=t type=url -- x")) == TaskHead("url")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ("", "type"), ("type=", "type"), ("type=URL", "type"), ("type=url scope=", "scope"),
        ("type=url scope=a,,b", "scope"), ("type=url due=-1", "due"), ("type=url due=1795250000123", "due"),
        ("type=url ttl=0", "ttl"), ("type=url ttl=1.5", "ttl"), ("type=url priority=10", "priority"),
        ("type=url callback=x", "callback"), ("type=url force=yes", "force"),
        ("type=url verify=2", "verify"), ("type=url then=x", "then"), ("type=dir then=prefetch", "then"),
        ("type=prefetch then=prefetch", "then"),
    ],
)  # fmt: skip
def test_heads_that_are_refused(fields: str, field: str) -> None:
    with pytest.raises(Refused) as caught:
        read_task_head(parse(f"post_task task_id=t {fields}".strip().encode()))
    assert caught.value.field == field
    assert caught.value.code == ("bad_field" if fields else "missing_field")


def test_unknown_fields_are_ignored() -> None:
    assert read_task_head(parse(b"post_task task_id=t type=url colour=red -- x")) == TaskHead("url")


def test_the_bad_target_is_named() -> None:
    check_targets("url", ["http://a/"])
    with pytest.raises(Refused, match="target 2") as caught:
        check_targets("url", ["http://a/", "nope", "nope"])
    assert (caught.value.code, caught.value.field) == ("bad_field", "target")
    with pytest.raises(Refused) as caught:
        check_targets("url", [])
    assert (caught.value.code, caught.value.field) == ("missing_field", "target")
    with pytest.raises(Refused) as caught:
        check_targets("url", ["x" * 5000])
    assert len(str(caught.value)) < 300


def test_an_empty_target_cannot_be_written() -> None:
    with pytest.raises(LocalError):
        NewTask("t", TaskHead("url"), ("",)).line()


@given(
    names,
    st.builds(
        PushHead,
        type=st.sampled_from(f.TASK_TYPES),
        ttl_s=st.none() | st.integers(1, f.TTL_MAX_S),
        priority=st.integers(0, 9),
        force=st.booleans(),
        verify=st.booleans(),
    )
    | st.just(PushHead("url", then="prefetch")),
)
def test_a_push_is_read_back(task_id: str, head: PushHead) -> None:
    fields = {
        "task_id": task_id, "type": head.type, "ttl": head.ttl_s, "priority": head.priority,
        "force": head.force, "verify": head.verify, "then": head.then,
    }  # fmt: skip
    raw = format_line("!task", fields, ["http://a/b", "http://a/c"])[:-1]
    assert read_push_head(parse(raw)) == head
    cut = push_head_table().cut(raw)
    assert cut is not None
    assert (cut[0].decode(), cut[1], split_targets(cut[2])) == (task_id, head, ["http://a/b", "http://a/c"])
