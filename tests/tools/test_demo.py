"""The whole demo, as `make demo` and `make run` start it: real engine, agent and cache."""

import signal
import subprocess
import sys

import pytest

from tests.tools.demo_driver import DEADLINE_S, ROOT, UP, are_gone, started, wait_until
from tools.demo import __main__, caches

STEPS = 8  # the start, and the seven of the story

CACHES = [
    pytest.param("varnish", "Varnish", marks=pytest.mark.needs("varnishd")),
    pytest.param("ats", "Apache Traffic Server", marks=pytest.mark.needs("traffic_server")),
    ("little", "the demo's own little one"),
]


@pytest.mark.parametrize(("cache", "title"), CACHES)
def test_every_step_is_seen_to_work(cache: str, title: str) -> None:
    with started("demo", "--cache", cache) as demo:
        assert demo.end() == 0, demo.text
    assert f"the cache is {title}" in demo.text
    assert demo.text.count("✓") == STEPS
    assert "✗" not in demo.text
    assert "edition 2, from the origin" in demo.text
    assert "half price, from the cache" in demo.text


@pytest.mark.needs("mariadbd", "redis-server")
def test_of_two_engines_one_is_killed_and_nothing_is_lost() -> None:
    with started("run", "--cache", "little", "--engines", "2") as demo:
        demo.wait_for(UP)
        children = demo.children()
        assert len(children) >= 9  # two masters with two workers each, agent, mariadbd, redis-server
        demo.process.send_signal(signal.SIGINT)
        assert demo.end() == 0, demo.text
        assert are_gone(children)
    assert demo.text.count("✓") == STEPS + 4
    assert "✗" not in demo.text
    assert "at the second: pending; cancelled there; at the first: cancelled" in demo.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_stays_up_until_asked_to_stop_and_leaves_nothing(number: signal.Signals) -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for(UP)
        children = demo.children()
        assert len(children) >= 4  # master, two workers, agent
        demo.process.send_signal(number)
        assert demo.end() == 0, demo.text
        assert are_gone(children)
    assert "Stopping." in demo.text


def test_what_run_says_to_try_works() -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for(UP)
        commands = [line.strip() for line in demo.lines if line.startswith(("  .venv", "  " + sys.prefix))]
        assert len(commands) == 4
        for command in commands:
            done = subprocess.run(
                command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), command
            assert done.stdout, command


def test_a_part_that_dies_ends_run_with_its_name_and_log() -> None:
    with started("run", "--cache", "little") as demo:
        demo.wait_for(UP)
        children = demo.children()
        agent = next(child for child in children if "proxyd" in " ".join(child.cmdline()))
        agent.kill()
        assert demo.end() == 1
        assert are_gone(children)
    assert "proxyd ended with -9" in demo.text
    assert "The logs: .run/" in demo.text


@pytest.mark.parametrize("engines", ["1", pytest.param("2", marks=pytest.mark.needs("mariadbd"))])
def test_children_die_with_a_demo_that_is_killed(engines: str) -> None:
    with started("run", "--cache", "little", "--engines", engines) as demo:
        demo.wait_for(UP)
        children = demo.children()
        demo.process.kill()
        demo.end()
        wait_until(lambda: are_gone(children), "all of its processes are gone")


def test_a_cache_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(caches, "SEARCH_PATH", "")
    assert caches.choose(None).name == "little"
    assert __main__.main(["demo", "--cache", "varnish"]) == 1
    assert "Varnish is not installed (no varnishd)" in capsys.readouterr().out
