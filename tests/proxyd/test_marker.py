"""The file that says that an agent has caught up."""

import os
from pathlib import Path

import pytest

from proxyd.logs import Log
from proxyd.marker import Marker


def test_it_is_there_only_while_it_should_be(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path, other = tmp_path / "caught-up", tmp_path / "other"
    # Left behind by one that was killed.
    path.write_text("old")
    marker = Marker(Log("error"))
    marker.show(str(path), False)
    assert not path.exists()
    before = os.umask(0o077)
    request.addfinalizer(lambda: os.umask(before))
    marker.show(str(path), True)
    assert path.read_text() == "caught up\n"
    assert path.stat().st_mode & 0o777 == 0o644
    marker.show(str(other), True)
    assert [each.name for each in tmp_path.iterdir()] == ["other"]
    marker.show("", True)
    assert list(tmp_path.iterdir()) == []
    marker.show("", False)
    marker.show(str(path), False)


def test_what_cannot_be_done_is_said_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "caught-up"
    marker = Marker(Log("warning"))
    marker.show(str(path), True)
    assert "caught_up_file cannot be written or removed" in capsys.readouterr().err
    path.parent.mkdir()
    marker.show(str(path), True)
    assert path.exists()
    assert [each.name for each in path.parent.iterdir()] == ["caught-up"]
