"""The two levels of the index of ids: what is found through a merge, and what a merge leaves behind."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from refreshd.store import sqlite_index as index
from refreshd.store.base import Batch, IdEntry
from refreshd.store.sqlite import SqliteLane
from refreshd.store.sqlite_file import connect, migrate

NUMBER = 4_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = connect(tmp_path / "lane-0.db")
    migrate(db)
    yield db
    db.close()


def with_tasks(db: sqlite3.Connection, serials: range) -> list[IdEntry]:
    """Tasks, and their entries in order."""
    ids = [(serial, b"t%d" % serial) for serial in serials]
    db.execute("BEGIN")
    db.executemany("INSERT INTO task VALUES (?, ?, 1, x'', 0)", ids)
    db.execute("COMMIT")
    return sorted((crc32(task_id), task_id, serial) for serial, task_id in ids)


def levels(db: sqlite3.Connection) -> list[int]:
    return [db.execute(f"SELECT count(*) FROM {level}").fetchone()[0] for level in ("recent", "finished")]


def merge(db: sqlite3.Connection, stretches: range) -> int:
    """In one transaction: each has a sync."""
    db.execute("BEGIN")
    merged = sum(index.merge(db, stretch) for stretch in stretches)
    db.execute("COMMIT")
    return merged


def merge_all(db: sqlite3.Connection) -> int:
    return merge(db, range(index.STRETCHES))


def assert_known(db: sqlite3.Connection, entries: list[IdEntry]) -> None:
    assert dict(index.known(db, [crc for crc, _, _ in entries])) == {i: serial for _, i, serial in entries}
    for crc, task_id, serial in entries[::97]:
        assert index.find(db, task_id, crc) == [serial]


def test_every_entry_is_found_before_amid_and_after_a_merge(db: sqlite3.Connection) -> None:
    assert not index.any_entry(db)
    entries = with_tasks(db, range(1, NUMBER + 1))
    index.add(db, entries)
    assert levels(db) == [NUMBER, 0]
    assert_known(db, entries)
    half = merge(db, range(index.STRETCHES // 2))
    assert 0 < half < NUMBER
    assert levels(db) == [NUMBER - half, half]
    assert_known(db, entries)
    assert half + merge_all(db) == NUMBER
    assert levels(db) == [0, NUMBER]
    assert index.any_entry(db)
    assert_known(db, entries)


def test_stretches_cover_every_crc(db: sqlite3.Connection) -> None:
    index.add(db, [(crc, b"t", 1) for crc in (0, (1 << 32) - 1)])
    assert merge_all(db) == 2


def test_the_later_of_two_tasks_counts(db: sqlite3.Connection) -> None:
    """As when the first one was dropped, and its id was used again."""
    (entry,) = with_tasks(db, range(1, 2))
    index.add(db, [entry])
    merge_all(db)
    db.execute("UPDATE task SET serial = 9")
    later = (*entry[:2], 9)
    index.add(db, [later])
    assert sorted(index.find(db, entry[1], entry[0])) == [1, 9]
    assert_known_only(db, later)
    merge_all(db)
    assert index.find(db, entry[1], entry[0]) == [9]
    # The other way round: what is older comes late, out of another process's journal.
    index.add(db, [entry])
    merge_all(db)
    assert index.find(db, entry[1], entry[0]) == [9]


def assert_known_only(db: sqlite3.Connection, entry: IdEntry) -> None:
    assert list(index.known(db, [entry[0]])) == [(entry[1], entry[2])]


def test_a_sweep_drops_what_is_gone_from_both_levels(db: sqlite3.Connection) -> None:
    entries = with_tasks(db, range(1, NUMBER + 1))
    index.add(db, entries[::2])
    merge_all(db)
    index.add(db, entries[1::2])
    db.execute("DELETE FROM task WHERE serial % 4 < 2")
    index.sweep(db, 0, 1 << 32, NUMBER // 2)
    gone = {serial for _, _, serial in entries if serial % 4 < 2 and serial < NUMBER // 2}
    assert sum(levels(db)) == NUMBER - len(gone)


def test_how_full_the_upper_level_is_can_be_told_from_a_few_stretches(db: sqlite3.Connection) -> None:
    assert index.about(db) == 0
    number = 40_000
    index.add(db, sorted((crc32(b"%d" % i), b"%d" % i, i) for i in range(number)))
    assert number / 2 < index.about(db) < number * 2


def test_a_lane_merges_once_its_upper_level_is_full_also_one_filled_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "RECENT_MAX", 1_000)
    lane = SqliteLane(tmp_path / "lane-0.db", 1000.0)
    upkeep(lane)
    index.add(lane._db, sorted((crc32(b"%d" % i), b"%d" % i, i) for i in range(500)))
    upkeep(lane)
    assert levels(lane._db) == [500, 0]
    lane.close()
    again = SqliteLane(tmp_path / "lane-0.db", 1000.0)
    index.add(again._db, sorted((crc32(b"%d" % i), b"%d" % i, i) for i in range(500, 9_000)))
    upkeep(again)
    assert levels(again._db) == [0, 9_000]
    batch = Batch()
    batch.tasks = [(1, b"7", 1, b"")]
    assert again.commit(batch) == {}
    again.close()


def upkeep(lane: SqliteLane) -> None:
    for _ in range(4 * index.STRETCHES):
        if not lane.idle():
            return
    pytest.fail("upkeep never ends")
