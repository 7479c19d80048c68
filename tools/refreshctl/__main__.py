"""The way in: reads the arguments, runs the verb, turns what it raises into an exit code."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tools.refreshctl.context import Context
from tools.refreshctl.exits import Exit, Failure, code_of, explain
from tools.refreshctl.verbs import BY_WORD, COMMON, VERBS, Argument, Verb
from wire.errors import LocalError, WireError

DEFAULT_SOCKET = "./data/admin.sock"
_EXITS = (
    "exit codes: 0 ok, 1 failed, 2 usage, 3 unreachable, 4 partly, 5 denied. "
    "`refreshctl VERB --help` tells more; docs/refreshctl.md has it all."
)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where to read more."""

    def error(self, message: str) -> NoReturn:
        raise Failure(Exit.USAGE, f"{message}; see `{self.prog} --help`")


def make_parser() -> argparse.ArgumentParser:
    """The parser that the table of verbs describes."""
    parser = OneLineParser(
        prog="refreshctl", description="Refresh and prefetch in your caches.", epilog=_EXITS
    )
    _add(parser, COMMON)
    words = parser.add_subparsers(dest="word", metavar="VERB", required=True, parser_class=OneLineParser)
    for verb in VERBS:
        sub = words.add_parser(verb.word, help=verb.help, description=verb.help)
        _add(sub, verb.arguments)
        # Before or after the verb: who gives none here keeps what was given there.
        _add(sub, COMMON, default=argparse.SUPPRESS)
    return parser


def _add(parser: argparse.ArgumentParser, arguments: Sequence[Argument], **more: Any) -> None:
    for argument in arguments:
        parser.add_argument(*argument.flags, help=argument.help, **{**argument.how, **more})


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    socket = DEFAULT_SOCKET
    try:
        args = make_parser().parse_args(argv)
        socket = args.socket or os.environ.get("REFRESHCTL_SOCKET") or DEFAULT_SOCKET
        code = _run(BY_WORD[args.word], Context(args, socket))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read has gone. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except (Failure, WireError, LocalError) as error:
        print(f"refreshctl: {explain(error, socket)}", file=sys.stderr)
        return code_of(error)


def _run(verb: Verb, context: Context) -> int:
    module, _, function = verb.run.partition(":")
    run = getattr(importlib.import_module(f"tools.refreshctl.{module}"), function)
    return int(asyncio.run(run(context)))


if __name__ == "__main__":
    sys.exit(main())
