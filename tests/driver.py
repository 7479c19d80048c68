"""The one object through which process tests drive an engine: start, kill, restart, ask, look.

    with Engine(proxies=["p1"]) as engine, engine.proxy("p1") as proxy, engine.peer() as peer:
        peer.post("t1")
        engine.kill_worker(0)
        ...

Each engine has a folder of its own and a free port; when the `with` ends, no process
and no file of it is left, and what it logged is printed (pytest shows it if the test failed).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from tests.peer.fake_proxy import FakeProxy
from tests.peer.raw import Gone, Peer, Reply
from tests.peer.waiting import PATIENCE_S, UNIT_S, wait_until

ROOT = Path(__file__).resolve().parents[1]
_INJECT = ROOT / "tests" / "faults" / "inject"
_LOG_TAIL_CHARS = 6_000


class EngineFailed(Exception):
    """The engine did not come up; the text is its log."""


class Engine:
    """An engine as an operator runs it: `refreshd --config FILE`, in a session of its own.

    `settings` are lines of `[engine]`, `more` is TOML behind it, `proxies` the
    listed fleet: names, or whole `[[proxy]]` bodies. `environment` and `constants`
    (module → name → value) are for the workers, see faults/inject. `before` is a
    command that runs the program, `root` the folder whose code it is, `fds` are
    descriptors that it inherits.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        proxies: Iterable[str] = (),
        listen: str = "127.0.0.1:0",
        settings: str = "",
        more: str = "",
        environment: Mapping[str, str] | None = None,
        constants: Mapping[str, Mapping[str, int]] | None = None,
        before: Iterable[str] = (),
        fds: Iterable[int] = (),
        root: Path = ROOT,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="refreshd-test-"))
        self.data = self.folder / "data"
        self.workers = workers
        self.listen = listen
        self.settings = settings
        self.more = more
        self.proxies = list(proxies)
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, **(environment or {})}
        if environment or constants:
            # The root too: what is injected imports modules before the program's own folder is looked in.
            self._environment["PYTHONPATH"] = os.pathsep.join([str(_INJECT), str(root)])
            self._environment["REFRESHD_CONSTANTS"] = json.dumps(constants or {})
        self._before = list(before)
        self._fds = list(fds)
        self._root = root
        self._starts = 0

    # ── starting and ending ───────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        print(self.log()[-_LOG_TAIL_CHARS:])
        shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self) -> Path:
        """Writes the configuration as it is described now."""
        path = self.folder / "refreshd.toml"
        listed = "".join(
            f"[[proxy]]\n{body}\n" if "=" in body else f'[[proxy]]\nname = "{body}"\n'
            for body in self.proxies
        )
        path.write_text(
            f'[engine]\nlisten = "{self.listen}"\nhttp = ""\ndata = "{self.data}"\nworkers = {self.workers}\n'
            f"{self.settings}\n{self.more}\n{listed}"
        )
        return path

    def run(self) -> subprocess.Popen[bytes]:
        """Starts the program; returns at once."""
        config = self.configure()
        self._starts += 1
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._before, sys.executable, "-W", "error", "-m", "refreshd", "--config", str(config)],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self._fds,
            )
        return self.process

    def start(self) -> Self:
        """Starts it and waits until it serves. Raises: EngineFailed."""
        process = self.run()
        wait_until(lambda: self.logged("up") or process.poll() is not None, "the engine is up", 60)
        if process.poll() is not None:
            raise EngineFailed(self.log())
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks the master to stop. The exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def restart(self) -> Self:
        """Starts it again on the same data; whatever still runs is killed first."""
        self.kill_all()
        return self.start()

    # ── reloads and upgrades ──────────────────────────────────────────────────────────────

    def begin(self, verb: str) -> str:
        """Asks for a `reload` or an `upgrade`; its number."""
        reply = self.admin(verb)
        assert reply.ok, reply.fields
        return reply["operation"]

    def outcome(self, number: str) -> Reply:
        """What became of it, once it is over. The master may be executing itself anew meanwhile."""

        def over() -> Reply | None:
            try:
                reply = self.admin(f"operation operation={number}")
            except (Gone, OSError):
                return None
            return reply if reply["state"] in ("done", "failed") else None

        return wait_until(over, f"operation {number} is over", 60)

    def roll(self, verb: str = "reload") -> Reply:
        """New workers (for an `upgrade`, a new master too); all must go well."""
        outcome = self.outcome(self.begin(verb))
        assert outcome["state"] == "done", outcome.fields
        return outcome

    # ── faults ────────────────────────────────────────────────────────────────────────────

    def kill_all(self) -> None:
        """kill -9 of master and workers, at one moment."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait(PATIENCE_S)

    def kill_master(self) -> list[psutil.Process]:
        """kill -9 of the master alone. The workers that it leaves."""
        assert self.process is not None
        workers = psutil.Process(self.process.pid).children()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        return workers

    def kill_worker(self, slot: int) -> int:
        """kill -9 of a worker; its pid."""
        pid = self.pid_of(slot)
        os.kill(pid, signal.SIGKILL)
        return pid

    # ── looking ───────────────────────────────────────────────────────────────────────────

    @property
    def _log_path(self) -> Path:
        return self.folder / f"log-{self._starts}"

    def log(self) -> str:
        """What this start wrote."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def log_lines(self) -> list[dict[str, Any]]:
        """All log lines, read."""
        return [json.loads(line) for line in self.log().split("\n")[:-1] if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        return [line for line in self.log_lines() if line["event"] == event]

    def address(self) -> tuple[str, int]:
        """Where the text RPC is served now."""
        host, _, port = (self.data / "refreshd.addr").read_text().strip().rpartition(":")
        return host, int(port)

    def admin(self, request: str) -> Reply:
        """One request over the admin socket."""
        with Peer(str(self.data / "admin.sock")) as peer:
            return peer.ask(request)

    def pids(self) -> set[int]:
        """The master's children that run."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children()
        return {child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE}

    def wait_whole(self) -> None:
        """Waits until every slot has its ready worker, and there is no other process."""

        def whole() -> bool:
            rows = self.admin("list_workers").rows
            ready = {int(row["pid"]) for row in rows if row["state"] == "ready"}
            return len(rows) == len(ready) == self.workers and self.pids() == ready

        wait_until(whole, "the engine is whole", 60)

    def fds(self) -> int:
        """Descriptors of the master and its children."""
        assert self.process is not None
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.process.pid, *self.pids()))

    def worker(self, slot: int) -> dict[str, str]:
        """The row of the worker that is in charge of a slot; another may stand beside it."""
        rows = self.admin("list_workers").rows
        return next(row for row in rows if row["worker"] == str(slot))

    def pid_of(self, slot: int) -> int:
        return int(self.worker(slot)["pid"])

    def wait_for_worker(self, slot: int, other_than: int) -> int:
        """The pid of the ready worker in a slot, once it is another process than that."""

        def replaced() -> int:
            row = self.worker(slot)
            return int(row["pid"]) if row["state"] == "ready" and int(row["pid"]) != other_than else 0

        return wait_until(replaced, f"a new worker {slot}")

    def memory_mib(self, slot: int) -> float:
        """What a worker holds."""
        return float(psutil.Process(self.pid_of(slot)).memory_info().rss / (1 << 20))

    # ── peers ─────────────────────────────────────────────────────────────────────────────

    def peer(self, greeting: str = "") -> Peer:
        """A connection; `greeting` are the fields of a client's hello behind `role`."""
        peer = Peer(self.address())
        if greeting:
            peer.ok(f"hello v=1 role=client {greeting}")
        return peer

    def proxy_peer(self, name: str, worker: int | None = None, more: str = "") -> Peer:
        """A connection that is greeted as a proxy's and does nothing by itself."""
        at = "" if worker is None else f" worker={worker}"
        peer = Peer(self.address())
        peer.ok(f"hello v=1 role=proxy name={name}{at} {more}".rstrip())
        return peer

    def proxy(self, name: str, **how: Any) -> FakeProxy:
        """A fake proxy, see there."""
        return FakeProxy(name, self.address, **how)


__all__ = ["PATIENCE_S", "UNIT_S", "Engine", "EngineFailed", "FakeProxy", "Peer", "Reply", "wait_until"]
