"""The SQLite store on real files: a model, crashes, faults of the disk, damaged files.

A crash is played by copying the files while they are open, as they would lie on
the disk after a kill -9, and going on with the copy.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable
from refreshd.shard import SERIAL_MAX, first_serial
from refreshd.store import ids, sqlite, sqlite_file, sqlite_index, sqlite_reader, sqlite_rows
from refreshd.store.base import ALL_SHARDS, Batch, ProxyRow
from refreshd.store.sqlite import SqliteLane, SqliteReader
from refreshd.store.sqlite_file import stored_low
from tests.refreshd.store.making import PLANS, RETENTION_S, START_MS, a_batch, content_of, end
from tests.refreshd.store.model import Model


def crash(path: Path, to: Path) -> Path:
    """The files as a kill would leave them; the shared memory beside them is not to be relied on."""
    to.mkdir()
    for suffix in ("", "-wal"):
        if Path(f"{path}{suffix}").exists():
            shutil.copy(f"{path}{suffix}", to / f"{path.name}{suffix}")
    return to / path.name


def content(path: Path) -> tuple[dict[int, bytes], set[int]]:
    """(serial → id, serials that are unfinished) of everything in a lane."""
    reader = SqliteReader(path)
    try:
        return content_of(reader)
    finally:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lane-0.db"


@pytest.fixture
def lane(path: Path) -> Iterator[SqliteLane]:
    lane = SqliteLane(path, RETENTION_S)
    yield lane
    lane._db.close()


# ── the model ─────────────────────────────────────────────────────────────────────────────


class SqliteStore(Model):
    """A lane and its reader against dictionaries; processes are killed, and hand over to others."""

    FAILS = ("BEGIN", "INSERT INTO task", "result", "recent", "COMMIT")

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(ids, "BUCKET_MAX", 3)
        self.patch.setattr(sqlite_rows, "CHUNKS", (4, 2, 1))
        self.patch.setattr(sqlite_index, "RECENT_MAX", 4)
        self.patch.setattr(sqlite_index, "STRETCHES", 16)
        self.patch.setattr(sqlite, "DROP_ROWS", 4)
        self.patch.setattr(sqlite, "_SWEEPS", 2)
        self.patch.setattr(sqlite, "_INDEX_ROWS", 3)
        self.patch.setattr(sqlite_reader, "_SLICE_ROWS", 3)
        self.patch.setattr(sqlite, "STRAGGLE_MS", 20)
        self.patch.setattr(sqlite, "_STRAGGLE_ROWS", 2)
        self.folder = Path(tempfile.mkdtemp(prefix="refreshd-store-"))
        self.crashes = 0
        self.path = self.folder / "lane-0.db"
        self.open()

    lane: SqliteLane

    def open(self) -> None:
        self.lane = SqliteLane(self.path, RETENTION_S, lambda: self.now_ms)
        self.lane.index_finished()
        self.reader = SqliteReader(self.path)

    def failing(self, statement: str) -> AbstractContextManager[object]:
        return failing(self.lane, statement, "SQLITE_FULL")

    def teardown(self) -> None:
        if self.is_open:
            self.reader.close()
            self.lane.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    @rule()
    def kill(self) -> None:
        self.crashes += 1
        before, reader = self.lane, self.reader
        self.path = crash(self.path, self.folder / f"crash-{self.crashes}")
        self.open()
        reader.close()
        before._db.close()

    @rule(shards=st.frozensets(st.integers(0, 63), min_size=20))
    def hand_over(self, shards: frozenset[int]) -> None:
        """To another process, in two steps; the first may be asked until it ends."""
        successor = SqliteLane(self.path, RETENTION_S, lambda: self.now_ms)
        for step in (shards, frozenset(range(64)) - shards):
            asked = {task_id: self.lane.finished_serial(task_id) for task_id in self.seen}
            successor.give_ids(self.lane.take_ids(step))
            assert {task_id: self.lane.finished_serial(task_id) for task_id in self.seen} == asked
        for task_id, serial in asked.items():
            assert successor.finished_serial(task_id) == serial
        self.lane.close(handed_over=True)
        self.lane = successor

    @rule()
    def hand_over_to_one_that_dies(self) -> None:
        """What was given is gone with it, and found again beside commits."""
        self.lane.take_ids(frozenset(range(0, 64, 2)))
        pieces = 0
        while self.lane.index_some(ALL_SHARDS, 2):
            pieces += 1
            assert pieces < 1_000
            if pieces % 3 == 0:
                self.register("a", pieces % 4, gone=False)


TestStore = SqliteStore.TestCase
TestStore.settings = settings(
    max_examples=80, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# ── faults of the disk ────────────────────────────────────────────────────────────────────


class FaultyConnection:
    """A connection whose statements fail on demand, as SQLite lets them fail."""

    def __init__(self, db: sqlite3.Connection, statement: str, name: str) -> None:
        self.db = db
        self.statement = statement
        self.name = name
        self.failed = 0

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        if self.statement in sql:
            self.failed += 1
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorname = self.name
            raise error
        return self.db.execute(sql, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


class failing:
    """Within it, the lane's statements that hold `statement` fail with SQLite's error `name`."""

    def __init__(self, lane: SqliteLane, statement: str, name: str) -> None:
        self.lane: Any = lane
        self.db = lane._db
        self.faulty = FaultyConnection(self.db, statement, name)

    def __enter__(self) -> failing:
        self.lane._db = self.faulty
        return self

    def __exit__(self, *_: object) -> None:
        self.lane._db = self.db

    def __bool__(self) -> bool:
        return self.faulty.failed > 0


STEPS = ["BEGIN", "INTO plan", "INTO task", "INTO result", "INTO recent", "INTO meta", "COMMIT"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("SQLITE_FULL", StoreUnavailable),
        ("SQLITE_BUSY", StoreUnavailable),
        ("SQLITE_IOERR_WRITE", StoreUnavailable),
        ("SQLITE_READONLY_DBMOVED", StoreUnavailable),
        ("SQLITE_IOERR_FSYNC", StoreFailed),
        ("SQLITE_IOERR_DIR_FSYNC", StoreFailed),
        ("SQLITE_CORRUPT", StoreDamaged),
        ("SQLITE_NOTADB", StoreDamaged),
        ("SQLITE_INTERNAL", StoreFailed),
    ],
)
def test_a_batch_is_kept_whole_or_not_at_all(
    path: Path,
    lane: SqliteLane,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    name: str,
    error: type[StoreError],
) -> None:
    monkeypatch.setattr(ids, "BUCKET_MAX", 1)
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.0)
    lane.commit(a_batch(b"old", first=5))
    before = content(path)
    batch = end(a_batch(b"new", first=9, plan=PLANS[1]), 5, b"old")
    batch.low = 5
    with failing(lane, step, name) as failed, pytest.raises(error, match="injected") as caught:
        lane.commit(batch)
    assert failed
    assert name in str(caught.value)
    assert type(caught.value) is error
    assert content(path) == before
    assert lane.finished_serial(b"old") is None
    assert not len(lane._pending)
    # The same batch again, now that there is room.
    assert lane.commit(batch) == {}
    assert content(path) == ({5: b"old", 9: b"new"}, {9})
    assert lane.commit(a_batch(b"old", first=20)) == {b"old": 5}


def test_a_failed_roll_back_is_not_to_be_trusted(lane: SqliteLane) -> None:
    class Both(FaultyConnection):
        def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
            self.statement = sql if sql in ("COMMIT", "ROLLBACK") else "-"
            return super().execute(sql, values)

    faulty: Any = Both(lane._db, "-", "SQLITE_FULL")
    db, lane._db = lane._db, faulty
    with pytest.raises(StoreFailed, match="could not roll back"):
        lane.commit(a_batch(b"t"))
    lane._db = db


def test_a_full_disk_and_room_again(path: Path, lane: SqliteLane) -> None:
    """SQLite's own SQLITE_FULL, by a limit on the number of pages."""
    lane.commit(a_batch(b"first"))
    pages = lane._db.execute("PRAGMA page_count").fetchone()[0]
    lane._db.execute(f"PRAGMA max_page_count={pages + 2}")
    large = a_batch(*(b"large-%d" % i for i in range(200)), first=100)
    large.tasks = [(serial, task_id, plan, body * 20) for serial, task_id, plan, body in large.tasks]
    end(large, 1, b"first")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
            lane.commit(large)
        assert content(path) == ({1: b"first"}, {1})
    lane._db.execute("PRAGMA max_page_count=1000000")
    assert lane.commit(large) == {}
    assert len(content(path)[0]) == 201


def test_a_locked_file_is_unavailable(path: Path, lane: SqliteLane, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.01)
    with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
        lane.commit(a_batch(b"t"))
    other.execute("ROLLBACK")
    other.close()
    assert lane.commit(a_batch(b"t")) == {}


def test_a_commit_waits_for_another_process(
    path: Path, lane: SqliteLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    steps: list[float] = []

    def step(seconds: float) -> None:
        steps.append(seconds)
        if len(steps) == 3:
            other.execute("COMMIT")

    monkeypatch.setattr(sqlite_file.time, "sleep", step)
    assert lane.commit(a_batch(b"t")) == {}
    assert steps == [sqlite_file.BUSY_STEP_S] * 3
    other.close()


def test_two_tasks_of_one_serial_are_a_fault_of_ours(path: Path, lane: SqliteLane) -> None:
    lane.commit(a_batch(b"one"))
    with pytest.raises(StoreFailed, match="SQLITE_CONSTRAINT"):
        lane.commit(a_batch(b"two"))
    assert content(path)[0] == {1: b"one"}


@pytest.mark.parametrize("call", ["idle", "index_finished"])
def test_upkeep_that_fails_changes_nothing(path: Path, call: str) -> None:
    lane = SqliteLane(path, RETENTION_S, lambda: START_MS + 1_000_000)
    lane.commit(end(a_batch(b"t"), 1, b"t"))
    upkeep: Callable[[], object] = getattr(lane, call)
    for name, error in (("SQLITE_FULL", StoreUnavailable), ("SQLITE_IOERR_FSYNC", StoreFailed)):
        with failing(lane, "COMMIT", name), pytest.raises(error):
            upkeep()
        assert content(path)[0] == {1: b"t"}
        assert lane.commit(a_batch(b"t", first=2)) == {b"t": 1}
    upkeep()
    lane.close()


def test_closing_with_a_full_disk_loses_nothing(path: Path) -> None:
    lane = SqliteLane(path, RETENTION_S)
    lane.commit(end(a_batch(b"t", b"u"), 1, b"t"))
    with failing(lane, "INTO recent", "SQLITE_FULL"):
        lane.close()
    again = SqliteLane(path, RETENTION_S)
    again.index_finished()
    assert again.commit(a_batch(b"t", first=9)) == {b"t": 1}
    again.close()


# ── crashes ───────────────────────────────────────────────────────────────────────────────


def history(path: Path) -> list[tuple[dict[int, bytes], set[int]]]:
    """Ten commits that stay in the log; what the lane held after each."""
    lane = SqliteLane(path, RETENTION_S)
    seen = [content(path)]
    for i in range(10):
        batch = a_batch(*(b"t%d-%d" % (i, j) for j in range(3)), first=10 * i + 1)
        if i:
            end(batch, 10 * (i - 1) + 1, b"t%d-0" % (i - 1))
        lane.commit(batch)
        seen.append(content(path))
    copy = crash(path, path.parent / "history")
    lane._db.close()
    assert copy.with_name(copy.name + "-wal").stat().st_size > 40_000
    return seen


@pytest.fixture(scope="module")
def ten_commits(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[tuple[dict[int, bytes], set[int]]]]:
    path = tmp_path_factory.mktemp("history") / "lane-0.db"
    return path.parent / "history" / "lane-0.db", history(path)


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1), how=st.sampled_from(["cut", "flip", "zero"]))
def test_a_damaged_log_gives_whole_commits_and_the_first_ones(
    ten_commits: tuple[Path, list[tuple[dict[int, bytes], set[int]]]], share: float, how: str
) -> None:
    source, states = ten_commits
    with tempfile.TemporaryDirectory() as folder:
        path = crash(source, Path(folder) / "copy")
        wal = path.with_name(path.name + "-wal")
        data = bytearray(wal.read_bytes())
        at = int(share * (len(data) - 1))
        if how == "cut":
            del data[at:]
        elif how == "flip":
            data[at] ^= 0x40
        else:
            data[at:] = bytes(len(data) - at)
        wal.write_bytes(data)
        lane = SqliteLane(path, RETENTION_S)
        lane.index_finished()
        assert content(path) in states
        lane.close()


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.02, 0.98), seed=st.integers(0, 1 << 30), how=st.sampled_from(["cut", "noise"]))
def test_a_damaged_file_is_refused(share: float, seed: int, how: str) -> None:
    """A file that is cut, or a page of it full of noise: refused when it is read, never less than there was.

    (For a flipped bit in a request line see below.)
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lane-0.db"
        lane = SqliteLane(path, RETENTION_S)
        for i in range(20):
            batch = a_batch(*(b"t%d-%d" % (i, j) for j in range(50)), first=100 * i + 1)
            for j in range(25):
                end(batch, 100 * i + 1 + j, b"t%d-%d" % (i, j))
            lane.commit(batch)
        lane.close()
        whole = content(path)
        data = bytearray(path.read_bytes())
        at = int(share * len(data)) // 4096 * 4096
        if how == "cut":
            del data[at + 100 :]
        else:
            data[at : at + 4096] = random.Random(seed).randbytes(4096)
        path.write_bytes(data)
        try:
            damaged = SqliteLane(path, RETENTION_S)
            damaged.index_finished()
            damaged._db.close()
            found = content(path)
        except StoreDamaged:
            return
        # The page was not in use (or only by the index of ids, which is rebuilt).
        assert found == whole


@pytest.mark.parametrize("ended", [False, True])
def test_a_flipped_bit_in_a_request_line_is_refused(path: Path, ended: bool) -> None:
    lane = SqliteLane(path, RETENTION_S)
    lane.commit(a_batch(b"t1", b"t2", b"t3"))
    if ended:
        lane.commit(end(Batch(), 2, b"t2"))
    lane.close()
    data = bytearray(path.read_bytes())
    at = data.index(b"task_id=t2 ") + 20
    data[at] ^= 1
    path.write_bytes(data)
    reader = SqliteReader(path)
    reads: list[Callable[[], object]] = [lambda: reader.serials([2])]
    reads.append(lambda: reader.find(b"t2", crc32(b"t2")) if ended else list(reader.unfinished()))
    for read in reads:
        with pytest.raises(StoreDamaged, match="task 2 is not what was written"):
            read()
    assert [stored.id for stored in reader.serials([1, 3])] == [b"t3", b"t1"]
    reader.close()


@pytest.mark.parametrize(
    "data", [b"not a database, but long enough to be looked at" * 100, b"SQLite format 3\0" + b"\xff" * 9000]
)
def test_a_file_that_is_no_database(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="damaged"):
        SqliteLane(path, RETENTION_S)


def test_an_old_unfinished_task_does_not_make_a_start_look_through_what_came_after(path: Path) -> None:
    """Its row is found all the same, and its id once it has finished, also after a crash."""
    now_ms = START_MS
    lane = SqliteLane(path, 1e9, lambda: now_ms)
    serial = first_serial(now_ms)
    old, young = a_batch(b"old", first=serial), a_batch(b"young", first=serial + 1)
    lane.commit(old)
    lane.commit(young)
    lane.commit(end(a_batch(), serial + 1, b"young"))
    now_ms = START_MS + sqlite.STRAGGLE_MS + 1000
    while lane.idle():
        pass
    low = stored_low(lane._db)
    assert low > max(old.tasks[0][0], young.tasks[0][0])
    reader = SqliteReader(path)
    assert [row[0] for row in reader.unfinished()] == [old.tasks[0][0]]
    assert [stored.id for stored in reader.page(SERIAL_MAX, 10, None, unfinished=True)] == [b"old"]
    lane.commit(end(a_batch(), serial, b"old"))
    # A crash: what waits to be indexed is gone with the process.
    crashed = SqliteLane(path, 1e9, lambda: now_ms)
    crashed.index_finished()
    for batch in (old, young):
        again = a_batch(batch.tasks[0][1], first=serial + 2)
        assert crashed.commit(again) == {again.tasks[0][1]: batch.tasks[0][0]}
    assert list(reader.unfinished()) == []
    for open_ in (reader, crashed, lane):
        open_.close()


def test_a_request_line_that_is_not_what_was_written_is_refused(path: Path) -> None:
    lane = SqliteLane(path, RETENTION_S)
    lane.commit(a_batch(b"t"))
    # What a flipped bit does to a URL: it is still a URL, only not the one that was acknowledged.
    lane._db.execute("UPDATE task SET body = CAST(replace(CAST(body AS TEXT), 'http://', 'httq://') AS BLOB)")
    reader = SqliteReader(path)
    serial = reader.last_serial()
    with pytest.raises(StoreDamaged, match=f"request line of task {serial}"):
        list(reader.unfinished())
    with pytest.raises(StoreDamaged, match=f"request line of task {serial}"):
        reader.serials([serial])
    reader.close()
    lane.close()


def test_a_file_of_a_newer_version(path: Path) -> None:
    lane = SqliteLane(path, RETENTION_S)
    version = lane._db.execute("PRAGMA user_version").fetchone()[0]
    lane.commit(a_batch(b"t"))
    lane._db.execute(f"PRAGMA user_version={version + 1}")
    lane.close()
    with pytest.raises(StoreDamaged, match=f"schema {version + 1}, this version knows {version}"):
        SqliteLane(path, RETENTION_S)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM task").fetchone() == (1,)
    db.close()


def test_opening_twice_migrates_once(path: Path) -> None:
    for first in (1, 2, 3):
        lane = SqliteLane(path, RETENTION_S)
        lane.commit(a_batch(b"t%d" % first, first=first))
        lane.close()
    assert content(path)[0] == {1: b"t1", 2: b"t2", 3: b"t3"}


def test_a_migration_that_fails_leaves_no_half(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sqlite_file._statements

    def cut(script: str) -> Iterator[str]:
        yield from list(whole(script))[:2]
        yield "CREATE NONSENSE"

    monkeypatch.setattr(sqlite_file, "_statements", cut)
    with pytest.raises(StoreFailed, match="NONSENSE"):
        SqliteLane(path, RETENTION_S)
    monkeypatch.undo()
    lane = SqliteLane(path, RETENTION_S)
    assert lane.commit(a_batch(b"t")) == {}
    lane.close()


def test_every_id_is_indexed_after_a_crash(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_INDEX_ROWS", 3)
    lane = SqliteLane(path, RETENTION_S)
    batch = a_batch(*(b"t%d" % i for i in range(10)))
    for i in range(10):
        end(batch, 1 + i, b"t%d" % i)
    lane.commit(batch)
    again = SqliteLane(crash(path, tmp_path / "crash"), RETENTION_S)
    again.index_finished()
    assert again.commit(a_batch(*(b"t%d" % i for i in range(11)), first=100)) == {
        b"t%d" % i: 1 + i for i in range(10)
    }
    again.close()
    lane.close()


# ── low watermark ─────────────────────────────────────────────────────────────────────────


def test_an_id_that_waits_is_found_after_a_crash_though_low_is_past_it(
    path: Path, tmp_path: Path, lane: SqliteLane
) -> None:
    lane.commit(end(a_batch(b"t", b"u"), 1, b"t"))
    batch = end(a_batch(b"v", first=3), 2, b"u")
    batch.low = 2
    lane.commit(batch)
    later = a_batch(b"w", first=5)
    later.low = 3
    lane.commit(later)
    copy = crash(path, tmp_path / "crash")
    again = SqliteLane(copy, RETENTION_S)
    assert again.commit(a_batch(b"t", first=9)) == {}, "lost with the process, until it is indexed anew"
    again._db.close()
    again = SqliteLane(crash(path, tmp_path / "another"), RETENTION_S)
    again.index_finished()
    assert again.commit(a_batch(b"t", b"u", b"x", first=9)) == {b"t": 1, b"u": 2}
    again.close()


def test_low_is_what_all_sharers_of_a_lane_said(path: Path) -> None:
    def low_of(slot: int, sharers: list[int], low: int) -> None:
        lane = SqliteLane(path, RETENTION_S, slot=slot, sharers=sharers)
        batch = Batch()
        batch.low = low
        batch.proxies = [ProxyRow("p", "g", 0)]
        lane.commit(batch)
        lane._db.close()

    reader = SqliteReader(_made(path))
    said = [(0, [0, 1], 50, 0), (1, [0, 1], 30, 30), (0, [0, 1], 70, 30), (1, [0, 1], 60, 60)]
    said += [
        (0, [0], 40, 60),
        (0, [0], 90, 90),
        (3, [1, 3], 200, 90),
        (1, [1, 3], 20, 90),
        (1, [1, 3], 100, 100),
    ]
    for slot, sharers, low, expected in said:
        low_of(slot, sharers, low)
        assert stored_low(reader._db) == expected, (slot, sharers, low)
    assert reader.last_serial() == 200
    reader.close()


def _made(path: Path) -> Path:
    SqliteLane(path, RETENTION_S).close()
    return path


def test_two_workers_write_one_lane(path: Path) -> None:
    one = SqliteLane(path, RETENTION_S, slot=0, sharers=[0, 2])
    two = SqliteLane(path, RETENTION_S, slot=2, sharers=[0, 2])
    one.commit(a_batch(b"a", first=1))
    two.commit(a_batch(b"b", first=2))
    one.commit(end(a_batch(b"c", first=3), 1, b"a"))
    two.commit(end(a_batch(b"d", first=4), 2, b"b"))
    assert content(path) == ({1: b"a", 2: b"b", 3: b"c", 4: b"d"}, {3, 4})
    one.close()
    assert two.commit(a_batch(b"e", first=5)) == {}
    two.close()
    again = SqliteLane(path, RETENTION_S)
    assert again.commit(a_batch(b"a", b"b", first=9)) == {b"a": 1, b"b": 2}
    again.close()


def test_an_id_that_another_worker_dropped_while_it_waited_may_be_used_again(path: Path) -> None:
    now_ms = START_MS
    one, two = (SqliteLane(path, RETENTION_S, lambda: now_ms, slot=s, sharers=[0, 1]) for s in (0, 1))
    serial = first_serial(now_ms)
    one.commit(end(a_batch(b"t", b"u", first=serial), serial, b"t"))
    assert one.commit(a_batch(b"t", first=serial + 2)) == {b"t": serial}
    now_ms += int(RETENTION_S * 1000) + 1
    assert two.idle()
    assert one.commit(a_batch(b"t", first=serial + 3)) == {}
    assert one.finished_serial(b"t") is None
    one.commit(end(Batch(), serial + 3, b"t", ms=now_ms))
    for lane in (one, two):
        lane.close()
    reader = SqliteReader(path)
    found = reader.find(b"t", crc32(b"t"))
    assert found is not None
    assert found.serial == serial + 3
    reader.close()


def test_a_standby_sees_the_first_id_that_its_predecessor_wrote(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = SqliteLane(path, RETENTION_S)
    after = SqliteLane(path, RETENTION_S)
    assert after.commit(a_batch(b"x", first=90)) == {}
    monkeypatch.setattr(ids, "BUCKET_MAX", 1)
    before.commit(end(a_batch(b"t"), 1, b"t"))
    assert before.take_ids(frozenset(range(64))) == []
    assert after.commit(a_batch(b"t", first=91)) == {b"t": 1}
    before.close(handed_over=True)
    after.close()


def test_what_was_given_is_written_without_a_commit(path: Path, lane: SqliteLane) -> None:
    batch = a_batch(*(b"t%d" % i for i in range(5_000)))
    lane.commit(batch)
    lane.give_ids((i, task_id, serial) for i, (serial, task_id, _, _) in enumerate(batch.tasks))
    for _ in range(40):
        if not lane.idle():
            break
    else:
        pytest.fail("upkeep never ends")
    (written,) = lane._db.execute("SELECT count(*) FROM recent").fetchone()
    assert written > 5_000 - ids.BUCKET_MAX


def test_a_lane_that_was_handed_over_leaves_the_log_alone(path: Path) -> None:
    before = SqliteLane(path, RETENTION_S)
    after = SqliteLane(path, RETENTION_S)
    before.commit(end(end(a_batch(b"t", b"u"), 1, b"t"), 2, b"u"))
    after.give_ids(before.take_ids(frozenset({crc32(b"t") & 63})))
    wal = path.with_name(path.name + "-wal")
    size = wal.stat().st_size
    # The successor is amid a commit: nobody waits. What was not taken is written all the same.
    other = SqliteLane(path, RETENTION_S)
    after._db.execute("BEGIN IMMEDIATE")
    other.close(handed_over=True)
    after._db.execute("ROLLBACK")
    before.close(handed_over=True)
    assert wal.stat().st_size >= size
    assert after.commit(a_batch(b"t", b"u", first=9)) == {b"t": 1, b"u": 2}
    after.close()


def test_a_lane_with_other_sharers_waits_for_their_low(path: Path) -> None:
    lane = SqliteLane(path, RETENTION_S, slot=0, sharers=[0])

    def say(low: int) -> int:
        batch = Batch()
        batch.low, batch.forgotten = low, ["p"]
        lane.commit(batch)
        return stored_low(lane._db)

    assert say(5) == 5
    lane.share([0, 1])
    assert say(9) == 5
    lane.share([0])
    assert say(12) == 12
    lane.close()


def _commits_for_ever(path: Path, first: int) -> None:
    """Tasks that end at once, batch by batch, until it is killed."""
    lane = SqliteLane(path, RETENTION_S)
    for at in itertools.count(first, 10):
        batch = a_batch(*(b"old-%d" % serial for serial in range(at, at + 10)), first=at)
        for serial in range(at, at + 10):
            end(batch, serial, b"old-%d" % serial)
        lane.commit(batch)
        if at == first + 200:
            print("going", flush=True)


def test_a_successor_goes_on_when_its_predecessor_is_killed_amid_a_commit(path: Path) -> None:
    code = f"from tests.refreshd.store import test_sqlite as t; t._commits_for_ever(t.Path({str(path)!r}), 1)"
    lane = SqliteLane(path, RETENTION_S)
    for kill in range(3):
        # An odd first serial a kill, far enough from the others.
        command = [sys.executable, "-c", code.replace(", 1)", f", {kill * 1_000_000 + 1})")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as predecessor:
            assert predecessor.stdout is not None
            assert predecessor.stdout.readline() == b"going\n"
            own = 50_000_000 + kill * 1_000
            for step in range(20):
                lane.commit(end(a_batch(b"own-%d" % (own + step), first=own + step), own + step, b"own"))
            predecessor.kill()
        step = 100
        while lane.index_some(ALL_SHARDS, 64):
            step += 1
            assert lane.commit(a_batch(b"mine-%d" % (own + step), first=own + step)) == {}
    kept = [s for (s,) in lane._db.execute("SELECT serial FROM result WHERE serial < 50000000")]
    assert len(kept) >= 600
    repeats = a_batch(*(b"old-%d" % serial for serial in kept), first=90_000_000)
    assert lane.commit(repeats) == {b"old-%d" % serial: serial for serial in kept}
    lane.close()


def test_lanes_are_files_of_their_own(tmp_path: Path) -> None:
    lanes = [SqliteLane(tmp_path / f"lane-{i}.db", RETENTION_S) for i in range(2)]
    for i, lane in enumerate(lanes):
        # One id in both is never asked for, but must not disturb.
        assert lane.commit(end(a_batch(b"t%d" % i, b"same"), 2, b"same")) == {}
    for i, lane in enumerate(lanes):
        lane.close()
        assert content(tmp_path / f"lane-{i}.db")[0] == {1: b"t%d" % i, 2: b"same"}


# ── retention ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bucket_max", [1, 512])
def test_an_id_may_be_used_again_once_its_task_is_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch, bucket_max: int
) -> None:
    """Whether the id was in the index by then (1) or waited for it (512)."""
    monkeypatch.setattr(ids, "BUCKET_MAX", bucket_max)
    now_ms = START_MS
    lane = SqliteLane(path, RETENTION_S, lambda: now_ms)
    serial = first_serial(now_ms)
    lane.commit(end(a_batch(b"t", first=serial), serial, b"t"))
    assert lane.commit(a_batch(b"t", first=serial + 1)) == {b"t": serial}
    now_ms += int(RETENTION_S * 1000) + 1
    assert lane.idle()
    # The index may still have the id; it counts no more.
    assert lane.commit(end(a_batch(b"t", first=serial + 2), serial + 2, b"t", ms=now_ms)) == {}
    while lane.idle():
        pass
    assert lane.commit(a_batch(b"t", first=serial + 3)) == {b"t": serial + 2}
    lane.close()
    reader = SqliteReader(path)
    found = reader.find(b"t", crc32(b"t"))
    assert found is not None
    assert found.serial == serial + 2
    reader.close()


def test_unfinished_tasks_are_kept_however_old(path: Path) -> None:
    lane = SqliteLane(path, RETENTION_S, lambda: START_MS + 10**10)
    batch = a_batch(b"old", b"done", first=first_serial(START_MS))
    lane.commit(batch)
    lane.commit(end(Batch(), first_serial(START_MS) + 1, b"done"))
    while lane.idle():
        pass
    assert list(content(path)[0].values()) == [b"old"]
    assert lane.idle() is False
    lane.close()
