"""What a soak found: the table, the verdict, JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tools.soak.actions import HARMLESS, Done
from tools.soak.engine import Held
from tools.soak.ledger import Verdict
from tools.soak.tally import Histogram, Tally

# A connection to the admin socket that is just being closed.
_FDS_SPARE = 2
# The rate that came about, of the one that was wanted.
_RATE_MIN = 0.95


class Found(NamedTuple):
    """One soak."""

    seed: int
    seconds: float
    rate_wanted: int
    growth_max: float
    """Of descriptors and memory, as a share."""
    posting_s: float
    skipped: int
    lag_s: float
    actions: list[Done]
    tally: Tally
    verdict: Verdict
    missing: str
    """What did not come to an end, in words."""
    denied: list[str]
    """Tasks of which the engine itself said, over the wire, something else than its store."""
    repeated: int
    before: Held
    after: Held

    @property
    def rate(self) -> float:
        """Tasks acknowledged a second."""
        return self.verdict.acknowledged / self.posting_s if self.posting_s else 0.0

    @property
    def is_harmless(self) -> bool:
        """Whether nothing was done that may cost a request."""
        return all(done.name in HARMLESS for done in self.actions)


def faults(found: Found) -> list[str]:
    """What is wrong, a line each; none: the engine passed."""
    tally, verdict = found.tally, found.verdict
    lines = [f"{done.name} at {done.at_s:.0f} s: {done.fault}" for done in found.actions if done.fault]
    if not verdict.fits:
        lines.append(
            f"{verdict.lost} lost, {verdict.unfinished} unfinished, {verdict.untrue} untrue of"
            f" {verdict.acknowledged} acknowledged: {'; '.join(verdict.examples)}"
        )
    if found.missing:
        lines.append(f"at the end: {found.missing}")
    lines += [f"over the wire: {text}" for text in found.denied[:5]]
    for what, counts in (("failed requests", tally.failed), ("dropped connections", tally.dropped)):
        if counts:
            lines.append(f"{counts.total()} {what} that no fault explains: {_counts(counts)}")
    lines += tally.notes[:10]
    for what, before, after, spare in (
        ("descriptors", found.before.fds, found.after.fds, _FDS_SPARE),
        ("memory", found.before.memory_bytes, found.after.memory_bytes, 0),
    ):
        if before and after > before * (1 + found.growth_max) + spare:
            lines.append(f"{what} grew by {(after / before - 1) * 100:.1f} %")
    if found.is_harmless and found.rate < _RATE_MIN * found.rate_wanted:
        lines.append(f"{found.rate:,.0f} tasks/s, wanted {found.rate_wanted:,}")
    return lines


def table(found: Found) -> str:
    """A line a figure."""
    tally, verdict = found.tally, found.verdict
    every = tally.calm.merged(tally.rolls).merged(tally.faults)
    rows = [
        ("tasks acknowledged", f"{verdict.acknowledged:,}  ({found.rate:,.0f} a second)"),
        (
            "lost, unfinished, untrue",
            f"{verdict.lost}, {verdict.unfinished}, {verdict.untrue}",
        ),
        ("failed requests", _explained(tally.failed, tally.failed_explained)),
        ("dropped connections", _explained(tally.dropped, tally.dropped_explained)),
        ("replies, all", _latency(every)),
        ("  while nothing was done", _latency(tally.calm)),
        ("  during reloads and upgrades", _latency(tally.rolls)),
        ("  around faults", _latency(tally.faults)),
        ("pushed more than once", f"{found.repeated:,}"),
        ("descriptors", _growth(found.before.fds, found.after.fds)),
        ("memory, MiB", _growth(found.before.memory_bytes / 2**20, found.after.memory_bytes / 2**20)),
        *_action_rows(found.actions),
        ("the soak's own worst lag", f"{found.lag_s * 1000:.0f} ms; not posted in time: {found.skipped:,}"),
        ("seed", str(found.seed)),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _action_rows(actions: list[Done]) -> list[tuple[str, str]]:
    rows = []
    for name in dict.fromkeys(done.name for done in actions):
        took = [done.seconds for done in actions if done.name == name]
        rows.append((name, f"{len(took)} ×, {statistics.median(took):.1f} s each, at most {max(took):.1f}"))
    return rows


def _latency(histogram: Histogram) -> str:
    if not histogram.count:
        return "none"
    p50, p99 = (histogram.percentile_ms(share) for share in (0.5, 0.99))
    return f"p50 {p50:.1f}, p99 {p99:.1f}, worst {histogram.worst_s * 1000:.0f} ms of {histogram.count:,}"


def _growth(before: float, after: float) -> str:
    return f"{before:,.0f} → {after:,.0f}  ({(after / before - 1) * 100 if before else 0:+.1f} %)"


def _explained(counts: Counter[str], explained: Counter[str]) -> str:
    return f"{counts.total():,}  (explained by faults: {explained.total():,})"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.most_common())


def write(path: Path, found: Found, wrong: list[str]) -> None:
    """The same as JSON."""
    tally = found.tally
    document: dict[str, Any] = {
        "passed": not wrong,
        "faults": wrong,
        "seed": found.seed,
        "seconds": round(found.seconds, 1),
        "rate": round(found.rate),
        "rate_wanted": found.rate_wanted,
        "skipped": found.skipped,
        "lag_ms": round(found.lag_s * 1000),
        "verdict": found.verdict._asdict(),
        "failed": tally.failed,
        "failed_explained": tally.failed_explained,
        "dropped": tally.dropped,
        "dropped_explained": tally.dropped_explained,
        "repeated": found.repeated,
        "replies": {
            name: _figures(histogram)
            for name, histogram in (("calm", tally.calm), ("rolls", tally.rolls), ("faults", tally.faults))
        },
        "before": found.before._asdict(),
        "after": found.after._asdict(),
        "actions": [done._asdict() for done in found.actions],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _figures(histogram: Histogram) -> dict[str, float]:
    return {
        "count": histogram.count,
        "p50_ms": round(histogram.percentile_ms(0.5), 2),
        "p99_ms": round(histogram.percentile_ms(0.99), 2),
        "worst_ms": round(histogram.worst_s * 1000, 1),
    }
