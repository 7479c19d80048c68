"""The store in MySQL or MariaDB, which several engines share: one database, one table of tasks.

A lane is only a thread that writes, with a connection of its own; what it writes
is told apart by the task's `owner`, the number of the engine.

Every commit is two packets: all that is to be written, behind a look at the
engine's own row under a shared lock, and COMMIT once what came back was
checked. Whoever fences the engine changes that row, and so waits for commits
that are under way; those that come later find another epoch, and nothing of
them is kept (StoreFenced).

A commit may be run again at any time: a task whose id is there under the same
serial is the one that was to be written, and a task may end twice in the same way.

Assumptions: a COMMIT that was answered is on stable storage (innodb_flush_log_at_trx_commit=1;
with Galera: on another node), and InnoDB checks its pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from refreshd.errors import StoreError, StoreFailed, StoreFenced
from refreshd.mysql_url import MysqlUrl
from refreshd.shard import first_serial
from refreshd.store.base import ALL_SHARDS, Batch, IdEntry, TaskRow
from refreshd.store.mysql_connection import Result, Session
from refreshd.store.mysql_engines import Membership, give_back
from refreshd.store.mysql_rows import (
    end_tasks,
    hexed,
    insert_tasks,
    keep_receipts,
    numbers,
    packets,
    park_tasks,
    unpark_tasks,
)

# A commit of which nothing is heard for so long is given up, and its tasks are refused: clients wait. What
# was kept all the same is not lost (`_settle_unsure`). Each statement is answered by itself, a packet is
# 40 ms of work. What may take long (reading, taking over, changing the schema) has longer deadlines.
COMMIT_TIMEOUT_S = 2.0
# Finished tasks that are dropped at a time once they are older than the retention.
DROP_ROWS = 1024
# Rows of hand-outs are kept so long: whoever has not read them by then has started anew since.
HANDOUTS_KEPT_MS = 86_400_000
# Tasks that are asked for by id or serial at a time.
_ASK_ROWS = 4_096


class MysqlLane:
    """Writes tasks of one engine. Used by one thread at a time."""

    def __init__(
        self,
        url: MysqlUrl,
        member: Membership,
        retention_s: float,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """`member` says as which engine, and in which of its epochs. Does not connect yet."""
        self._session = Session(url, answer_timeout_s=COMMIT_TIMEOUT_S)
        self._member = member
        self._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self.set_retention(retention_s)
        self._plans_kept: set[int] = set()
        self._unsure: list[int] = []
        """Serials of refused tasks that may have been kept all the same."""
        self._drop_from = 0
        self._may_be_parked = True
        """Whether any task may be parked, of any engine; looked at in upkeep."""

    def set_retention(self, retention_s: float) -> None:
        """See `base.Lane`."""
        self._retention_ms = int(retention_s * 1000)

    # ── commit ────────────────────────────────────────────────────────────────────────────

    def commit(self, batch: Batch) -> dict[bytes, int]:
        """See `base.Lane`.

        When it raises StoreUnavailable because nobody could say whether the last
        COMMIT came through, this is found out before anything else is written: what
        was kept though it was refused becomes a hand-out of the engine to itself.
        """
        try:
            self._settle_unsure()
            known = self._session.atomically(lambda: self._write(batch))
        except StoreError:
            if self._session.is_unsure and not self._unsure:
                self._unsure = [row[0] for row in batch.tasks]
            raise
        self._plans_kept.update(batch.plans)
        return known

    def _write(self, batch: Batch) -> dict[bytes, int]:
        packet_bytes = self._session.packet_bytes()
        inserts = list(insert_tasks(batch.tasks, self._member.number, packet_bytes))
        ends = list(end_tasks(batch.results, self._member.number, packet_bytes))
        receipts = keep_receipts(batch.receipts, packet_bytes)
        script = [
            self._member.seen,
            *self._small(batch),
            *self._parks(batch, packet_bytes),
            *receipts,
            *inserts,
            *ends,
        ]
        results: list[Result] = []
        for some in packets(script, packet_bytes):
            results += self._session.query(*some)
            if len(results) == len(some):
                self._member.check(results[0])
        at = len(results) - len(ends)
        known: dict[bytes, int] = {}
        if sum(result.affected for result in results[at - len(inserts) : at]) != len(batch.tasks):
            known = self._known(batch.tasks)
        if sum(result.affected for result in results[at:]) != len(batch.results):
            self._check_ends(batch)
        return known

    def _small(self, batch: Batch) -> list[bytes]:
        """What there is little of: plans and proxies."""
        script = []
        plans = sorted(item for item in batch.plans.items() if item[0] not in self._plans_kept)
        for number, text in plans:
            script.append(
                b"INSERT INTO plan (number, text) VALUES (%d, %b) ON DUPLICATE KEY UPDATE number=plan.number"
                % (number, hexed(text.encode()))
            )
        for proxy in batch.proxies:
            row = b"%b, %b, %d" % (hexed(proxy.name.encode()), hexed(proxy.group.encode()), proxy.layer)
            script.append(b"REPLACE INTO proxy (name, grp, layer) VALUES (%b)" % row)
        for name in batch.forgotten:
            script.append(b"DELETE FROM proxy WHERE name=%b" % hexed(name.encode()))
        return script

    def _parks(self, batch: Batch, packet_bytes: int) -> Iterator[bytes]:
        """Tasks that leave memory, and those among them that have ended."""
        if batch.parked:
            self._may_be_parked = True
            yield from park_tasks(batch.parked, packet_bytes)
        if self._may_be_parked:
            yield from unpark_tasks([row[0] for row in batch.results])

    def _known(self, tasks: Sequence[TaskRow]) -> dict[bytes, int]:
        """Those of the tasks' ids that are there under another serial. Raises: StoreFailed."""
        kept: dict[bytes, int] = {}
        for at in range(0, len(tasks), _ASK_ROWS):
            ids = b",".join(hexed(row[1]) for row in tasks[at : at + _ASK_ROWS])
            (result,) = self._session.query(b"SELECT id, serial FROM task WHERE id IN (%b)" % ids)
            kept.update(result.rows)
        known: dict[bytes, int] = {}
        for serial, task_id, _, _ in tasks:
            if task_id not in kept:
                raise StoreFailed(
                    f"task {task_id.decode()} could not be kept: its serial {serial} is another task's; "
                    "do two engines use the same number?"
                )
            if kept[task_id] != serial:
                known[task_id] = kept[task_id]
        return known

    def _check_ends(self, batch: Batch) -> None:
        """Some end changed nothing: the task had ended like that before, or was dropped since.

        Raises: StoreFenced for a task that is another engine's by now; StoreFailed
        for one that does not have the end it was given.
        """
        wanted = {row[0]: row[1] for row in batch.results}
        serials = list(wanted)
        for at in range(0, len(serials), _ASK_ROWS):
            (result,) = self._session.query(
                b"SELECT serial, owner, state FROM task WHERE serial IN (%b)"
                % numbers(serials[at : at + _ASK_ROWS])
            )
            for serial, owner, state in result.rows:
                if owner:
                    raise StoreFenced(f"task {serial} is a task of engine {owner} by now")
                if state != wanted[serial]:
                    raise StoreFailed(f"task {serial} is in state {state}, wanted {wanted[serial]}")

    def _settle_unsure(self) -> None:
        """Finds out what became of a commit that nobody answered."""
        if self._unsure:
            self._session.atomically(
                lambda: give_back(self._session, self._member, self._unsure, self._now_ms())
            )
            self._unsure = []

    # ── what SQLite's index of ids needs, and a database does not ─────────────────────────

    def finished_serial(self, task_id: bytes) -> int | None:
        """See `base.Lane`: every id is in the database."""
        return None

    def take_ids(self, shards: frozenset[int]) -> list[IdEntry]:
        """See `base.Lane`: there are none."""
        return []

    def give_ids(self, entries: Iterable[IdEntry]) -> None:
        """See `base.Lane`: nobody takes any out."""

    def index_some(self, shards: frozenset[int] = ALL_SHARDS) -> bool:
        """See `base.Lane`: nothing is left to find."""
        return False

    def share(self, sharers: Sequence[int]) -> None:
        """See `base.Lane`: whoever has a connection may write."""

    # ── upkeep ────────────────────────────────────────────────────────────────────────────

    def idle(self) -> bool:
        """Drops some tasks that are past their retention. See `base.Lane`.

        Every lane of every engine may do so at once: what another is just dropping is passed over.
        """
        self._settle_unsure()
        return self._session.atomically(self._drop_some)

    def _drop_some(self) -> bool:
        now_ms = self._now_ms()
        before_ms = now_ms - self._retention_ms
        seen, parked, _, found = self._session.query(
            self._member.seen,
            b"SELECT EXISTS (SELECT 1 FROM parked)",
            b"DELETE FROM handout WHERE at_ms < %d LIMIT %d" % (now_ms - HANDOUTS_KEPT_MS, DROP_ROWS),
            b"SELECT serial FROM task FORCE INDEX (PRIMARY) WHERE serial >= %d AND serial < %d"
            b" AND state <> 0 AND updated_ms < %d ORDER BY serial LIMIT %d FOR UPDATE SKIP LOCKED"
            % (self._drop_from, first_serial(before_ms), before_ms, DROP_ROWS),
        )
        self._member.check(seen)
        self._may_be_parked = bool(parked.rows[0][0])
        serials = [row[0] for row in found.rows]
        if serials:
            # An engine of an older version may have ended some that were parked.
            self._session.query(
                b"DELETE FROM task WHERE serial IN (%b)" % numbers(serials),
                b"DELETE FROM receipt WHERE serial IN (%b)" % numbers(serials),
                *unpark_tasks(serials),
            )
        # Older tasks that are still wanted are not walked past again and again; at the end all are, once.
        more = bool(serials or self._drop_from)
        self._drop_from = serials[-1] if serials else 0
        return more

    def close(self, *, handed_over: bool = False) -> None:
        """See `base.Lane`."""
        self._session.drop()
