"""Imports point one way: wire <- refreshd, proxyd, tools; inside the engine
pure <- store, cluster <- worker <- http; the master knows neither uvloop nor the worker's code.

What counts is everything an import pulls in, so the rules are followed through our own modules, and the
``__init__`` of their packages. Imports inside functions and for type checkers only count like all others.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wire", "refreshd", "proxyd", "tools")
PURE = tuple(
    f"refreshd.{name}"
    for name in (
        "config",
        "settings",
        "mysql_url",
        "toml_lines",
        "errors",
        "task",
        "shard",
        "fleet",
        "timers",
        "limits",
        "fanout",
        "rates",
        "changes",
    )
)
# What the cluster decides; what it says to Redis and SQL is beside it.
CLUSTER_PURE = tuple(
    f"refreshd.cluster.{name}"
    for name in ("names", "lease", "snapshot", "election", "takeover", "truth", "status")
)


@dataclass(frozen=True)
class Rule:
    """No module at or under MEMBERS (but for EXCEPT) may reach an import at or under FORBIDDEN."""

    name: str
    members: tuple[str, ...]
    forbidden: tuple[str, ...]
    exempt: tuple[str, ...] = ()


RULES = (
    Rule("wire stands alone", ("wire",), ("refreshd", "proxyd", "tools")),
    Rule("only wire.client touches a socket", ("wire",), ("asyncio", "socket", "uvloop"), ("wire.client",)),
    Rule("the agent does not know the engine", ("proxyd",), ("refreshd", "tools")),
    Rule("the engine does not know the agent", ("refreshd",), ("proxyd", "tools")),
    Rule("pure: no I/O", PURE, ("asyncio", "socket", "sqlite3", "uvloop")),
    Rule("pure: the clock is passed in", PURE, ("time",)),
    Rule(
        "pure is at the bottom",
        PURE,
        ("refreshd.store", "refreshd.cluster", "refreshd.master", "refreshd.worker", "refreshd.http"),
    ),
    Rule(
        "what the cluster decides is pure", CLUSTER_PURE, ("asyncio", "socket", "redis", "threading", "time")
    ),
    Rule("the cluster runs in any loop", ("refreshd.cluster",), ("uvloop",)),
    Rule(
        "store and cluster are below the worker",
        ("refreshd.store", "refreshd.cluster"),
        ("refreshd.worker", "refreshd.http", "refreshd.master"),
    ),
    Rule("the worker is below http", ("refreshd.worker",), ("refreshd.http", "refreshd.master")),
    Rule(
        "the master runs no worker code", ("refreshd.master",), ("uvloop", "refreshd.worker", "refreshd.http")
    ),
)


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, and each import in it as (line, dotted name)."""

    name: str
    imports: tuple[tuple[int, str], ...]


def parse(name: str, source: str, *, is_package: bool = False) -> Module:
    """Read the imports of SOURCE; relative ones are made absolute."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, is_package, node)
            # `from a import b` may mean the module a.b or a name in a: both are noted.
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return Module(name, tuple(found))


def absolute(name: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = name.split(".") if is_package else name.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def load(root: Path) -> dict[str, Module]:
    """Every module of PACKAGES under ROOT, by its dotted name."""
    modules = {}
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules[name] = parse(name, path.read_text(), is_package=is_package)
    return modules


def is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def runs(name: str, modules: Mapping[str, Module]) -> Iterator[str]:
    """Our modules that importing NAME runs: itself, and the packages above it."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        if prefix in modules:
            yield prefix


def violations(rule: Rule, modules: Mapping[str, Module]) -> list[str]:
    """Each forbidden import that a member of RULE reaches, with the way to it."""
    found = []
    for member in modules:
        if is_under(member, rule.members) and not is_under(member, rule.exempt):
            found += forbidden_from(member, rule, modules)
    return found


def forbidden_from(member: str, rule: Rule, modules: Mapping[str, Module]) -> list[str]:
    found: list[str] = []
    ways = {start: (start,) for start in runs(member, modules)}
    queue = list(ways)
    while queue:
        module = modules[queue.pop()]
        for line, imported in module.imports:
            if is_under(imported, rule.forbidden):
                way = " -> ".join(ways[module.name])
                found.append(f"{way}: line {line} imports {imported} ({rule.name})")
                continue
            for reached in runs(imported, modules):
                if reached not in ways:
                    ways[reached] = (*ways[module.name], reached)
                    queue.append(reached)
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_imports_point_one_way(rule: Rule) -> None:
    assert violations(rule, load(ROOT)) == []


def tree(**sources: str) -> dict[str, Module]:
    """A made-up tree; in the keys, two underscores stand for a dot, and a last one marks a package."""
    modules = {}
    for key, source in sources.items():
        name = key.rstrip("_").replace("__", ".")
        modules[name] = parse(name, source, is_package=key.endswith("_"))
    return modules


def names_of(modules: Mapping[str, Module]) -> set[str]:
    return {rule.name for rule in RULES if violations(rule, modules)}


@pytest.mark.parametrize(
    ("source_of", "broken"),
    [
        ({"wire__lines": "import refreshd.config"}, "wire stands alone"),
        ({"wire__lines": "import socket"}, "only wire.client touches a socket"),
        ({"wire_": "from wire.client import Client", "wire__client": "import asyncio", "wire__lines": ""},
         "only wire.client touches a socket"),
        ({"proxyd__link": "from refreshd import task"}, "the agent does not know the engine"),
        ({"refreshd__worker__rpc": "import proxyd.caches.varnish"}, "the engine does not know the agent"),
        ({"refreshd__task": "def now():\n    from time import time"}, "pure: the clock is passed in"),
        ({"refreshd__task": "from . import tick", "refreshd__tick": "import asyncio"}, "pure: no I/O"),
        ({"refreshd__fleet": "from .store import sqlite"}, "pure is at the bottom"),
        ({"refreshd__store__sqlite": "from ..worker.saver import Saver"},
         "store and cluster are below the worker"),
        ({"refreshd__cluster__election": "from . import clock", "refreshd__cluster__clock": "import time"},
         "what the cluster decides is pure"),
        ({"refreshd__cluster__client": "import uvloop"}, "the cluster runs in any loop"),
        ({"refreshd__worker_": "from .. import http"}, "the worker is below http"),
        ({"refreshd__master__spawn": "import refreshd.loops", "refreshd__loops": "import uvloop"},
         "the master runs no worker code"),
    ],
)  # fmt: skip
def test_the_check_finds_each_kind(source_of: dict[str, str], broken: str) -> None:
    assert broken in names_of(tree(**source_of))


def test_the_check_allows_what_is_allowed() -> None:
    modules = tree(
        wire__lines="import re",
        wire__client="import asyncio, socket\nfrom wire import lines",
        refreshd__task="from wire import lines\nimport timeit",
        refreshd__store__sqlite="import sqlite3\nfrom ..task import Task",
        refreshd__worker__rpc="import uvloop\nfrom refreshd.store import sqlite",
        refreshd__http__api="from refreshd.worker import rpc",
        refreshd__master__spawn="import socket, time\nfrom refreshd import task",
        proxyd__link="from wire import client",
        tools__demo__play="from wire import client\nimport refreshd.config",
    )
    assert names_of(modules) == set()
