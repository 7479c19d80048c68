"""The engine of a soak: private, in a folder of its own, asked and looked at while the load goes on."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from tools.bench.ask import ask
from tools.bench.programs import Program, wait_for
from tools.bench.rig import Address
from tools.soak.errors import SoakError
from tools.soak.proxies import Row
from wire.lines import parse

Rows = list[dict[str, str]]

_BIN = Path(sys.executable).parent
_POLL_S = 0.02
_SAMPLES = 5
_SAMPLE_EVERY_S = 1.0
_ROLL_DEADLINE_S = 120.0


class Held(NamedTuple):
    """What master and workers hold together. Pages that they share are counted once (PSS)."""

    fds: float
    memory_bytes: float
    processes: float


class Outcome(NamedTuple):
    """What `refreshctl` said."""

    status: int
    text: str


class Engine:
    """refreshd on a free port. `settings` are lines of [engine]."""

    def __init__(self, where: Path, *, workers: int, fleet: Iterable[Row], settings: str = ""):
        self.workers = workers
        self.data = where / "data"
        self._config = where / "refreshd.toml"
        self._settings = settings
        self._fleet = "".join(
            f'[[proxy]]\nname = "{row.name}"\ngroup = "{row.group}"\nlayer = {row.layer}\n' for row in fleet
        )
        self.configure()
        self.program = Program("engine", [str(_BIN / "refreshd"), "--config", str(self._config)], where)
        wait_for("the engine listens", self._listens)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.program.stop()

    def configure(self, more: str = "", broken: str = "") -> None:
        """Writes the configuration: `more` are lines of [engine], `broken` comes at the end."""
        engine = f'[engine]\nlisten = "127.0.0.1:0"\nhttp = ""\ndata = "{self.data}"\n'
        draft = self._config.with_suffix(".new")
        draft.write_text(
            f"{engine}workers = {self.workers}\n{self._settings}\n{more}\n{self._fleet}{broken}\n"
        )
        draft.rename(self._config)

    # ── looking ───────────────────────────────────────────────────────────────────────────

    def _listens(self) -> bool:
        self.program.check_alive()
        return (self.data / "refreshd.addr").exists()

    def address(self) -> Address:
        """Where the text RPC is."""
        host, _, port = (self.data / "refreshd.addr").read_text().strip().rpartition(":")
        return host, int(port)

    async def rows(self) -> Rows:
        """What `list_workers` says."""
        return [parse(line.rstrip(b"\n")).fields for line in await self._ask(b"list_workers")]

    async def stats(self) -> dict[str, float]:
        """Its figures."""
        rows = [parse(line.rstrip(b"\n")).fields for line in await self._ask(b"stats")]
        return {row["name"]: float(row["value"]) for row in rows}

    async def _ask(self, line: bytes) -> list[bytes]:
        return (await ask(self.data / "admin.sock", line))[1:]

    async def until(self, what: str, ready: Callable[[Rows], bool], deadline_s: float) -> None:
        """Waits until the workers are so. Raises: SoakError."""
        rows: Rows = []
        try:
            async with asyncio.timeout(deadline_s):
                while not rows or not ready(rows):
                    self.program.check_alive()
                    await asyncio.sleep(_POLL_S)
                    rows = await self.rows()
        except TimeoutError:
            raise SoakError(f"{what}: not within {deadline_s:.0f} s; last: {rows}") from None

    async def all_ready(self, deadline_s: float = 60.0) -> None:
        """Waits until every slot has its worker, and no other process is about."""
        await self.until(
            "every worker is ready",
            lambda rows: (
                len(rows) == self.workers
                and all(row["state"] == "ready" for row in rows)
                and len(self.children()) == self.workers
            ),
            deadline_s,
        )

    def children(self) -> set[int]:
        """The pids of the master's children that run."""
        try:
            found = psutil.Process(self.program.pid).children()
        except psutil.NoSuchProcess:
            return set()
        return {child.pid for child in found if _runs(child)}

    async def held(self) -> Held:
        """The middle of a few samples, taken under load."""
        samples = []
        for _ in range(_SAMPLES):
            await asyncio.sleep(_SAMPLE_EVERY_S)
            samples.append(await asyncio.to_thread(self._held_now))
        return Held(*(statistics.median(column) for column in zip(*samples, strict=True)))

    def _held_now(self) -> Held:
        pids = self.program.pids()
        processes = [psutil.Process(pid) for pid in pids]
        fds = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        return Held(fds, sum(process.memory_full_info().pss for process in processes), len(pids))

    # ── doing ─────────────────────────────────────────────────────────────────────────────

    async def refreshctl(self, *words: str) -> Outcome:
        """Runs it against this engine, and waits for its end."""
        command = [str(_BIN / "refreshctl"), words[0], "--socket", str(self.data / "admin.sock"), *words[1:]]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_ROLL_DEADLINE_S):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return Outcome(-1, f"not within {_ROLL_DEADLINE_S:.0f} s")
        return Outcome(process.returncode or 0, said.decode(errors="replace").strip())


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
