"""Who is an engine, who leads, who is fenced, and whose tasks are whose: on a real MariaDB."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from refreshd.errors import BootError, NotLeader, StoreFenced, StoreUnavailable
from refreshd.mysql_url import MysqlUrl
from refreshd.store import mysql_connection, mysql_engines
from refreshd.store.base import Batch
from refreshd.store.mysql_engines import (
    EngineRow,
    Leadership,
    Membership,
    engines,
    fence,
    give_back,
    hand_out,
    handouts,
    last_handout,
    lead,
    leadership,
    register,
    unfinished_counts,
)
from refreshd.store.mysql_rows import insert_tasks
from tests.refreshd.store.making import START_MS, a_batch, end
from tests.refreshd.store.mysql_tools import Losing, Site
from tools.servers import wait_until

pytestmark = pytest.mark.needs("mariadbd")


@pytest.fixture
def site(database: MysqlUrl) -> Iterator[Site]:
    site = Site(database)
    yield site
    site.close()


def at_once(calls: list[Callable[[], object]]) -> None:
    """Runs them in threads that start together."""
    together = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        together.wait(20)
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


# ── engines ───────────────────────────────────────────────────────────────────────────────


def test_an_engine_keeps_its_number_and_has_a_new_epoch_after_each_fence(site: Site) -> None:
    assert site.join("a") == (1, 1)
    assert site.join("b") == (2, 1)
    assert site.join("a") == (1, 1), "another worker of it"
    leader = lead(site.session, 2)
    assert fence(site.session, leader, 1) == 2
    assert fence(site.session, leader, 1) == 2, "it is fenced already"
    assert site.join("a") == (1, 3)
    assert site.join("a") == (1, 3)
    assert engines(site.session) == [EngineRow(1, "a", 3, True, False), EngineRow(2, "b", 1, True, False)]


def test_the_smallest_free_number_is_taken(site: Site) -> None:
    for name in "abcd":
        site.join(name)
    site.session.query(b"DELETE FROM engine WHERE number IN (2, 3)")
    assert [site.join(name).number for name in "xyz"] == [2, 3, 5]


def test_there_are_63_engines_at_most(site: Site) -> None:
    for number in range(mysql_engines.ENGINES_MAX):
        assert site.join(f"e{number}").number == number + 1
    with pytest.raises(BootError, match="63 engines share the database"):
        site.join("one-more")
    assert site.join("e9") == (10, 1)


def test_many_that_register_at_once_get_a_number_each(site: Site) -> None:
    joined: list[tuple[str, Membership]] = []

    def join(name: str) -> None:
        joined.append((name, register(site.connect(), name)))

    at_once([lambda name=name: join(name) for name in ["a", "b", "c", "d"] * 2])
    assert len(joined) == 8
    by_name = dict(joined)
    assert all(by_name[name] == member for name, member in joined)
    assert sorted(member.number for member in by_name.values()) == [1, 2, 3, 4]


@pytest.mark.parametrize("sent", [False, True])
def test_what_was_done_may_be_done_again(site: Site, sent: bool) -> None:
    """Each answer to a COMMIT is lost once."""

    def losing() -> Losing:
        return Losing(site.session, "COMMIT", sent=sent, times=1)

    with losing():
        one = site.join("a")
    two = site.join("b")
    site.lane(one).commit(a_batch(b"t", b"u", b"v"))
    with losing():
        leader = lead(site.session, two.number)
    assert leadership(site.session) == (leader, two.number)
    with losing():
        epoch = fence(site.session, leader, one.number)
    assert epoch == 2
    with losing():
        hand_out(site.session, leader, Membership(one.number, epoch), two.number, START_MS)
    assert site.content(two.number)[1] == {1, 2, 3}
    with losing():
        assert site.join("a") == (one.number, 3)


# ── the leader ────────────────────────────────────────────────────────────────────────────


def test_each_election_raises_the_epoch(site: Site) -> None:
    assert leadership(site.session) == Leadership(0, 0)
    assert lead(site.session, 5) == 1
    assert lead(site.session, 6) == 2
    assert lead(site.session, 6) == 3
    assert leadership(site.session) == Leadership(3, 6)


def test_who_led_before_cannot_act(site: Site) -> None:
    one, two = site.join("a"), site.join("b")
    site.lane(one).commit(a_batch(b"t"))
    old = lead(site.session, 2)
    new = lead(site.session, 1)
    with pytest.raises(NotLeader, match=f"epoch {old} of the leader is over: engine 1 leads in epoch {new}"):
        fence(site.session, old, 1)
    site.lane(one).commit(a_batch(b"u", first=5))
    epoch = fence(site.session, new, 1)
    lead(site.session, 2)
    with pytest.raises(NotLeader):
        hand_out(site.session, new, Membership(1, epoch), two.number, START_MS)
    assert site.content(1)[1] == {1, 5}
    assert handouts(site.session, 2, 0) == []


# ── fences ────────────────────────────────────────────────────────────────────────────────


def test_a_fenced_engine_writes_nothing_until_it_registers_anew(site: Site) -> None:
    one = site.join("a")
    lane = site.lane(one)
    lane.commit(a_batch(b"t"))
    fence(site.session, lead(site.session, 2), 1)
    for _ in range(2):
        with pytest.raises(StoreFenced):
            lane.commit(a_batch(b"u", first=5))
    again = site.join("a")
    with pytest.raises(StoreFenced):
        lane.commit(a_batch(b"u", first=5))
    site.lane(again).commit(end(a_batch(b"u", first=5), 1, b"t"))
    assert site.content(1) == ({1: b"t", 5: b"u"}, {5})


def test_a_fence_waits_for_a_commit_that_is_under_way(site: Site) -> None:
    """What that commit brings is there for the hand-out; nothing comes after."""
    one, two = site.join("a"), site.join("b")
    leader = lead(site.session, 2)
    slow = site.connect()
    fenced: list[int] = []
    waiting = threading.Thread(target=lambda: fenced.append(fence(site.connect(), leader, 1)))

    def commit() -> None:
        slow.query(one.seen)
        waiting.start()
        wait_until(site.a_transaction_waits, what="the fence waits")
        assert fenced == []
        slow.query(*an_insert(one.number))

    slow.atomically(commit)
    waiting.join(20)
    assert fenced == [2]
    assert hand_out(site.session, leader, Membership(1, 2), two.number, START_MS) == 1
    with pytest.raises(StoreFenced):
        site.lane(one).commit(a_batch(b"late", first=9))


def an_insert(owner: int) -> list[bytes]:
    return [b"INSERT INTO plan VALUES (7, '0=a')", *insert_tasks([(1, b"t", 7, b"body")], owner, 10_000)]


def test_an_engine_that_is_paused_amid_a_commit_does_not_keep_its_fence_waiting_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_connection, "IDLE_IN_TRANSACTION_S", 1)
    monkeypatch.setattr(mysql_connection, "RETRIES_MAX", 0)
    one = site.join("a")
    leader = lead(site.session, 2)
    paused = site.connect()

    def commit() -> None:
        paused.query(one.seen, *an_insert(1))
        # It says nothing for longer than it may; the fence comes through meanwhile.
        assert wait_until(lambda: _fenced(site, leader), what="the fence comes through") == 2

    with pytest.raises(StoreUnavailable):
        paused.atomically(commit)
    assert site.content(1) == ({}, set())


def _fenced(site: Site, leader: int) -> int:
    try:
        return fence(site.session, leader, 1)
    except StoreUnavailable:
        return 0


# ── hand-outs ─────────────────────────────────────────────────────────────────────────────


def test_what_is_unfinished_is_handed_out_piece_by_piece_the_oldest_first(site: Site) -> None:
    one, two, three = (site.join(name) for name in "abc")
    lane = site.lane(one)
    batch = a_batch(*(b"t%d" % i for i in range(100)))
    for i in range(0, 100, 4):
        end(batch, 1 + i, b"t%d" % i)
    lane.commit(batch)
    site.lane(three).commit(a_batch(b"other", first=50_000))
    leader = lead(site.session, 2)
    dead = Membership(1, fence(site.session, leader, 1))
    assert [row.owns for row in engines(site.session)] == [True, False, True]
    given = [
        hand_out(site.session, leader, dead, to.number, START_MS, limit=30) for to in (two, three, two, three)
    ]
    assert given == [30, 30, 15, 0]
    assert unfinished_counts(site.session) == {two.number: 45, three.number: 31}
    assert [row.owns for row in engines(site.session)] == [False, True, True]
    unfinished = [1 + i for i in range(100) if i % 4]
    for to, pieces in ((two, (unfinished[:30], unfinished[60:])), (three, (unfinished[30:60],))):
        found = handouts(site.session, to.number, 0)
        assert [(handout.first, handout.last) for handout in found] == [(p[0], p[-1]) for p in pieces]
        for handout, piece in zip(found, pieces, strict=True):
            slices = list(site.reader(to.number).handed_out(handout.first, handout.last, 7))
            assert [row[0] for some in slices for row in some] == piece
            assert max(map(len, slices)) == 7
        assert handouts(site.session, to.number, found[0].id) == found[1:]
    assert last_handout(site.session) == max(handouts(site.session, two.number, 0)).id
    # Who has them now may end them, and nobody else.
    new = site.lane(two)
    new.commit(end(Batch(), 2, b"t1"))
    with pytest.raises(StoreFenced):
        lane.commit(end(Batch(), 3, b"t2"))
    with pytest.raises(StoreFenced):
        site.lane(three).commit(end(Batch(), 4, b"t3"))


def test_who_is_back_keeps_what_is_left(site: Site) -> None:
    one, two = site.join("a"), site.join("b")
    site.lane(one).commit(a_batch(*(b"t%d" % i for i in range(10))))
    leader = lead(site.session, 2)
    dead = Membership(1, fence(site.session, leader, 1))
    assert hand_out(site.session, leader, dead, 2, START_MS, limit=4) == 4
    site.join("a")
    assert hand_out(site.session, leader, dead, 2, START_MS, limit=4) == 0
    assert unfinished_counts(site.session) == {1: 6, 2: 4}
    # Also when it was fenced once more since, and by this leader.
    fence(site.session, leader, 1)
    assert hand_out(site.session, leader, dead, 2, START_MS, limit=4) == 0
    assert two.number == 2


def test_nothing_is_given_to_one_that_is_fenced_itself(site: Site) -> None:
    one = site.join("a")
    site.join("b")
    site.lane(one).commit(a_batch(b"t"))
    leader = lead(site.session, 3)
    dead = Membership(1, fence(site.session, leader, 1))
    fence(site.session, leader, 2)
    assert hand_out(site.session, leader, dead, 2, START_MS) == 0
    assert hand_out(site.session, leader, dead, 40, START_MS) == 0
    assert unfinished_counts(site.session) == {1: 1}


def test_hand_outs_become_visible_in_the_order_of_their_ids(site: Site) -> None:
    """Or else whoever reads on from the last one it saw would miss one."""
    members = [site.join(f"e{i}") for i in range(4)]
    for member in members:
        site.lane(member).commit(a_batch(b"t%d" % member.number, first=member.number * 100))
    seen: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        session = site.connect()
        while not stop.is_set():
            (result,) = session.query(b"SELECT id FROM handout ORDER BY id")
            seen.extend(row[0] for row in result.rows if not seen or row[0] > seen[-1])

    def give(member: Membership) -> None:
        session = site.connect()
        for _ in range(25):
            give_back(session, member, [member.number * 100], START_MS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    at_once([lambda member=member: give(member) for member in members])
    (result,) = site.session.query(b"SELECT id FROM handout ORDER BY id")
    ids = [row[0] for row in result.rows]
    wait_until(lambda: seen and seen[-1] == ids[-1], what="the watcher has seen the last one")
    stop.set()
    watcher.join(20)
    assert len(ids) == 100
    assert seen == ids


def test_old_hand_outs_are_dropped_in_time(site: Site) -> None:
    one = site.join("a")
    lane = site.lane(one)
    lane.commit(a_batch(b"t"))
    for ms in (START_MS, START_MS + 80_000_000):
        give_back(site.session, one, [1], ms)
    last = last_handout(site.session)
    site.now_ms = START_MS + 90_000_000
    lane.idle()
    assert [handout.id for handout in handouts(site.session, 1, 0)] == [last]


def test_a_fenced_engine_gives_nothing_back(site: Site) -> None:
    one = site.join("a")
    site.lane(one).commit(a_batch(b"t"))
    fence(site.session, lead(site.session, 2), 1)
    with pytest.raises(StoreFenced):
        give_back(site.session, one, [1], START_MS)
    assert handouts(site.session, 1, 0) == []
