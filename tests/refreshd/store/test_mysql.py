"""What only a shared store has to hold, on a real MariaDB: faults of the way there, retries, limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import ClassVar
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize, rule

from refreshd.errors import StoreDamaged, StoreError, StoreFailed, StoreFenced, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.shard import SERIAL_MAX
from refreshd.store import mysql, mysql_connection, mysql_rows
from refreshd.store.base import Batch, ProxyRow, ReceiptRow
from refreshd.store.mysql import MysqlLane
from refreshd.store.mysql_engines import handouts
from refreshd.task import State
from tests.refreshd.store.making import PLANS, RETENTION_S, a_batch, content_of, end
from tests.refreshd.store.model import Model
from tests.refreshd.store.mysql_tools import Losing, Site
from tools.servers import wait_until

pytestmark = pytest.mark.needs("mariadbd")


@pytest.fixture
def site(database: MysqlUrl) -> Iterator[Site]:
    site = Site(database)
    yield site
    site.close()


@pytest.fixture
def lane(site: Site) -> MysqlLane:
    return site.lane(site.join())


# ── the model ─────────────────────────────────────────────────────────────────────────────


class MysqlStore(Model):
    """A lane and its reader against dictionaries; connections are lost, processes are killed."""

    FAILS = ("INSERT INTO task", "STRAIGHT_JOIN task", "COMMIT")
    OWNER = 1
    site: ClassVar[Site]
    lane: MysqlLane

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(mysql, "DROP_ROWS", 4)
        self.patch.setattr(mysql, "_ASK_ROWS", 2)
        self.patch.setattr(mysql_rows, "ENDS_MAX", 2)
        self.patch.setattr(mysql_connection, "PACKET_BYTES_MAX", 700)
        self.patch.setattr(mysql_connection, "RETRIES_MAX", 3)
        for table in ("task", "plan", "proxy", "handout", "parked", "receipt"):
            self.site.session.query(b"DELETE FROM " + table.encode())
        self.open()

    def open(self) -> None:
        self.lane = MysqlLane(self.site.url, self.site.join(), RETENTION_S, lambda: self.now_ms)
        self.reader = self.site.reader(self.OWNER)

    def failing(self, statement: str) -> AbstractContextManager[object]:
        return Losing(self.lane._session, statement)

    def teardown(self) -> None:
        if self.is_open:
            self.lane.close()
            self.patch.undo()

    @rule()
    def the_connection_is_lost(self) -> None:
        """Between two commits; nobody notices."""
        ((number,),) = self.lane._session.read(b"SELECT connection_id()")
        self.site.session.query(b"KILL HARD %d" % number)

    @rule()
    def an_answer_is_lost(self) -> None:
        """The commit came through; it is done again, and tells the same."""
        batch = Batch()
        for serial in self.unfinished[:3]:
            end(batch, serial, self.tasks[serial][0], State.FAILED, self.now_ms)
            self.results[serial] = batch.results[-1]
            self.parked.pop(serial, None)
        batch.proxies = [ProxyRow("a", "g", 7)]
        self.proxies["a"] = batch.proxies[0]
        with Losing(self.lane._session, "COMMIT", sent=True, times=1) as lost:
            assert self.lane.commit(batch) == {}
        assert lost


@pytest.fixture
def _site_of_model(site: Site) -> None:
    MysqlStore.site = site


@pytest.mark.usefixtures("_site_of_model")
class TestModel(MysqlStore.TestCase):
    settings = settings(
        max_examples=10, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
    )


# ── commits that nobody answers ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("at", ["INSERT INTO task", "STRAIGHT_JOIN task", "COMMIT"])
def test_a_lost_connection_is_made_up_for_at_once(site: Site, lane: MysqlLane, at: str, sent: bool) -> None:
    lane.commit(a_batch(b"old"))
    batch = end(a_batch(b"old", b"new", first=5), 1, b"old")
    with Losing(lane._session, at, sent=sent, times=2) as lost:
        assert lane.commit(batch) == {b"old": 1}
    assert lost.lost == 2
    assert site.content(1) == ({1: b"old", 6: b"new"}, {6})


def test_a_batch_may_be_committed_again(site: Site, lane: MysqlLane) -> None:
    batch = end(a_batch(b"a", b"b", b"c"), 2, b"b")
    batch.proxies = [ProxyRow("p", "g", 1)]
    for _ in range(3):
        assert lane.commit(batch) == {}
    assert site.content(1) == ({1: b"a", 2: b"b", 3: b"c"}, {1, 3})


@pytest.mark.parametrize("upkeep", [False, True])
def test_what_was_refused_but_kept_is_handed_out_to_its_own_engine(
    site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch, upkeep: bool
) -> None:
    """Else the rows would wait for a restart, and a client that tries again be told of a task nobody has."""
    monkeypatch.setattr(mysql_connection, "RETRIES_MAX", 1)
    lane.commit(a_batch(b"before"))
    batch = end(a_batch(b"a", b"b", b"c", first=5), 6, b"b")
    with Losing(lane._session, "COMMIT", sent=True), pytest.raises(StoreUnavailable, match="injected"):
        lane.commit(batch)
    assert handouts(site.session, 1, 0) == []
    # Nor is it lost when the next one fails as well.
    with Losing(lane._session, "COMMIT"), pytest.raises(StoreUnavailable):
        lane.commit(a_batch(b"never", first=20))
    if upkeep:
        lane.idle()
    else:
        assert lane.commit(a_batch(b"a", first=9)) == {b"a": 5}
    (given,) = handouts(site.session, 1, 0)
    rows = [row for some in site.reader(1).handed_out(given.first, given.last) for row in some]
    assert [serial for serial, _, _ in rows] == [5, 7]
    lane.idle()
    assert handouts(site.session, 1, given.id) == [], "it is settled once"


def test_what_was_refused_and_not_kept_is_no_hand_out(
    site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_connection, "RETRIES_MAX", 1)
    with Losing(lane._session, "COMMIT"), pytest.raises(StoreUnavailable):
        lane.commit(a_batch(b"a"))
    assert lane.commit(a_batch(b"a", first=5)) == {}
    assert site.content(1) == ({5: b"a"}, {5})
    assert handouts(site.session, 1, 0) == []


# ── one id, several engines ───────────────────────────────────────────────────────────────


def test_an_id_of_another_engine_is_known(site: Site) -> None:
    one, two = site.join("e1"), site.join("e2")
    lane_of_one, lane_of_two = site.lane(one), site.lane(two)
    assert lane_of_one.commit(a_batch(b"a", b"b")) == {}
    lane_of_one.commit(end(Batch(), 2, b"b"))
    assert lane_of_two.commit(a_batch(b"a", b"b", b"c", first=10)) == {b"a": 1, b"b": 2}
    assert site.content(two.number) == ({1: b"a", 2: b"b", 12: b"c"}, {12})
    reader = site.reader(two.number)
    owners = {s.id: s.owner for s in reader.page(SERIAL_MAX, 10, None, unfinished=False)}
    assert owners == {b"a": one.number, b"b": 0, b"c": two.number}
    assert [s.id for s in reader.page(SERIAL_MAX, 10, None, unfinished=True)] == [b"c", b"a"]
    found = reader.find(b"a", 0)
    assert found is not None
    assert (found.owner, found.result) == (one.number, None)


def test_the_same_ids_at_several_engines_at_once_are_accepted_once_each(site: Site) -> None:
    """In other orders, too, so that transactions wait for each other, and in circles."""
    members = [site.join(f"e{i}") for i in range(3)]
    accepted: list[dict[bytes, int]] = [{} for _ in members]
    known: list[dict[bytes, int]] = [{} for _ in members]
    together = threading.Barrier(len(members))

    def accept(place: int) -> None:
        lane = site.lane(members[place])
        for step in range(12):
            ids = [b"t%d" % (step * 100 + i) for i in range(100)]
            ids = ids[:: 1 if place % 2 else -1]
            batch = a_batch(*ids, first=1 + place * 1_000_000 + step * 1_000)
            together.wait(20)
            found = lane.commit(batch)
            known[place].update(found)
            accepted[place].update({row[1]: row[0] for row in batch.tasks if row[1] not in found})

    threads = [threading.Thread(target=accept, args=(place,)) for place in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    kept = {task_id: serial for serial, task_id in site.content(1)[0].items()}
    assert len(kept) == 1_200
    assert sum(map(len, accepted)) == 1_200
    for place in range(len(members)):
        assert accepted[place].items() <= kept.items()
        assert known[place].items() <= kept.items()
        assert accepted[place].keys() | known[place].keys() == kept.keys()


def test_a_serial_that_is_another_tasks_is_a_fault_of_ours(site: Site, lane: MysqlLane) -> None:
    lane.commit(a_batch(b"one"))
    with pytest.raises(StoreFailed, match="its serial 1 is another task's"):
        lane.commit(a_batch(b"zero", b"two", first=0))
    assert site.content(1)[0] == {1: b"one"}


# ── fencing ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", ["epoch=epoch+1", "alive=0", "number=40"])
def test_who_was_fenced_writes_nothing(site: Site, lane: MysqlLane, change: str) -> None:
    lane.commit(end(a_batch(b"a", b"b"), 1, b"a"))
    before = site.content(1)
    site.session.query(b"UPDATE engine SET " + change.encode())
    batch = end(a_batch(b"c", first=9), 2, b"b")
    batch.proxies = [ProxyRow("p", "g", 1)]
    batch.receipts = [ReceiptRow(2, "p", b"x")]
    site.now_ms += 10**9
    for write in (lambda: lane.commit(batch), lambda: lane.commit(Batch()), lane.idle):
        with pytest.raises(StoreFenced, match="engine 1 was fenced: it wrote in epoch 1"):
            write()
    assert site.content(1) == before
    assert site.reader(1).proxies() == []
    assert site.reader(1).receipts(2, "", 10) == []


def test_an_end_for_a_task_of_another_engine_is_refused(site: Site, lane: MysqlLane) -> None:
    other = site.join("e2")
    site.lane(other).commit(a_batch(b"a"))
    with pytest.raises(StoreFenced, match=f"task 1 is a task of engine {other.number} by now"):
        lane.commit(end(a_batch(b"b", first=5), 1, b"a"))
    assert site.content(other.number) == ({1: b"a"}, {1})


def test_an_end_for_a_task_that_was_dropped_is_no_fault(site: Site, lane: MysqlLane) -> None:
    lane.commit(a_batch(b"a"))
    assert lane.commit(end(end(Batch(), 1, b"a"), 77, b"gone")) == {}
    assert site.content(1) == ({1: b"a"}, set())


def test_another_end_than_the_one_it_has_is_kept(site: Site, lane: MysqlLane) -> None:
    """As in SQLite: the later one counts."""
    lane.commit(end(a_batch(b"a"), 1, b"a", State.COMPLETE))
    lane.commit(end(Batch(), 1, b"a", State.FAILED))
    assert site.ask("SELECT state, owner FROM task") == [(int(State.FAILED), 0)]


# ── values that do not fit ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "row",
    [
        (1 << 63, b"a", 7, b"body"),
        (-(1 << 63) - 1, b"a", 7, b"body"),
        (1, b"a" * 65, 7, b"body"),
        (1, b"a", 1 << 63, b"body"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(
    site: Site, lane: MysqlLane, row: tuple[int, bytes, int, bytes]
) -> None:
    batch = a_batch(b"before", first=5)
    batch.tasks.append(row)
    with pytest.raises(StoreFailed):
        lane.commit(batch)
    assert site.content(1) == ({}, set())


@pytest.mark.parametrize(
    "result",
    [
        (1, 256, 1, 0, 5, None),
        (1, 0, 1, 0, 5, None),
        (1, -1, 1, 0, 5, None),
        (1, 2, 1 << 32, 0, 5, None),
        (1, 2, 0, 1 << 32, 5, None),
        (1, 2, 0, -1, 5, None),
        (1, 2, 0, 0, 1 << 63, None),
        (1 << 63, 2, 0, 0, 5, None),
        (1 << 80, 2, 0, 0, 5, None),
        (1, 2, 0, 0, 5, "text"),
        (1, 2, 0, 0, 5, b"x" * (1 << 24)),
        (1, 2, "zz", 0, 5, None),
        (1, 2, 1.5, 0, 5, None),
    ],
)
def test_an_end_that_does_not_fit_is_refused(
    site: Site, lane: MysqlLane, result: tuple[int, int, int, int, int, bytes | None]
) -> None:
    """JSON_TABLE would cut it, or make 0 of it, and say nothing."""
    lane.commit(a_batch(b"a"))
    batch = a_batch(b"b", first=2)
    batch.results = [result]
    with pytest.raises(StoreFailed, match="the end of a task cannot be kept"):
        lane.commit(batch)
    assert site.content(1) == ({1: b"a"}, {1})


def test_the_database_too_refuses_what_does_not_fit(
    site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it not checked before: the columns of JSON_TABLE are wider than those of the table."""
    monkeypatch.setattr(mysql_rows.msgspec, "convert", lambda *_, **__: None)
    lane.commit(a_batch(b"a"))
    for result in [(1, 256, 1, 0, 5, None), (1, 2, 1 << 32, 0, 5, None), (1, 2, 0, 0, 5, b"x" * (1 << 24))]:
        batch = Batch()
        batch.results = [result]
        with pytest.raises(StoreError):
            lane.commit(batch)
    assert site.content(1) == ({1: b"a"}, {1})


def test_a_row_that_no_packet_holds(site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mysql_connection, "PACKET_BYTES_MAX", 10_000)
    large = a_batch(b"small", b"large")
    large.tasks[1] = (*large.tasks[1][:3], b"x" * 12_000)
    with pytest.raises(StoreUnavailable, match="raise the database's max_allowed_packet"):
        lane.commit(large)
    lane.commit(a_batch(b"small", b"other"))
    ends = end(Batch(), 1, b"small")
    ends.results.append((2, int(State.FAILED), 0, 1, 5, b"x" * 10_000))
    with pytest.raises(StoreUnavailable, match="the end of task 2 does not fit"):
        lane.commit(ends)
    assert site.content(1) == ({1: b"small", 2: b"other"}, {1, 2})


def test_a_receipt_that_no_packet_holds_keeps_nothing_from_ending(
    site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_connection, "PACKET_BYTES_MAX", 10_000)
    lane.commit(a_batch(b"a"))
    batch = end(Batch(), 1, b"a")
    batch.receipts = [ReceiptRow(1, f"p{number}", b"x" * 900 * number) for number in range(8)]
    lane.commit(batch)
    assert site.content(1) == ({1: b"a"}, set())
    kept = site.reader(1).receipts(1, "", 10)
    assert [(row.proxy, len(row.text)) for row in kept] == [(f"p{n}", 900 * n) for n in range(6)]


def test_any_engine_reads_the_receipts_of_anothers_tasks(site: Site, lane: MysqlLane) -> None:
    batch = a_batch(b"a")
    batch.receipts = [ReceiptRow(1, "p", b"x")]
    lane.commit(batch)
    assert site.reader(site.join("e2").number).receipts(1, "", 10) == [(1, "p", b"x")]


# ── locks ─────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_stays_locked_makes_it_unavailable(
    site: Site, lane: MysqlLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_connection, "LOCK_WAIT_S", 1)
    monkeypatch.setattr(mysql_connection, "RETRY_WITHIN_S", 0.5)
    holder = site.connect()
    holder.query(b"START TRANSACTION", b"SELECT * FROM engine FOR UPDATE")
    with pytest.raises(StoreUnavailable, match="1205"):
        lane.commit(a_batch(b"a"))
    holder.query(b"COMMIT")
    assert lane.commit(a_batch(b"a", first=5)) == {}
    assert site.content(1) == ({5: b"a"}, {5})


def test_a_deadlock_is_tried_again(site: Site, lane: MysqlLane) -> None:
    """Two transactions that wait for each other's ids; the database undoes the one that wrote less."""
    other = site.connect()
    plan = PLANS[0].number
    known: list[dict[bytes, int]] = []
    waiting = threading.Thread(target=lambda: known.append(lane.commit(a_batch(b"y", b"x"))))

    def cross() -> None:
        more = [(200 + i, b"more-%d" % i, plan, b"") for i in range(50)]
        other.query(*mysql_rows.insert_tasks([(100, b"x", plan, b""), *more], 9, 10_000))
        waiting.start()
        # It holds y then, and waits for x.
        wait_until(site.a_transaction_waits, what="the lane waits")
        other.query(*mysql_rows.insert_tasks([(101, b"y", plan, b"")], 9, 10_000))

    other.atomically(cross)
    waiting.join(20)
    assert known == [{b"x": 100, b"y": 101}]


# ── reading ───────────────────────────────────────────────────────────────────────────────


def test_a_reader_reads_the_shards_of_its_lane(site: Site, lane: MysqlLane) -> None:
    batch = a_batch(*(b"t%d" % i for i in range(200)))
    for i in range(0, 200, 2):
        end(batch, 1 + i, b"t%d" % i)
    lane.commit(batch)
    lanes = [content_of(site.reader(1, number, 3)) for number in range(3)]
    assert all(len(all_) > 20 and len(unfinished) > 10 for all_, unfinished in lanes)
    assert sum(len(all_) for all_, _ in lanes) == 200
    assert sum(len(unfinished) for _, unfinished in lanes) == 100
    for number, (all_, _) in enumerate(lanes):
        assert {(crc32(task_id) & 63) % 3 for task_id in all_.values()} == {number}
    pages = [site.reader(1, n, 3).page(SERIAL_MAX, 1_000, None, unfinished=True) for n in range(3)]
    assert sorted(s.serial for page in pages for s in page) == list(range(2, 201, 2))


def test_a_reader_whose_connection_was_ended_asks_again(site: Site, lane: MysqlLane) -> None:
    lane.commit(a_batch(b"a"))
    reader = site.reader(1)
    assert reader.last_serial() == 1
    ((number,),) = reader._session.query(b"SELECT connection_id()")[0].rows
    site.session.query(b"KILL HARD %d" % number)
    assert reader.last_serial() == 1


def test_a_task_without_its_plan_is_damage(site: Site, lane: MysqlLane) -> None:
    lane.commit(a_batch(b"a"))
    site.session.query(b"DELETE FROM plan")
    with pytest.raises(StoreDamaged, match="task 1 has no plan"):
        site.reader(1).serials([1])
