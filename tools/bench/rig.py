"""The engine and the agent as they are measured: private, in a folder of their own, on free ports."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from tools.bench.ask import ask
from tools.bench.programs import Program, wait_for

Address = tuple[str, int]

_BIN = Path(sys.executable).parent
GROUP = "all"
RESTART_DEADLINE_S = 120.0


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one measurement."""
    # Where the disk is: /tmp is one on most machines, and where it is not, TMPDIR says so.
    with tempfile.TemporaryDirectory(prefix="refreshd-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


class Restart(NamedTuple):
    """Seconds from a start until it answered its first `ping`, and until every worker was ready."""

    ping_s: float
    ready_s: float


class Engine:
    """refreshd on a free port with proxies `p0`, `p1`… listed, all in one group."""

    def __init__(
        self, where: Path, *, proxies: int = 1, workers: int = 2, settings: str = "", sections: str = ""
    ) -> None:
        """`settings` are lines of [engine], `sections` tables of their own."""
        self.where = where
        self.workers = workers
        self._config = where / "refreshd.toml"
        listed = "".join(f'[[proxy]]\nname = "p{number}"\ngroup = "{GROUP}"\n' for number in range(proxies))
        engine = f'[engine]\nlisten = "127.0.0.1:0"\nhttp = ""\ndata = "{where}/data"\nworkers = {workers}\n'
        self._config.write_text(f"{engine}{settings}\n{sections}\n{listed}")
        self.program = self._start()
        wait_for("every worker is ready", self._workers_ready)

    def _start(self) -> Program:
        self._address_file.unlink(missing_ok=True)
        return Program("engine", [str(_BIN / "refreshd"), "--config", str(self._config)], self.where)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()

    @property
    def _address_file(self) -> Path:
        return self.where / "data" / "refreshd.addr"

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, _, port = self._address_file.read_text().strip().rpartition(":")
        return host, int(port)

    def restart_after_kill(self) -> Restart:
        """kill -9 of everything, then a start, looked at from outside."""
        self.program.kill()
        began = time.perf_counter()
        self.program = self._start()
        wait_for("the engine answers", self._answers, RESTART_DEADLINE_S)
        ping_s = time.perf_counter() - began
        wait_for("every worker is ready", self._workers_ready, RESTART_DEADLINE_S)
        return Restart(ping_s, time.perf_counter() - began)

    def _answers(self) -> bool:
        self.program.check_alive()
        try:
            return asyncio.run(ask(self.address, b"ping"))[0].startswith(b"ok ")
        except (OSError, ValueError):
            return False

    def _workers_ready(self) -> bool:
        self.program.check_alive()
        try:
            rows = asyncio.run(ask(self.where / "data" / "admin.sock", b"list_workers"))[1:]
        except OSError:
            return False
        return len(rows) == self.workers and all(b" state=ready" in row for row in rows)

    def stats(self) -> dict[str, float]:
        """Its figures."""
        rows = asyncio.run(ask(self.address, b"stats"))[1:]
        pairs = [dict(field.split("=", 1) for field in row.decode().split()[1:]) for row in rows]
        return {pair["name"]: float(pair["value"]) for pair in pairs}

    def memory_bytes(self) -> int:
        """Memory of all workers; what they share is counted once (PSS)."""
        return sum(int(psutil.Process(pid).memory_full_info().pss) for pid in self.program.pids()[1:])


@contextmanager
def agent(where: Path, engine: Engine, cache_address: str) -> Iterator[Program]:
    """proxyd, as p0, beside one Varnish."""
    config = where / "proxyd.toml"
    host, port = engine.address
    config.write_text(
        f'[agent]\nname = "p0"\ngroup = "{GROUP}"\nengines = ["{host}:{port}"]\n'
        f'[[cache]]\nname = "v1"\nkind = "varnish"\naddress = "{cache_address}"\n'
    )
    program = Program("agent", [str(_BIN / "proxyd"), "--config", str(config)], where)
    try:
        yield program
    finally:
        program.stop()
