"""The command `refreshd`: reads the configuration, then is the master."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from refreshd import __version__, logs
from refreshd.config import Config
from refreshd.config_file import ConfigFile
from refreshd.errors import ConfigError, RefreshdError
from refreshd.master import reexec
from refreshd.master.master import Master, WorkerBootFailed
from refreshd.master.reexec import Saved

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_WORKER = 3
EXIT_FAULT = 70
EXIT_BOOT = 71
EXIT_CONFIG = 78
EXITS = {
    EXIT_OK: "stopped as asked, or --check found nothing wrong",
    EXIT_USAGE: "the command line is wrong",
    EXIT_WORKER: "a worker could not start",
    EXIT_FAULT: "a fault of the master itself, which is logged",
    EXIT_BOOT: "the engine cannot start here: address or data folder in use, no permission",
    EXIT_CONFIG: "the configuration is wrong",
}


MakeMaster = Callable[[Config, ConfigFile, Saved | None], Master]


def main(argv: Sequence[str] | None = None, make_master: MakeMaster = Master) -> int:
    """The exit code of a run with these arguments."""
    arguments = _parser().parse_args(argv)
    file = ConfigFile(arguments.config)
    try:
        if arguments.rehearse is not None:
            return rehearse(arguments.rehearse, file, make_master)
        if arguments.adopt is not None:
            saved = reexec.read(arguments.adopt)
            config = reexec.config_of(saved)
            return run(lambda: make_master(config, file, saved), config.engine.id)
        config = file.load()
    except ConfigError as error:
        for fault in error.faults:
            print(f"refreshd: {arguments.config}: {fault}", file=sys.stderr)
        return EXIT_CONFIG
    except RefreshdError as error:
        print(f"refreshd: {error}", file=sys.stderr)
        return EXIT_BOOT
    if arguments.check:
        print("ok")
        return EXIT_OK
    return run(lambda: make_master(config, file, None), config.engine.id)


def _parser() -> argparse.ArgumentParser:
    exits = "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXITS.items())
    parser = argparse.ArgumentParser(
        prog="refreshd",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The engine: takes refresh and prefetch tasks and sees to it that every cache does them.",
        epilog="Signals: TERM stops gracefully, INT fast; HUP reloads, USR2 upgrades.\n"
        f"Settings: docs/configuration.md.\nExit codes:\n{exits}",
    )
    parser.add_argument("--config", metavar="FILE", help="refreshd.toml; without it all defaults hold")
    parser.add_argument("--check", action="store_true", help="say what is wrong with FILE, and touch nothing")
    # For the master itself, see master/reexec.py.
    parser.add_argument("--rehearse", metavar="FD", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--adopt", metavar="FD", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"refreshd {__version__}")
    return parser


def rehearse(state_fd: int, file: ConfigFile, make_master: MakeMaster) -> int:
    """All that `--adopt` would do up to the first turn of the loop, without any effect; then prints `ok`.

    Raises: RefreshdError saying why this code could not go on with what the running master has.
    """
    saved = reexec.read(state_fd)
    config = reexec.config_of(saved)
    logs.configure(role="rehearsal", engine=config.engine.id)
    make_master(config, file, saved).check()
    print("ok")
    return EXIT_OK


def run(make_master: Callable[[], Master], engine: str) -> int:
    """Is the master until the end; the exit code."""
    logs.configure(role="master", engine=engine)
    log = logs.get()
    try:
        make_master().run()
    except WorkerBootFailed as error:
        log.error("not started", why=str(error))
        return EXIT_WORKER
    except RefreshdError as error:
        log.error("not started", why=str(error))
        return EXIT_BOOT
    except Exception:
        log.exception("a fault of the master")
        return EXIT_FAULT
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
