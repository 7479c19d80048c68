"""What a measurement needs: processes of its own, in folders of their own, and the CPU they use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import psutil

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
START_DEADLINE_S = 60.0
_BIN = Path(sys.executable).parent


class BenchError(RuntimeError):
    """A measurement could not be made; says what was got and wanted."""


def wait_for(what: str, ready: Callable[[], bool], deadline_s: float = START_DEADLINE_S) -> None:
    """Waits until `ready()`. Raises: BenchError."""
    end = time.monotonic() + deadline_s
    while not ready():
        if time.monotonic() > end:
            raise BenchError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(0.005)


class Program:
    """A process of the bench with its children; gone, with its folder, at the end."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    def pids(self) -> list[int]:
        """Its processes."""
        try:
            root = psutil.Process(self.process.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of all its processes so far."""
        return sum(cpu_s(pid) for pid in self.pids())

    def check_alive(self) -> None:
        """Raises: BenchError with the end of its log."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-500:]
            raise BenchError(f"{self.name} ended with {self.process.returncode}: {tail}")

    def kill(self) -> None:
        """kill -9 of the whole group."""
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def stop(self) -> None:
        """Ends it, gently first."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.kill()


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of one process; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S


class Cpu:
    """CPU used by some programs, and by this process, from `start` on."""

    def __init__(self, programs: Iterable[Program]) -> None:
        self._programs = list(programs)
        self._before = {program.name: program.cpu_s() for program in self._programs}
        self._own = time.process_time()
        self._began = time.perf_counter()

    def us_per(self, operations: int) -> dict[str, float]:
        """Microseconds of CPU an operation, by program; "generator" is this process."""
        used = {p.name: p.cpu_s() - self._before[p.name] for p in self._programs}
        used["generator"] = time.process_time() - self._own
        return {name: round(seconds / operations * 1e6, 2) for name, seconds in used.items()}

    @property
    def elapsed_s(self) -> float:
        """Wall seconds since the start."""
        return time.perf_counter() - self._began


class Folder:
    """A folder for one measurement."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="refreshd-bench-"))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class Engine:
    """refreshd on a free port, with `proxies` listed and two workers."""

    def __init__(self, folder: Path, *, proxies: int = 1, workers: int = 2) -> None:
        self.folder = folder
        self.workers = workers
        self._config = folder / "refreshd.toml"
        listed = "".join(f'[[proxy]]\nname = "p{number}"\ngroup = "all"\n' for number in range(proxies))
        engine = f'[engine]\nlisten = "127.0.0.1:0"\nhttp = ""\ndata = "{folder}/data"\nworkers = {workers}\n'
        self._config.write_text(engine + listed)
        self.program = self._start()

    def _start(self) -> Program:
        address = self.folder / "data" / "refreshd.addr"
        address.unlink(missing_ok=True)
        log = self.folder / "engine.log"
        log.unlink(missing_ok=True)
        program = Program("engine", [str(_BIN / "refreshd"), "--config", str(self._config)], self.folder)

        def up() -> bool:
            program.check_alive()
            return address.exists() and '"event":"up"' in log.read_text(errors="replace")

        wait_for("the engine is up", up)
        return program

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, _, port = (self.folder / "data" / "refreshd.addr").read_text().strip().rpartition(":")
        return host, int(port)

    def restart_after_kill(self) -> float:
        """kill -9 of everything, then a start. Returns the seconds until every worker is ready."""
        self.program.kill()
        began = time.perf_counter()
        self.program = self._start()
        return time.perf_counter() - began

    def memory_bytes(self) -> int:
        """Memory of its own (PSS) of all workers."""
        children = self.program.pids()[1:]
        return sum(int(psutil.Process(pid).memory_full_info().pss) for pid in children)


def agent(folder: Path, engine: Engine, cache_address: str) -> Program:
    """proxyd beside one Varnish."""
    config = folder / "proxyd.toml"
    host, port = engine.address
    config.write_text(
        f'[agent]\nname = "p0"\ngroup = "all"\nengines = ["{host}:{port}"]\n'
        f'[[cache]]\nname = "v1"\nkind = "varnish"\naddress = "{cache_address}"\n'
    )
    return Program("agent", [str(_BIN / "proxyd"), "--config", str(config)], folder)
