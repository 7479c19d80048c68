"""FAULTS 12: mariadbd is killed with -9 amid commits; what was acknowledged is there, once."""

from __future__ import annotations

import itertools
import random
import threading

import pytest

from refreshd.errors import StoreUnavailable
from refreshd.mysql_url import read_mysql_url
from refreshd.store.base import Batch
from refreshd.store.mysql_engines import Membership, handouts
from refreshd.store.mysql_schema import migrate
from refreshd.task import State
from tests.refreshd.store.making import a_batch, end
from tests.refreshd.store.mysql_tools import Site
from tools.servers import MariaDb, wait_until

pytestmark = pytest.mark.needs("mariadbd")

KILLS = 4
BATCH = 100


class Writer(threading.Thread):
    """A saver as workers have them: refuses what could not be written, and keeps ends for the next commit."""

    def __init__(self, site: Site, member: Membership, place: int) -> None:
        super().__init__(daemon=True)
        self.lane = site.lane(member)
        self.place = place
        self.stopping = threading.Event()
        self.acknowledged: dict[bytes, int] = {}
        self.refused: dict[bytes, int] = {}
        self.ended: dict[int, State] = {}
        self.commits = 0
        self.failed = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def _run(self) -> None:
        ends = Batch()
        for step in itertools.count():
            first = (self.place << 40) + step * BATCH
            ids = [b"t%d-%d" % (self.place, first + i) for i in range(BATCH)]
            if self.refused and step % 3 == 0:
                # A client asks again.
                ids[0] = random.choice(list(self.refused))
            batch = a_batch(*ids, first=first)
            batch.results, batch.finished = ends.results, ends.finished
            try:
                known = self.lane.commit(batch)
            except StoreUnavailable:
                self.failed += 1
                self.refused |= {row[1]: row[0] for row in batch.tasks}
                # As the saver's RETRY_S, shorter.
                self.stopping.wait(0.02)
                continue
            self.commits += 1
            self.ended |= {row[0]: State(row[1]) for row in batch.results}
            ends = Batch()
            for serial, task_id, _, _ in batch.tasks:
                self.acknowledged[task_id] = known.get(task_id, serial)
                if serial % 2 and task_id not in known:
                    end(ends, serial, task_id, random.choice([State.COMPLETE, State.FAILED]))
            if self.stopping.is_set():
                # After a commit that was answered: nothing is open but ends that were never sent.
                return


def test_kills_amid_commits_lose_nothing_and_double_nothing(own_mariadb: MariaDb) -> None:
    url = read_mysql_url(own_mariadb.url)
    migrate(url)
    site = Site(url)
    members = [site.join("e1"), site.join("e2")]
    writers = [Writer(site, members[place % 2], place) for place in range(3)]
    for writer in writers:
        writer.start()
    for _ in range(KILLS):
        before = [writer.commits for writer in writers]
        wait_until(
            lambda before=before: all(
                w.error or w.commits > b + 3 for w, b in zip(writers, before, strict=True)
            ),
            what="all go on",
        )
        # Somewhere amid a commit, of which each takes a few ms.
        threading.Event().wait(random.uniform(0, 0.01))
        own_mariadb.kill()
        failed = [writer.failed for writer in writers]
        wait_until(
            lambda failed=failed: all(w.error or w.failed > f for w, f in zip(writers, failed, strict=True)),
            what="all notice",
        )
        own_mariadb.restart()
    before = [writer.commits for writer in writers]
    wait_until(lambda: all(w.error or w.commits > b for w, b in zip(writers, before, strict=True)))
    for writer in writers:
        writer.stopping.set()
    for writer in writers:
        writer.join(20)
        assert not writer.is_alive()
        assert writer.error is None
        writer.lane.idle()
    _compare(site, members, writers)
    site.close()


def _compare(site: Site, members: list[Membership], writers: list[Writer]) -> None:
    kept = {
        task_id: (serial, state) for serial, task_id, state in site.ask("SELECT serial, id, state FROM task")
    }
    acknowledged = {task_id: serial for writer in writers for task_id, serial in writer.acknowledged.items()}
    ended = {serial: int(state) for writer in writers for serial, state in writer.ended.items()}
    assert len(acknowledged) > 1_000
    for task_id, serial in acknowledged.items():
        assert kept[task_id] == (serial, ended.get(serial, 0))
    # What was refused and is there all the same, is known to its engine.
    left = {serial for task_id, (serial, _) in kept.items() if task_id not in acknowledged}
    given = [
        (handout.first, handout.last)
        for member in members
        for handout in handouts(site.session, member.number, 0)
    ]
    for serial in left:
        assert any(first <= serial <= last for first, last in given), serial
