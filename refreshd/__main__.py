"""The command `refreshd`: reads the configuration, then is the master."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from refreshd import __version__, logs
from refreshd.config import Config, parse
from refreshd.errors import BootError, ConfigError
from refreshd.master.master import Master, WorkerBootFailed

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

CONFIG_FILE_MAX_BYTES = 4 * 1024 * 1024
SECRET_MAX_BYTES = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of a run with these arguments."""
    arguments = _parser().parse_args(argv)
    try:
        config = load(arguments.config)
    except ConfigError as error:
        for fault in error.faults:
            print(f"refreshd: {arguments.config}: {fault}", file=sys.stderr)
        return EXIT_CONFIG
    if arguments.check:
        print("ok")
        return EXIT_OK
    return run(config)


def _parser() -> argparse.ArgumentParser:
    exits = "\n".join(f"  {code:<3} {meaning}" for code, meaning in EXITS.items())
    parser = argparse.ArgumentParser(
        prog="refreshd",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The engine: takes refresh and prefetch tasks and sees to it that every cache does them.",
        epilog="Signals: TERM stops gracefully, INT fast. Settings: docs/configuration.md.\n"
        f"Exit codes:\n{exits}",
    )
    parser.add_argument("--config", metavar="FILE", help="refreshd.toml; without it all defaults hold")
    parser.add_argument("--check", action="store_true", help="say what is wrong with FILE, and touch nothing")
    parser.add_argument("--version", action="version", version=f"refreshd {__version__}")
    return parser


def load(path: str | None) -> Config:
    """The configuration in the file, secrets included. Raises: ConfigError."""
    text = "" if path is None else _read_config(path)
    return parse(text, os.environ, read_secret)


def _read_config(path: str) -> str:
    try:
        data = _read_bounded(path, CONFIG_FILE_MAX_BYTES)
        return data.decode()
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"line {line}: not UTF-8"]) from None
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def read_secret(path: str) -> bytes:
    """What a secret file holds, without the line end after it. Raises: OSError, ValueError."""
    secret = _read_bounded(path, SECRET_MAX_BYTES).removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise ValueError("the file is empty; wanted a secret")
    return secret


def _read_bounded(path: str, size_max: int) -> bytes:
    with Path(path).open("rb") as file:
        data = file.read(size_max + 1)
    if len(data) > size_max:
        raise ValueError(f"the file has more than {size_max:,} bytes")
    return data


def run(config: Config, make_master: Callable[[Config], Master] = Master) -> int:
    """Is the master until the end; the exit code."""
    logs.configure(role="master", engine=config.engine.id)
    log = logs.get()
    try:
        make_master(config).run()
    except WorkerBootFailed as error:
        log.error("not started", why=str(error))
        return EXIT_WORKER
    except BootError as error:
        log.error("not started", why=str(error))
        return EXIT_BOOT
    except Exception:
        log.exception("a fault of the master")
        return EXIT_FAULT
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
