"""What is shown of the caches."""

from __future__ import annotations

import json

import msgspec

from proxyd.breaker import Outcome
from proxyd.config import CacheConfig, default_config
from proxyd.describe import describe_caches
from proxyd.lanes import Caches
from tests.proxyd.rig import make_exchange, run


def test_a_cache_that_is_down_says_why() -> None:
    async def test() -> None:
        caches = Caches(lambda *_: None)
        caches.apply(default_config())
        [lanes] = caches.in_use
        lanes.fast.breaker.note(Outcome.OK, 1.0, 5)
        [row] = describe_caches(caches.in_use, 1.0)
        assert (row["cache"], row["kind"], row["address"]) == ("v1", "varnish", "127.0.0.1:6081")
        assert (row["state"], row["why"], row["down_for_s"], row["waiting"]) == ("up", "", None, 0)
        assert [(lane["lane"], lane["state"], lane["successes"]) for lane in row["lanes"]] == [
            ("fast", "closed", 5),
            ("look", "closed", 0),
            ("slow", "closed", 0),
        ]
        for _ in range(3):
            lanes.fast.breaker.note(Outcome.TIMEOUT, 2.0, why="frozen: no answer")
        lanes.fast.put(make_exchange(b"http://h/", lanes.kind.deeds["url"]), 5)
        [row] = describe_caches(caches.in_use, 4.0)
        assert (row["state"], row["why"], row["down_for_s"]) == ("down", "frozen: no answer", 2.0)
        assert row["waiting"] == 1
        assert json.loads(json.dumps(row)) == row
        caches.close()

    run(test())


def test_each_cache_has_its_own() -> None:
    async def test() -> None:
        caches = Caches(lambda *_: None)
        config = default_config()
        both = [CacheConfig(name, "varnish", ("127.0.0.1", port)) for name, port in (("a", 1), ("b", 2))]
        config = msgspec.structs.replace(config, caches=both)
        caches.apply(config)
        for _ in range(3):
            caches.in_use[0].fast.breaker.note(Outcome.FAILED, 2.0)
        assert [row["state"] for row in describe_caches(caches.in_use, 2.0)] == ["down", "up"]
        caches.close()

    run(test())
