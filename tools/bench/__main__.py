"""`python -m tools.bench [NAME…] [--quick] [--json FILE]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.bench import (
    accept,
    cluster,
    directories,
    endtoend,
    fanout,
    handover,
    lanes,
    memory,
    micro,
    mysql,
    offline,
    peers,
    prefetch,
    purge,
)
from tools.bench.errors import BenchError
from tools.bench.report import Row, table, verdicts, write
from tools.soak.errors import SoakError

BENCHES: dict[str, Callable[[bool], list[Row]]] = {
    "accept": accept.run,
    "fanout": fanout.run,
    "endtoend": endtoend.run,
    "lanes": lanes.run,
    "memory": memory.run,
    "handover": handover.run,
    "peers": peers.run,
    "micro": micro.run,
    "mysql": mysql.run,
    "cluster": cluster.run,
    "offline": offline.run,
    "prefetch": prefetch.run,
    "purge": purge.run,
    "directories": directories.run,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benches that are named, or all. Returns 0, or 1 if one could not be made."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs")
    parser.add_argument("--json", type=Path, default=Path(".bench/latest.json"), metavar="FILE")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(BENCHES):
        parser.error(f"no bench is called {', '.join(sorted(unknown))}; wanted {', '.join(BENCHES)}")
    rows, failed = _run(args.names or list(BENCHES), args.quick)
    print(table(rows))
    if aimed := verdicts(rows):
        print(f"\n{aimed}")
    write(args.json, rows)
    print(f"\nas JSON: {args.json}")
    return int(failed)


def _run(names: list[str], quick: bool) -> tuple[list[Row], bool]:
    rows: list[Row] = []
    failed = False
    for name in names:
        began = time.perf_counter()
        try:
            rows += BENCHES[name](quick)
        except (BenchError, SoakError, OSError) as error:
            failed = True
            print(f"{name}: {error!r}", file=sys.stderr)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return rows, failed


if __name__ == "__main__":
    sys.exit(main())
