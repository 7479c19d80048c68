"""The bench measures what it says: every line is sent to whom it should be, and every reply is counted."""

import json
import sys
from pathlib import Path

import pytest

from tools.bench import __main__ as bench
from tools.bench import floor
from tools.bench.load import drive, post_lines
from tools.bench.report import Row, table, write
from tools.bench.rig import BenchError, Engine, Folder, Program, wait_for
from wire.lines import parse
from wire.shards import worker_of


@pytest.mark.parametrize(("cross", "at_owner"), [(0.0, 400), (0.5, 200)])
def test_lines_are_dealt_to_their_owners_but_for_the_share_that_crosses(cross: float, at_owner: int) -> None:
    dealt = post_lines(400, 2, cross=cross)
    owners = [
        worker_of(parse(line[:-1]).fields["task_id"].encode(), 2) == worker
        for worker, lines in enumerate(dealt)
        for line in lines
    ]
    assert len(owners) == 400
    assert sum(owners) == at_owner


def test_ids_are_random_unless_ascending_ones_are_asked_for() -> None:
    random = [parse(line[:-1]).fields["task_id"] for line in post_lines(50, 1)[0]]
    ascending = [parse(line[:-1]).fields["task_id"] for line in post_lines(50, 1, ids="ascending")[0]]
    assert len(set(random)) == 50
    assert random != sorted(random)
    assert ascending == sorted(ascending)


@pytest.mark.parametrize("depth", [1, 16])
def test_the_engine_accepts_what_the_generator_sends(depth: int) -> None:
    with Folder() as folder, Engine(folder) as engine:
        measured = drive(engine.address, post_lines(300, engine.workers), 4, depth, [engine.program])
    assert measured.rate > 0
    assert set(measured.cpu_us) == {"engine", "generator"}


def test_replies_that_are_not_what_was_wanted_end_the_run() -> None:
    with Folder() as folder, Engine(folder, proxies=0) as engine, pytest.raises(BenchError, match="empty"):
        drive(engine.address, post_lines(300, engine.workers), 4, 16, [engine.program])


def test_the_floor_answers_each_line(tmp_path: Path) -> None:
    port_file = tmp_path / "port"
    command = [sys.executable, floor.__file__, "0", str(tmp_path / "floor.db"), str(port_file)]
    program = Program("floor", command, tmp_path)
    try:
        wait_for("the floor listens", lambda: port_file.exists() and bool(port_file.read_text()), 20)
        address = ("127.0.0.1", int(port_file.read_text()))
        measured = drive(address, post_lines(200, 1), 2, 8, [program], greeting=b"", head=b"ok")
    finally:
        program.stop()
    assert measured.rate > 0


def test_the_table_is_aligned_and_the_json_holds_the_same(tmp_path: Path) -> None:
    rows = [
        Row("accept", "tasks/s", 123456, cpu_us={"engine": 8.5}, extra={"p99_ms": 1.5}, target="≥ 1"),
        Row("restart", "s", 1.25),
    ]
    lines = table(rows).splitlines()
    assert lines[1].split("  ")[0] == "accept"
    assert lines[1].index("123,456") == lines[2].index("1.25") == lines[0].index("value")
    write(tmp_path / "x" / "latest.json", rows)
    figures = json.loads((tmp_path / "x" / "latest.json").read_text())["figures"]
    assert [figure["value"] for figure in figures] == [123456, 1.25]


def test_an_unknown_bench_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["acept"])
    assert "acept" in capsys.readouterr().err
