"""Every setting of the engine, in one table: its checks and its reference are made from it.

`python -m refreshd.settings > docs/configuration.md` writes the reference anew; a
test holds the two together.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from wire.fields import TASK_TYPES, read_id

# What struct sockaddr_un holds, without the closing NUL.
SOCKET_PATH_MAX_BYTES = 107
_HOST = re.compile(r"\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)|(?P<name>localhost)").fullmatch
_DOMAIN = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}").fullmatch


class Reload(enum.Enum):
    """What it takes for a changed setting to take effect."""

    IN_PLACE = "at a reload"
    WORKERS = "at a reload, with new workers"
    RESTART = "at a restart"


class Kind(NamedTuple):
    """What a value must be. `read` returns it checked, or raises ValueError (its text may say more)."""

    wanted: str
    read: Callable[[Any], Any]
    expands: bool = False
    """Whether `${NAME}` in it stands for an environment variable."""


class Setting(NamedTuple):
    """One row. `default` is as it would stand in TOML; where it depends on others, `otherwise` says how."""

    section: str
    key: str
    kind: Kind
    default: Any
    reload: Reload
    doc: str
    otherwise: str = ""
    required: bool = False


class Section(NamedTuple):
    """A table of the file, or an array of tables (`[[name]]`)."""

    name: str
    doc: str
    is_array: bool = False


def _text(wanted: str, allowed: Callable[[str], bool], *, expands: bool = False) -> Kind:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not allowed(value):
            raise ValueError
        return value

    return Kind(wanted, read, expands)


def _whole(low: int, high: int, unit: str = "") -> Kind:
    def read(value: Any) -> int:
        # In Python, not in TOML, true is a number.
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number{unit and ' of ' + unit}, {low:,} to {high:,}", read)


def _seconds(low: int, high: int) -> Kind:
    def read(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Kind(f"seconds, {low:,} to {high:,}", read)


def _choice(*words: str) -> Kind:
    return _text(" or ".join(f'"{word}"' for word in words), lambda text: text in words)


def _flag() -> Kind:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("true or false", read)


def _domains() -> Kind:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ValueError
        for domain in value:
            if not isinstance(domain, str) or len(domain) > 253 or not _DOMAIN(domain):
                raise ValueError(f"{domain!r} is not a domain")
        return tuple(domain.lower() for domain in value)

    return Kind('a list of domains, such as ["example.com"]', read)


def _per_day() -> Kind:
    highest = 10**12

    def read(value: Any) -> dict[str, int]:
        if not isinstance(value, dict):
            raise ValueError
        for word, number in value.items():
            if word not in TASK_TYPES:
                raise ValueError(f"{word!r} is no type; the types are {', '.join(TASK_TYPES)}")
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= highest:
                raise ValueError(f"{word} is not a whole number, 0 to {highest:,}")
        return {word: number for word, number in value.items() if number}

    return Kind("targets by type, such as { url = 100000, dir = 50 }", read)


def split_address(text: str) -> tuple[str, int]:
    """The host (no brackets; localhost becomes 127.0.0.1) and port of HOST:PORT.

    Names are not looked up: what an engine listens on must not hang on a name
    server. Raises: ValueError.
    """
    host, _, port = text.rpartition(":")
    match = _HOST(host)
    if match is None or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError
    if match["name"]:
        return "127.0.0.1", int(port)
    return str(ipaddress.ip_address(match["six"] or match["four"])), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    return ipaddress.ip_address(split_address(address)[0]).is_loopback


def _is_address(text: str) -> bool:
    split_address(text)
    return True


def _is_path(text: str) -> bool:
    return bool(text) and "\0" not in text


def _is_id(text: str) -> bool:
    read_id(text)
    return True


_NAME = _text("a name, 1 to 64 of A-Za-z0-9._:-", _is_id)
_ADDRESS = _text(
    'an IP address (or localhost) and a port, such as "127.0.0.1:7070" or "[::1]:7070"', _is_address
)
_ADDRESS_OR_NONE = _text(_ADDRESS.wanted + ', or ""', lambda text: not text or _is_address(text))
_PATH = _text("a path", _is_path, expands=True)
_ANY_PATH = _text('a path, or ""', lambda text: "\0" not in text, expands=True)
_URL = _text("a URL", lambda text: "\0" not in text, expands=True)
_MIB = 1 << 20

SECTIONS = (
    Section("engine", "This engine: where it listens, what it keeps, and its bounds."),
    Section("store", "Where tasks are kept."),
    Section("redis", "What several engines share."),
    Section("key", "Tenants: each signs its greetings with a secret of its own.", is_array=True),
    Section("proxy", "The fleet that is expected.", is_array=True),
)

SETTINGS = (
    Setting("engine", "id", _NAME, "e1", Reload.RESTART, "the engine's name, unique among engines"),
    Setting(
        "engine", "listen", _ADDRESS, "127.0.0.1:7070", Reload.RESTART,
        "where the text RPC is served; port 0 takes a free one (see `refreshd.addr` in the data folder)",
    ),
    Setting(
        "engine", "http", _ADDRESS_OR_NONE, "127.0.0.1:8080", Reload.RESTART,
        'where API, status page and metrics are served; "" turns them off. Not served in this version yet',
    ),
    Setting(
        "engine", "data", _PATH, "./data", Reload.RESTART,
        "the folder of the SQLite files, the pid file, the lock and the admin socket; made if missing",
    ),
    Setting(
        "engine", "workers", _whole(0, 64), 2, Reload.WORKERS,
        "worker processes, each pinned to a CPU; 0: one a CPU that this process may use",
    ),
    Setting(
        "engine", "auth", _choice("none", "required"), None, Reload.IN_PLACE,
        "whether connections must greet with a signature",
        otherwise='`"none"` where `listen` is loopback, else `"required"`',
    ),
    Setting(
        "engine", "open_fleet", _flag(), None, Reload.IN_PLACE,
        "whether a proxy that is not listed here may register",
        otherwise="`true` where `listen` is loopback, else `false`",
    ),
    Setting(
        "engine", "line_max", _whole(4096, 16 * _MIB, "bytes"), _MIB, Reload.WORKERS,
        "the longest line of the text RPC, LF included",
    ),
    Setting(
        "engine", "admin", _ANY_PATH, "", Reload.RESTART,
        f'the admin socket, at most {SOCKET_PATH_MAX_BYTES} bytes; "": `admin.sock` in the data folder',
    ),
    Setting(
        "engine", "connections_max", _whole(1, 1_000_000), 10_000, Reload.IN_PLACE,
        "connections a worker serves; it accepts no more while it has as many",
    ),
    Setting(
        "engine", "tasks_max", _whole(1, 100_000_000), 5_000_000, Reload.IN_PLACE,
        "unfinished tasks a worker holds; at as many, a new task gets `busy`",
    ),
    Setting(
        "engine", "tasks_bytes_max", _whole(1 << 20, 1 << 40), 4 << 30, Reload.IN_PLACE,
        "bytes of request lines of unfinished tasks a worker holds; at as many, a new task gets `busy`",
    ),
    Setting(
        "engine", "park_above", _whole(0, 100_000_000), 5_000, Reload.IN_PLACE,
        "unfinished tasks a worker keeps in memory before it leaves those to the store that only wait for"
        " proxies that are away",
    ),
    Setting(
        "engine", "saver_queue_max", _whole(100, 10_000_000), 50_000, Reload.IN_PLACE,
        "rows that may wait for the store in a worker; at as many, a new task gets `busy`",
    ),
    Setting(
        "engine", "prefetch_bytes_per_s", _whole(0, 1 << 40), 0, Reload.IN_PLACE,
        "bytes a second that prefetches may bring to all proxies together, in equal parts to those that are"
        " online; 0: no bound",
    ),
    Setting(
        "engine", "advertise", _ADDRESS_OR_NONE, "", Reload.RESTART,
        "where other engines and agents reach this one's text RPC; \"\": as `listen` says, and where that is"
        " any address (0.0.0.0) by the machine's host name, which they must be able to resolve",
    ),
    Setting(
        "engine", "stop_deadline_s", _seconds(0, 3600), 10.0, Reload.IN_PLACE,
        "how long a graceful stop may take before workers are killed",
    ),
    Setting(
        "engine", "heartbeat_timeout_s", _seconds(1, 3600), 10.0, Reload.IN_PLACE,
        "a worker whose loop has not turned for so long is killed and replaced",
    ),
    Setting(
        "store", "url", _URL, "sqlite:", Reload.RESTART,
        "`sqlite:` keeps tasks in the data folder; `mysql://USER:PASSWORD@HOST:PORT/DATABASE` in MySQL or "
        "MariaDB, which several engines may share: see cluster.md",
    ),
    Setting(
        "store", "retention_s", _seconds(60, 3650 * 86_400), 604_800.0, Reload.IN_PLACE,
        "how long a finished task stays readable",
    ),
    Setting(
        "redis", "url", _URL, "", Reload.RESTART,
        '"": none. `redis://`, `rediss://` (TLS) or `unix://`: engines share their leases and limits there',
    ),
    Setting(
        "redis", "cluster", _NAME, "refreshd", Reload.RESTART,
        "the name of the cluster: of the engines that share `store.url`, whose keys in Redis begin with it",
    ),
    Setting(
        "redis", "lease_s", _seconds(2, 600), 10.0, Reload.RESTART,
        "an engine that has not renewed its lease for so long is dead for the others, which take its tasks "
        "over; the same at every engine",
    ),
    Setting("key", "name", _NAME, None, Reload.IN_PLACE, "the key's name, as in `hello key=`", required=True),
    Setting(
        "key", "secret_file", _PATH, None, Reload.IN_PLACE,
        "the file that holds the secret; one line end after it is not part of it", required=True,
    ),
    Setting(
        "key", "domains", _domains(), [], Reload.IN_PLACE,
        "the domains, each with those below it, whose URLs the key may refresh; none: every URL",
    ),
    Setting(
        "key", "rate", _whole(0, 10_000_000, "targets a second"), 0, Reload.IN_PLACE,
        "the targets that the key may have accepted a second, over time; more get `limited`. 0: no limit",
    ),
    Setting(
        "key", "burst", _whole(0, 1_000_000_000, "targets"), 0, Reload.IN_PLACE,
        "the targets that may come at once; a task with more is accepted when as many as these could be, "
        "and the next ones wait the longer. 0: as many as `rate`",
    ),
    Setting(
        "key", "per_day", _per_day(), {}, Reload.IN_PLACE,
        "the targets that the key may have accepted on a day (UTC); a type that is not named has no limit",
    ),
    Setting(
        "key", "in_flight", _whole(0, 1_000_000_000, "tasks"), 0, Reload.IN_PLACE,
        "the tasks of the key that may be unfinished; further ones get `limited`. 0: no limit",
    ),
    Setting("proxy", "name", _NAME, None, Reload.IN_PLACE, "its name, as in its hello", required=True),
    Setting("proxy", "group", _NAME, "default", Reload.IN_PLACE, "its group, a word for scopes"),
    Setting(
        "proxy", "layer", _whole(0, 15), 0, Reload.IN_PLACE,
        "its tier, 0 being nearest to the origin; a task reaches a layer when the one below has finished",
    ),
)  # fmt: skip

_HEAD = """\
# Configuration of refreshd

<!-- Made by `python -m refreshd.settings`; edit the table there. -->

`refreshd --config FILE` reads one TOML file; without it, all defaults hold. `refreshd --config FILE --check`
says what is wrong, each fault with its line, and touches nothing. A key or section that is not listed here is
a fault. `refreshd.example.toml` beside this page is a file to start from.

Paths are relative to the folder the engine is started in. In paths and URLs, `${NAME}` stands for the
environment variable NAME, so `secret_file = "${CREDENTIALS_DIRECTORY}/acme"` reads a credential that systemd
hands over.

"Takes effect" says what a changed value needs. `refreshctl reload`, or HUP to the master, checks the whole
file first: if anything in it is wrong, or has changed and needs a restart, nothing is changed, and each
fault is told with its line. What takes effect "at a reload" does so in the workers that run; "with new
workers" means that these are replaced one at a time by successors that take over every task and connection.
For another number of `workers` none is replaced: some come or go, and tasks and connections move to those
that have them then. Clients and proxies notice none of it.

But for those who could not come in any more as they did: they are told `!drain`, get the answers to what
they have asked, and are disconnected. That is whoever has no signature where `auth` wants one by now, or a
key that is gone or has another secret, and a proxy that may not register any more, or that is listed with
another group or layer and must greet anew. A task knows its proxies from when it was accepted: of a proxy
that is taken out, older tasks still wait for a report until their `ttl` ends.
"""


def settings_of(section: str) -> dict[str, Setting]:
    """The rows of one section, by key."""
    return {row.key: row for row in SETTINGS if row.section == section}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value).removesuffix(".0")


def _default(row: Setting) -> str:
    if row.required:
        return "must be given"
    if row.otherwise:
        return row.otherwise
    return f"`{_toml(row.default)}`"


def _reference_lines() -> Iterator[str]:
    yield _HEAD
    for section in SECTIONS:
        yield f"## `[[{section.name}]]`\n" if section.is_array else f"## `[{section.name}]`\n"
        yield section.doc + ("\nOne such table for each.\n" if section.is_array else "\n")
        yield "| key | value | default | takes effect | |"
        yield "| --- | --- | --- | --- | --- |"
        for row in settings_of(section.name).values():
            cells = (f"`{row.key}`", row.kind.wanted, _default(row), row.reload.value, row.doc)
            yield f"| {' | '.join(cells)} |"
        yield ""


def reference() -> str:
    """The reference of all settings, as Markdown."""
    return "\n".join(_reference_lines())


if __name__ == "__main__":
    print(reference(), end="")
