"""FAULTS 6 to 8: reloads under load, a wrong configuration, an upgrade to code that does not come up."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.driver import ROOT, Engine, wait_until
from tests.faults.ledger import Ledger, Load
from tests.peer.fake_proxy import FakeProxy

PROXIES = ("p1", "p2")
# What a connection to the admin socket that is just being closed has.
_FDS_SPARE = 2


class Site(NamedTuple):
    """An engine with a fleet and load on it."""

    engine: Engine
    ledger: Ledger
    load: Load
    proxies: list[FakeProxy]

    def nobody_noticed(self) -> None:
        """No connection was lost, no request refused; more is done."""
        self.ledger.wait_for(50)
        assert (self.load.gone, self.ledger.refused) == (0, {})
        assert [proxy.gone for proxy in self.proxies] == [0, 0]


@contextmanager
def under_load(engine: Engine) -> Iterator[Site]:
    """At the end the ledger is settled."""
    ledger = Ledger(PROXIES)
    with (
        engine,
        engine.proxy("p1", on_effect=ledger.effect) as p1,
        engine.proxy("p2", on_effect=ledger.effect) as p2,
    ):
        with Load(engine.address, ledger, clients=2, batch=10) as load:
            ledger.wait_for(20)
            yield Site(engine, ledger, load, [p1, p2])
        ledger.settle(engine.address)
    assert "Traceback" not in engine.log()


# ── 6 ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["reload", "upgrade"])
def test_rolls_under_load_are_noticed_by_nobody(verb: str) -> None:
    """Row 6; a hundred of them are the soak's (`make soak`)."""
    with under_load(Engine(proxies=PROXIES)) as site:
        engine = site.engine
        fds = []
        for _ in range(3):
            before = engine.pids()
            engine.roll(verb)
            engine.wait_whole()
            assert not before & engine.pids()
            fds.append(engine.fds())
        site.nobody_noticed()
        assert max(fds) <= fds[0] + _FDS_SPARE, fds


@pytest.mark.parametrize(("number", "verb"), [(signal.SIGHUP, "reload"), (signal.SIGUSR2, "upgrade")])
def test_signals_do_the_same(number: signal.Signals, verb: str) -> None:
    with under_load(Engine(proxies=PROXIES)) as site:
        engine = site.engine
        before = engine.pids()
        assert engine.process is not None
        engine.process.send_signal(number)
        wait_until(lambda: engine.admin("operation").fields.get("kind") == verb, f"the {verb} has begun")
        assert engine.outcome("1")["state"] == "done"
        engine.wait_whole()
        assert not before & engine.pids()
        site.nobody_noticed()


# ── 7 ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        ("worker = 3", "", "workers"),
        ("line_max = true", "", "line_max"),
        ("", "[store", "line"),
        ("", "[store]\nretention_s = 1", "retention_s"),
        ("", '[[key]]\nname = "acme"\nsecret_file = "/nowhere/at/all"', "/nowhere/at/all"),
        ('id = "other"', "", "id"),
    ],
)
def test_a_wrong_configuration_is_refused_by_its_line(settings: str, more: str, says: str) -> None:
    """Row 7: nothing happens, nothing leaks. The last one is right, but needs a restart."""
    with under_load(Engine(proxies=PROXIES)) as site:
        engine = site.engine
        pids, fds = engine.pids(), engine.fds()
        engine.settings, engine.more = settings, more
        path = engine.configure()
        for _ in range(3):
            refused = engine.admin("reload")
            assert (refused.code, refused["field"]) == ("bad_field", "config")
            assert says in refused["msg"]
            assert "line " in refused["msg"] or not settings + more or says == "id"
            assert str(path) in refused["msg"]
        assert engine.process is not None
        engine.process.send_signal(signal.SIGHUP)
        wait_until(lambda: says in engine.log(), "the refusal is in the log too")
        site.nobody_noticed()
        assert engine.pids() == pids
        assert engine.fds() <= fds + _FDS_SPARE
        engine.settings = engine.more = ""
        engine.configure()
        engine.roll()
        site.nobody_noticed()


# ── 8 ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the code, to be broken."""
    for package in ("refreshd", "wire"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def _break(path: Path, old: str, new: str) -> str:
    """Puts something else in place of the first `old`; what the file was."""
    was = path.read_text()
    assert old in was, f"{path.name} has no {old!r}"
    path.write_text(was.replace(old, new, 1))
    return was


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("refreshd/__main__.py", "def main(", "raise SystemExit(5)\n\n\ndef main("),
        ("refreshd/master/master.py", "class Master:", "raise RuntimeError('broken')\n\n\nclass Master:"),
        ("refreshd/worker/process.py", "class Process:", "raise RuntimeError('broken')\n\n\nclass Process:"),
        ("wire/lines.py", "import ", "import nothing_of_that_name\nimport "),
    ],
)
def test_code_that_does_not_come_up_is_not_upgraded_to(root: Path, file: str, old: str, new: str) -> None:
    """Row 8: the old code goes on and says why; once it is mended, the upgrade gets through."""
    with under_load(Engine(proxies=PROXIES, root=root)) as site:
        engine = site.engine
        pids, fds = engine.pids(), engine.fds()
        was = _break(root / file, old, new)
        outcome = engine.outcome(engine.begin("upgrade"))
        assert outcome["state"] == "failed", outcome.fields
        assert outcome["why"]
        site.nobody_noticed()
        engine.wait_whole()
        assert engine.pids() == pids
        assert engine.fds() <= fds + _FDS_SPARE
        (root / file).write_text(was)
        engine.roll("upgrade")
        engine.wait_whole()
        assert not pids & engine.pids()
        site.nobody_noticed()
