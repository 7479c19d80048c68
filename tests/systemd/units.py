"""The files in systemd/, as tests read them, and a private root in which systemd's own tools check them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "systemd"
SERVICES = ("refreshd.service", "proxyd.service")
UNITS = (*SERVICES, "refreshd.socket")
# What the units name and a system has.
_PROGRAMS = ("usr/bin/refreshd", "usr/bin/refreshctl", "usr/bin/proxyd", "bin/kill")
_TARGETS = ("basic", "multi-user", "network-online", "shutdown", "sockets", "sysinit")


def values(unit: str, key: str) -> list[str]:
    """Each value that a unit gives a key, in order."""
    lines = (FOLDER / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


class PrivateRoot:
    """A folder that is a root folder to systemd's tools: our units are installed there, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.units = path / "etc/systemd/system"
        self.units.mkdir(parents=True)
        for program in _PROGRAMS:
            file = path / program
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o755)
        for target in _TARGETS:
            (self.units / f"{target}.target").write_text("[Unit]\n")
        for unit in UNITS:
            (self.units / unit).write_text((FOLDER / unit).read_text())
        (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (path / "etc/group").write_text("root:x:0:\n")

    def change(self, unit: str, old: str, new: str) -> None:
        """Replaces what stands once in an installed unit."""
        text = (self.units / unit).read_text()
        assert text.count(old) == 1
        (self.units / unit).write_text(text.replace(old, new))

    def run(self, *command: str) -> tuple[int, str]:
        """The exit code of one of systemd's tools with this root, and all that it says."""
        program, *arguments = command
        ran = subprocess.run(
            [program, *arguments[:1], f"--root={self.path}", *arguments[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return ran.returncode, ran.stdout
