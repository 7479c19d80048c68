"""A private proxyd, run as the program it is."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.servers.process import Server

ROOT = Path(__file__).resolve().parents[2]


class Agent(Server):
    """`proxyd` for some engines ("HOST:PORT") and caches (name, kind, "HOST:PORT").

    `more` is TOML that follows [agent], `settings` are lines in it. `log_lines` gives its log, parsed.
    `root` is where its code is, `environment` what stands in its environment besides.
    """

    name = "proxyd"

    def __init__(
        self,
        engines: Sequence[str],
        caches: Sequence[tuple[str, str, str]],
        *,
        name: str = "pop1",
        group: str = "default",
        layer: int = 0,
        settings: str = "",
        more: str = "",
        python: str = sys.executable,
        root: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._python = python
        self._root = root
        self._more_environment = dict(environment or {})
        self.config = f'[agent]\nname = "{name}"\ngroup = "{group}"\nlayer = {layer}\n'
        self.config += f"engines = {json.dumps(list(engines))}\n{settings}\n{more}\n"
        for cache, kind, address in caches:
            self.config += f'[[cache]]\nname = "{cache}"\nkind = "{kind}"\naddress = "{address}"\n'

    def configure(self, *changes: tuple[str, str]) -> None:
        """Writes the configuration anew, with these texts replaced; the agent reads it when it reloads."""
        for old, new in changes:
            if old not in self.config:
                raise ValueError(f"{old!r} does not stand in the configuration")
            self.config = self.config.replace(old, new)
        (self.folder / "proxyd.toml").write_text(self.config)

    def _command(self) -> list[str]:
        self.configure()
        config = str(self.folder / "proxyd.toml")
        return [self._python, "-W", "error", "-m", "proxyd", "--config", config]

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join(filter(None, [str(self._root), os.environ.get("PYTHONPATH")]))
        return {"PYTHONPATH": paths, **self._more_environment}

    def _is_ready(self) -> bool:
        return '"agent started"' in self.log()

    def log_lines(self) -> list[dict[str, Any]]:
        """What it logged so far."""
        text = (self.folder / "log").read_text()
        # The last line may be being written.
        return [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        return [line for line in self.log_lines() if line["event"] == event]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Waits until it has ended; returns its exit code."""
        if self.process is None:
            raise RuntimeError("not started")
        return self.process.wait(timeout_s)
