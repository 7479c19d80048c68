"""`python -m tools.tiers [--objects N]`: three runs, what they show; exits 0 if it is what was promised."""

from __future__ import annotations

import argparse
import sys

import uvloop

from tools.tiers.site import Outcome, run

RUNS = (
    # (how, ordered, verify, may show stale answers)
    ("tiers in order, verify=1", True, True),
    ("tiers in order, not verified", True, False),
    ("no order, verify=1", False, True),
)


def main(argv: list[str] | None = None) -> int:
    """Runs them. The first must show no stale answer; the last must, or the runs prove nothing."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiers", description=__doc__)
    parser.add_argument("--objects", type=int, default=100_000, metavar="N", help="default: 100,000")
    args = parser.parse_args(argv)
    outcomes: list[Outcome] = []
    for how, ordered, verify in RUNS:
        outcome = uvloop.run(run(args.objects, ordered=ordered, verify=verify))
        outcomes.append(outcome)
        print(_row(how, outcome), flush=True)
    good = outcomes[0].stale == 0 and not outcomes[0].failed and outcomes[-1].stale > 0
    print("as promised" if good else "NOT as promised")
    return int(not good)


def _row(how: str, outcome: Outcome) -> str:
    row = (
        f"{how}: {outcome.stale} stale of {outcome.reads:,} reads after complete; {outcome.objects:,} objects"
        f" in {outcome.tasks} tasks, {outcome.took_s:.1f} s; the origin was asked {outcome.fetches:,} times"
    )
    return row + "".join(f"\n  {line}" for line in outcome.failed[:5])


if __name__ == "__main__":
    sys.exit(main())
