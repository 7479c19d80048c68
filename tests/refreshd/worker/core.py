"""The core of one worker without sockets, threads and time: engine, pusher, proxies, and a store in memory.

`Core` stands in for the hub. Time stands still until `pass_time`; a commit
happens when `commit` says so, and fails when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from refreshd import config as configuration
from refreshd.errors import StoreError, StoreUnavailable
from refreshd.fanout import Log
from refreshd.fleet import Fleet, Plan, Proxy
from refreshd.shard import ShardMap, created_ms
from refreshd.store.base import Parked, ParkedCount, ParkedTask, ResultRow
from refreshd.task import Task, line_of, read_terms, split_body
from refreshd.worker import engine as engine_module
from refreshd.worker import parking as parking_module
from refreshd.worker import proxies as proxies_module
from refreshd.worker import replay as replay_module
from refreshd.worker.accepting import conflict, same_content
from refreshd.worker.engine import Engine
from refreshd.worker.parking import Parking
from refreshd.worker.proxies import Proxies
from refreshd.worker.proxy_session import ProxySession
from refreshd.worker.pusher import Pusher
from refreshd.worker.saver import SaveBatch
from refreshd.worker.turns import Turn
from refreshd.worker.watches import Watches
from tests.refreshd.making import WeakTask, ids_in
from wire.errors import Refused, WireError
from wire.lines import format_refused, parse

START_WALL_MS = 1_795_250_000_000
START_MONO_MS = 50_000_000


class Quiet:
    """A logger that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Time:
    """What the clocks of the machine show."""

    def __init__(self) -> None:
        self.wall_ms = START_WALL_MS
        self.mono_ms = START_MONO_MS


class FakeLoop:
    """Runs what was called soon when it is told to."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., None], tuple[object, ...]]] = []

    def call_soon(self, call: Callable[..., None], *args: object) -> None:
        self.soon.append((call, args))

    def run(self) -> None:
        for _ in range(10_000):
            if not self.soon:
                return
            call, args = self.soon.pop(0)
            call(*args)
        raise AssertionError("the loop never rests")

    def run_in_executor(self, _: object, call: Callable[..., Any], *args: object) -> Reading:
        return Reading(call(*args))

    def call_later(self, _: float, call: Callable[..., None], *args: object) -> None:
        self.call_soon(call, *args)


class Reading:
    """What another thread has read, and the loop has not heard of yet: much may happen before it does."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __await__(self) -> Generator[None, None, Any]:
        yield
        return self._result


class Table:
    """What is on stable storage; it outlives its engines."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[bytes, str, bytes]] = {}
        self.results: dict[int, ResultRow] = {}
        self.finished: dict[bytes, int] = {}
        self.parked: dict[int, Parked] = {}
        self.receipts: dict[tuple[int, str], bytes] = {}
        self.low = 0

    def unfinished(self) -> list[int]:
        """What a start loads."""
        return sorted(self.tasks.keys() - self.results.keys() - self.parked.keys())

    def serial_of(self, task_id: bytes) -> int | None:
        return next((serial for serial, task in self.tasks.items() if task[0] == task_id), None)


class TableReader:
    """Reads what is parked. See `base.Reader`, which it must behave like."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def plans(self) -> dict[int, str]:
        return {Plan.from_text(text).number: text for _, text, _ in self._table.tasks.values()}

    def parked_counts(self) -> list[ParkedCount]:
        groups: dict[int, list[Parked]] = {}
        for parked in sorted(self._table.parked.values()):
            groups.setdefault(parked.group, []).append(parked)
        return [
            ParkedCount(number, len(some), some[0].serial, self._task(some[0]).plan, *some[0][2:5])
            for number, some in groups.items()
        ]

    def parked_of(self, group: int, after: int, rows: int) -> list[ParkedTask]:
        some = [each for each in self._table.parked.values() if each.group == group and each.serial > after]
        return [self._task(parked) for parked in sorted(some)[:rows]]

    def parked_due(self, now_ms: int, rows: int) -> list[ParkedTask]:
        due = [parked for parked in self._table.parked.values() if parked.deadline_ms <= now_ms]
        return [self._task(parked) for parked in sorted(due, key=lambda parked: parked.deadline_ms)[:rows]]

    def _task(self, parked: Parked) -> ParkedTask:
        _, text, body = self._table.tasks[parked.serial]
        return ParkedTask(Plan.from_text(text).number, body, parked)


class FakeSaver:
    """A saver whose commits are called by hand. See `saver.Saver`, which it must behave like."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self.batch = SaveBatch()
        self.last_error: StoreError | None = None
        self.waiting = 0
        self.table = table
        self._engine = engine

    def wake(self) -> None:
        pass

    def commit(self, error: StoreError | None = None) -> None:
        """One commit, of all that is there now; with an error, nothing of it is kept."""
        batch, self.batch = self.batch, SaveBatch()
        rows = batch.to_rows()
        self.last_error = error
        if error is not None:
            self.batch.closing = batch.closing
            self.batch.receipts, self.batch.receipt_bytes = batch.receipts, batch.receipt_bytes
            self._engine.not_saved(batch, error)
            return
        table = self.table
        known = {row[1]: table.finished[row[1]] for row in rows.tasks if row[1] in table.finished}
        for serial, task_id, plan, body in rows.tasks:
            if task_id not in known:
                assert serial not in table.tasks
                table.tasks[serial] = (task_id, rows.plans[plan], body)
        for parked in rows.parked:
            assert parked.serial not in table.results, "parked, and has ended"
            table.parked[parked.serial] = parked
        for result in rows.results:
            table.parked.pop(result[0], None)
            assert result[0] in table.tasks, "the end of a task that was never saved"
            assert result[0] not in table.results, "ended twice"
            table.results[result[0]] = result
        table.receipts |= {(receipt.serial, receipt.proxy): receipt.text for receipt in rows.receipts}
        table.finished |= {task_id: serial for _, task_id, serial in rows.finished}
        if rows.low:
            table.low = max(table.low, rows.low)
            assert all(serial >= table.low for serial in table.unfinished())
        self._engine.saved(batch, known)


class FakeMesh:
    """No siblings; keeps what is said."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.relayed: list[tuple[int, str, bytes]] = []

    def tell(self, line: bytes, slot: int | None = None) -> None:
        self.told.append(line)

    def relay(self, slot: int, name: str, data: bytes) -> None:
        self.relayed.append((slot, name, data))


class Wire:
    """A proxy's end of a connection: what it was told, in order."""

    def __init__(self) -> None:
        self.full = False
        self.pushed: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.on_push: Callable[[bytes], None] = lambda _: None

    def send(self, data: bytes) -> None:
        for raw in data.splitlines(keepends=True):
            if raw.startswith(b"!cancel"):
                self.cancelled += [item.encode() for item in parse(raw[:-1]).items or ()]
            else:
                (task_id,) = ids_in(raw)
                self.pushed.append(task_id)
                self.on_push(task_id)


class Client:
    """A connection that asked something."""

    def __init__(self) -> None:
        self.replies: list[bytes] | None = None

    def turn_done(self, turn: Turn) -> None:
        assert self.replies is None, "answered twice"
        self.replies = turn.parts

    @property
    def reply(self) -> str:
        """The one reply; "" while there is none."""
        return "" if self.replies is None else b"".join(self.replies).decode()


class Core:
    """One worker. Listener of the engine, hub of the proxies."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        fleet: list[Proxy],
        table: Table | None = None,
        toml: str = "",
        time: Time | None = None,
    ) -> None:
        self.time = now = time or Time()

        class FakeClock(engine_module.Clock):
            def turn(self) -> None:
                self.wall_ms, self.mono_ms = now.wall_ms, now.mono_ms

        patch.setattr(engine_module, "Clock", FakeClock)
        patch.setattr(engine_module, "Task", WeakTask)
        patch.setattr(engine_module, "log", Quiet())
        patch.setattr(proxies_module, "log", Quiet())
        self.config = configuration.parse(toml)
        self.shards = ShardMap(0, 1, 1)
        self.fleet = Fleet(fleet)
        self.loop = FakeLoop()
        self.mesh = FakeMesh()
        self.cluster = SimpleNamespace(engines_push=b"")
        self.delivered: list[tuple[int, int, bytes]] = []
        self.watches = Watches(lambda slot, number, data: self.delivered.append((slot, number, data)))
        self.changes: list[tuple[bytes, int]] = []
        self.repeats: list[tuple[Task, int, Turn, int]] = []
        self.pusher = Pusher(self.loop)  # type: ignore[arg-type] # has what a pusher uses
        self.engine = Engine(self.config, self.shards, self.fleet, self)
        self.pusher.engine = self.engine
        self.proxies = Proxies(self)  # type: ignore[arg-type] # has what proxies use
        self.table = table or Table()
        self.saver = FakeSaver(self.engine, self.table)
        self.engine.savers[0] = self.saver  # type: ignore[assignment] # behaves like it
        self.running: list[Coroutine[Any, Any, None]] = []
        patch.setattr(parking_module, "log", Quiet())
        patch.setattr(replay_module, "log", Quiet())
        self.parking = Parking(self)  # type: ignore[arg-type] # has what parking uses
        self.pusher.on_return = self.parking.returned
        self.pusher.on_loss = self.parking.lost
        self._load()

    def _load(self) -> None:
        """As the hub does at a start."""
        plans: dict[str, Plan] = {}
        self.engine.serials.after(max([self.table.low, *self.table.tasks]))
        for serial in self.table.unfinished():
            task_id, text, body = self.table.tasks[serial]
            raw, key = split_body(body)
            line = parse(raw)
            layer = plans.setdefault(text, Plan.from_text(text)).layers[0]
            count = len(line.items or ())
            task = WeakTask(task_id, raw, read_terms(line), count, layer, serial, created_ms(serial))
            task.key = key
            self.engine.load(task)
        self.parking.count([TableReader(self.table)])  # type: ignore[list-item] # has what is used
        self.engine.start_all(list(self.engine.tasks.values()))
        self.loop.run()

    # ── what parking uses of the hub ──────────────────────────────────────────────────────

    def openings(self, lanes: list[int]) -> list[Callable[[], TableReader]]:
        return [lambda: TableReader(self.table)] * len(lanes)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        self.running.append(work)
        self._step(work)

    def _step(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            work.send(None)
        except StopIteration:
            self.running.remove(work)

    def read(self) -> None:
        """What other threads have read comes to the loop."""
        for work in list(self.running):
            self._step(work)
        self.loop.run()

    # ── listener of the engine ────────────────────────────────────────────────────────────

    def log_made(self, log: Log) -> None:
        self.pusher.log_made(log)

    def log_gone(self, log: Log) -> None:
        self.pusher.log_gone(log)

    def log_grew(self, log: Log) -> None:
        self.pusher.log_grew(log)

    def task_changed(self, task: Task) -> None:
        self.changes.append((task.id, int(task.state)))
        self.watches.changed(task)

    def tasks_parked(self, parking: list[tuple[Task, Parked]], kept: bool) -> None:
        self.parking.parked(parking, kept)

    def task_withdrawn(self, task: Task) -> None:
        self.pusher.withdrawn(task)

    def id_is_finished(self, task: Task, serial: int, turn: Turn, place: int) -> None:
        self.repeats.append((task, serial, turn, place))
        same = same_content(task.line, line_of(self.table.tasks[serial][2]))
        if same:
            turn.fill(place, b"ok task_id=%b state=final dup=1\n" % task.id)
        else:
            turn.fill(place, format_refused(conflict(task.id)))

    # ── what peers do ─────────────────────────────────────────────────────────────────────

    def post(self, *lines: bytes, plain: bool = True, key: str | None = None) -> Client:
        """One read of `post_task` lines, as `requests.Requests.run` treats it."""
        client = Client()
        turn = Turn(client)
        for raw in lines:
            try:
                self.engine.post(turn, raw, plain, key)
            except Refused as refused:
                turn.parts.append(format_refused(refused))
            except WireError as error:
                turn.parts.append(format_refused(Refused("bad_line", str(error))))
        turn.release()
        self.loop.run()
        return client

    def commit(self, error: str = "") -> None:
        """The saver's commit comes back."""
        self.saver.commit(StoreUnavailable(error) if error else None)
        self.loop.run()

    def cancel(self, task_id: bytes) -> list[Task]:
        """Cancels a saved task; its end is put in the list."""
        ended: list[Task] = []
        self.engine.cancel(self.engine.tasks[task_id], ended.append)
        self.loop.run()
        return ended

    def connect(self, name: str, credit: int, wire: Wire | None = None) -> ProxySession:
        """A proxy greets and gives credit."""
        session = ProxySession(self.proxies, name, wire or Wire(), lambda: None)
        self.proxies.connected(session)
        if credit:
            session.ready(credit)
        self.loop.run()
        return session

    def disconnect(self, name: str) -> None:
        self.proxies.disconnected(self.proxies.sessions[name])
        self.loop.run()

    def report(self, name: str, *ids: bytes, **values: Any) -> str:
        """A report on the proxy's connection: `state=done` of ids, or one with values."""
        client = Client()
        turn = Turn(client)
        session = self.proxies.sessions[name]
        if values:
            session.report(turn, parse(b"report"), {"task_id": ids[0].decode(), **values})
        else:
            session.report_done(turn, b"report state=done -- " + b" ".join(ids))
        turn.release()
        self.loop.run()
        return client.reply

    def pass_time(self, ms: int) -> None:
        """Time passes, in ticks."""
        while ms > 0:
            step = min(ms, 100)
            ms -= step
            self.time.wall_ms += step
            self.time.mono_ms += step
            self.engine.tick()
            self.parking.tick()
        self.loop.run()
