"""A program that cannot even be run is refused, as one that does not start is."""

import asyncio
from pathlib import Path

import pytest

from proxyd.upgrade import UpgradeRefused, rehearse


def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    program = tmp_path / "python"
    with pytest.raises(UpgradeRefused, match=r"cannot be run: No such file or directory \(.*python\)"):
        asyncio.run(rehearse([str(program)]))
    program.write_text("")
    with pytest.raises(UpgradeRefused, match="cannot be run: Permission denied"):
        asyncio.run(rehearse([str(program)]))
