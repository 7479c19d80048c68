"""Reading proxyd.toml: everything that is wrong with it is said at once, with its line.

Nothing here binds, connects or resolves a name.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from proxyd.addresses import parse_address
from proxyd.breaker import BreakerSettings
from proxyd.caches import KINDS, Request, Requests, http, kind_of
from proxyd.caches.ats_rules import AtsRules
from proxyd.caches.nginx_files import NginxFiles
from proxyd.caches.nginx_key import BadKey, KeyTemplate
from proxyd.errors import ConfigError
from proxyd.receipt_key import read_seed
from proxyd.settings import (
    LIST_MAX,
    LIST_SECTIONS,
    MOVED,
    REQUEST_TABLE,
    REQUIRED,
    SECTIONS,
    TYPE_NAMES,
    Setting,
    host_name,
    rows_of,
)

# A configuration is a page; a larger file is another file.
FILE_MAX_BYTES = 1 << 20


class CacheConfig(msgspec.Struct, frozen=True):
    """One [[cache]]."""

    name: str
    kind: str
    address: tuple[str, int]
    requests: Requests = ()
    """What it is asked, where the kind leaves that to the configuration."""
    files: NginxFiles | None = None
    """Where an nginx keeps its objects, if the agent is to look there."""
    purge: bool = False
    soft: bool = False
    rules: AtsRules | None = None
    """Where a Traffic Server takes rules, if it does."""
    group: str = ""
    probe: str = ""

    @property
    def identity(self) -> CacheConfig:
        """It without what may change while it stays the same cache."""
        return msgspec.structs.replace(self, group="", probe="")


class LaneConfig(msgspec.Struct, frozen=True):
    """[fast], and of [slow] what it has in common with that; times in seconds."""

    connections: int
    connect_timeout_s: float
    answer_timeout_s: float
    whole_timeout_s: float
    depth: int = 1
    bans_max: int = 0


class LookConfig(msgspec.Struct, frozen=True):
    """[look]; times in seconds."""

    connections: int
    answer_timeout_s: float
    canaries_per_s: int


class SlowConfig(LaneConfig, frozen=True, kw_only=True):
    """[slow]; see `PrefetchLimits`."""

    per_host: int
    bytes_per_s: int
    host_bytes_per_s: int
    range_bytes: int
    variants: tuple[tuple[tuple[str, str], ...], ...]
    skip_hits: bool
    playlists: bool
    playlist_max: int
    follow_hosts: bool


class AgentConfig(msgspec.Struct, frozen=True):
    """All of proxyd.toml, checked."""

    name: str
    group: str
    layer: int
    engines: list[tuple[str, int]]
    learn_engines: bool
    key: str
    secret: bytes
    credit: int
    silence_s: float
    stop_timeout_s: float
    caught_up_file: str
    """Absolute, or as seen from the folder that the agent was started in; empty: none."""
    health_listen: str
    caught_up_wait_s: float
    drop_after_s: int
    receipt_key_file: str
    """As `caught_up_file`."""
    receipt_seed: bytes
    """What is in that file; empty while it is not there."""
    verify: bool
    log_level: str
    fast: LaneConfig
    slow: SlowConfig
    breaker: BreakerSettings
    look: LookConfig
    caches: list[CacheConfig]


# What runs without a file: one Varnish where Debian's package starts it.
DEFAULT_CACHE = {"name": "v1", "kind": "varnish", "address": "127.0.0.1:6081"}


def default_config() -> AgentConfig:
    """What holds without a configuration, fit for a laptop."""
    return build({"cache": [dict(DEFAULT_CACHE)]}, "", "defaults", Path())


def load(path: Path) -> AgentConfig:
    """Reads and checks a file. Raises: ConfigError with every fault, each as FILE:LINE: text."""
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    if len(raw) > FILE_MAX_BYTES:
        raise ConfigError([f"{path}: larger than {FILE_MAX_BYTES} bytes; is this the right file?"])
    try:
        text = raw.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8"]) from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"at line (\d+)", str(error))
        raise ConfigError([f"{path}:{place[1] if place else text.count(chr(10)) + 1}: {error}"]) from None
    return build(document, text, str(path), path.parent)


def build(document: dict[str, Any], text: str, where: str, folder: Path) -> AgentConfig:
    """Checks a parsed document. `text` is what it was parsed from, for the line numbers."""
    reader = _Reader(text, where)
    values = {section: reader.read_section(document, section) for section in SECTIONS if section != "cache"}
    caches = reader.read_list(document, "cache")
    reader.check_names(document)
    reader.check_caches(caches)
    reader.read_requests(document, caches)
    reader.check_nginx(caches)
    reader.check_ats(caches)
    reader.check_soft(caches)
    if values["agent"]["drop_after_s"]:
        reader.check_drops(caches)
    secret = reader.read_secret(values["agent"], folder)
    key_file, seed = reader.read_receipt_key(values["agent"], folder)
    if reader.faults:
        raise ConfigError(reader.faults)
    agent = values["agent"]
    return AgentConfig(
        name=agent["name"] or host_name(),
        group=agent["group"],
        layer=agent["layer"],
        engines=[_address(text) for text in agent["engines"]],
        learn_engines=agent["learn_engines"],
        key=agent["key"],
        secret=secret,
        credit=agent["credit"],
        silence_s=agent["silence_s"],
        stop_timeout_s=agent["stop_timeout_s"],
        caught_up_file=str(folder / _expand(agent["caught_up_file"])) if agent["caught_up_file"] else "",
        health_listen=agent["health_listen"],
        caught_up_wait_s=agent["caught_up_wait_s"],
        drop_after_s=agent["drop_after_s"],
        receipt_key_file=key_file,
        receipt_seed=seed,
        verify=agent["verify"],
        log_level=agent["log_level"],
        fast=LaneConfig(**values["fast"]),
        slow=_slow(values["slow"]),
        look=LookConfig(**values["look"]),
        breaker=BreakerSettings(**values["breaker"]),
        caches=[
            CacheConfig(
                name=row["name"],
                kind=row["kind"],
                address=_address(row["address"]),
                requests=row["requests"],
                files=_files(row),
                purge=row["purge"],
                soft=row["soft"],
                rules=_rules(row),
                group=row["group"],
                probe=row["probe"],
            )
            for row in caches
        ],
    )


def _slow(values: dict[str, Any]) -> SlowConfig:
    variants = tuple(tuple(variant.items()) for variant in values["variants"])
    return SlowConfig(**{**values, "variants": variants})


def _files(row: dict[str, Any]) -> NginxFiles | None:
    if not row["path"]:
        return None
    levels = tuple(int(width) for width in row["levels"].split(":") if width)
    return NginxFiles(row["path"], levels, row["key"], row["proxy_host"], row["variants"])


def _rules(row: dict[str, Any]) -> AtsRules | None:
    if not row["rules"]:
        return None
    return AtsRules(
        row["rules"],
        row["rules_state"],
        row["remap"],
        tuple(row["reload"]),
        row["rules_max"],
        row["rules_keep_s"],
        row["rules_skew_s"],
    )


def _address(text: str) -> tuple[str, int]:
    address = parse_address(text)
    if address is None:
        raise ValueError(text)
    return address


class _Reader:
    """Collects faults while it reads."""

    def __init__(self, text: str, where: str) -> None:
        self._lines = _index_lines(text)
        self._where = where
        self.faults: list[str] = []

    def blame(self, text: str, section: str = "", number: int = 0, key: str = "") -> None:
        """Notes a fault at the line of a key, or of its section."""
        lines = self._lines
        line = lines.get((section, number, key)) or lines.get((f"{section}.{key}", number, ""))
        line = line or lines.get((section, number, ""))
        self.faults.append(f"{self._where}:{line}: {text}" if line else f"{self._where}: {text}")

    def check_names(self, document: dict[str, Any]) -> None:
        """Every section that stands there must be known."""
        for name in document:
            if name not in SECTIONS:
                self.blame(f"unknown section [{name}]{_nearest(name, SECTIONS)}", *self._place(name))

    def _place(self, name: str) -> tuple[str, int, str]:
        return (name, 0, "") if (name, 0, "") in self._lines else ("", 0, name)

    def read_section(self, document: dict[str, Any], section: str) -> dict[str, Any]:
        """The values of one section, defaults filled in."""
        table = document.get(section, {})
        if not isinstance(table, dict):
            self.blame(f"[{section}] is one section, in single brackets", section)
            table = {}
        return self._read_table(table, section, 0)

    def read_list(self, document: dict[str, Any], section: str) -> list[dict[str, Any]]:
        """The values of each section of one name."""
        tables = document.get(section, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.blame(f"[[{section}]] stands in double brackets", section)
            return []
        return [self._read_table(table, section, number) for number, table in enumerate(tables)]

    def _read_table(self, table: dict[str, Any], section: str, number: int) -> dict[str, Any]:
        rows = rows_of(section)
        # Tables of their own, see `read_requests`.
        more = http.PLACES if section == "cache" else ()
        return self._read_rows(table, rows, section, number, more)

    def _read_rows(
        self,
        table: dict[str, Any],
        rows: dict[str, Setting],
        section: str,
        number: int,
        more: Collection[str] = (),
    ) -> dict[str, Any]:
        shown = f"[[{section}]]" if section in LIST_SECTIONS else f"[{section}]"
        for key in table:
            if key not in rows and key not in more:
                moved = MOVED.get((section, key))
                hint = f"; it is {moved} now" if moved else _nearest(key, [*rows, *more])
                text = f"unknown key {key!r} in {shown}{hint}"
                self.blame(text, section, number, key)
        values: dict[str, Any] = {}
        for key, setting in rows.items():
            if key not in table and setting.default is REQUIRED:
                self.blame(f"{shown} needs {key}: {setting.wanted}", section, number)
            values[key] = self._read_value(table, setting, number)
        return values

    def _read_value(self, table: dict[str, Any], setting: Setting, number: int) -> Any:
        fallback = None if setting.default is REQUIRED else setting.default
        if setting.key not in table:
            return fallback
        value = table[setting.key]
        if setting.type is float and type(value) is int:
            value = float(value)
        if type(value) is not setting.type:
            # Of headers, one may be a secret.
            got = f"a {TYPE_NAMES[type(value)]}" if setting.type is dict else repr(value)
            fault: str | None = f"got {got}, wanted {setting.wanted}"
        else:
            fault = setting.fault(value)
        if fault is None:
            return value
        self.blame(f"{setting.key}: {fault}", setting.section, number, setting.key)
        return fallback

    def check_caches(self, caches: list[dict[str, Any]]) -> None:
        """There is one, not too many, and no name twice."""
        if not caches and not self.faults:
            self.blame("no [[cache]]: an agent needs at least one to act on")
        if len(caches) > LIST_MAX:
            self.blame(f"{len(caches)} caches; at most {LIST_MAX}", "cache", LIST_MAX)
        seen: set[str] = set()
        for number, cache in enumerate(caches):
            if cache["name"] in seen:
                self.blame(f"two caches are named {cache['name']!r}", "cache", number, "name")
            seen.add(cache["name"])

    def read_requests(self, document: dict[str, Any], caches: list[dict[str, Any]]) -> None:
        """Adds to each cache what its [cache.url], [cache.dir]… say."""
        for number, cache in enumerate(caches):
            table = document["cache"][number]
            given = [task_type for task_type in http.PLACES if task_type in table]
            kind = KINDS.get(cache["kind"])
            if kind is not None and given and not kind.configurable:
                text = f"what kind {kind.name!r} is asked is fixed; only kind 'http' has [cache.{given[0]}]"
                self.blame(text, f"cache.{given[0]}", number)
            if kind is not None and not given and kind.configurable:
                known = ", ".join(f"[cache.{task_type}]" for task_type in http.PLACES)
                self.blame(f"kind 'http' needs at least one of {known}", "cache", number, "kind")
            requests = [(task_type, self._read_request(table, task_type, number)) for task_type in given]
            cache["requests"] = tuple((name, request) for name, request in requests if request is not None)

    def _read_request(self, cache: dict[str, Any], task_type: str, number: int) -> Request | None:
        section = f"cache.{task_type}"
        table = cache[task_type]
        if not isinstance(table, dict):
            got = f"a {TYPE_NAMES[type(table)]}"
            self.blame(f"got {got}, wanted a section [{section}]", "cache", number, task_type)
            return None
        faults_before = len(self.faults)
        rows = {row.key: row._replace(section=section) for row in REQUEST_TABLE}
        values = self._read_rows(table, rows, section, number)
        if len(self.faults) > faults_before:
            return None
        headers, good = tuple(values.pop("headers").items()), tuple(values.pop("good"))
        request = Request(**values, headers=headers, good=good)
        for key, fault in http.find_faults(task_type, request):
            self.blame(f"{key}: {fault}", section, number, key)
        return request

    def check_nginx(self, caches: list[dict[str, Any]]) -> None:
        """Its settings go together, and stand with no other kind."""
        own = ("path", "levels", "key", "proxy_host", "variants", "purge")
        rows = rows_of("cache")
        for number, cache in enumerate(caches):
            given = [key for key in own if cache[key] != rows[key].default]
            if cache["kind"] != "nginx":
                for key in given:
                    self.blame(f"{key} is for nginx only", "cache", number, key)
            elif cache["path"]:
                if cache["purge"]:
                    self.blame("path or purge, not both; path does more", "cache", number, "purge")
                try:
                    KeyTemplate(cache["key"], cache["proxy_host"])
                except BadKey as error:
                    self.blame(f"key: {cache['key']!r}: {error}", "cache", number, "key")
            else:
                for key in set(given) - {"purge"}:
                    self.blame(f"{key} says nothing without path", "cache", number, key)

    def check_ats(self, caches: list[dict[str, Any]]) -> None:
        """Its settings go together, stand with no other kind, and a file is one Traffic Server's."""
        own = ("rules", "rules_state", "remap", "reload", "rules_max", "rules_keep_s", "rules_skew_s")
        rows = rows_of("cache")
        seen: set[str] = set()
        for number, cache in enumerate(caches):
            given = [key for key in own if cache[key] != rows[key].default]
            if cache["kind"] != "ats":
                for key in given:
                    self.blame(f"{key} is for ats only", "cache", number, key)
            elif not cache["rules"]:
                for key in given:
                    self.blame(f"{key} says nothing without rules", "cache", number, key)
            elif not cache["rules_state"]:
                text = "rules needs rules_state, the --state-file of regex_revalidate"
                self.blame(f"{text}: it shows what was loaded", "cache", number, "rules")
            for key in ("rules", "rules_state"):
                if cache[key] and cache[key] in seen:
                    self.blame(f"{key}: {cache[key]} is there twice; each has its own", "cache", number, key)
                seen.add(cache[key])

    def check_soft(self, caches: list[dict[str, Any]]) -> None:
        """It stands only where the kind can do it."""
        for number, cache in enumerate(caches):
            kind = KINDS.get(cache["kind"] or "")
            if cache["soft"] and kind is not None and not kind.soft:
                able = ", ".join(repr(each.name) for each in KINDS.values() if each.soft)
                self.blame(f"soft is for kind {able} only", "cache", number, "soft")

    def check_drops(self, caches: list[dict[str, Any]]) -> None:
        """Each can be told to drop all that it holds."""
        for number, cache in enumerate(caches):
            kind = kind_of(
                cache["kind"] or "",
                requests=cache["requests"],
                path=cache["path"],
                purge=cache["purge"],
                rules=bool(cache["rules"]),
            )
            if kind is not None and kind.drop is None:
                text = f"cache {cache['name']!r} cannot drop all that it holds: {kind.no_drop}"
                self.blame(f"drop_after_s is set, but {text}; take it out", "cache", number, "kind")

    def read_secret(self, agent: dict[str, Any], folder: Path) -> bytes:
        """The secret that goes with `key`.

        A relative path begins at the configuration's folder; `${NAME}` in it stands for an
        environment variable, so that systemd can hand the secret over as a credential.
        """
        key, name = agent["key"], agent["secret_file"]
        if bool(key) != bool(name):
            self.blame("key and secret_file go together", "agent", 0, "key" if key else "secret_file")
        if not key or not name:
            return b""
        try:
            secret: bytes = (folder / _expand(name)).read_bytes().strip()
        except OSError as error:
            self.blame(f"secret_file: {name} cannot be read: {error.strerror}", "agent", 0, "secret_file")
            return b""
        if not secret:
            self.blame(f"secret_file: {name} is empty", "agent", 0, "secret_file")
        return secret

    def read_receipt_key(self, agent: dict[str, Any], folder: Path) -> tuple[str, bytes]:
        """The path of the file that receipts are signed with, and what is in it, if it is there."""
        name = agent["receipt_key_file"]
        if not name:
            return "", b""
        path = folder / _expand(name)
        try:
            return str(path), read_seed(path)
        except (ValueError, OSError) as error:
            why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
            self.blame(f"receipt_key_file: {name} {why}", "agent", 0, "receipt_key_file")
            return "", b""


def _expand(path: str) -> str:
    """What is not set stays, and the file is not found under that name."""
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), path)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


_HEADER = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_.\"'-]+)\s*\]\]?\s*(?:#.*)?$").match
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*(?:=|\.)").match


def _index_lines(text: str) -> dict[tuple[str, int, str], int]:
    """The line of each (section, how many of that name came before, key); "" is the section's own line.

    tomllib gives no positions. This reads what people write, one key a line; where it finds nothing,
    an error goes without its line.
    """
    found: dict[tuple[str, int, str], int] = {}
    counts: dict[str, int] = {}
    section, number = "", 0
    for at, line in enumerate(text.splitlines(), 1):
        if header := _HEADER(line):
            section = header[1].strip("\"'")
            above, dot, _ = section.partition(".")
            # [cache.url] belongs to the [[cache]] above it.
            number = counts.get(above, 1) - 1 if dot else counts.get(section, 0)
            counts[section] = number + 1
            found[section, number, ""] = at
        elif key := _KEY(line):
            found.setdefault((section, number, key[1]), at)
    return found
