"""system-packages.sh on made-up machines: sudo and apt-get are stand-ins that note what they were asked."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup" / "system-packages.sh"
DEADLINE_S = 30.0

#: Notes what it is asked, and "installs" a package by making a program of its name in the made-up machine.
SUDO = """#!/bin/bash
echo "sudo $*" >> "$CALLS"
case "$*" in
*" install "*) [ -z "$BROKEN" ] || { echo "E: Unable to locate" >&2; exit 100; }
    printf '#!/bin/sh\\n' > "$BIN/${@: -1}"; chmod +x "$BIN/${@: -1}" ;;
*tee*) cat > /dev/null ;;
esac
"""
NO_SUDO = "#!/bin/sh\nexit 1\n"
ID = "#!/bin/sh\necho 1000\n"
APT = "#!/bin/sh\nexit 99\n"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder of programs that stands first in PATH: no root, a sudo that asks nothing, an apt-get."""
    for name, text in {"sudo": SUDO, "id": ID, "apt-get": APT}.items():
        put(tmp_path, name, text)
    return tmp_path


def put(machine: Path, name: str, text: str) -> None:
    path = machine / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(machine: Path, *pairs: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *pairs],
        env={"PATH": f"{machine}:{os.environ['PATH']}", "CALLS": str(machine / "calls"), "BIN": str(machine)}
        | env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def calls(machine: Path) -> str:
    path = machine / "calls"
    return path.read_text() if path.exists() else ""


def test_what_is_there_is_left_alone(machine: Path) -> None:
    done = run(machine, "sh:dash", "ls:coreutils")
    assert (done.returncode, done.stdout, done.stderr, calls(machine)) == (0, "", "", "")


def test_what_is_missing_is_installed_after_an_update(machine: Path) -> None:
    done = run(machine, "no-such-a:no-such-a", "sh:dash", "no-such-b:no-such-b", CI="true")
    assert (done.returncode, done.stderr) == (0, "")
    asked = [line for line in calls(machine).splitlines() if "apt-get" in line]
    assert [line.split()[-1] for line in asked] == ["update", "no-such-a", "no-such-b"]
    assert all("DEBIAN_FRONTEND=noninteractive" in line for line in asked)


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_what_cannot_be_installed_is_said_and_fails_in_ci_only(machine: Path, ci: str, code: int) -> None:
    done = run(machine, "no-such-a:some-package", BROKEN="1", CI=ci)
    assert done.returncode == code
    assert "MISSING no-such-a (package some-package)" in done.stderr


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_without_root_nothing_is_tried(machine: Path, ci: str, code: int) -> None:
    put(machine, "sudo", NO_SUDO)
    done = run(machine, "no-such-a:some-package", CI=ci)
    assert done.returncode == code
    assert "neither root nor a sudo" in done.stderr
    assert "MISSING no-such-a" in done.stderr
    assert calls(machine) == ""


def test_a_package_without_a_program_is_installed_without_looking(machine: Path) -> None:
    done = run(machine, "-:python3-venv", CI="true")
    assert (done.returncode, done.stderr) == (0, "")
    assert "install -y --no-install-recommends python3-venv\n" in calls(machine)
