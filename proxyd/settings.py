"""Every setting of proxyd.toml, in one table: the reader, --check and docs/agent.md are made from it."""

from __future__ import annotations

import datetime
import enum
import json
import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from proxyd.addresses import parse_address
from proxyd.breaker import BreakerSettings
from proxyd.caches import KINDS, http
from proxyd.caches.nginx_key import DEFAULT_KEY

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}").fullmatch
# More engines or caches than any point of presence has; each costs connections.
LIST_MAX = 64
_OWN_HEADERS = frozenset({"host", "range", "cache-control"})
"""Of a prefetch."""

COMMAND_MAX = 16

# What the wire takes: a year.
DROP_AFTER_MAX_S = 366 * 86_400

# 10 Tbit/s.
RATE_MAX = 1 << 40
RANGE_MAX_BYTES = 1 << 40
# The classes of visitors of a site; each is a fetch more.
VARIANTS_MAX = 16

REQUIRED = object()
"""In place of a default."""


class Reload(enum.Enum):
    """How a reload (SIGHUP) takes a changed setting; see docs/agent.md, "Reload and upgrade"."""

    AT_ONCE = "at once"
    GREETING = "links greet anew, one at a time"
    COMES_AND_GOES = "what is new begins, what is gone finishes first"


class Setting(NamedTuple):
    """One row. `fault` says what is wrong with a value of the right type, or None."""

    section: str
    key: str
    type: type
    default: Any
    wanted: str
    """What is allowed, in words."""
    doc: str
    fault: Callable[[Any], str | None]
    reload: Reload = Reload.AT_ONCE


def _between(low: float, high: float) -> Callable[[Any], str | None]:
    def fault(value: Any) -> str | None:
        return None if low <= value <= high else f"{value} is not {low} to {high}"

    return fault


def _name_fault(value: Any) -> str | None:
    return None if _NAME(value) else f"{value!r} is not 1 to 64 of A-Za-z0-9._:-"


def _key_fault(value: Any) -> str | None:
    return None if value == "" else _name_fault(value)


def _any(_: Any) -> str | None:
    return None


def _address_fault(value: Any) -> str | None:
    return None if parse_address(value) else f"{value!r} is not HOST:PORT"


def _listen_fault(value: Any) -> str | None:
    return None if value == "" else _address_fault(value)


def _engines_fault(value: Any) -> str | None:
    if not 1 <= len(value) <= LIST_MAX:
        return f"got {len(value)} engines, wanted 1 to {LIST_MAX}"
    for item in value:
        if not isinstance(item, str):
            return f"{item!r} is not HOST:PORT"
        if fault := _address_fault(item):
            return fault
    return "an engine stands there twice" if len(set(value)) < len(value) else None


def _kind_fault(value: Any) -> str | None:
    if value in KINDS:
        return None
    return f"{value!r} is not one of {', '.join(KINDS)}"


def _probe_fault(value: Any) -> str | None:
    fine = value == "" or re.fullmatch(r"/[!-~]{0,1023}", value)
    return None if fine else f"{value!r} is not a path: / and at most 1,023 of the characters ! to ~"


def _folder_fault(value: Any) -> str | None:
    return None if value == "" or value.startswith("/") else f"{value!r} does not begin with /"


def _command_fault(value: Any) -> str | None:
    fine = 1 <= len(value) <= COMMAND_MAX and all(isinstance(word, str) and word for word in value)
    return None if fine else f"{value!r} is not a program and its arguments, 1 to {COMMAND_MAX} texts"


def _levels_fault(value: Any) -> str | None:
    fine = re.fullmatch(r"([12](:[12]){0,2})?", value)
    return None if fine else f"{value!r} is not one to three of 1 and 2 with : between, as levels= has it"


def _variants_fault(value: Any) -> str | None:
    if len(value) > VARIANTS_MAX:
        return f"got {len(value)} variants, wanted at most {VARIANTS_MAX}"
    for variant in value:
        if not isinstance(variant, dict) or not variant:
            return f'got {variant!r}, wanted {{ NAME = "value" }}'
        if fault := http.headers_fault(variant):
            return fault
        for name in variant:
            if name.lower() in _OWN_HEADERS:
                return f"{name} is the agent's to set; take it out"
    return None


LOG_LEVELS = ("debug", "info", "warning", "error")


def _level_fault(value: Any) -> str | None:
    return None if value in LOG_LEVELS else f"{value!r} is not one of {', '.join(LOG_LEVELS)}"


def host_name() -> str:
    """This machine's name as a proxy's name, or `pop1` where it cannot be one."""
    name = socket.gethostname().partition(".")[0]
    return name if _NAME(name) else "pop1"


_SECONDS = "seconds, {} to {}"


def _seconds(section: str, key: str, default: float, low: float, high: float, doc: str) -> Setting:
    return Setting(section, key, float, default, _SECONDS.format(low, high), doc, _between(low, high))


def _number(
    section: str, key: str, default: int, low: int, high: int, doc: str, reload: Reload = Reload.AT_ONCE
) -> Setting:
    return Setting(section, key, int, default, f"{low} to {high}", doc, _between(low, high), reload)


_BREAKER = BreakerSettings()
_NAME_WANTED = "1 to 64 of A-Za-z0-9._:-"

TABLE: tuple[Setting, ...] = (
    Setting("agent", "name", str, None, _NAME_WANTED,
            "this agent's name in the fleet; without it the host's name", _name_fault, Reload.GREETING),
    Setting("agent", "group", str, "default", _NAME_WANTED,
            "the group it belongs to; a task's scope may name it", _name_fault, Reload.GREETING),
    _number("agent", "layer", 0, 0, 15,
            "its tier: 0 is nearest to the origin, and each is done before the next begins", Reload.GREETING),
    Setting("agent", "engines", list, ["127.0.0.1:7070"], f"1 to {LIST_MAX} of HOST:PORT",
            "the engines; it serves all of them", _engines_fault, Reload.COMES_AND_GOES),
    Setting("agent", "learn_engines", bool, True, "true or false",
            "whether it serves engines, too, that those name", _any, Reload.COMES_AND_GOES),
    Setting("agent", "key", str, "", _NAME_WANTED,
            "the key its greeting is signed with, where the engine wants that", _key_fault, Reload.GREETING),
    Setting("agent", "secret_file", str, "", "a path",
            "a file that holds the key's secret (white space around it does not count)", _any,
            Reload.GREETING),
    _number("agent", "credit", 16384, 1, 1_000_000,
            "targets an engine may have outstanding on each of its links (one a worker)", Reload.GREETING),
    # Engines answer the beats that go out every 2.5 s; they in turn wait 15 s for those (PROTOCOL.md).
    _seconds("agent", "silence_s", 15.0, 5, 600,
             "an engine that says nothing for so long is given up and connected to again"),
    _seconds("agent", "stop_timeout_s", 20.0, 0, 600,
             "how long a graceful stop, or a link that leaves for good, waits for what is in hand"),
    Setting("agent", "caught_up_file", str, "", "a path",
            "a file that is there only while this agent has caught up; empty: none", _any),
    Setting("agent", "health_listen", str, "", "HOST:PORT",
            "where GET /caught-up and /caches/NAME are answered, 200 or 503; empty: nowhere", _listen_fault),
    _seconds("agent", "caught_up_wait_s", 300.0, 0, 86_400,
             "how long an engine that cannot be reached is waited for before this agent counts as caught up; "
             "0: for ever"),
    _number("agent", "drop_after_s", 0, 0, DROP_AFTER_MAX_S,
            "after how long an absence (s) an engine may have it drop the whole cache; 0: never",
            Reload.GREETING),
    Setting("agent", "receipt_key_file", str, "", "a path",
            "the key that receipts are signed with, made when it is missing; empty: one as long-lived as the "
            "process", _any, Reload.GREETING),
    Setting("agent", "verify", bool, False, "true or false",
            "whether everything that can be verified is, not only tasks with verify=1", _any),
    Setting("agent", "log_level", str, "info", ", ".join(LOG_LEVELS), "what is logged", _level_fault),
    _number("fast", "connections", 4, 1, 64, "connections to each cache for purges and bans"),
    _number("fast", "depth", 64, 1, 1024, "requests in flight on each of them"),
    _number("fast", "bans_max", 1000, 1, 100_000,
            "bans sent to each cache within 75 s; what is beyond waits and is merged"),
    _seconds("fast", "connect_timeout_s", 3.0, 0.1, 60, "longest time to connect"),
    _seconds("fast", "answer_timeout_s", 10.0, 0.1, 600, "longest time without an answer"),
    _seconds("fast", "whole_timeout_s", 30.0, 0.1, 3600, "longest time for one request"),
    _number("slow", "connections", 8, 1, 256, "connections to each cache for prefetches, one object each"),
    _seconds("slow", "connect_timeout_s", 3.0, 0.1, 60, "longest time to connect"),
    _seconds("slow", "answer_timeout_s", 30.0, 0.1, 600, "longest time without a byte of the object"),
    _seconds("slow", "whole_timeout_s", 300.0, 0.1, 86_400, "longest time for one object"),
    # Half of the connections: an origin that is slow leaves the other half to the others.
    _number("slow", "per_host", 4, 1, 256, "prefetches in flight for one origin host, at each cache"),
    _number("slow", "bytes_per_s", 0, 0, RATE_MAX, "what is read from each cache at the most; 0: no bound"),
    _number("slow", "host_bytes_per_s", 0, 0, RATE_MAX,
            "what is read of one origin host at each cache at the most; 0: no bound"),
    _number("slow", "range_bytes", 0, 0, RANGE_MAX_BYTES,
            "objects are asked for in ranges of so many bytes, for caches that keep slices; 0: whole"),
    Setting("slow", "variants", list, [], f"at most {VARIANTS_MAX} of {{ NAME = \"value\" }}",
            "header sets, each of which is warmed where `Vary` says that it makes a difference; none: what a "
            "prefetch has by itself", _variants_fault),
    Setting("slow", "skip_hits", bool, True, "true or false",
            "whether what the cache says it has is passed over, as far as that spares anything", _any),
    Setting("slow", "playlists", bool, True, "true or false",
            "whether what an HLS or DASH playlist names is warmed, too", _any),
    _number("slow", "playlist_max", 10_000, 1, 1_000_000,
            "how much of that, a target; what is beyond is left out, and the target fails"),
    Setting("slow", "follow_hosts", bool, False, "true or false",
            "whether what a playlist names at other hosts than its own is warmed, too", _any),
    _number("look", "connections", 16, 1, 256,
            "connections to each cache for looks, and for purges that are looked after"),
    _seconds("look", "answer_timeout_s", 60.0, 0.1, 600,
             "longest time without an answer; Varnish answers a look when what it is fetching has come"),
    # 600 directories at 20 caches take 12 s instead of 7, and the p99 of hits grows 1.4 times, not 13 times
    # (`tools/bench directories`, 2 cores).
    _number("look", "canaries_per_s", 1000, 1, 1_000_000,
            "directories and tags whose verification begins within a second, at all caches together"),
    _number("breaker", "errors", _BREAKER.errors, 1, 1000,
            "so many errors in a row, and nothing more is sent to a cache but a try now and then"),
    Setting("breaker", "error_rate", float, _BREAKER.error_rate, "0.05 to 1",
            "the same for this part of what ended in the last 10 s, however it is spread",
            _between(0.05, 1)),
    _number("breaker", "error_rate_min", _BREAKER.error_rate_min, 1, 1_000_000,
            "of fewer than so many no rate is made"),
    _seconds("breaker", "retry_first_s", _BREAKER.retry_first_s, 0.05, 600,
             "how long after that the first try is; each one that fails doubles it"),
    _seconds("breaker", "retry_max_s", _BREAKER.retry_max_s, 0.05, 600,
             "the longest time from one try to the next"),
    _number("breaker", "queue_max", _BREAKER.queue_max, 1, 1_000_000,
            "targets that may wait for a cache that is down; what is beyond that fails there at once"),
    _seconds("breaker", "wait_s", _BREAKER.wait_s, 0, 86_400,
             "how long a target may wait for a cache that is down before it fails there"),
    _seconds("breaker", "probe_every_s", _BREAKER.probe_every_s, 0, 3600,
             "a cache that has said nothing for so long is asked whether it is there; 0: never"),
    Setting("cache", "name", str, REQUIRED, _NAME_WANTED, "the cache's name in reports", _name_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "kind", str, REQUIRED, ", ".join(KINDS), "what it is", _kind_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "address", str, REQUIRED, "HOST:PORT", "where it takes purges", _address_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "group", str, "", _NAME_WANTED,
            "what it is shown under, among several; empty: nothing", _key_fault),
    Setting("cache", "probe", str, "", "a path",
            "what it is asked for with GET when it was silent; empty: only whether it takes a connection",
            _probe_fault),
    Setting("cache", "soft", bool, False, "true or false",
            "varnish: a URL is out of date, not gone, unless the task says force=1: it is served while it is "
            "fetched anew", _any, Reload.COMES_AND_GOES),
    Setting("cache", "path", str, "", "an absolute path",
            "nginx: its cache folder, as in proxy_cache_path; empty: objects are fetched anew instead",
            _folder_fault, Reload.COMES_AND_GOES),
    Setting("cache", "levels", str, "1:2", "1 and 2, up to three, with : between",
            "nginx: levels= of proxy_cache_path; empty if that has none", _levels_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "key", str, DEFAULT_KEY, "text and variables of nginx",
            "nginx: its proxy_cache_key", _any, Reload.COMES_AND_GOES),
    Setting("cache", "proxy_host", str, "", "HOST or HOST:PORT",
            "nginx: what $proxy_host in the key is: all between http:// and the next / in proxy_pass", _any,
            Reload.COMES_AND_GOES),
    Setting("cache", "variants", bool, True, "true or false",
            "nginx: whether answers may have Vary; false makes a URL quick where nginx ignores that", _any,
            Reload.COMES_AND_GOES),
    Setting("cache", "purge", bool, False, "true or false",
            "nginx: whether it has a purge module that works (the one of Debian 12 does not)", _any,
            Reload.COMES_AND_GOES),
    Setting("cache", "rules", str, "", "an absolute path",
            "ats: the file that its regex_revalidate reads (--config), for this agent to write; empty: "
            "single URLs only", _folder_fault, Reload.COMES_AND_GOES),
    Setting("cache", "rules_state", str, "", "an absolute path",
            "ats: the file that its regex_revalidate writes (--state-file)", _folder_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "remap", str, "/etc/trafficserver/remap.config", "an absolute path",
            "ats: its remap.config, which says what rules are compared with", _folder_fault,
            Reload.COMES_AND_GOES),
    Setting("cache", "reload", list, ["traffic_ctl", "config", "reload"], f"1 to {COMMAND_MAX} texts",
            "ats: the program, run without a shell, that has it read its files", _command_fault,
            Reload.COMES_AND_GOES),
    _number("cache", "rules_max", 1000, 1, 10_000,
            "ats: how many rules may hold at a time; each may be tried at each hit", Reload.COMES_AND_GOES),
    _number("cache", "rules_keep_s", 604_800, 60, 366 * 86_400,
            "ats: how long a rule holds: no shorter than guaranteed_max_lifetime in records.config",
            Reload.COMES_AND_GOES),
    Setting("cache", "rules_skew_s", float, 0.1, _SECONDS.format(0, 60),
            "ats: how far the clocks of origins may be ahead; a rule may have to wait for that",
            _between(0, 60), Reload.COMES_AND_GOES),
)  # fmt: skip

REQUEST_TABLE: tuple[Setting, ...] = (
    Setting("cache.TYPE", "method", str, REQUIRED, "a method in capitals, not HEAD or CONNECT",
            "what is sent for this type", http.method_fault, Reload.COMES_AND_GOES),
    Setting("cache.TYPE", "path", str, "{path}", "begins with /, {path}, http:// or https://",
            "what stands behind the method; a template", http.path_fault, Reload.COMES_AND_GOES),
    Setting("cache.TYPE", "headers", dict, {}, f"at most {http.HEADERS_MAX} of NAME = \"value\"",
            "sent besides `Host`, which is the target's unless it stands here; each value is a template",
            http.headers_fault, Reload.COMES_AND_GOES),
    Setting("cache.TYPE", "body", str, "", f"at most {http.BODY_MAX_CHARS} characters",
            "sent with its length; a template", http.body_fault, Reload.COMES_AND_GOES),
    Setting("cache.TYPE", "good", list, [200, 204], "1 or more of 200 to 599", "the statuses that mean done",
            http.good_fault, Reload.COMES_AND_GOES),
)  # fmt: skip
"""Of each [cache.url], [cache.dir]… behind a [[cache]] of a kind that is configured so (`caches/http.py`)."""

MOVED = {("fast", "patience_s"): "[breaker] wait_s", ("slow", "patience_s"): "[breaker] wait_s"}
"""What has another place now, for who still has it at the old one."""
LIST_SECTIONS = frozenset({"cache"})
"""Sections that may stand there several times, in double brackets."""
SECTIONS = tuple(dict.fromkeys(setting.section for setting in TABLE))


def rows_of(section: str) -> dict[str, Setting]:
    """The settings of a section by key."""
    return {setting.key: setting for setting in TABLE if setting.section == section}


TYPE_NAMES = {
    str: "text", int: "number", float: "number", bool: "flag", list: "list", dict: "table",
    # Not of any setting, but TOML has them.
    datetime.datetime: "time", datetime.date: "date", datetime.time: "time",
}  # fmt: skip


def render_reference() -> str:
    """The table as Markdown, for docs/agent.md (a test compares)."""
    lines = [
        "| setting | type | default | allowed | what it is | at a reload |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for setting in (*TABLE, *REQUEST_TABLE):
        section = f"[[{setting.section}]]" if setting.section in LIST_SECTIONS else f"[{setting.section}]"
        default = _show_default(setting.default)
        kind = TYPE_NAMES[setting.type]
        cells = (f"`{section} {setting.key}`", kind, default, setting.wanted, setting.doc)
        lines.append(f"| {' | '.join(cells)} | {setting.reload.value} |")
    return "\n".join(lines) + "\n"


def _show_default(default: Any) -> str:
    if default is REQUIRED:
        return "must be given"
    if default is None:
        return "host name"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return f"`{json.dumps(default)}`"
    if isinstance(default, dict):
        return "none"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default:g}`"


if __name__ == "__main__":
    print(render_reference(), end="")
