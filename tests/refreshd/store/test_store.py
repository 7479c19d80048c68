"""What the engine may rely on, whatever the store: every test here runs against SQLite and MariaDB."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol
from zlib import crc32

import pytest

from refreshd.errors import StoreDamaged
from refreshd.mysql_url import MysqlUrl
from refreshd.shard import SERIAL_MAX, first_serial
from refreshd.store.base import Batch, Lane, Reader, ReceiptRow
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_connection import Session
from refreshd.store.mysql_engines import Membership, register
from refreshd.store.mysql_reader import MysqlReader
from refreshd.store.sqlite import SqliteLane, SqliteReader
from refreshd.task import State
from tests.refreshd.store.making import PLANS, RETENTION_S, START_MS, a_batch, content_of, end


class Place(Protocol):
    """A store to open lanes and readers of. `now_ms` is what its clock says."""

    now_ms: int

    def lane(self, slot: int = 0) -> Lane:
        """A lane, as one of the workers 0 and 1 opens it."""

    def reader(self) -> Reader:
        """A reader of it."""


class InSqlite:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_ms = START_MS

    def lane(self, slot: int = 0) -> Lane:
        lane = SqliteLane(self.path, RETENTION_S, lambda: self.now_ms, slot=slot, sharers=(0, 1))
        lane.index_finished()
        return lane

    def reader(self) -> Reader:
        return SqliteReader(self.path)


class InMysql:
    def __init__(self, url: MysqlUrl, member: Membership) -> None:
        self.url = url
        self.member = member
        self.now_ms = START_MS

    def lane(self, slot: int = 0) -> Lane:
        return MysqlLane(self.url, self.member, RETENTION_S, lambda: self.now_ms)

    def reader(self) -> Reader:
        return MysqlReader(self.url, self.member.number)


@pytest.fixture(params=["sqlite", pytest.param("mysql", marks=pytest.mark.needs("mariadbd"))])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return InSqlite(tmp_path / "lane-0.db")
    url: MysqlUrl = request.getfixturevalue("database")
    session = Session(url)
    member = register(session, "e1")
    session.drop()
    return InMysql(url, member)


@pytest.fixture
def lane(place: Place) -> Iterator[Lane]:
    with closing(place.lane()) as lane:
        yield lane


@pytest.fixture
def reader(place: Place, lane: Lane) -> Iterator[Reader]:
    with closing(place.reader()) as reader:
        yield reader


def test_a_new_store_is_empty(lane: Lane, reader: Reader) -> None:
    assert content_of(reader) == ({}, set())
    assert (reader.plans(), reader.proxies(), reader.last_serial()) == ({}, [], 0)
    assert reader.find(b"t", crc32(b"t")) is None
    assert reader.page(SERIAL_MAX, 10, None, unfinished=True) == []
    assert lane.commit(Batch()) == {}


def test_what_was_committed_is_there_for_the_next_process(place: Place) -> None:
    with closing(place.lane()) as lane:
        lane.commit(a_batch(b"a", b"b", plan=PLANS[1]))
        lane.commit(end(Batch(), 1, b"a"))
    with closing(place.lane()) as again, closing(place.reader()) as reader:
        assert content_of(reader) == ({1: b"a", 2: b"b"}, {2})
        assert again.commit(a_batch(b"a", b"c", first=9)) == {b"a": 1}
        assert content_of(reader) == ({1: b"a", 2: b"b", 10: b"c"}, {2, 10})
        assert reader.last_serial() >= 10


def test_ends_are_kept_as_they_are_given(lane: Lane, reader: Reader) -> None:
    """Marks are bytes, and are given back as such: none, many, and what only looks like text."""
    marks = [None, b"0:1 ", "0:5:1:2:Δ 💥\"\\'[,] ".encode(), b"x" * 300_000, bytes(range(256))]
    batch = a_batch(*(b"t%d" % i for i in range(len(marks))))
    lane.commit(batch)
    ends = Batch()
    for i, mark in enumerate(marks):
        ends.results.append((1 + i, int(State.FAILED), i, (1 << 32) - 1 - i, (1 << 62) + i, mark))
        ends.finished.append((crc32(b"t%d" % i), b"t%d" % i, 1 + i))
    lane.commit(ends)
    stored = reader.serials([1 + i for i in range(len(marks))])
    assert [s.serial for s in stored] == [5, 4, 3, 2, 1]
    for i, one in enumerate(reversed(stored)):
        assert one.result == (State.FAILED, i, (1 << 32) - 1 - i, (1 << 62) + i, marks[i] or b"")


@pytest.mark.parametrize(
    "bodies",
    [
        [bytes(range(256)), b"'; DROP TABLE task; --", b"\\", "Δ💥".encode(), b"", b"x" * 900_000],
        # A commit in which nothing wants an escape goes as it is.
        [b"a;b", b'"x"', b"%s %b ?", b"/* -- #", b"`", b"\x01\t\r\n\x1a\x7f", b" ", b"", b"0x41 x"],
        [b"\0"],
        [b"it's"],
        [b"end\\"],
    ],
    ids=["odd", "plain", "nul", "quote", "backslash"],
)
def test_bodies_and_ids_are_kept_as_they_are_given(lane: Lane, reader: Reader, bodies: list[bytes]) -> None:
    batch = a_batch(*(b"t%d" % i for i in range(len(bodies))), b"T0", b"t0:." + b"x" * 60)
    batch.tasks[: len(bodies)] = [
        (serial, task_id, plan, body)
        for (serial, task_id, plan, _), body in zip(batch.tasks, bodies, strict=False)
    ]
    assert lane.commit(batch) == {}
    assert [body for _, _, body in reader.unfinished()] == [row[3] for row in batch.tasks]
    assert content_of(reader)[0] == {serial: task_id for serial, task_id, _, _ in batch.tasks}


def test_a_task_may_end_in_the_commit_that_brings_it(lane: Lane, reader: Reader) -> None:
    lane.commit(end(a_batch(b"a", b"b"), 2, b"b", State.EXPIRED))
    assert content_of(reader) == ({1: b"a", 2: b"b"}, {1})
    (page,) = reader.page(SERIAL_MAX, 10, State.EXPIRED, unfinished=False)
    assert (page.id, page.plan) == (b"b", PLANS[0].text)


def test_many_rows_in_one_commit(lane: Lane, reader: Reader) -> None:
    """More than fit in one packet, or one statement."""
    body = b"x" * 1_000
    batch = a_batch(*(b"t%d" % i for i in range(6_000)))
    batch.tasks = [(serial, task_id, plan, body) for serial, task_id, plan, _ in batch.tasks]
    assert lane.commit(batch) == {}
    ends = Batch()
    for serial, task_id, _, _ in batch.tasks[:5_000]:
        end(ends, serial, task_id)
    assert lane.commit(ends) == {}
    assert [serial for serial, _, _ in reader.unfinished()] == list(range(5_001, 6_001))
    # Each again, with one new one among them.
    repeats = a_batch(*(b"t%d" % i for i in range(5_000)), b"new", first=10_001)
    assert lane.commit(repeats) == {b"t%d" % i: 1 + i for i in range(5_000)}
    assert reader.last_serial() >= 15_001


def test_pages_go_by_state(lane: Lane, reader: Reader) -> None:
    batch = a_batch(*(b"t%d" % i for i in range(40)))
    lane.commit(batch)
    ends = Batch()
    for i in range(30):
        end(ends, 1 + i, b"t%d" % i, [State.COMPLETE, State.FAILED, State.CANCELLED][i % 3])
    lane.commit(ends)
    for state, unfinished, wanted in [
        (None, False, list(range(40, 0, -1))),
        (None, True, list(range(40, 30, -1))),
        (State.COMPLETE, False, list(range(28, 0, -3))),
        (State.FAILED, False, list(range(29, 0, -3))),
        (State.EXPIRED, False, []),
    ]:
        read: list[int] = []
        before = SERIAL_MAX
        while page := reader.page(before, 7, state, unfinished):
            assert len(page) <= 7
            read += [stored.serial for stored in page]
            before = read[-1]
        assert read == wanted


def test_two_workers_write_one_lane(place: Place, lane: Lane, reader: Reader) -> None:
    with closing(place.lane(1)) as other:
        lane.commit(a_batch(b"a"))
        other.commit(a_batch(b"b", first=2))
        lane.commit(end(a_batch(b"c", first=3), 1, b"a"))
        other.commit(end(a_batch(b"d", first=4), 2, b"b"))
    assert content_of(reader) == ({1: b"a", 2: b"b", 3: b"c", 4: b"d"}, {3, 4})


def test_finished_tasks_are_dropped_after_the_retention_and_their_ids_may_be_used_again(
    place: Place, lane: Lane, reader: Reader
) -> None:
    serial = first_serial(START_MS)
    batch = a_batch(*(b"t%d" % i for i in range(3_000)), first=serial)
    for i in range(1, 2_500):
        end(batch, serial + i, b"t%d" % i)
    lane.commit(batch)
    lane.commit(end(Batch(), serial + 2_500, b"t2500", ms=START_MS + 50_000))
    place.now_ms += int(RETENTION_S * 1000) + 1
    for _ in range(1_000):
        if not lane.idle():
            break
    else:
        pytest.fail("upkeep never ends")
    kept = {serial, *range(serial + 2_500, serial + 3_000)}
    assert set(content_of(reader)[0]) == kept
    assert reader.find(b"t1", crc32(b"t1")) is None
    again = a_batch(b"t1", b"t2500", first=first_serial(place.now_ms))
    assert lane.commit(again) == {b"t2500": serial + 2_500}


def test_another_retention_holds_from_the_next_piece_of_upkeep(place: Place, lane: Lane) -> None:
    serial = first_serial(START_MS)
    lane.commit(end(a_batch(b"t", first=serial), serial, b"t"))
    place.now_ms += 1_000
    lane.idle()
    with closing(place.reader()) as reader:
        assert list(content_of(reader)[0]) == [serial]
        lane.set_retention(0.5)
        lane.idle()
        assert content_of(reader)[0] == {}


def test_a_request_line_that_is_not_what_was_written_is_refused(
    place: Place, lane: Lane, reader: Reader
) -> None:
    lane.commit(a_batch(b"a", b"b"))
    if isinstance(place, InSqlite):
        with closing(sqlite3.connect(place.path)) as db:
            changed = "CAST(replace(CAST(body AS TEXT), 'http:', 'httq:') AS BLOB)"
            db.execute(f"UPDATE task SET body = {changed} WHERE serial = 2")
            db.commit()
    else:
        assert isinstance(place, InMysql)
        session = Session(place.url)
        session.query(b"UPDATE task SET body = replace(body, 'http:', 'httq:') WHERE serial = 2")
        session.drop()
    with pytest.raises(StoreDamaged, match="request line of task 2"):
        list(reader.unfinished())
    with pytest.raises(StoreDamaged, match="request line of task 2"):
        reader.serials([2])
    assert [stored.id for stored in reader.serials([1])] == [b"a"]


# ── receipts ──────────────────────────────────────────────────────────────────────────────────


def with_receipts(batch: Batch, *receipts: tuple[int, str, bytes]) -> Batch:
    batch.receipts += [ReceiptRow(*receipt) for receipt in receipts]
    return batch


def test_receipts_are_kept_with_what_comes_in_the_same_batch(lane: Lane, reader: Reader) -> None:
    text = bytes(range(256)) + b"'\\" * 100_000
    lane.commit(with_receipts(a_batch(b"a", b"b"), (1, "p2", text), (1, "p1", b"one"), (2, "p1", b"other")))
    assert reader.receipts(1, "", 10) == [(1, "p1", b"one"), (1, "p2", text)]
    assert reader.receipts(2, "", 10) == [(2, "p1", b"other")]
    assert reader.receipts(3, "", 10) == []


def test_receipts_are_read_by_pages(lane: Lane, reader: Reader) -> None:
    names = ["A", "Z:1", "a", "b.c", "b_c", "z" * 64]
    lane.commit(with_receipts(a_batch(b"a"), *((1, name, name.encode()) for name in names)))
    after, seen = "", []
    while page := reader.receipts(1, after, 2):
        assert len(page) <= 2
        seen += [row.proxy for row in page]
        after = page[-1].proxy
    assert seen == sorted(names)


def test_a_later_receipt_takes_the_place_of_an_earlier_one(lane: Lane, reader: Reader) -> None:
    lane.commit(with_receipts(a_batch(b"a"), (1, "p1", b"first"), (1, "p1", b"second"), (1, "p2", b"x")))
    assert reader.receipts(1, "", 10) == [(1, "p1", b"second"), (1, "p2", b"x")]
    lane.commit(with_receipts(end(Batch(), 1, b"a"), (1, "p1", b"third")))
    assert reader.receipts(1, "", 10) == [(1, "p1", b"third"), (1, "p2", b"x")]


def test_receipts_are_there_for_the_next_process_and_go_with_their_task(place: Place) -> None:
    serial = first_serial(START_MS)
    with closing(place.lane()) as lane:
        lane.commit(with_receipts(a_batch(b"a", b"b", first=serial), (serial, "p1", b"x")))
        lane.commit(with_receipts(end(Batch(), serial, b"a"), (serial + 1, "p1", b"y")))
    place.now_ms += int(RETENTION_S * 1000) + 10_000
    with closing(place.lane()) as lane, closing(place.reader()) as reader:
        assert len(reader.receipts(serial, "", 10)) == 1
        while lane.idle():
            pass
        assert reader.serials([serial]) == []
        assert reader.receipts(serial, "", 10) == []
        assert reader.receipts(serial + 1, "", 10) == [(serial + 1, "p1", b"y")], "that task is unfinished"
