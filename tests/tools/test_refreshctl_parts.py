"""The parts of refreshctl that need no engine: targets, times, ids, tables, exit codes."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.refreshctl import progress
from tools.refreshctl.exits import Exit, Failure, code_of, explain
from tools.refreshctl.ids import ids_for, make_id
from tools.refreshctl.submit import make_tasks
from tools.refreshctl.tables import pairs, printable, span, table
from tools.refreshctl.targets import TASK_BYTES_MAX, gather, read_lines, split
from tools.refreshctl.times import seconds, unix_seconds
from tools.refreshctl.verbs import VERBS
from tools.refreshctl.waiting import End, code_of_end, merge
from wire import DEFAULT_LINE_MAX_BYTES
from wire.answers import TaskState
from wire.errors import ConnectionLost, LocalError, PeerMisbehaved, Refused, TimedOut
from wire.heads import is_id
from wire.tasks import NewTask, TaskHead

# -- targets


def test_targets_come_in_order(tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("# a comment\n\nhttp://a/1\r\n  http://a/2  \n")
    assert gather(["http://a/3"], str(file), "url") == ["http://a/1", "http://a/2", "http://a/3"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"http://a/1\nnope\n", "line 2: 'nope': not an absolute"), (b"\n\n#\nhttp://a/ b\n", "line 4"),
        (b"http://a/1\n\xff\n", "line 2: not UTF-8"), (b"http://a/\0\n", "line 1"),
        (b"x" * (2 << 20), "line 1: longer than"), (b"<html>\n", "line 1"),
    ],
)  # fmt: skip
def test_rubbish_is_named_by_its_line(tmp_path: Path, content: bytes, place: str) -> None:
    file = tmp_path / "urls"
    file.write_bytes(content)
    with pytest.raises(Failure, match=place) as caught:
        gather([], str(file), "url")
    assert caught.value.code is Exit.USAGE
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("words", "file", "task_type", "why"),
    [
        ([], None, "url", "no targets"), (["http://a/1", "x"], None, "url", "argument 2"),
        (["http://a/b"], None, "dir", "ends in /"), ([], "/nowhere/at/all", "url", "cannot read"),
        (["a b"], None, "tag", "tag"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be(words: list[str], file: str | None, task_type: str, why: str) -> None:
    with pytest.raises(Failure, match=why):
        gather(words, file, task_type)


def test_a_tag_may_look_like_anything() -> None:
    assert gather(["news", "#5"], None, "tag") == ["news", "#5"]


def test_lines_are_counted_from_one() -> None:
    assert list(read_lines(io.BytesIO(b"\na\n#\nb"), "x")) == [("x line 2", "a"), ("x line 4", "b")]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=15), st.integers(1, 10))
def test_every_part_fits_a_line(sizes: list[int], per_task: int) -> None:
    targets = ["http://a/" + "\\" * (size // 2) for size in sizes]
    parts = split(targets, per_task)
    assert [target for part in parts for target in part] == targets
    for part in parts:
        assert 0 < len(part) <= per_task
        line = NewTask("x" * 64, TaskHead("prefetch", callback="http://a/" + "c" * 5000), part).line()
        assert len(line) <= DEFAULT_LINE_MAX_BYTES or len(part) == 1


def test_parts_are_as_large_as_may_be() -> None:
    assert [len(part) for part in split(["http://a/1"] * 25, 10)] == [10, 10, 5]
    assert len(split(["http://a/" + "x" * 991] * 2000, 10_000)) == -(-2000 * 1001 // TASK_BYTES_MAX)
    with pytest.raises(Failure, match="per-task"):
        split(["http://a/1"], 0)


# -- times and ids


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text: str, value: int) -> None:
    assert seconds(text, "--ttl") == value


@pytest.mark.parametrize("text", ["", "x", "-5", "5w", "1.5h", "5 m", "٣", "9" * 30])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(Failure, match="--ttl"):
        seconds(text, "--ttl")


def test_points_in_time() -> None:
    assert unix_seconds("+5m", 1000.5) == 1300
    assert unix_seconds("1795250000", 0) == 1795250000
    assert unix_seconds("2026-12-01T10:00:00+00:00", 0) == 1796119200
    assert unix_seconds("2026-12-01T10:00+01:00", 0) == 1796119200 - 3600
    for text in ("", "soon", "+", "2026-13-01"):
        with pytest.raises(Failure, match="--due"):
            unix_seconds(text, 0)


def test_ids_are_ordered_and_unique() -> None:
    ids = [make_id(now_ms) for now_ms in range(1795250000000, 1795250000000 + 5000, 7)]
    assert ids == sorted(ids)
    assert len({make_id(5) for _ in range(1000)}) == 1000
    assert all(is_id(task_id.encode()) for task_id in ids)


def test_ids_that_were_given() -> None:
    assert ids_for(1, "x", 0) == ["x"]
    assert ids_for(3, "x", 0) == ["x-1", "x-2", "x-3"]
    made = ids_for(2, None, 0)
    assert made[0][:-2] == made[1][:-2]


def arguments(**changes: object) -> SimpleNamespace:
    args = {
        "targets": ["http://a/1"], "file": None, "type": "url", "scope": None, "due": None, "ttl": None,
        "priority": None, "callback": None, "force": False, "id": None, "per_task": 1000,
        "verify": False, "then": None,
    }  # fmt: skip
    return SimpleNamespace(**(args | changes))


def test_a_task_may_be_asked_to_prove_itself() -> None:
    (task,) = make_tasks(arguments(verify=True, then="prefetch"), 1000.0)
    assert (task.head.verify, task.head.then) == (True, "prefetch")
    with pytest.raises(Failure, match="--then"):
        make_tasks(arguments(type="dir", targets=["http://a/"], then="prefetch"), 1000.0)


def test_tasks_are_what_the_arguments_ask_for() -> None:
    (task,) = make_tasks(
        arguments(
            type="prefetch",
            scope="us,eu",
            due="+60",
            ttl="5m",
            priority=9,
            callback="http://c/",
            force=True,
            id="x",
        ),
        1000.0,
    )
    head = TaskHead("prefetch", ("eu", "us"), 1060, 300, 9, "http://c/", True)
    assert task == NewTask("x", head, ("http://a/1",))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"scope": ""}, "--scope"), ({"scope": "a b"}, "--scope"), ({"priority": 10}, "--priority"),
        ({"ttl": "0"}, "--ttl"), ({"ttl": ""}, "--ttl"), ({"due": ""}, "--due"),
        ({"callback": "x"}, "--callback"), ({"id": "a b"}, "--id"),
        ({"id": ""}, "--id"),
        ({"id": "x" * 64, "targets": ["http://a/1"] * 2, "per_task": 1}, "--id"),
        ({"due": "1795250000123"}, "--due"), ({"ttl": "9999d"}, "--ttl"),
    ],
)  # fmt: skip
def test_what_an_engine_would_refuse_is_found_here(changes: dict[str, object], why: str) -> None:
    with pytest.raises(Failure, match=why) as caught:
        make_tasks(arguments(**changes), 1000.0)
    assert caught.value.code is Exit.USAGE


# -- output


def test_tables_are_aligned() -> None:
    rows = [{"name": "a", "n": 5, "up_s": 1.5}, {"name": "longer", "n": 123, "up_s": None}]
    assert table(["name", "n", "up_s"], rows) == (
        "NAME      N  UP S\n"
        "a         5   1.5\n"
        "longer  123     -\n"
    )  # fmt: skip
    assert pairs({"a": 1, "long": "x"}) == "a     1\nlong  x\n"
    assert pairs({}) == ""


def test_the_terminal_is_not_steered() -> None:
    assert printable("\x1b[31mred\a\n") == "?[31mred??"
    assert printable("ü 漢") == "ü 漢"


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0s"), (59_999, "59s"), (60_000, "1m"), (7.3e6, "2h"), (1e9, "11d")]
)
def test_spans(ms: float, text: str) -> None:
    assert span(ms) == text


def progress_of(capsys: pytest.CaptureFixture[str], *, long: bool) -> str:
    async def work() -> None:
        with progress.bar("working", 5) as tell:
            tell(1)
            if long:
                # This is the long work.
                await asyncio.sleep(progress.SHOW_AFTER_S * 2 + 0.01)
            tell(5, 10)

    asyncio.run(work())
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_bar_is_for_long_work_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.0)
    assert progress_of(capsys, long=True) == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "working" in progress_of(capsys, long=True)
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 60.0)
    assert progress_of(capsys, long=False) == ""


# -- exit codes


def caused(cause: BaseException) -> ConnectionLost:
    lost = ConnectionLost("cannot connect")
    lost.__cause__ = cause
    return lost


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (Refused("not_found", "no task x"), Exit.FAILED, "refreshctl list"),
        (Refused("denied", "not yours"), Exit.DENIED, "not yours"),
        (Refused("auth", "x"), Exit.DENIED, "auth"),
        (Refused("internal", "x", ref="r17"), Exit.FAILED, "r17"),
        (Refused("new_one", "x"), Exit.FAILED, "new_one: x"),
        (ConnectionLost("it closed"), Exit.UNREACHABLE, "it closed; start refreshd"),
        (caused(FileNotFoundError(2, "No such file")), Exit.UNREACHABLE,
        "connect to S .No such file.; start refreshd"),
        (caused(PermissionError(13, "Permission denied")), Exit.DENIED, "may not open S"),
        (TimedOut("no answer"), Exit.UNREACHABLE, "no answer"),
        (PeerMisbehaved("odd"), Exit.FAILED, "does refreshd listen"),
        (LocalError("too long"), Exit.USAGE, "too long"),
        (Failure(Exit.PARTLY, "half\n of  it"), Exit.PARTLY, "half of it"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_a_code(error: Exception, code: Exit, says: str) -> None:
    import re

    assert code_of(error) is code
    text = explain(error, "S")
    assert re.search(says, text)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("state", "done", "failed", "code"),
    [
        ("complete", 2, 0, Exit.OK), ("failed", 0, 2, Exit.FAILED), ("failed", 1, 1, Exit.PARTLY),
        ("expired", 1, 1, Exit.FAILED), ("cancelled", 0, 0, Exit.FAILED),
    ],
)  # fmt: skip
def test_what_an_end_means(state: str, done: int, failed: int, code: Exit) -> None:
    assert code_of_end(End(TaskState("t", state, done, failed, 2))) is code


def test_codes_of_many() -> None:
    pending = TaskState("t", "pending", 0, 0, 2)
    assert code_of_end(End(pending, TimedOut("x"))) is Exit.FAILED
    assert code_of_end(End(None, Refused("denied", "x"))) is Exit.DENIED
    assert End(pending, TimedOut("x")).document() == {
        "task_id": "t", "state": "pending", "done": 0, "failed": 0, "total": 2,
        "error": {"code": "timed_out", "msg": "x"},
    }  # fmt: skip
    assert merge([]) is Exit.OK
    assert merge([Exit.OK, Exit.OK]) is Exit.OK
    assert merge([Exit.DENIED, Exit.DENIED]) is Exit.DENIED
    assert merge([Exit.OK, Exit.FAILED]) is Exit.PARTLY


# -- the reference


def test_the_reference_tells_of_every_verb_and_argument() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/refreshctl.md").read_text()
    for verb in VERBS:
        start = page.index(f"\n## {verb.word}\n")
        section = page[start : page.find("\n## ", start + 4)]
        assert verb.help in section
        for argument in verb.arguments:
            assert f"`{argument.flags[-1]}" in section or argument.how.get("metavar", "?") in section
            assert argument.help in section
    for code in Exit:
        assert f"| {code.value} |" in page
