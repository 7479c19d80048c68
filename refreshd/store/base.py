"""The store as the engine sees it: one protocol, any number of implementations.

A *lane* is a part of the store with its own order: what is given to it in one
batch is kept whole or not at all, and batches are kept in the order they came.
A lane is used by one saver thread; `Reader` by another. Both block.

Two processes may have a lane open for writing at a time, each for the shards it
owns: several workers may share one, and a worker and its successor do for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from refreshd.task import State, line_of
from wire import SHARDS

ALL_SHARDS = frozenset(range(SHARDS))

TaskRow = tuple[int, bytes, int, bytes]
"""(serial, id, plan number, body): an accepted task, written before it is acknowledged; see `task.body_of`.

A plain tuple: making a NamedTuple of it costs 0.25 µs a task, this 0.05.
"""

ResultRow = tuple[int, int, int, int, int, bytes | None]
"""(serial, state, done, failed, updated_ms, marks): a task's end."""

IdEntry = tuple[int, bytes, int]
"""(crc, id, serial): by this a task that is not in memory is found again."""


class Parked(NamedTuple):
    """How far an unfinished task has come that is not in memory: it only waits for proxies that are away.

    `layer` is the layer's place in the plan, `mask` has a bit for each proxy that is still to
    report; `group` is the number of what waits for the same proxies, see `parked.Group`.
    """

    serial: int
    group: int
    layer: int
    priority: int
    mask: bytes
    deadline_ms: int
    """When it expires, wall clock."""
    updated_ms: int
    state: int
    failed: int
    marks: bytes | None


class ParkedTask(NamedTuple):
    """A parked task as the store has it."""

    plan: int
    body: bytes
    parked: Parked


class ParkedCount(NamedTuple):
    """How many tasks are parked in a group, the serial of the first, and what they have in common."""

    group: int
    tasks: int
    first: int
    plan: int
    layer: int
    priority: int
    mask: bytes


class ProxyRow(NamedTuple):
    """A proxy that registered without being listed in the configuration."""

    name: str
    group: str
    layer: int


class ReceiptRow(NamedTuple):
    """What a proxy signed of a task, as text; a later one of the two takes its place."""

    serial: int
    proxy: str
    text: bytes


class Batch:
    """What one commit keeps."""

    __slots__ = (
        "finished", "forgotten", "low", "parked", "plans", "proxies", "receipts", "results", "tasks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tasks: list[TaskRow] = []
        self.plans: dict[int, str] = {}
        """Plans that the tasks refer to, as text by number; those known already do no harm."""
        self.results: list[ResultRow] = []
        self.finished: list[IdEntry] = []
        """An entry for each of `results` and `parked`."""
        self.parked: list[Parked] = []
        """Tasks that are to leave memory, or did so before; an end takes a task out again."""
        self.proxies: list[ProxyRow] = []
        self.forgotten: list[str] = []
        """Names of proxies to take out."""
        self.receipts: list[ReceiptRow] = []
        """Of tasks that are there; they go when these are dropped."""
        self.low = 0
        """All tasks with smaller serials that this worker owns have a result that was committed before."""

    def __len__(self) -> int:
        return (
            len(self.tasks)
            + len(self.results)
            + len(self.parked)
            + len(self.proxies)
            + len(self.forgotten)
            + len(self.receipts)
        )


class Stored(NamedTuple):
    """A task as the store has it; `result` is None while it is unfinished."""

    serial: int
    id: bytes
    plan: str
    body: bytes
    result: StoredResult | None
    owner: int = 0
    """The number of the engine whose task it is, where several share the store; 0 once it has finished."""
    parked: Parked | None = None
    """Set where it is unfinished and was parked. It may be in memory again since."""

    @property
    def line(self) -> bytes:
        """The request line."""
        return line_of(self.body)


class StoredResult(NamedTuple):
    """A task's end, as the store has it."""

    state: State
    done: int
    failed: int
    updated_ms: int
    marks: bytes


class Lane(Protocol):
    """A part of the store that one saver writes."""

    def commit(self, batch: Batch) -> dict[bytes, int]:
        """Keeps the whole batch on stable storage, or nothing of it.

        Returns the ids among `batch.tasks` that were known as finished, with
        their serials: of those the store keeps what it had. Where several engines
        share the store, also those that are unfinished tasks of any of them.
        Raises: StoreUnavailable, StoreFailed, StoreDamaged, StoreFenced.
        """

    def finished_serial(self, task_id: bytes) -> int | None:
        """The serial of a task that has just finished and that `Reader.find` may not know yet.

        May be called from another thread than the saver's; ask this first. Its task may be gone.
        """

    def take_ids(self, shards: frozenset[int]) -> list[IdEntry]:
        """Takes out, for another process, what `Reader.find` may not know yet of these shards.

        It is noted first that it left; when that cannot be written, nothing was taken.
        `finished_serial` goes on to find it here, for questions that are under
        way, until `index_some` has come to its end or `Reader.find` knows all of it.
        Raises: StoreUnavailable, StoreFailed, StoreDamaged.
        """

    def give_ids(self, entries: Iterable[IdEntry]) -> None:
        """Takes in what another process took out. From now on they are found here.

        May be called from another thread than the saver's. No `low` may be written
        until all that another process took out was given.
        """

    def index_some(self, shards: frozenset[int] = ...) -> bool:
        """Does a bounded piece of finding again the ids of these shards that a dead process had in memory.

        When no more is left, all that had finished at the first call is found here or by `Reader.find`.
        Returns whether more is left. Commits may go in between.
        Raises: StoreUnavailable, StoreFailed, StoreDamaged.
        """

    def share(self, sharers: Sequence[int]) -> None:
        """From now on these workers write the lane, this one among them.

        To be called on all of them before one writes `low` again.
        """

    def set_retention(self, retention_s: float) -> None:
        """How long finished tasks are kept from now on.

        May be called from another thread than the saver's.
        """

    def idle(self) -> bool:
        """Does a bounded piece of upkeep (retention, room). Returns whether more is left."""

    def close(self, *, handed_over: bool = False) -> None:
        """Leaves everything as a quick start wants it; `handed_over`: the successor does."""


class Reader(Protocol):
    """Reads a lane beside its saver."""

    def proxies(self) -> list[ProxyRow]:
        """The proxies that registered without being listed."""

    def plans(self) -> dict[int, str]:
        """Every plan, as text by number."""

    def last_serial(self) -> int:
        """The largest serial that the lane knows of, 0 if it is new. Later ones must be larger."""

    def unfinished(self) -> Iterator[tuple[int, int, bytes]]:
        """(serial, plan number, body) of the tasks without a result that are not parked, by serial."""

    def unfinished_slices(self, rows: int = ...) -> Iterator[list[tuple[int, int, bytes]]]:
        """As `unfinished`, of `rows` rows at a time: each slice is read when it is asked for, and shortly.

        May be asked for one by one from any one thread at a time, with a reader of
        its own, while others write; a task that ends meanwhile may still be in it.
        """

    def handed_out(self, first: int, last: int, rows: int = ...) -> Iterator[list[tuple[int, int, bytes]]]:
        """As `unfinished_slices`, of serials from `first` to `last`: what was given to this engine."""

    def parked_counts(self) -> list[ParkedCount]:
        """What is parked, by group. Where workers or engines share the store, what is theirs may be in it."""

    def parked_of(self, group: int, after: int, rows: int) -> list[ParkedTask]:
        """Some parked tasks of a group with serials larger than `after`, by serial."""

    def parked_due(self, now_ms: int, rows: int) -> list[ParkedTask]:
        """Some parked tasks whose deadline has come, the earliest first."""

    def find(self, task_id: bytes, crc: int) -> Stored | None:
        """A finished or parked task by id. Where engines share the store, also an unfinished one of any."""

    def serials(self, serials: list[int]) -> list[Stored]:
        """The tasks with these serials, newest first."""

    def receipts(self, serial: int, after: str, rows: int) -> list[ReceiptRow]:
        """Some receipts of a task, of proxies whose names come after `after`, by these names."""

    def page(self, before: int, limit: int, state: State | None, unfinished: bool) -> list[Stored]:
        """Tasks older than serial `before`, newest first; of one final state, or unfinished ones only."""

    def close(self) -> None:
        """Ends reading."""
