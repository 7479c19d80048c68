"""The data folder: how many lanes there are is decided once, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from refreshd.errors import StoreDamaged
from refreshd.store import layout
from refreshd.store.layout import lane_is_made, lane_path, read_or_create
from refreshd.store.sqlite import SqliteLane
from wire import SHARDS


@pytest.mark.parametrize(("workers", "lanes"), [(0, 1), (1, 1), (2, 2), (64, 64), (100, SHARDS)])
def test_a_new_folder_gets_a_lane_for_each_worker(tmp_path: Path, workers: int, lanes: int) -> None:
    data = tmp_path / "data"
    assert read_or_create(data, workers) == lanes
    assert all(lane_path(data, lane).exists() for lane in range(lanes))
    assert lane_path(data, 0).stat().st_mode & 0o077 == 0, "tenants' URLs are nobody else's business"
    # From then on the number of workers changes nothing.
    assert read_or_create(data, 7) == lanes


def test_a_lane_that_is_missing_or_empty(tmp_path: Path) -> None:
    read_or_create(tmp_path, 2)
    # Not used yet: a crash may have come before the first table.
    assert read_or_create(tmp_path, 2) == 2
    lane_is_made(lane_path(tmp_path, 1))
    with pytest.raises(StoreDamaged, match=r"lane-1.db is empty though .*layout tells of 2 lanes; restore"):
        read_or_create(tmp_path, 2)
    SqliteLane(lane_path(tmp_path, 1), 100).close()
    lane_is_made(lane_path(tmp_path, 1))
    assert read_or_create(tmp_path, 2) == 2
    lane_path(tmp_path, 0).unlink()
    with pytest.raises(StoreDamaged, match=r"lane-0.db is missing"):
        read_or_create(tmp_path, 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"2",
        b"lanes=",
        b"lanes=0",
        b"lanes=65",
        b"lanes=-1",
        b"lanes=two",
        b"lanes=\xd9\xa3",
        b"\xff\xfe",
        b"x" * 5000,
    ],
)
def test_a_layout_that_cannot_be_read(tmp_path: Path, text: bytes) -> None:
    read_or_create(tmp_path, 2)
    (tmp_path / "store" / "layout").write_bytes(text)
    with pytest.raises(StoreDamaged, match="wanted lanes=N with N from 1 to 64") as caught:
        read_or_create(tmp_path, 2)
    assert len(str(caught.value)) < 400


def test_lanes_without_a_layout_are_not_dealt_out_anew(tmp_path: Path) -> None:
    read_or_create(tmp_path, 2)
    SqliteLane(lane_path(tmp_path, 1), 100).close()
    (tmp_path / "store" / "layout").unlink()
    with pytest.raises(StoreDamaged, match="restore it"):
        read_or_create(tmp_path, 2)
    assert not (tmp_path / "store" / "layout").exists()


def test_a_crash_before_the_layout_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(layout.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        read_or_create(tmp_path, 4)
    monkeypatch.undo()
    assert read_or_create(tmp_path, 2) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        read_or_create(tmp_path / "file", 1)
