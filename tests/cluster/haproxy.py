"""The HAProxy of docs/haproxy.cfg, in front of engines of a test."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tools.servers.process import Server, find_program
from tools.servers.waiting import accepts, free_port

CONFIGURATION = Path(__file__).resolve().parents[2] / "docs" / "haproxy.cfg"


class HaProxy(Server):
    """Runs the configuration with other addresses: `engines` ("HOST:PORT") and a port of its own."""

    name = "haproxy"

    def __init__(self, engines: Sequence[str]) -> None:
        super().__init__()
        self._engines = engines

    def check(self) -> str:
        """What HAProxy says to the configuration as it stands in docs/; warnings are errors."""
        command = [find_program("haproxy"), "-c", "-dW", "-f", str(CONFIGURATION)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    def _command(self) -> list[str]:
        self.port = free_port()
        text, found = re.subn(r"bind :7070", f"bind 127.0.0.1:{self.port}", CONFIGURATION.read_text())
        assert found == 1
        engines = iter(self._engines)
        text, found = re.subn(r"(server e\d) \S+", lambda match: f"{match[1]} {next(engines)}", text)
        assert found == len(self._engines)
        path = self.folder / "haproxy.cfg"
        path.write_text(text)
        return [find_program("haproxy"), "-db", "-dW", "-f", str(path)]

    def _is_ready(self) -> bool:
        return accepts("127.0.0.1", self.port)
