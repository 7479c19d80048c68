"""What every test shares: the system programs a test starts, and what is said where one is missing."""

import glob
import os
import shutil

import pytest

#: Daemons live in sbin, which is not on the PATH of every user.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing_programs(programs: tuple[str, ...]) -> list[str]:
    """Those of PROGRAMS (or files: absolute, in which * may stand) that are not installed."""
    return [program for program in programs if not _is_there(program)]


def _is_there(program: str) -> bool:
    if program.startswith("/"):
        return bool(glob.glob(program))
    return shutil.which(program, path=SEARCH_PATH) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Let every process that a test starts find the daemons by name."""
    os.environ["PATH"] = SEARCH_PATH


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked ``needs("varnishd", …)`` where one is missing; under CI=true fail it instead."""
    for mark in item.iter_markers("needs"):
        if missing := missing_programs(mark.args):
            say = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            say(f"not installed: {', '.join(missing)} (`make test` installs it where it may)")
