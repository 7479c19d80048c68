"""The log: JSON, and never more than a bound."""

import json
from pathlib import Path

import pytest

from proxyd.logs import SAMPLE_EVERY_S, SAMPLED_KEYS_MAX, TRACEBACK_MAX_CHARS, Log, Sampler
from tests.proxyd.fake_engine import FakeEngine
from tools.servers import Agent


def test_one_in_a_while_with_the_number_left_out() -> None:
    sampler = Sampler()
    assert [sampler.admit("a", now) for now in (0.0, 1.0, 2.0, SAMPLE_EVERY_S)] == [0, None, None, 2]
    assert sampler.admit("b", 1.0) == 0


def test_the_number_of_keys_is_bounded() -> None:
    sampler = Sampler()
    admitted = [sampler.admit(f"key {number}", 0.0) for number in range(SAMPLED_KEYS_MAX * 4)]
    assert sum(left_out is not None for left_out in admitted) <= SAMPLED_KEYS_MAX + 1


def test_lines_are_json_and_say_what_they_are_first() -> None:
    with FakeEngine() as engine, Agent([engine.address], [("v1", "varnish", "127.0.0.1:1")]) as agent:
        engine.wait_link()
        lines = agent.log().splitlines()
    for line in lines:
        assert list(json.loads(line))[:3] == ["ts", "level", "event"]
    assert json.loads(lines[0])["event"] == "agent started"


@pytest.mark.parametrize("level", ["warning", "error"])
def test_levels(level: str) -> None:
    with FakeEngine() as engine:
        agent = Agent([engine.address], [("v1", "varnish", "127.0.0.1:1")], settings=f'log_level = "{level}"')
        agent._is_ready = lambda: engine.live() is not None  # type: ignore[method-assign]
        with agent:
            assert agent.log() == ""


def test_a_level_can_change(capsys: pytest.CaptureFixture[str]) -> None:
    log = Log("error")
    log.info("unheard")
    log.set_level("info")
    log.info("heard", path=Path("/x"), text="two\nlines")
    log.set_level("warning")
    log.info("unheard")
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert said.pop("ts").endswith("Z")
    assert said == {"level": "info", "event": "heard", "path": "/x", "text": "two\nlines"}


def test_a_fault_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("x" * 9000 + "end")
    except ValueError as error:
        Log("error").fault("reload failed", error)
    said = json.loads(capsys.readouterr().err)
    assert (said["level"], said["event"]) == ("error", "reload failed")
    assert said["traceback"].endswith("end\n")
    assert len(said["traceback"]) <= TRACEBACK_MAX_CHARS
