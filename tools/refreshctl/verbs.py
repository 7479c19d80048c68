"""The verbs of refreshctl: one table, from which the parser, the help and the reference are made.

A verb's function is named, not imported: `refreshctl ping` loads only its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from wire.fields import STATES, TASK_TYPES, THEN_PREFETCH


class Argument(NamedTuple):
    """One argument: how it is written, what it means, and how argparse reads it."""

    flags: tuple[str, ...]
    help: str
    how: dict[str, Any] = {}  # noqa: RUF012 (never written to)


class Verb(NamedTuple):
    """One word after `refreshctl`. `run` is `module:function` in this package."""

    word: str
    run: str
    help: str
    arguments: tuple[Argument, ...] = ()


COMMON = (
    Argument(
        ("--socket",),
        "the engine's admin socket (default: $REFRESHCTL_SOCKET, else ./data/admin.sock)",
        {"metavar": "PATH"},
    ),
    Argument(("--json",), "one JSON document for programs instead of text", {"action": "store_true"}),
)

_IDS = Argument(("ids",), "task ids", {"metavar": "ID", "nargs": "+"})
_SCOPE = Argument(
    ("--scope",), "only these groups or proxies, comma-separated (default: all)", {"metavar": "NAMES"}
)
_TIMEOUT = Argument(
    ("--timeout",), "give up waiting after so long, such as 90, 5m or 2h", {"metavar": "TIME"}
)

_OPERATION = (
    Argument(("--wait",), "wait until it is over, and say how it ended", {"action": "store_true"}),
    Argument(
        ("--timeout",),
        "give up waiting after so long, such as 90, 5m or 2h (default: 10m)",
        {"metavar": "TIME"},
    ),
)

VERBS = (
    Verb(
        "submit",
        "submit:submit",
        "give the engine targets to refresh or to prefetch",
        (
            Argument(("targets",), "URLs (or tags); - reads them from stdin", {"nargs": "*",
            "metavar": "TARGET"}),
            Argument(("-f", "--file"), "read targets from FILE, one a line; - is stdin", {"metavar": "FILE"}),
            Argument(("--type",), "what a target is (default: url)", {"choices": TASK_TYPES,
            "default": "url"}),
            _SCOPE,
            Argument(
                ("--due",), "start then: +5m, Unix seconds, or 2026-12-01T10:00 in local time",
                {"metavar": "WHEN"}
            ),
            Argument(("--ttl",), "what is undone after so long fails, such as 90, 5m or 2h",
            {"metavar": "TIME"}),
            Argument(("--priority",), "0 to 9, 9 goes first (default: 5)", {"type": int, "metavar": "N"}),
            Argument(("--callback",), "POST the result to this URL", {"metavar": "URL"}),
            Argument(("--force",), "also where a cache would refuse it as too much",
            {"action": "store_true"}),
            Argument(("--verify",), "done means seen to be gone (or warm) at every cache",
            {"action": "store_true"}),
            Argument(("--then",), "what follows once it is gone: prefetch (only with --type url)",
            {"choices": (THEN_PREFETCH,)}),
            Argument(("--id",), "the task's id (default: made up); several tasks get -1, -2, …",
            {"metavar": "ID"}),
            Argument(
                ("--per-task",), "at most N targets in one task (default: 1000)",
                {"type": int, "default": 1000, "metavar": "N"},
            ),
            Argument(("--wait",), "wait until every task is final", {"action": "store_true"}),
            _TIMEOUT,
        ),
    ),
    Verb(
        "show", "tasks:show", "show a task's counts, and how it stands at each proxy",
        (Argument(("id",), "the task's id", {"metavar": "ID"}),),
    ),
    Verb(
        "receipt", "receipts:receipt",
        "show what proxies have signed of a task: what was done, when, and seen",
        (
            Argument(("id",), "the task's id", {"metavar": "ID"}),
            Argument(("--check",), "check every signature, and say whose key it is",
            {"action": "store_true"}),
        ),
    ),
    Verb(
        "explain", "explaining:explain", "show what a task would do at each cache, without doing it",
        (
            Argument(("targets",), "URLs (or tags)", {"nargs": "+", "metavar": "TARGET"}),
            Argument(("--type",), "what a target is (default: url)", {"choices": TASK_TYPES,
            "default": "url"}),
            _SCOPE,
            Argument(("--force",), "as in `submit`", {"action": "store_true"}),
            Argument(("--verify",), "as in `submit`", {"action": "store_true"}),
            Argument(("--then",), "as in `submit`", {"choices": (THEN_PREFETCH,)}),
        ),
    ),
    Verb("wait", "tasks:wait", "wait until tasks are final", (_IDS, _TIMEOUT)),
    Verb(
        "list",
        "tasks:list_",
        "list tasks, newest first",
        (
            Argument(("--state",), "only tasks in this state", {"choices": STATES}),
            Argument(("--limit",), "at most N (default: 20)", {"type": int, "default": 20, "metavar": "N"}),
            Argument(("--after",), "go on behind this task", {"metavar": "ID"}),
        ),
    ),
    Verb("cancel", "tasks:cancel", "cancel tasks; one that is final keeps its state", (_IDS,)),
    Verb("stats", "engine:stats", "show the engine's figures: rates, queues, counts"),
    Verb("status", "engine:status", "show how the engine is as a whole, and its newest reload or upgrade"),
    Verb("workers", "engine:workers", "show the engine's worker processes"),
    Verb(
        "proxies",
        "engine:proxies",
        "show the fleet",
        (Argument(("--forget",), "take a proxy that is gone for good out of the fleet",
        {"metavar": "NAME"}),),
    ),
    Verb("caches", "asking:caches", "show every cache of every proxy, as its agent sees it", (_SCOPE,)),
    Verb(
        "breakers", "asking:breakers", "show the circuit breaker of every cache and lane, of the last 10 s",
        (_SCOPE,),
    ),
    Verb("quotas", "engine:quotas", "show what each key may do, and what it uses and has used"),
    Verb("cluster", "engine:cluster", "show the engines that share this one's store, and who leads"),
    Verb(
        "reload", "operations:reload",
        "bring the engine's configuration file into effect, unnoticed by clients and proxies", _OPERATION,
    ),
    Verb(
        "upgrade", "operations:upgrade",
        "run the code that is on disk, unnoticed by clients and proxies", _OPERATION,
    ),
    Verb("drain", "operations:drain", "take the engine out of service: no new tasks, all else goes on"),
    Verb("undrain", "operations:undrain", "take the engine back into service"),
    Verb("ping", "engine:ping", "ask whether the engine answers, and how fast"),
)  # fmt: skip

BY_WORD = {verb.word: verb for verb in VERBS}
