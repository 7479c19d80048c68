"""Frames between two releases of one version."""

from __future__ import annotations

import msgspec

from refreshd.worker.handover import frames

_COUNTS = [3, 5, 8, {3: 5}, []]


def test_an_end_of_a_release_that_does_not_hand_the_lead_over_is_read() -> None:
    frame = frames.decode(msgspec.msgpack.encode(["end", *_COUNTS]))
    assert frame == frames.End(3, 5, 8, {3: 5}, [], b"")


def test_a_release_that_knows_less_reads_what_it_knows() -> None:
    """As one without `lead` does with an `End` of today."""
    frame = frames.decode(msgspec.msgpack.encode(["end", *_COUNTS, b"lead", "of a later release"]))
    assert frame == frames.End(3, 5, 8, {3: 5}, [], b"lead")
