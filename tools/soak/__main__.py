"""`python -m tools.soak [--seconds N | --reloads N --upgrades N] [--only NAME,…] [--quick] …`."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tools.bench.errors import BenchError
from tools.soak.actions import ACTIONS
from tools.soak.errors import SoakError
from tools.soak.report import faults, table, write
from tools.soak.run import Plan, soak

# Workers are too young then for their memory to be compared well.
_QUICK = Plan(
    seconds=30.0, warm_s=2.0, growth_max=0.5, pause_s=(0.2, 1.0), rate=5_000, clients=60, proxies=20
)
_SEEDS = 1_000_000
_TERMINATED = 128 + signal.SIGTERM


def main(argv: list[str] | None = None) -> int:
    """Runs one soak. 0: nothing was wrong; 1: something was, or it could not be made."""
    args = _parser().parse_args(argv)
    only = tuple(args.only.split(",")) if args.only else tuple(ACTIONS)
    if unknown := set(only) - set(ACTIONS):
        _parser().error(f"no action is called {', '.join(sorted(unknown))}; wanted {', '.join(ACTIONS)}")
    plan = _QUICK if args.quick else Plan()
    given: dict[str, Any] = {"seconds": args.seconds, "rate": args.rate, "workers": args.workers}
    if args.pause is not None:
        given["pause_s"] = (args.pause / 2, args.pause)
    plan = plan._replace(
        only=only,
        counts=+Counter({"reload": args.reloads, "upgrade": args.upgrades}),
        seed=random.randrange(_SEEDS) if args.seed is None else args.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    print(
        f"{plan.clients} clients, {plan.proxies} proxies, {plan.rate:,} tasks/s, seed {plan.seed}", flush=True
    )
    # Ended from outside it must leave no engine behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    try:
        found = soak(plan)
    except (SoakError, BenchError, OSError, TimeoutError) as error:
        print(f"soak: {error!r}", file=sys.stderr)
        return 1
    wrong = faults(found)
    print(table(found))
    write(args.json, found, wrong)
    print(f"as JSON: {args.json}")
    print("\n".join(["", *(f"FAULT {line}" for line in wrong)]) if wrong else "passed")
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, metavar="N", help="how long, the end not included")
    parser.add_argument("--quick", action="store_true", help="half a minute, with less of everything")
    parser.add_argument("--only", metavar="NAME,…", help=f"of {', '.join(ACTIONS)}")
    parser.add_argument("--reloads", type=int, default=0, metavar="N", help="so many instead of --seconds")
    parser.add_argument("--upgrades", type=int, default=0, metavar="N", help="likewise")
    parser.add_argument("--rate", type=int, metavar="N", help="tasks a second")
    parser.add_argument("--workers", type=int, metavar="N")
    parser.add_argument("--pause", type=float, metavar="SECONDS", help="between two actions, at most")
    parser.add_argument("--seed", type=int, metavar="N", help="the same actions again")
    parser.add_argument("--json", type=Path, default=Path(".bench/soak.json"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
