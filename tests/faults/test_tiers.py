"""Two tiers of real caches under readers, while what they hold changes (`tools/tiers`)."""

from __future__ import annotations

import pytest
import uvloop

from tools.tiers.site import run

pytestmark = pytest.mark.needs("varnishd", "traffic_server")
OBJECTS = 2000


def test_in_order_and_verified_nothing_is_stale_once_a_task_is_complete() -> None:
    outcome = uvloop.run(run(OBJECTS))
    assert outcome.failed == ()
    assert outcome.stale == 0
    # Every object changed, and was read anew.
    assert outcome.fetches >= 2 * OBJECTS
    assert outcome.reads >= 2 * OBJECTS


def test_without_the_order_the_edge_keeps_what_the_parent_still_had() -> None:
    """So the test above can fail."""
    assert uvloop.run(run(OBJECTS, ordered=False)).stale > 0
