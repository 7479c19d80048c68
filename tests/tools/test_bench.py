"""The bench measures what it says: every line goes where it should, every reply is counted and looked at."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.bench import __main__ as bench
from tools.bench import endtoend, fanout, memory, micro, mysql, peers
from tools.bench.errors import BenchError
from tools.bench.fleet import Fleet
from tools.bench.lines import LINE_BYTES, id_of, post_lines
from tools.bench.load import Measured, Replies, Shape, drive, percentiles
from tools.bench.meter import Meter, Spent
from tools.bench.programs import Program, Tree, wait_for
from tools.bench.report import Aim, Row, row_of, table, verdicts, write
from tools.bench.rig import Engine, folder
from wire.lines import parse
from wire.shards import worker_of


@pytest.mark.parametrize(("cross", "at_owner"), [(0.0, 400), (0.5, 200)])
def test_lines_are_dealt_to_their_owners_but_for_the_share_that_crosses(cross: float, at_owner: int) -> None:
    dealt = post_lines(400, 2, cross=cross)
    owners = [worker_of(id_of(line), 2) == worker for worker, lines in enumerate(dealt) for line in lines]
    assert len(owners) == 400
    assert sum(owners) == at_owner


@pytest.mark.parametrize("ids", ["random", "ascending"])
def test_a_line_is_a_task_of_the_size_that_is_said(ids: str) -> None:
    for line in post_lines(50, 1, ids=ids)[0]:
        assert len(line) == LINE_BYTES
        assert line.endswith(b"\n")
        parsed = parse(line[:-1])
        assert parsed.verb == "post_task"
        assert parsed.fields["task_id"].encode() == id_of(line)
        assert parsed.items is not None
        assert len(parsed.items) == 1


def test_ids_are_random_unless_ascending_ones_are_asked_for() -> None:
    random, ascending = (
        [id_of(line) for line in post_lines(50, 1, ids=ids)[0]] for ids in ("random", "ascending")
    )
    assert len(set(random)) == 50
    assert random != sorted(random)
    assert ascending == sorted(ascending)


# ── replies and latencies ─────────────────────────────────────────────────────────────────


def count(data: bytes, step: int) -> int:
    """How many replies are in `data`, which comes in pieces."""
    replies = Replies(b"ok task_id=")
    return sum(replies.feed(data[at : at + step]) for at in range(0, len(data), step))


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_replies_are_counted_however_they_are_cut(step: int) -> None:
    data = b"ok task_id=a\nok task_id=b\n" * 5
    assert count(data, step) == 10


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_one_bad_reply_among_good_ones_is_found(step: int) -> None:
    data = b"ok task_id=a\n" * 20 + b"err code=busy msg=x\n" + b"ok task_id=b\n" * 20
    with pytest.raises(BenchError, match="code=busy"):
        count(data, step)


def test_percentiles_are_of_requests_not_of_reads() -> None:
    assert percentiles([(1.0, 98), (5.0, 1), (9.0, 1)], (0.5, 0.99, 1.0)) == [1.0, 5.0, 9.0]


# ── what is measured ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [Shape(4, 1), Shape(4, 16)])
def test_the_engine_accepts_what_the_generator_sends(shape: Shape) -> None:
    with folder() as where, Engine(where) as engine:
        measured = drive([engine.address], post_lines(300, 2, cross=0.5), shape, [engine.program])
        assert engine.stats()["tasks_accepted"] == 300
    assert measured.rate > 0
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert set(measured.spent.cpu_us) == {"engine", "generator"}
    assert len(measured.spent.processes_us) == 3


def test_replies_that_are_not_what_was_wanted_end_the_run() -> None:
    with folder() as where, Engine(where, proxies=0) as engine, pytest.raises(BenchError, match="empty"):
        drive([engine.address], post_lines(300, 2), Shape(4, 16), [engine.program])


def test_every_pair_is_pushed_and_complete() -> None:
    row = fanout.measure(5, 40)
    assert row.value > 0
    assert row.cpu_us.keys() == {"engine", "generator"}


def test_memory_with_everything_pushed_and_a_restart_with_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROXIES", 3)
    # With fewer, what a process holds whatever it does counts for more.
    measured = memory.measure(5_000)
    assert min(measured.away, measured.silent, measured.one_left, measured.restarted) > 0
    assert 0 < measured.restart.ping_s <= measured.restart.ready_s


def test_a_lost_proxy_spoils_the_measurement() -> None:
    async def play(engine: Engine) -> None:
        async with Fleet(engine, 2) as fleet:
            engine.program.kill()
            await fleet.pushed_to_all(1)

    with folder() as where, Engine(where, proxies=2) as engine, pytest.raises(BenchError, match="closed"):
        asyncio.run(play(engine))


@pytest.mark.needs("varnishd")
def test_through_a_real_varnish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endtoend, "IDLE", (3, 3))
    monkeypatch.setattr(endtoend, "SUSTAINED", (50, 50))
    idle, sustained = endtoend.run(quick=True)
    assert idle.value > 0
    assert sustained.cpu_us.keys() == {"engine", "agent", "varnish", "generator"}


def without(program: str) -> pytest.MarkDecorator:
    """Skips; not `needs`, as `make test` installs no peers."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_floor_answers_each_line(processes: int) -> None:
    measured = peers.floor(processes, 200, Shape(2, 8))
    assert measured.rate > 0
    assert set(measured.spent.cpu_us) == {"floor", "generator"}


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(peers.redis, marks=without("redis-server")),
        pytest.param(peers.beanstalkd, marks=without("beanstalkd")),
    ],
)
def test_a_peer_acknowledges_each(measure: Callable[[int, Shape], Measured]) -> None:
    assert measure(100, Shape(2, 4)).rate > 0


@pytest.mark.needs("mariadbd")
def test_commits_to_a_database_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql, "ROWS", (1_000, 1_000))
    monkeypatch.setattr(mysql, "_SETTINGS", ())
    rows = mysql.run(quick=True)
    assert len(rows) == 4
    assert all(row.value > 0 and row.cpu_us["engine"] > 0 for row in rows)


def test_the_small_figures_are_of_what_the_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "ROWS", (512, 512))
    monkeypatch.setattr(micro, "REPEAT_S", 0.001)
    assert all(row.value > 0 for row in micro.run(quick=True))
    assert all(row.value > 0 for row in fanout.parts(1))


# ── processes and CPU ─────────────────────────────────────────────────────────────────────


def test_cpu_is_shared_out_by_process_and_operation(tmp_path: Path) -> None:
    program = Program("busy", ["sh", "-c", "while :; do :; done"], tmp_path)
    try:
        meter = Meter([program, Tree("gone", 1 << 30)])
        wait_for("it has used some CPU", lambda: sum(program.cpu_s().values()) >= 0.1)
        spent = meter.spent(100)
    finally:
        program.kill()
    assert spent.cpu_us["busy"] >= 900
    assert spent.cpu_us["gone"] == 0
    assert sum(spent.processes_us.values()) == pytest.approx(spent.cpu_us["busy"], abs=0.1)


def test_a_program_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = Program("short", ["sh", "-c", "echo no room; exit 3"], tmp_path)
    program.process.wait(10)
    with pytest.raises(BenchError, match=r"short ended with 3: no room"):
        program.check_alive()


# ── the report ────────────────────────────────────────────────────────────────────────────

ROWS = [
    Row(
        "accept",
        123456,
        "tasks/s",
        {"engine": 12.5},
        {"p99_ms": 1.5},
        (Aim("value", least=100_000), Aim("engine", most=10), Aim("p99_ms", most=15)),
    ),
    Row("restart", 1.25, "s"),
]


def test_the_table_is_aligned() -> None:
    lines = table(ROWS).splitlines()
    assert lines[1].startswith("accept ")
    assert lines[1].index("123,456") == lines[2].index("1.25") == lines[0].index("value")
    assert "engine 12.5" in lines[1]


def test_what_was_aimed_at_stands_beside_what_was_measured() -> None:
    lines = [" ".join(line.split()) for line in verdicts(ROWS).splitlines()]
    assert lines[1:] == [
        "accept ≥ 100,000 tasks/s 123,456 met",
        "accept ≤ 10 CPU µs, engine 12.5 missed by 25 %",
        "accept ≤ 15 ms p99 1.5 met",
    ]
    assert verdicts(ROWS[1:]) == ""


def test_a_row_is_the_median_of_its_runs() -> None:
    runs = [Measured(rate, 1.0, 2.0, Spent(1.0, {"engine": 5.0}, {}, 3)) for rate in (30, 10, 20)]
    row = row_of("accept", runs)
    assert (row.value, row.extra["lowest"], row.extra["highest"]) == (20, 10, 30)


def test_the_json_holds_the_same(tmp_path: Path) -> None:
    write(tmp_path / "x" / "latest.json", ROWS)
    figures = json.loads((tmp_path / "x" / "latest.json").read_text())["figures"]
    assert [figure["value"] for figure in figures] == [123456, 1.25]
    assert figures[0]["aims"][1] == {"of": "engine", "least": None, "most": 10, "verdict": "missed by 25 %"}


def test_one_that_cannot_be_made_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(quick: bool) -> list[Row]:
        raise BenchError("no luck")

    monkeypatch.setattr(bench, "BENCHES", {"accept": broken, "micro": lambda quick: ROWS})
    assert bench.main(["--json", str(tmp_path / "latest.json")]) == 1
    out, err = capsys.readouterr()
    assert "no luck" in err
    assert "restart" in out


def test_an_unknown_bench_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["acept"])
    assert "acept" in capsys.readouterr().err


def test_the_names_that_the_code_cites_are_there() -> None:
    assert {"fanout", "memory", "micro"} <= bench.BENCHES.keys()
