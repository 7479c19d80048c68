"""What has ended is known for ever, whoever dies: several processes of a lane against a model.

A process is killed by closing its connection without a word: what it had in memory is gone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from refreshd.errors import StoreUnavailable
from refreshd.shard import first_serial
from refreshd.store import ids, sqlite, sqlite_index, sqlite_journal, sqlite_rows
from refreshd.store.base import ALL_SHARDS, Batch, IdEntry
from refreshd.store.sqlite import SqliteLane, SqliteReader
from refreshd.store.sqlite_file import is_journaled, stored_low
from tests.refreshd.store.making import PLANS, START_MS, a_batch, end, row
from tests.refreshd.store.test_sqlite import failing

RETENTION_S = 1e9
SLOTS = (0, 1, 2)
GROUPS = (0, 1, 2, 3)
"""Shards move four at a time here: those with the same remainder by 4."""


def shards_of(group: int) -> frozenset[int]:
    return frozenset(shard for shard in ALL_SHARDS if shard % 4 == group)


def group_of(task_id: bytes) -> int:
    return crc32(task_id) & 3


class OldLane(SqliteLane):
    """As lanes were written before there was a journal."""

    def _note_ended(self, serials: Sequence[int]) -> None:
        pass

    def _write_low(self, low: int) -> None:
        low = min([low, *(serial for _, _, serial in self._pending.all())])
        if low > self._low:
            key = f"low {self._slot} of {','.join(map(str, self._sharers))}"
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, low))
            self._low = low

    def take_ids(self, shards: frozenset[int]) -> list[IdEntry]:
        self._pending.drain()
        return self._pending.take(shards)

    def _find_pieces(self, shards: frozenset[int], rows: int) -> Iterator[None]:
        return self._index_pieces(rows)

    def idle(self) -> bool:
        self._pending.drain()
        return self._note_stragglers()


class Process:
    """One process that has the lane, and what of its shards it has."""

    def __init__(self, path: Path, slot: int, *, old: bool, now_ms: int) -> None:
        kind = OldLane if old else SqliteLane
        self.slot = slot
        self.old = old
        self.now_ms = now_ms
        self.lane = kind(path, RETENTION_S, lambda: self.now_ms, slot=slot, sharers=SLOTS)
        self.groups: set[int] = set()
        self.moving = False

    def kill(self) -> None:
        self.lane._db.close()


class Processes(RuleBasedStateMachine):
    """Three slots share a lane; their processes are killed, rolled and give shards to each other."""

    @initialize(old=st.booleans())
    def begin(self, old: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(ids, "BUCKET_MAX", 3)
        self.patch.setattr(ids, "TRAIL", 1 / 8)
        self.patch.setattr(sqlite_rows, "CHUNKS", (4, 2, 1))
        self.patch.setattr(sqlite_index, "RECENT_MAX", 4)
        self.patch.setattr(sqlite_index, "STRETCHES", 16)
        self.patch.setattr(sqlite, "_LEFT_ROWS", 2)
        self.patch.setattr(sqlite, "STRAGGLE_MS", 20)
        self.patch.setattr(sqlite, "_STRAGGLE_ROWS", 3)
        self.patch.setattr(sqlite_journal, "ROW_SERIALS", 2)
        self.patch.setattr(sqlite_journal, "TRIM_SERIALS", 2)
        self.folder = Path(tempfile.mkdtemp(prefix="refreshd-store-"))
        self.path = self.folder / "lane-0.db"
        self.now_ms = START_MS
        self.sequence = 0
        self.unfinished: dict[int, bytes] = {}
        self.finished: dict[bytes, int] = {}
        self.reader: SqliteReader | None = None
        self.processes: list[Process] = []
        self.start_all(dict.fromkeys(SLOTS, old), {group: group % 3 for group in GROUPS})

    def start_all(self, old: dict[int, bool], owners: dict[int, int]) -> None:
        for slot in SLOTS:
            process = self.opened(slot, old=old[slot])
            process.groups = {group for group in GROUPS if owners[group] == slot}
            self.recover(process, *process.groups)
        if self.reader is None:
            self.reader = SqliteReader(self.path)

    def opened(self, slot: int, *, old: bool) -> Process:
        process = Process(self.path, slot, old=old, now_ms=self.now_ms)
        self.processes.append(process)
        return process

    def recover(self, process: Process, *groups: int) -> None:
        """Finds what another process had in memory, as at a start or when shards are taken back."""
        shards = frozenset().union(*map(shards_of, groups))
        for _ in range(1_000):
            if not process.lane.index_some(shards, 3):
                break
        else:
            pytest.fail("looking for ids never ends")

    def teardown(self) -> None:
        for process in getattr(self, "processes", ()):
            process.kill()
        if getattr(self, "reader", None) is not None:
            assert self.reader is not None
            self.reader.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    def owner(self, group: int) -> Process:
        return next(process for process in self.processes if group in process.groups)

    def a_process(self, data: st.DataObject) -> Process:
        return self.processes[data.draw(st.integers(0, len(self.processes) - 1), "process")]

    # ── what processes do ─────────────────────────────────────────────────────────────────

    @rule(
        data=st.data(),
        tasks=st.integers(0, 12),
        ends=st.integers(0, 9),
        low=st.booleans(),
        fails=st.sampled_from([False, False, True]),
    )
    def commit(self, data: st.DataObject, tasks: int, ends: int, low: bool, fails: bool) -> None:
        process = self.a_process(data)
        own = {s: task_id for s, task_id in self.unfinished.items() if group_of(task_id) in process.groups}
        batch = Batch()
        batch.plans = {PLANS[0].number: PLANS[0].text}
        if low and not process.moving:
            # Of all, as shards change their owners here without the sharers being others.
            batch.low = min(self.unfinished, default=first_serial(self.now_ms))
        for _ in range(tasks):
            self.sequence += 1
            task_id = b"task-%d" % self.sequence
            if group_of(task_id) in process.groups:
                batch.tasks.append(row(first_serial(self.now_ms) + self.sequence, task_id))
        # Some stay for long.
        for serial in sorted(own)[len(own) // 4 :][:ends]:
            end(batch, serial, own[serial])
        # Repeats: what is finished is never accepted again.
        known = {i: s for i, s in self.finished.items() if group_of(i) in process.groups}
        repeated = dict(list(known.items())[-5:])
        batch.tasks += [
            row(first_serial(self.now_ms) + 5_000 + i, task_id) for i, task_id in enumerate(repeated)
        ]
        if fails:
            with failing(process.lane, "COMMIT", "SQLITE_FULL"), pytest.raises(StoreUnavailable):
                process.lane.commit(batch)
        assert process.lane.commit(batch) == repeated
        self.unfinished |= {t[0]: t[1] for t in batch.tasks if t[1] not in repeated}
        for serial, *_ in batch.results:
            self.finished[self.unfinished.pop(serial)] = serial

    @rule(by_ms=st.sampled_from([1, 15, 1_000]))
    def later(self, by_ms: int) -> None:
        self.now_ms += by_ms
        for process in self.processes:
            process.now_ms = self.now_ms

    @rule(data=st.data(), pieces=st.integers(1, 200))
    def upkeep(self, data: st.DataObject, pieces: int) -> None:
        process = self.a_process(data)
        if not process.moving:
            for _ in range(pieces):
                if not process.lane.idle():
                    break

    # ── who dies, and who takes over ──────────────────────────────────────────────────────

    @rule(data=st.data())
    def killed(self, data: st.DataObject) -> None:
        process = self.a_process(data)
        process.kill()
        self.processes.remove(process)
        new = self.opened(process.slot, old=process.old and not self.is_new)
        new.groups = process.groups
        self.recover(new, *new.groups)

    @rule(rotate=st.integers(0, 2))
    def all_killed(self, rotate: int) -> None:
        """And shards are others' then, as with another number of workers."""
        owners = {group: (self.owner(group).slot + rotate) % 3 for group in GROUPS}
        for process in self.processes:
            process.kill()
        self.processes = []
        self.start_all(dict.fromkeys(SLOTS, False), owners)

    @rule(data=st.data(), dies=st.sampled_from(["", "giver", "taker", "both"]), old=st.booleans())
    def roll(self, data: st.DataObject, dies: str, old: bool) -> None:
        """A process hands over to its successor; somebody may die after any step, others go on."""
        giver = self.a_process(data)
        # The code on the disk does not become older.
        taker = self.opened(giver.slot, old=giver.old and old and not self.is_new)
        groups = sorted(giver.groups)
        dies_at = data.draw(st.integers(0, len(groups)), "after")
        giver.moving = taker.moving = True
        for step, group in enumerate([*groups, None]):
            if dies and step == dies_at:
                self.one_dies_in_roll(giver, taker, dies, last=groups[step - 1] if step else None)
                return
            if group is not None:
                self.move(giver, taker, group)
                self.others_go_on(data, giver, taker)
        giver.moving = taker.moving = False
        self.processes.remove(giver)
        giver.lane.close(handed_over=True)

    def others_go_on(self, data: st.DataObject, *busy: Process) -> None:
        doing = data.draw(st.sampled_from(["nothing", "commit", "upkeep", "killed"]))
        if doing == "commit":
            self.commit(data, 9, 9, low=True, fails=False)
        others = [process for process in self.processes if process not in busy]
        if doing == "upkeep":
            for process in others:
                process.lane.idle()

    def move(self, giver: Process, taker: Process, group: int, *, arrives: bool = True) -> None:
        asked = {i: giver.lane.finished_serial(i) for i in self.finished if group_of(i) == group}
        entries = giver.lane.take_ids(shards_of(group))
        assert {i: giver.lane.finished_serial(i) for i in asked} == asked
        giver.groups.discard(group)
        if arrives:
            taker.lane.give_ids(entries)
        taker.groups.add(group)

    def one_dies_in_roll(self, giver: Process, taker: Process, dies: str, last: int | None) -> None:
        """What was given last may be on its way."""
        left = {"giver": taker, "taker": giver}.get(dies)
        taken = set(taker.groups)
        for process in (giver, taker):
            if process is not left:
                process.kill()
                self.processes.remove(process)
        groups = giver.groups | taken
        if left is None:
            left = self.opened(giver.slot, old=giver.old and not self.is_new)
        missing = groups - left.groups | ({last} if last is not None else set())
        left.groups = groups
        left.moving = False
        self.recover(left, *missing)

    @rule(data=st.data(), dies=st.sampled_from(["", "", "giver", "taker"]), arrives=st.booleans())
    def reshare(self, data: st.DataObject, dies: str, arrives: bool) -> None:
        """Shards go to another slot; nobody does upkeep meanwhile."""
        giver, taker = self.a_process(data), self.a_process(data)
        if giver is taker or not giver.groups:
            return
        for process in self.processes:
            process.moving = True
        group = data.draw(st.sampled_from(sorted(giver.groups)))
        arrives = arrives or not dies
        self.move(giver, taker, group, arrives=arrives)
        if arrives and data.draw(st.booleans(), "commit"):
            self.commit(data, 9, 9, low=False, fails=False)
        for name, process in (("giver", giver), ("taker", taker)):
            if dies == name:
                process.kill()
                self.processes.remove(process)
                new = self.opened(process.slot, old=process.old and not self.is_new)
                new.groups = process.groups
                self.recover(new, *new.groups)
        if dies == "giver" and not arrives:
            self.recover(taker, group)
        for process in self.processes:
            process.moving = False

    @rule(data=st.data())
    def stopped(self, data: st.DataObject) -> None:
        process = self.a_process(data)
        self.processes.remove(process)
        process.lane.close()
        new = self.opened(process.slot, old=process.old and not self.is_new)
        new.groups = process.groups
        self.recover(new, *new.groups)

    @property
    def is_new(self) -> bool:
        """Whether new code is on the disk."""
        return any(not process.old for process in self.processes)

    # ── what is promised ──────────────────────────────────────────────────────────────────

    @invariant()
    def every_finished_task_is_known_to_its_owner(self) -> None:
        if not hasattr(self, "processes"):
            return
        assert self.reader is not None
        assert sorted(group for process in self.processes for group in process.groups) == list(GROUPS)
        for task_id, serial in self.finished.items():
            waiting = self.owner(group_of(task_id)).lane.finished_serial(task_id)
            if waiting is None:
                found = self.reader.find(task_id, crc32(task_id))
                assert found is not None, (task_id, serial)
                waiting = found.serial
            assert waiting == serial

    @invariant()
    def unfinished_tasks_are_found(self) -> None:
        if hasattr(self, "processes"):
            assert self.reader is not None
            assert {serial for serial, _, _ in self.reader.unfinished()} == self.unfinished.keys()

    @precondition(lambda self: not any(process.moving or process.old for process in self.processes))
    @rule()
    def upkeep_ends_and_leaves_little(self) -> None:
        self.later(1_000)
        for process in self.processes * 2:
            for _ in range(1_000):
                if not process.lane.idle():
                    break
            else:
                pytest.fail("upkeep never ends")
        db = self.processes[0].lane._db
        assert is_journaled(db)
        # 64 buckets of fewer than 3 ids each, and what is not trimmed at once; by three processes.
        (blobs,) = db.execute("SELECT coalesce(sum(length(serials)), 0) FROM ended").fetchone()
        assert blobs / 8 <= 3 * (24 + 3 + 12)
        writers = {writer for (writer,) in db.execute("SELECT DISTINCT writer FROM ended")}
        assert writers <= {process.lane._writer for process in self.processes}
        assert {s for (s,) in db.execute("SELECT serial FROM straggler")} == self.unfinished.keys()
        assert stored_low(db) > max(self.unfinished, default=0)


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# ── one by one ────────────────────────────────────────────────────────────────────────────

NOW_MS = START_MS + 3_600_000


def opened(
    path: Path, kind: type[SqliteLane] = SqliteLane, slot: int = 0, sharers: Sequence[int] = (0,)
) -> SqliteLane:
    return kind(path, RETENTION_S, lambda: NOW_MS, slot=slot, sharers=sharers)


def ended(lane: SqliteLane, *task_ids: bytes, first: int = 1) -> None:
    """Tasks that are accepted and end at once."""
    batch = a_batch(*task_ids, first=first)
    for serial, task_id, _, _ in list(batch.tasks):
        end(batch, serial, task_id)
    assert lane.commit(batch) == {}


def assert_known(lane: SqliteLane, *task_ids: bytes) -> None:
    repeats = a_batch(*task_ids, first=1 << 61)
    assert lane.commit(repeats).keys() == set(task_ids)


def upkeep(*lanes: SqliteLane) -> None:
    for lane in lanes:
        while lane.idle():
            pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lane-0.db"


def journaled(lane: SqliteLane) -> int:
    """How many serials the journal names."""
    return int(lane._db.execute("SELECT coalesce(sum(length(serials)), 0) FROM ended").fetchone()[0]) // 8


def test_the_journal_is_trimmed_as_the_index_grows_and_names_all_that_waits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "BUCKET_MAX", 4)
    monkeypatch.setattr(sqlite_journal, "TRIM_SERIALS", 64)
    lane = opened(path)
    upkeep(lane)
    assert is_journaled(lane._db)
    task_ids = [b"t%d" % number for number in range(4_000)]
    for at in range(0, len(task_ids), 40):
        ended(lane, *task_ids[at : at + 40], first=1 + at)
        assert journaled(lane) <= 64 * 4 * ids.TRAIL + 64 + 80
    assert len(lane._pending)
    lane._db.close()
    again = opened(path)
    again.index_finished()
    assert_known(again, *task_ids)
    again.close()


def test_a_process_that_is_stopped_leaves_no_journal(path: Path) -> None:
    lane = opened(path)
    ended(lane, b"t")
    assert journaled(lane) == 1
    lane.close()
    lane = opened(path)
    assert journaled(lane) == 0
    lane.close()


def test_what_was_given_to_one_that_died_is_known_again(path: Path) -> None:
    lane = opened(path)
    ended(lane, b"t", b"u")
    upkeep(lane)
    assert len(lane.take_ids(ALL_SHARDS)) == 2
    while lane.index_some(ALL_SHARDS):
        pass
    assert_known(lane, b"t", b"u")
    lane.close()


def test_what_a_process_without_a_journal_gave_outlives_both(path: Path) -> None:
    before, after = opened(path, OldLane), opened(path)
    ended(before, b"t", b"u")
    after.give_ids(before.take_ids(ALL_SHARDS))
    before.close(handed_over=True)
    batch = Batch()
    batch.low, batch.forgotten = first_serial(NOW_MS), ["p"]
    after.commit(batch)
    assert is_journaled(after._db)
    after._db.close()
    again = opened(path)
    again.index_finished()
    assert_known(again, b"t", b"u")
    again.close()


def test_a_straggler_that_the_successor_ended_is_known_to_a_predecessor_without_a_journal(path: Path) -> None:
    before = opened(path, OldLane)
    before.commit(a_batch(b"old"))
    upkeep(before)
    assert stored_low(before._db) > 1
    after = opened(path)
    after.commit(end(Batch(), 1, b"old"))
    after._db.close()
    while before.index_some():
        pass
    assert_known(before, b"old")
    before._db.close()


def test_a_sharer_without_a_journal_makes_a_start_look_at_the_results(path: Path) -> None:
    old, new = opened(path, OldLane, slot=0, sharers=[0, 1]), opened(path, slot=1, sharers=[0, 1])
    serial = first_serial(NOW_MS)
    ended(old, b"t", first=serial)
    ended(new, b"u", first=serial + 1)
    upkeep(old, new)
    assert not is_journaled(new._db)
    for lane in (old, new):
        lane._db.close()
    again = [opened(path, slot=slot, sharers=[0, 1]) for slot in (0, 1)]
    for lane in again:
        lane.index_finished()
        assert_known(lane, b"t", b"u")
    assert not is_journaled(again[0]._db)
    batch = Batch()
    batch.low, batch.forgotten = serial + 2, ["p"]
    for lane in again:
        lane.commit(batch)
    assert is_journaled(again[0]._db)
    for lane in again:
        lane.close()


def test_a_file_of_the_version_before_is_taken_on(path: Path) -> None:
    lane = opened(path, OldLane)
    ended(lane, b"t", b"u")
    lane.commit(a_batch(b"v", first=9))
    lane._db.execute("DROP TABLE ended")
    lane._db.execute("DROP TABLE recent")
    lane._db.execute("DROP TABLE parked")
    lane._db.execute("DROP TABLE receipt")
    lane._db.execute("PRAGMA user_version=1")
    lane._db.close()
    again = opened(path)
    again.index_finished()
    assert_known(again, b"t", b"u")
    reader = SqliteReader(path)
    assert [serial for serial, _, _ in reader.unfinished()] == [9]
    reader.close()
    again.close()


def test_an_older_task_of_an_id_does_not_take_the_place_of_the_later_one(path: Path) -> None:
    """As when the journal of one that died is written after the id was used again."""
    lane = opened(path)
    lane.commit(a_batch(b"t", first=9))
    for serial in (9, 5):
        lane._index([(crc32(b"t"), b"t", serial)])
    assert lane._db.execute("SELECT serial FROM recent").fetchall() == [(9,)]
    lane.close()


def test_ids_that_cannot_be_noted_are_not_taken(path: Path) -> None:
    lane = opened(path)
    ended(lane, b"t")
    with failing(lane, "INTO ended", "SQLITE_FULL"), pytest.raises(StoreUnavailable):
        lane.take_ids(ALL_SHARDS)
    assert [task_id for _, task_id, _ in lane.take_ids(ALL_SHARDS)] == [b"t"]
    lane.close()
