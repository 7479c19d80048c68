"""refreshctl, the program, against the real engine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.driver import ROOT, Engine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(workers=2, settings="open_fleet = true") as running:
        yield running


def ctl(engine: Engine, *args: str, stdin: str = "") -> tuple[int, Any]:
    """Exit code and document."""
    command = [sys.executable, "-W", "error", "-m", "tools.refreshctl", "--json"]
    ran = subprocess.run(
        [*command, "--socket", str(engine.data / "admin.sock"), *args],
        cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.stderr.count("\n") <= 1
    return ran.returncode, json.loads(ran.stdout) if ran.stdout else ran.stderr


def test_from_submit_to_forget(engine: Engine) -> None:
    code, said = ctl(engine, "submit", "http://www.example.com/1")
    assert (code, said["refused"]) == (1, 1)
    with engine.proxy("pop1", greeting="group=eu"):
        urls = "".join(f"http://www.example.com/{number}\n" for number in range(2500))
        code, said = ctl(engine, "submit", "--wait", "--id", "x", "-", stdin=urls)
        assert code == 0
        assert [(task["state"], task["done"]) for task in said["tasks"]] == [
            ("complete", 1000), ("complete", 1000), ("complete", 500),
        ]  # fmt: skip
        code, said = ctl(engine, "show", "x-3")
        assert said["proxies"][0]["proxy"] == "pop1"
        assert said["task"]["done"] == 500
        code, said = ctl(engine, "list", "--limit", "2")
        assert [task["task_id"] for task in said["tasks"]] == ["x-3", "x-2"]
        code, said = ctl(engine, "submit", "--due", "+1h", "--id", "later", "http://www.example.com/1")
        assert said["tasks"][0]["state"] == "pending"
        assert ctl(engine, "cancel", "later") == (0, {"tasks": [{"task_id": "later", "state": "cancelled"}]})
        assert ctl(engine, "wait", "x-1", "later")[0] == 4
        code, said = ctl(engine, "proxies")
        assert [(row["proxy"], row["group"], row["online"]) for row in said["proxies"]] == [("pop1", "eu", 1)]
        assert ctl(engine, "proxies", "--forget", "pop1")[0] == 5
    code, said = ctl(engine, "submit", "--wait", "--timeout", "0", "http://www.example.com/1")
    assert code == 1
    assert ctl(engine, "proxies", "--forget", "nobody")[0] == 1


def test_looking_at_the_engine(engine: Engine) -> None:
    code, said = ctl(engine, "workers")
    assert [row["state"] for row in said["workers"]] == ["ready", "ready"]
    code, said = ctl(engine, "stats")
    assert code == 0
    assert all(isinstance(value, int | float | str) for value in said.values())
    assert ctl(engine, "quotas") == (0, {"quotas": []})
    code, said = ctl(engine, "ping")
    assert said["ms"] >= 0


def test_what_the_engine_refuses(engine: Engine) -> None:
    code, said = ctl(engine, "show", "nix")
    assert code == 1
    assert "not_found" in said
    with engine.proxy("pop1", greeting="group=eu"):
        code, said = ctl(engine, "submit", "--scope", "nowhere", "http://www.example.com/1")
        assert code == 1
        assert said["tasks"][0]["error"]["field"] == "scope"
