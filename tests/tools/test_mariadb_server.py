"""The private MariaDB of tests, demo and bench: several run at once, each for itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tools.servers import MariaDb

pytestmark = pytest.mark.needs("mariadbd")


def test_a_start_leaves_the_temporary_tables_of_others_alone() -> None:
    """A statement of theirs would fail amid its work, and an engine with it."""
    with tempfile.NamedTemporaryFile(prefix="#sql-test-", suffix=".MAD") as theirs, MariaDb() as server:
        assert Path(theirs.name).exists()
        assert server.query("SELECT @@tmpdir") == [(str(server.folder),)]
