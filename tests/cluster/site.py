"""Several engines on one machine that share a MariaDB and a Redis, and all that tests do to them.

    with Site(database, redis, engines=2) as site, site.fleet(ledger):
        with Load(site.anywhere, ledger):
            site.kill("e1")
        site.settle(ledger)

Each engine is a `tests.driver.Engine` with a folder and a port of its own. A site has a database and
a cluster's name of its own, so that one MariaDB and one Redis do for many.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from tests.driver import UNIT_S, Engine, Peer, wait_until
from tests.faults.ledger import Ledger, Load
from tests.peer.fake_proxy import FakeProxy
from tools.servers import MariaDb, RedisServer

PROXIES = ("p1", "p2")
# The shortest there is: a take-over is the same in a fifth of the time.
LEASE_S = 2 * UNIT_S
_numbers = itertools.count(1)


class Site:
    """Engines e1, e2, … As a context manager: all are started, at the end all are killed.

    Tests may use one after the other: each begins with `mend`, and has ids of its own.
    """

    def __init__(
        self,
        database: MariaDb,
        redis: RedisServer,
        *,
        engines: int = 2,
        workers: int = 2,
        settings: str = "",
        more: str = "",
        ports: tuple[int, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`settings` are lines of every engine's `[engine]`; `ports`, where each listens (none: anywhere).

        `more` and `environment` are those of `Engine`.
        """
        self.name = f"site{next(_numbers)}"
        self.database = database
        self.redis = redis
        database.make_database(self.name)
        more += (
            f'[store]\nurl = "{database.url_of(self.name)}"\n'
            f'[redis]\nurl = "{redis.url}"\ncluster = "{self.name}"\nlease_s = {LEASE_S}\n'
        )
        self.engines = {
            f"e{number}": Engine(
                workers=workers,
                proxies=PROXIES,
                listen=f"127.0.0.1:{ports[number - 1] if ports else 0}",
                settings=f'id = "e{number}"\n{settings}',
                more=more,
                environment=environment,
            )
            for number in range(1, engines + 1)
        }
        self._turn = itertools.count()
        self._stack = ExitStack()

    # ── from the start to the end ─────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        try:
            for engine in self.engines.values():
                self._stack.push(engine)
            self.mend()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.engines:
            with suppress(ProcessLookupError):
                self.resume(name)
        self._stack.close()

    def mend(self) -> str:
        """Starts what does not run, and waits until all is as it should be. The leader's name."""
        for name, engine in self.engines.items():
            if _runs(engine):
                self.resume(name)
            else:
                engine.run()
        for engine in self.engines.values():
            _wait_up(engine)
        return self.wait_together()

    def clear(self) -> None:
        """Cancels all that is unfinished."""
        ids = [row[0].decode() for row in self.ask("SELECT id FROM task WHERE state=0")]
        with next(iter(self.engines.values())).peer() as peer:
            for at in range(0, len(ids), 100):
                some = ids[at : at + 100]
                peer.write(*[f"cancel_task task_id={task_id}" for task_id in some])
                assert all(reply.ok for reply in peer.replies(len(some)))

    def __getitem__(self, name: str) -> Engine:
        return self.engines[name]

    def others(self, name: str) -> list[str]:
        """The names of all engines but one."""
        return [other for other in self.engines if other != name]

    # ── faults ────────────────────────────────────────────────────────────────────────────

    def kill(self, name: str) -> None:
        """kill -9 of the whole engine."""
        self[name].kill_all()

    def pause(self, name: str) -> None:
        """SIGSTOP of all its processes."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """The opposite of `pause`."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        process = self[name].process
        if process is not None:
            os.killpg(process.pid, number)

    # ── what Redis and SQL say ────────────────────────────────────────────────────────────

    def key(self, name: str) -> str:
        """How something of this cluster is called in Redis."""
        return f"refreshd:{{{self.name}}}:{name}"

    def leases(self) -> set[str]:
        """The engines that have a lease now."""
        return {name for name in self.engines if self.redis.client.exists(self.key(f"engine:{name}"))}

    def advert(self, name: str) -> str:
        """What an engine says of itself in Redis, as JSON."""
        return str(self.redis.client.get(self.key(f"engine:{name}")) or "")

    def redis_ms(self) -> int:
        """The clock of Redis, by which leases end."""
        seconds, micros = self.redis.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks the database, as nobody of the cluster."""
        return self.database.query(sql, self.name)

    def numbers(self) -> dict[str, int]:
        """Engine → what stands as owner in its tasks."""
        return dict(self.ask("SELECT name, number FROM engine"))

    def epochs(self) -> dict[str, tuple[int, int]]:
        """Engine → its epoch, and whether it is alive (1) or fenced (0)."""
        return {
            name: (epoch, alive) for name, epoch, alive in self.ask("SELECT name, epoch, alive FROM engine")
        }

    def leader_epoch(self) -> int:
        """How often an engine has become the leader."""
        return int(self.ask("SELECT leader_epoch FROM cluster")[0][0])

    def leader(self) -> str:
        """The engine that leads by Redis and by SQL; "" while they do not agree."""
        held = self.redis.client.get(self.key("leader"))
        rows = self.ask("SELECT name FROM engine, cluster WHERE number=leader")
        by_redis = str(held).partition(" ")[0] if held else ""
        return by_redis if rows == [(by_redis,)] else ""

    def leaders_by_own_account(self) -> list[str]:
        """Engines whose present worker 0 has said last that it leads."""
        return [name for name, engine in self.engines.items() if _says_it_leads(engine)]

    def unfinished(self, name: str) -> int:
        """Tasks that are an engine's and not final."""
        number = self.numbers()[name]
        return int(self.ask(f"SELECT count(*) FROM task WHERE state=0 AND owner={number}")[0][0])

    def wait_together(self, *names: str) -> str:
        """Waits until these engines (none: all) have leases and one of them leads. Its name."""
        wanted = set(names or self.engines)

        def together() -> str:
            leader = self.leader()
            return leader if self.leases() == wanted and leader in wanted else ""

        return wait_until(together, f"{sorted(wanted)} have leases, and one of them leads")

    # ── peers ─────────────────────────────────────────────────────────────────────────────

    def anywhere(self) -> tuple[str, int]:
        """The address of the next engine in turn that runs: for a client that does not care."""
        running = [engine for engine in self.engines.values() if _runs(engine)]
        return running[next(self._turn) % len(running)].address()

    def load(self, ledger: Ledger, **how: Any) -> Load:
        """Clients of any engine, with ids of their own; steady, or else comparing takes long."""
        how = {"address": self.anywhere, "pause_s": 0.05, **how}
        return Load(ledger=ledger, stem=f"l{next(_numbers)}-", **how)

    @contextmanager
    def fleet(self, ledger: Ledger, *, engines: Sequence[str] = (), **how: Any) -> Iterator[list[FakeProxy]]:
        """Every proxy, connected with every engine (of these); what they are pushed stands in the ledger."""
        proxies = [
            engine.proxy(name, workers=range(engine.workers), on_effect=ledger.effect, **how)
            for engine in (self[engine] for engine in engines or self.engines)
            for name in PROXIES
        ]
        with ExitStack() as stack:
            for proxy in proxies:
                stack.enter_context(proxy)
            yield proxies

    # ── the end ───────────────────────────────────────────────────────────────────────────

    def settle(self, ledger: Ledger, *names: str) -> None:
        """Waits until every acknowledged task is final; each engine (of these) must say the same of all."""
        names = names or tuple(self.engines)
        ledger.settle(self[names[0]].address)
        for name in names[1:]:
            with self[name].peer() as peer:
                verdict = ledger.compare(peer)
            assert verdict == ([], [], []), f"{name} says otherwise: {verdict}"
        self.nothing_is_double(ledger)
        for engine in self.engines.values():
            assert "Traceback" not in engine.log()

    def nothing_is_double(self, ledger: Ledger) -> None:
        """The database has what was acknowledged, once; and nothing unfinished that nobody owns."""
        ids = [row[0].decode() for row in self.ask("SELECT id FROM task")]
        assert len(ids) == len(set(ids))
        missing = ledger.acknowledged.keys() - set(ids)
        assert not missing, f"{len(missing)} are not in the database, such as {sorted(missing)[:5]}"


def _runs(engine: Engine) -> bool:
    return engine.process is not None and engine.process.poll() is None


def _wait_up(engine: Engine) -> None:
    wait_until(lambda: engine.logged("up") or not _runs(engine), "an engine is up", 60)
    assert _runs(engine), engine.log()


def _says_it_leads(engine: Engine) -> bool:
    """In a roll the successor may say it before its predecessor has ended, or after."""
    newest = leads = 0
    for line in engine.log_lines():
        if line["event"] == "leadership":
            leads = newest if line["now"] == "leader" else 0
        elif line["event"] == "worker started" and line["slot"] == 0:
            newest = line["pid"]
        elif line["event"] == "worker ended" and line["slot"] == 0 and line["pid"] == leads:
            leads = 0
    return bool(leads)


class AtOnce:
    """Runs some calls at the same moment, each in a thread. Raises what the first of them raised."""

    def __init__(self, *calls: Any) -> None:
        self._errors: list[BaseException] = []
        start = threading.Barrier(len(calls))

        def run(call: Any) -> None:
            try:
                start.wait()
                call()
            except BaseException as error:
                self._errors.append(error)

        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]


__all__ = ["LEASE_S", "PROXIES", "AtOnce", "Ledger", "Peer", "Site"]
