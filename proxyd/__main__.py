"""`proxyd [--config FILE] [--check]`."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from proxyd import __version__
from proxyd.config import AgentConfig, default_config, load
from proxyd.errors import ConfigError

USAGE = "Agent at a point of presence: refreshes and warms the caches there for refreshd."
# An agent holds tens of thousands of small objects that are no garbage: with Python's
# default (700) the collector looks at all of them again and again, for 15 % of the CPU.
GC_THRESHOLD = 50_000
# EX_CONFIG of sysexits.h, as refreshd has it.
EXIT_CONFIG = 78


def main(argv: list[str] | None = None) -> int:
    """Runs the agent. Returns 0 after a stop or a good --check, 78 if the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="proxyd", description=USAGE)
    parser.add_argument("--config", type=Path, metavar="FILE", help="proxyd.toml; without it, defaults")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    # What an upgrade asks of the new code: start, and stop again, without engines.
    parser.add_argument("--rehearse", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"proxyd {__version__}")
    options = parser.parse_args(argv)

    def read_config() -> AgentConfig:
        return load(options.config) if options.config is not None else default_config()

    try:
        config = read_config()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    if options.check:
        print("ok")
        return 0
    run(config, read_config, rehearsing=options.rehearse)
    return 0


def run(config: AgentConfig, read_config: Callable[[], AgentConfig], *, rehearsing: bool = False) -> None:
    """Runs an agent until a signal stops it."""
    # What comes before the agent can handle it waits, instead of ending the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR2))
    # Imported here: --check needs none of it.
    import uvloop

    from proxyd.start import rehearse, serve

    gc.set_threshold(GC_THRESHOLD)
    uvloop.run(rehearse(config) if rehearsing else serve(config, read_config))


if __name__ == "__main__":
    sys.exit(main())
