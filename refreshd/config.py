"""The engine's configuration: TOML text in, checked values out, or all that is wrong with it.

Pure: files are read by `refreshd.__main__`, which passes in the text, the
environment and a way to read secrets. What a setting may be stands in
`settings.py`; here is what holds between settings.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from refreshd.errors import ConfigError
from refreshd.mysql_url import read_mysql_url
from refreshd.settings import (
    SECTIONS,
    SETTINGS,
    SOCKET_PATH_MAX_BYTES,
    Setting,
    is_loopback,
    settings_of,
    split_address,
)
from refreshd.toml_lines import Path, TomlLines

# The configuration crosses to a worker in one control packet (control.PACKET_MAX_BYTES): about 3,000 proxies.
CONFIG_MAX_BYTES = 128 * 1024
# What a URL of Redis may begin with; the rest is checked by who connects.
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SYNTAX_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")

ReadSecret = Callable[[str], bytes]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """`[engine]`. `auth`, `open_fleet` and `admin` are filled in where the file leaves them open."""

    id: str
    listen: str
    http: str
    data: str
    workers: int
    auth: str
    open_fleet: bool
    line_max: int
    admin: str
    connections_max: int
    tasks_max: int
    tasks_bytes_max: int
    park_above: int
    saver_queue_max: int
    prefetch_bytes_per_s: int
    advertise: str
    stop_deadline_s: float
    heartbeat_timeout_s: float


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """`[store]`."""

    url: str
    retention_s: float


class Redis(msgspec.Struct, frozen=True, kw_only=True):
    """`[redis]`."""

    url: str
    cluster: str
    lease_s: float


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A `[[key]]` with what its `secret_file` holds. No `domains`: every URL. 0, or no type: no limit."""

    name: str
    secret: bytes
    domains: tuple[str, ...]
    rate: int = 0
    burst: int = 0
    per_day: dict[str, int] = {}
    in_flight: int = 0

    def __repr__(self) -> str:
        return f"Key(name={self.name!r}, secret=…, domains={self.domains!r})"


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A `[[proxy]]` of the expected fleet."""

    name: str
    group: str
    layer: int


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All of the configuration, checked."""

    engine: Engine
    store: Store
    redis: Redis
    keys: tuple[Key, ...] = ()
    proxies: tuple[Proxy, ...] = ()


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as values that JSON can carry; `from_plain` is the inverse."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The inverse of `to_plain`. Raises: msgspec.ValidationError for what another version sent."""
    return msgspec.convert(plain, Config)


def parse(text: str, env: Mapping[str, str] | None = None, read_secret: ReadSecret | None = None) -> Config:
    """Reads a whole configuration; the empty text gives all defaults.

    `env` fills `${NAME}` in paths and URLs. `read_secret` returns what a secret
    file holds, or raises OSError or ValueError; without it, secrets are empty.
    Raises: ConfigError with every fault, in the order of lines.
    """
    return _Reader(text, env or {}, read_secret).config()


def _load(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _SYNTAX_PLACE.search(message)
        line, column = (place[1], place[2]) if place else (None, None)
        at = f" at column {column}" if column else ""
        what = message[: place.start()] if place else message
        raise ConfigError([f"line {line or text.count(chr(10)) + 1}: not TOML{at}: {what}"]) from None


def _own(default: Any) -> Any:
    """A default, as a value that is nobody else's."""
    if isinstance(default, list):
        return tuple(default)
    return dict(default) if isinstance(default, dict) else default


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(word: str, known: list[str]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0)[0]


def _unknown_key_hint(section: str, key: str) -> str:
    """The nearest known setting: the same name in another section before a similar one in this."""
    same = [f"{row.section}.{row.key}" for row in SETTINGS if row.key == key]
    similar = f"{section}.{_nearest(key, list(settings_of(section)))}"
    return f"not a setting; did you mean {same[0] if same else similar}?"


def _unknown_section_hint(name: str) -> str:
    for row in SETTINGS:
        if row.key == name:
            return f"not a section; did you mean {row.section}.{name}?"
    nearest = _nearest(name, [section.name for section in SECTIONS])
    return f"not a section; did you mean {_header(nearest)}?"


def _header(section: str) -> str:
    is_array = any(row.name == section and row.is_array for row in SECTIONS)
    return f"[[{section}]]" if is_array else f"[{section}]"


class _Reader:
    """One reading of one text; it gathers faults and goes on."""

    def __init__(self, text: str, env: Mapping[str, str], read_secret: ReadSecret | None) -> None:
        self._tree = _load(text)
        self._lines = TomlLines(text)
        self._env = env
        self._read_secret = read_secret
        self._faults: list[tuple[int, str]] = []

    def config(self) -> Config:
        engine, store, redis = (self._table(name) for name in ("engine", "store", "redis"))
        keys, proxies = self._array("key"), self._array("proxy")
        self._unknown_sections()
        self._check_engine(engine, keys)
        self._check_urls(store, redis)
        self._check_names(keys, proxies)
        self._check_bursts(keys)
        for number, key in enumerate(keys):
            key["secret"] = self._secret(number, key.pop("secret_file"))
        self._raise_faults()
        config = Config(
            engine=Engine(**engine),
            store=Store(**store),
            redis=Redis(**redis),
            keys=tuple(Key(**values) for values in keys),
            proxies=tuple(Proxy(**values) for values in proxies),
        )
        self._check_size(config)
        return config

    def _fault(self, path: Path, what: str, at: Path | None = None) -> None:
        """Notes a fault of the setting `path`, on its own line or on that of `at`."""
        name = ".".join(part for part in path if isinstance(part, str))
        line = self._lines.of(*(at or path))
        self._faults.append((line, f"line {line}: {name}: {what}"))

    def _raise_faults(self) -> None:
        if self._faults:
            raise ConfigError([fault for _, fault in sorted(self._faults, key=lambda pair: pair[0])])

    # Tables and their values

    def _unknown_sections(self) -> None:
        known = {section.name for section in SECTIONS}
        for name in self._tree:
            if name not in known:
                self._fault((name,), _unknown_section_hint(name))

    def _table(self, section: str) -> dict[str, Any]:
        table = self._tree.get(section, {})
        if not isinstance(table, dict):
            self._fault((section,), f"write it as one table, [{section}]")
            table = {}
        return self._values(section, (section,), table)

    def _array(self, section: str) -> list[dict[str, Any]]:
        tables = self._tree.get(section, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._fault((section,), f"write it as tables, [[{section}]] before each")
            return []
        return [self._values(section, (section, number), table) for number, table in enumerate(tables)]

    def _values(self, section: str, path: Path, table: dict[str, Any]) -> dict[str, Any]:
        """The section's values; None where one is wrong or nothing was said and nothing is the default."""
        rows = settings_of(section)
        for key in table:
            if key not in rows:
                self._fault((*path, key), _unknown_key_hint(section, key))
        return {key: self._value(row, (*path, key), table) for key, row in rows.items()}

    def _value(self, row: Setting, path: Path, table: dict[str, Any]) -> Any:
        if row.key not in table:
            if row.required:
                self._fault(path, f"missing; wanted {row.kind.wanted}")
            return _own(row.default)
        got = table[row.key]
        try:
            if row.kind.expands and isinstance(got, str):
                got = self._expand(got)
            return row.kind.read(got)
        except ValueError as error:
            more = f" ({error})" if str(error) else ""
            self._fault(path, f"got {_shown(got)}, wanted {row.kind.wanted}{more}")
        return None

    def _expand(self, text: str) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match[1] not in self._env:
                raise ValueError(f"{match[1]} is not set in the environment")
            return self._env[match[1]]

        return _VARIABLE.sub(value_of, text)

    # What holds between settings; a value that is wrong by itself (None) is not looked at again.

    def _check_engine(self, engine: dict[str, Any], keys: list[dict[str, Any]]) -> None:
        if engine["listen"] is not None:
            self._open_or_closed(engine, keys)
            self._check_ports(engine)
        if engine["admin"] == "" and engine["data"] is not None:
            engine["admin"] = f"{engine['data'].rstrip('/')}/admin.sock"
        self._check_admin(engine)

    def _open_or_closed(self, engine: dict[str, Any], keys: list[dict[str, Any]]) -> None:
        listen = engine["listen"]
        if not self._says("open_fleet"):
            engine["open_fleet"] = is_loopback(listen)
        if not self._says("auth"):
            engine["auth"] = "none" if is_loopback(listen) else "required"
        if engine["auth"] == "required" and not keys:
            because = "" if self._says("auth") else f" because engine.listen = {listen!r} is not loopback"
            self._fault(
                ("engine", "auth"),
                f'"required"{because}, but there is no [[key]]; add one, or set auth = "none"',
                at=("engine", "auth" if self._says("auth") else "listen"),
            )

    def _says(self, key: str) -> bool:
        """Whether the file itself sets engine.KEY."""
        table = self._tree.get("engine")
        return isinstance(table, dict) and key in table

    def _check_ports(self, engine: dict[str, Any]) -> None:
        listen, http = engine["listen"], engine["http"]
        if http and split_address(http)[1] and split_address(http) == split_address(listen):
            self._fault(("engine", "http"), f"{http!r} is engine.listen too; give each its own port")

    def _check_admin(self, engine: dict[str, Any]) -> None:
        length = len((engine["admin"] or "").encode())
        if length > SOCKET_PATH_MAX_BYTES:
            self._fault(
                ("engine", "admin" if self._says("admin") else "data"),
                f"the admin socket's path would be {length} bytes, a Unix socket's has at most "
                f"{SOCKET_PATH_MAX_BYTES}; set a shorter engine.admin",
            )

    def _check_urls(self, store: dict[str, Any], redis: dict[str, Any]) -> None:
        # The values are not quoted: there may be a password in them.
        url = store["url"]
        if url is not None and url != "sqlite:":
            if not url.startswith("mysql:"):
                self._fault(
                    ("store", "url"), 'no such store; wanted "sqlite:" or a URL that begins with mysql://'
                )
            else:
                try:
                    read_mysql_url(url)
                except ValueError as error:
                    self._fault(("store", "url"), str(error))
        if redis["url"] and not redis["url"].startswith(REDIS_SCHEMES):
            self._fault(("redis", "url"), f'wanted "", or a URL that begins with {", ".join(REDIS_SCHEMES)}')

    def _check_names(self, keys: list[dict[str, Any]], proxies: list[dict[str, Any]]) -> None:
        self._check_unique("key", keys)
        self._check_unique("proxy", proxies)
        names = {proxy["name"] for proxy in proxies}
        for number, proxy in enumerate(proxies):
            if proxy["group"] is not None and proxy["group"] in names:
                self._fault(
                    ("proxy", number, "group"),
                    f"got {proxy['group']!r}, which is a proxy's name too; a scope must tell them apart",
                )

    def _check_bursts(self, keys: list[dict[str, Any]]) -> None:
        for number, key in enumerate(keys):
            if key["burst"] and key["rate"] == 0:
                self._fault(
                    ("key", number, "burst"), f"got {key['burst']}, which says nothing without a key.rate"
                )

    def _check_unique(self, section: str, tables: list[dict[str, Any]]) -> None:
        seen: Counter[str | None] = Counter()
        for number, table in enumerate(tables):
            if table["name"] is not None and seen[table["name"]]:
                self._fault(
                    (section, number, "name"), f"got {table['name']!r} a second time; names are unique"
                )
            seen[table["name"]] += 1

    def _secret(self, number: int, path: str | None) -> bytes:
        if path is None or self._read_secret is None:
            return b""
        try:
            secret = self._read_secret(path)
        except OSError as error:
            self._fault(("key", number, "secret_file"), f"cannot read {path!r}: {error.strerror}")
        except ValueError as error:
            self._fault(("key", number, "secret_file"), f"{path!r}: {error}")
        else:
            return secret
        return b""

    def _check_size(self, config: Config) -> None:
        size = len(msgspec.json.encode(config))
        if size > CONFIG_MAX_BYTES:
            self._fault(
                ("proxy",),
                f"with {len(config.proxies)} proxies and {len(config.keys)} keys the configuration is "
                f"{size:,} bytes, at most {CONFIG_MAX_BYTES:,} fit; list fewer, and set engine.open_fleet",
            )
        self._raise_faults()
