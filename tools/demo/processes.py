"""Child processes that never outlive the demo, each with a log of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.servers.process import die_with_parent

#: How long a child may take to stop by itself before it is killed.
STOP_S = 8.0
#: Lines of a child's log that are shown when it died.
LOG_LINES = 12


class ChildDied(Exception):
    """A child ended that should run; the text has its exit code and the end of its log."""


class Child:
    """One running program, in a process group of its own: Ctrl-C reaches the demo only, which stops all."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> Child:
        """Raises: ChildDied if the program cannot be started at all."""
        with log.open("ab") as sink:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    cwd=cwd,
                    env=None if env is None else {**os.environ, **env},
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            except OSError as error:
                raise ChildDied(f"{name} does not start: {error}") from error
        return cls(name, process, log)

    def check(self) -> None:
        """Raises: ChildDied when it runs no more."""
        code = self._process.returncode
        if code is not None:
            raise ChildDied(f"{self.name} ended with {code}; the end of {self.log}:\n{self._log_end()}")

    async def kill(self) -> None:
        """kill -9 of it and of all it started, at one moment."""
        self._kill_group()
        await self._process.wait()

    async def wait(self) -> None:
        """Return when the child has ended."""
        await self._process.wait()

    async def stop(self) -> None:
        """Ask it to stop; after STOP_S seconds kill it and all it started."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await self._process.wait()
            except TimeoutError:
                pass
        self._kill_group()  # what a child left behind goes too
        await self._process.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (empty)"
