"""Heads: the short way to read a hot line means what the long way means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import heads
from wire.errors import BadLine, WireError
from wire.heads import HeadTable, is_id, split_targets
from wire.lines import Line, is_plain, parse
from wire.tasks import post_head_table, read_task_head

FIELDS = {"task_id": "t", "type": "url", "ttl": "60", "unknown": "x"}

# Pieces of lines, so that the near misses are common.
pieces = st.lists(
    st.sampled_from(
        ["post_task", "task_id=t1", "task_id=", "task_id=a/b", "type=url", "type=dir", "type=nix", "ttl=60",
         "ttl=0", "--", "--x", "http://a/", "x=--", "", "force=1", "scope=b,a", "due=5", "task_id=t2"]
    ),
    max_size=9,
)  # fmt: skip
plain_lines = st.one_of(
    pieces.map(" ".join),
    pieces.map(lambda parts: " ".join(["post_task", "task_id=t", *parts])),
    pieces.map(lambda parts: " ".join(["post_task", "task_id=t", "type=url", *parts, "--", "u"])),
    st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=30).map(
        lambda text: f"post_task task_id={text}"
    ),
).map(str.encode)


def long_way(raw: bytes) -> tuple[bytes, object, list[str]] | type[WireError]:
    try:
        line = parse(raw)
        return line.fields["task_id"].encode(), read_task_head(line), list(line.items or ())
    except WireError as error:
        return type(error)


def short_way(
    table: HeadTable[object], raw: bytes
) -> tuple[bytes, object, list[str]] | type[WireError] | None:
    try:
        cut = table.cut(raw)
        if cut is None:
            return None
        task_id, head, targets = cut
        return task_id, head, split_targets(targets)
    except WireError as error:
        return type(error)


@given(st.lists(plain_lines, max_size=8))
def test_cut_agrees_with_parse(raws: list[bytes]) -> None:
    table: HeadTable[object] = post_head_table()
    for raw in raws:
        assert is_plain(raw)
        cut = short_way(table, raw)
        if cut is not None:
            assert cut == long_way(raw)


@given(st.lists(plain_lines, min_size=1, max_size=6))
def test_what_was_seen_before_changes_no_meaning(raws: list[bytes]) -> None:
    warm: HeadTable[object] = post_head_table()
    first = [short_way(warm, raw) for raw in raws]
    again = [short_way(warm, raw) for raw in raws]
    cold = [short_way(post_head_table(), raw) for raw in raws]
    assert first == again == cold


@given(st.lists(plain_lines, max_size=6))
def test_a_head_without_required_fields_is_no_exception(raws: list[bytes]) -> None:
    table: HeadTable[Line] = HeadTable("post_task", lambda line: line)
    for raw in raws:
        try:
            cut = table.cut(raw)
        except BadLine:
            with pytest.raises(BadLine):
                parse(raw)
            continue
        if cut is not None:
            fields = {key: value for key, value in cut[1].fields.items() if key != "task_id"}
            try:
                line = parse(raw)
            except BadLine:
                with pytest.raises(BadLine):
                    split_targets(cut[2])
            else:
                assert line.fields == {"task_id": cut[0].decode(), **fields}


def test_a_line_of_the_expected_shape_is_cut() -> None:
    table = post_head_table()
    cut = table.cut(b"post_task task_id=t1 type=url ttl=60 -- http://a/b http://a/c")
    assert cut is not None
    task_id, head, targets = cut
    assert (task_id, head.type, head.ttl_s) == (b"t1", "url", 60)
    assert split_targets(targets) == ["http://a/b", "http://a/c"]
    other = table.cut(b"post_task task_id=t2 type=url ttl=60 -- http://a/b")
    assert other is not None
    assert other[1] is head


@pytest.mark.parametrize(
    "raw",
    [
        b"post_task task_id=t1", b"post_task type=url task_id=t1 -- x", b"get_task task_id=t1 type=url -- x",
        b"post_task task_id=a/b type=url -- x", b"post_task task_id= type=url -- x",
        b"post_task task_id=t -- x",
        b"post_task task_id=t  -- x", b"post_task task_id=t type=url -- ", b"post_task task_id=t type=url --",
        b"post_tasks task_id=t type=url -- x", b"post_task task_id=" + b"t" * 65 + b" type=url -- x",
    ],
)  # fmt: skip
def test_other_shapes_are_left_to_parse(raw: bytes) -> None:
    assert post_head_table().cut(raw) is None


def test_a_refused_head_is_not_remembered() -> None:
    table = post_head_table()
    for _ in range(2):
        with pytest.raises(WireError):
            table.cut(b"post_task task_id=t type=nix -- x")
    with pytest.raises(BadLine):
        table.cut(b"post_task task_id=t type=url task_id=u -- x")


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS_MAX", 10)
    table = post_head_table()
    for due in range(100):
        table.cut(b"post_task task_id=t type=url due=%d -- x" % due)
        assert len(table._heads) <= 10
    long_head = b"callback=http://a/" + b"x" * heads.HEAD_MAX_BYTES
    cut = table.cut(b"post_task task_id=t type=url " + long_head + b" -- x")
    assert cut is not None
    assert not any(len(key) > heads.HEAD_MAX_BYTES for key in table._heads)


@pytest.mark.parametrize("targets", [b"", b" ", b"a ", b" a", b"a  b"])
def test_empty_items_are_found(targets: bytes) -> None:
    with pytest.raises(BadLine, match="empty item"):
        split_targets(targets)


@given(st.binary(max_size=70) | st.text("aZ09._:-/ ", min_size=60, max_size=70).map(str.encode))
def test_is_id(raw: bytes) -> None:
    allowed = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
    assert is_id(raw) == (1 <= len(raw) <= 64 and all(byte in allowed for byte in raw))
