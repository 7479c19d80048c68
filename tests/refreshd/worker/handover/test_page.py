"""docs/handover.md says what the code does: its names, and the order in which things come."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest

from refreshd import control
from refreshd.worker.handover import frames

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "handover.md").read_text()
PICTURE = PAGE.split("```")[1]
ORDER = (
    control.Ready,
    control.HandOver,
    frames.Begin,
    frames.Copy,
    frames.Sync,
    frames.Synced,
    frames.Shards,
    frames.Owned,
    control.Given,
    control.Peer,
    frames.State,
    frames.Moving,
    frames.Go,
    frames.End,
    frames.Ended,
    control.Moved,
    control.Stop,
)
"""As giver.py and taker.py go through it, and rolls.py around them."""
ELSEWHERE = {
    control.Start, control.Adopt, control.Move, control.Configure, control.Drain, control.Failed,
    control.Stopping, control.Configured, frames.Nonces,
}  # fmt: skip
"""What is no step of a hand-over."""


def test_the_picture_has_the_steps_in_their_order() -> None:
    at = [re.search(rf"\b{kind.__name__}\b", PICTURE) for kind in ORDER]
    missing = [kind.__name__ for kind, found in zip(ORDER, at, strict=True) if found is None]
    assert not missing
    places = [found.start() for found in at if found is not None]
    assert places == sorted(places)


def test_every_frame_and_message_is_on_the_page() -> None:
    kinds = {*get_args(frames.Frame), *get_args(control.Message)} - ELSEWHERE
    missing = [kind.__name__ for kind in kinds if not re.search(rf"\b{kind.__name__}\b", PAGE)]
    assert not missing


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("refreshd.worker.handover.giving", "FREEZE_S"),
        ("refreshd.worker.handover.giving", "FREEZES"),
        ("refreshd.worker.handover.giving", "COPY_AHEAD_BYTES"),
        ("refreshd.worker.handover.giving", "STEP_TASKS"),
        ("refreshd.worker.handover.connections", "QUIET_S"),
        ("refreshd.worker.handover.taker", "PUSHES_MAX"),
        ("refreshd.worker.mesh", "REQUESTS_MAX"),
    ],
)
def test_the_bounds_it_names_are_in_the_code(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) > 0
    assert name in PAGE


def test_the_deadlines_it_names_are_the_masters() -> None:
    from refreshd.master.processes import Timing

    named = set(re.findall(r"`Timing\.(\w+)`", PAGE))
    assert named
    assert named <= set(Timing._fields)
