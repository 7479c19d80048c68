"""The soak sees what goes wrong, and blames no fault for what it did not do."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from refreshd.task import State
from tools.soak import __main__ as soak
from tools.soak import report, tally
from tools.soak.actions import ACTIONS, HARMLESS, Done
from tools.soak.engine import Held
from tools.soak.ledger import BURST, FAILS_EVERY, GROUP_SIZE, Ledger, Verdict, stored_states, task_id
from tools.soak.proxies import fleet
from tools.soak.report import Found
from tools.soak.tally import Histogram, Tally
from wire.lines import parse
from wire.shards import worker_of

ROOT = Path(__file__).resolve().parents[2]

# ── the ledger ────────────────────────────────────────────────────────────────────────────

COMPLETE, FAILED = int(State.COMPLETE), int(State.FAILED)


@pytest.fixture
def ledger() -> Ledger:
    """The first burst was acknowledged, and pushed to everyone."""
    ledger = Ledger(2, 5)
    for number in ledger.take():
        ledger.acknowledge(number)
        for place in range(GROUP_SIZE):
            ledger.effect(number, place)
    return ledger


def states(**other: int | None) -> list[tuple[bytes, int | None]]:
    """What a store that is right has of a burst (the first one fails), but for some."""
    right: dict[bytes, int | None] = {task_id(number): COMPLETE for number in range(BURST)}
    right[task_id(0)] = FAILED
    right |= {key.encode(): value for key, value in other.items()}
    return list(right.items())


def test_what_fits_is_right(ledger: Ledger) -> None:
    assert ledger.compare(states()) == Verdict(BURST, 0, 0, 0, [])
    assert ledger.compare(states()).fits
    assert not Ledger(2, 5).compare([]).fits, "nothing was looked at"


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        (None, (0, 1, 0)),
        (FAILED, (0, 0, 1)),
        (int(State.EXPIRED), (0, 0, 1)),
        (int(State.CANCELLED), (0, 0, 1)),
    ],
)
def test_what_became_of_a_task_is_looked_at(
    ledger: Ledger, state: int | None, counts: tuple[int, int, int]
) -> None:
    verdict = ledger.compare(states(s000000007=state))
    assert (verdict.lost, verdict.unfinished, verdict.untrue) == counts
    assert verdict.examples[0].startswith("s000000007: ")
    assert not verdict.fits


def test_a_failure_that_a_proxy_reported_must_show(ledger: Ledger) -> None:
    assert ledger.compare(states(s000000000=COMPLETE)).untrue == 1


def test_a_task_that_is_nowhere_is_lost(ledger: Ledger) -> None:
    verdict = ledger.compare(states()[:-2])
    assert (verdict.lost, verdict.examples) == (2, ["s000000038: lost", "s000000039: lost"])


def test_complete_without_an_effect_is_untrue() -> None:
    ledger = Ledger(2, 5)
    for number in ledger.take():
        ledger.effect(number, 0)
    assert ledger.compare(states()).untrue == BURST
    ledger.effect(7, 0)
    assert ledger.repeated == 1


def test_lines_are_for_a_group_and_for_their_owner() -> None:
    ledger = Ledger(2, 5)
    groups = Counter()
    for worker in (0, 1, None):
        for number in ledger.take(worker):
            line = parse(ledger.line(number)[:-1])
            assert line.fields["task_id"].encode() == task_id(number)
            assert worker is None or worker_of(task_id(number), 2) == worker
            groups[line.fields["scope"]] += 1
    assert set(groups) <= {row.group for row in fleet(5 * GROUP_SIZE)}
    assert FAILS_EVERY > BURST, "most bursts are reported in one line"


def test_the_store_is_read_as_it_is(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "lane-0.db")
    schema = (ROOT / "refreshd" / "store" / "schema" / "sqlite" / "0001_tasks.sql").read_text()
    db.executescript(schema)
    db.execute("INSERT INTO task VALUES (1, ?, 1, '', 0), (2, ?, 1, '', 0)", (task_id(1), task_id(2)))
    db.execute("INSERT INTO result VALUES (2, 2, 1, 0, 0, NULL)")
    db.commit()
    db.close()
    assert list(stored_states(tmp_path)) == [(task_id(1), None), (task_id(2), COMPLETE)]


# ── the tally ─────────────────────────────────────────────────────────────────────────────


def test_only_faults_explain_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept = Tally()
    with kept.rolling():
        kept.refused("busy", "client")
        kept.lost("client", None)
    with kept.faulty():
        kept.refused("unavailable", "client")
    now += tally.GRACE_S - 0.1
    kept.lost("client", None)
    now += 0.2
    kept.lost("proxy", None)
    assert (kept.failed, kept.failed_explained) == ({"busy": 1}, {"unavailable": 1})
    assert (kept.dropped, kept.dropped_explained) == ({"client": 1, "proxy": 1}, {"client": 1})
    assert len(kept.notes) == 3


def test_latencies_are_kept_by_what_was_done() -> None:
    kept = Tally()
    kept.answered(0.001)
    with kept.rolling():
        kept.answered(0.002)
        with kept.faulty():
            kept.answered(0.003)
    assert [h.worst_s for h in (kept.calm, kept.rolls, kept.faults)] == [0.001, 0.002, 0.003]


def test_percentiles() -> None:
    histogram = Histogram()
    for ms in range(100):
        histogram.add(ms / 1000)
    histogram.add(50.0)
    assert 50 <= histogram.percentile_ms(0.5) < 51
    assert 99 <= histogram.percentile_ms(0.99) < 100
    assert histogram.percentile_ms(1.0) == pytest.approx(30_000, rel=0.01)
    assert histogram.worst_s == 50.0
    assert Histogram().percentile_ms(0.5) == 0


# ── the verdict ───────────────────────────────────────────────────────────────────────────


def found(**other: object) -> Found:
    """A soak in which nothing was wrong, but for some."""
    right = Found(
        seed=1,
        seconds=10.0,
        rate_wanted=100,
        growth_max=0.02,
        posting_s=10.0,
        skipped=0,
        lag_s=0.0,
        actions=[Done("reload", 1.0, 2.0, "")],
        tally=Tally(),
        verdict=Verdict(1000, 0, 0, 0, []),
        missing="",
        denied=[],
        repeated=0,
        before=Held(100, 1000.0, 3),
        after=Held(102, 1019.0, 3),
    )
    return right._replace(**other)


def test_nothing_is_wrong() -> None:
    assert report.faults(found()) == []


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"actions": [Done("reload", 1.0, 2.0, "exit status 1")]}, "exit status 1"),
        ({"verdict": Verdict(1000, 1, 0, 0, ["x: lost"])}, "1 lost"),
        ({"missing": "3 posted and not answered"}, "3 posted"),
        ({"denied": ["s1: err"]}, "s1: err"),
        ({"after": Held(110, 1000.0, 3)}, "descriptors grew by 10.0 %"),
        ({"after": Held(100, 1030.0, 3)}, "memory grew by 3.0 %"),
        ({"posting_s": 20.0}, "50 tasks/s"),
    ],
)
def test_what_is_wrong_is_said(other: dict[str, object], says: str) -> None:
    (line,) = report.faults(found(**other))
    assert says in line


def test_what_no_fault_explains_is_wrong() -> None:
    kept = Tally()
    kept.lost("client", None)
    first, note = report.faults(found(tally=kept))
    assert "1 dropped connections" in first
    assert "client: connection lost" in note


def test_kills_may_cost_rate_but_rolls_may_not() -> None:
    assert {"reload", "upgrade"} <= HARMLESS
    assert not HARMLESS & {name for name in ACTIONS if "kill" in name or "stop" in name}
    slow = {"posting_s": 20.0}
    assert report.faults(found(actions=[Done("kill", 1.0, 1.0, "")], **slow)) == []


# ── a whole one ───────────────────────────────────────────────────────────────────────────


def test_a_short_soak_of_everything_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`make soak` in small; the seed's actions are a mixture."""
    path = tmp_path / "soak.json"
    arguments = ["--quick", "--seconds", "14", "--rate", "1500", "--seed", "8", "--json", str(path)]
    status = soak.main(arguments)
    assert status == 0, capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document["passed"]
    assert document["verdict"]["acknowledged"] > 5_000
    assert "tasks acknowledged" in capsys.readouterr().out


def test_an_unknown_action_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(["--only", "reload,explode"])
    assert "explode" in capsys.readouterr().err
