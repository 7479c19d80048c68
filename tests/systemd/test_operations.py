"""docs/operations.md names what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from refreshd.settings import SETTINGS
from tests.systemd.units import FOLDER, ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
PROGRAMS = ("refreshd", "proxyd", "refreshctl")


def test_every_file_it_installs_is_there() -> None:
    named = set(re.findall(r"(?<!/)\bsystemd/[\w./-]*\w", PAGE))
    assert len(named) >= 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_file_that_is_there_is_installed() -> None:
    files = {str(file.relative_to(ROOT)) for file in FOLDER.rglob("*") if file.is_file()}
    assert [file for file in files if file not in PAGE] == []


def test_every_verb_it_names_is_one() -> None:
    known = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "refreshctl.md").read_text(), re.MULTILINE))
    named = set(re.findall(r"\brefreshctl (\w+)", PAGE))
    assert {"reload", "upgrade", "drain", "undrain", "status", "workers"} <= named
    assert named - known == set()


def test_every_setting_it_names_is_one() -> None:
    known = {f"{setting.section}.{setting.key}" for setting in SETTINGS}
    named = set(re.findall(r"`((?:engine|store|redis)\.\w+)`", PAGE))
    assert len(named) >= 5
    assert named - known == set()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):#]+)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_commands_run_the_current_release(program: str, tmp_path: Path) -> None:
    """A link in the place of /opt/refreshd/current leads to the release: here, to this tree's."""
    (tmp_path / "current").symlink_to(sys.prefix)
    script = (FOLDER / "bin" / program).read_text().replace("/opt/refreshd", str(tmp_path))
    (tmp_path / program).write_text(script)
    (tmp_path / program).chmod(0o755)
    ran = subprocess.run([tmp_path / program, "--help"], cwd="/", capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.split()[:2]) == (0, ["usage:", program])
