"""What a configuration may be, and that every fault is named with its line."""

import msgspec
import pytest

from refreshd import config as c
from refreshd import control, settings
from refreshd.config import Config, from_plain, parse, to_plain
from refreshd.errors import ConfigError

FULL = """\
[engine]
id = "edge-1"
listen = "0.0.0.0:7070"
http = ""
data = "/var/lib/refreshd"
workers = 0
auth = "required"
open_fleet = true
line_max = 65536
admin = "/run/refreshd/admin.sock"
connections_max = 500
tasks_max = 1000
saver_queue_max = 2000
stop_deadline_s = 2.5
heartbeat_timeout_s = 3

[store]
url = "sqlite:"
retention_s = 60

[redis]
url = ""

[[key]]
name = "acme"
secret_file = "acme.key"
domains = ["Example.com", "img.example.net"]
rate = 100
burst = 500
per_day = { url = 1000, dir = 0 }
in_flight = 50

[[proxy]]
name = "pop1"
group = "eu"

[[proxy]]
name = "pop2"
group = "eu"
layer = 1
"""


def faults_of(text: str, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **options)  # type: ignore[arg-type]
    return caught.value.faults


def test_the_empty_text_gives_all_defaults() -> None:
    config = parse("")
    assert config.engine == c.Engine(
        id="e1",
        listen="127.0.0.1:7070",
        http="127.0.0.1:8080",
        data="./data",
        workers=2,
        auth="none",
        open_fleet=True,
        line_max=1 << 20,
        admin="./data/admin.sock",
        connections_max=10_000,
        tasks_max=5_000_000,
        tasks_bytes_max=4 << 30,
        park_above=5_000,
        prefetch_bytes_per_s=0,
        saver_queue_max=50_000,
        advertise="",
        stop_deadline_s=10.0,
        heartbeat_timeout_s=10.0,
    )
    assert config.store == c.Store(url="sqlite:", retention_s=604_800.0)
    assert config.redis == c.Redis(url="", cluster="refreshd", lease_s=10.0)
    assert (config.keys, config.proxies) == ((), ())


def test_everything_can_be_said() -> None:
    config = parse(FULL, read_secret={"acme.key": b"hush"}.__getitem__)
    assert config.engine.id == "edge-1"
    assert config.engine.open_fleet
    assert config.engine.stop_deadline_s == 2.5
    assert config.engine.heartbeat_timeout_s == 3.0
    (key,) = config.keys
    assert (key.name, key.secret, key.domains) == ("acme", b"hush", ("example.com", "img.example.net"))
    assert (key.rate, key.burst, key.per_day, key.in_flight) == (100, 500, {"url": 1000}, 50)
    assert config.proxies == (
        c.Proxy(name="pop1", group="eu", layer=0),
        c.Proxy(name="pop2", group="eu", layer=1),
    )


def test_every_row_of_the_table_is_an_attribute_and_the_other_way_round() -> None:
    structs = {"engine": c.Engine, "store": c.Store, "redis": c.Redis, "key": c.Key, "proxy": c.Proxy}
    for section, struct in structs.items():
        keys = tuple("secret" if key == "secret_file" else key for key in settings.settings_of(section))
        assert struct.__struct_fields__ == keys, section
    assert [section.name for section in settings.SECTIONS] == list(structs)


@pytest.mark.parametrize("row", settings.SETTINGS, ids=lambda row: f"{row.section}.{row.key}")
def test_every_default_is_allowed(row: settings.Setting) -> None:
    if not row.required and not row.otherwise:
        row.kind.read(row.default)
    else:
        assert row.default is None


@pytest.mark.parametrize("text", ["", FULL])
def test_a_worker_gets_the_same_configuration(text: str) -> None:
    config = parse(text, read_secret=lambda _: b"\x00\xff hush\n")
    start = control.Start(slot=0, workers=1, generation=1, lanes=1, config=to_plain(config))
    received = msgspec.json.decode(msgspec.json.encode(start), type=control.Start)
    assert from_plain(received.config) == config


def test_what_another_version_sent_is_refused() -> None:
    plain = to_plain(parse(""))
    del plain["engine"]["data"]
    with pytest.raises(msgspec.ValidationError):
        from_plain(plain)


def test_a_secret_is_not_shown() -> None:
    config = parse(FULL, read_secret=lambda _: b"hush")
    assert "hush" not in repr(config)


# What depends on the address


@pytest.mark.parametrize(
    ("listen", "open_"),
    [
        ("127.0.0.1:7070", True),
        ("127.8.8.8:1", True),
        ("localhost:7070", True),
        ("[::1]:7070", True),
        ("0.0.0.0:7070", False),
        ("[::]:7070", False),
        ("192.0.2.1:0", False),
    ],
)
def test_only_loopback_is_open_by_default(listen: str, open_: bool) -> None:
    key = '[[key]]\nname="k"\nsecret_file="f"'
    engine = parse(f'[engine]\nlisten = "{listen}"\n{key}').engine
    assert (engine.auth, engine.open_fleet) == (("none", True) if open_ else ("required", False))


def test_what_is_said_counts_more_than_the_address() -> None:
    engine = parse('[engine]\nlisten="0.0.0.0:1"\nauth="none"\nopen_fleet=true').engine
    assert (engine.auth, engine.open_fleet) == ("none", True)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:65535", ("127.0.0.1", 65535)),
        ("[2001:db8::0:1]:80", ("2001:db8::1", 80)),
        ("0.0.0.0:7070", ("0.0.0.0", 7070)),
    ],
)
def test_addresses(text: str, split: tuple[str, int]) -> None:
    assert settings.split_address(text) == split


@pytest.mark.parametrize(
    "text",
    ["", "7070", ":7070", "*:7070", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:7070",
     "127.0.0.1:7070 ", "[::1]", "[127.0.0.1]x:1", "256.0.0.1:1", "example.com:7070", "127.0.0.1:٣", "1:1"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    (fault,) = faults_of(f'[engine]\nlisten = "{text}"')
    assert fault.startswith(f"line 2: engine.listen: got {text!r}, wanted {ADDRESS}")


# Environment and secrets


def test_the_environment_fills_paths_and_urls() -> None:
    text = '[engine]\nid="e"\ndata="${STATE}/a${X}"\nadmin="$X"\n[store]\nurl="${S}:"\n[redis]\nurl="${NONE}"'
    config = parse(text, {"STATE": "/s", "X": "b", "S": "sqlite", "NONE": ""})
    assert (config.engine.data, config.engine.admin, config.store.url) == ("/s/ab", "$X", "sqlite:")


def test_secrets_are_read_where_they_are_named() -> None:
    asked: list[str] = []

    def read(path: str) -> bytes:
        asked.append(path)
        return b"s" + str(len(asked)).encode()

    text = '[[key]]\nname="a"\nsecret_file="${D}/a"\n[[key]]\nname="b"\nsecret_file="b"'
    assert [key.secret for key in parse(text, {"D": "/c"}, read).keys] == [b"s1", b"s2"]
    assert asked == ["/c/a", "b"]


def test_a_secret_that_cannot_be_read() -> None:
    def read(path: str) -> bytes:
        if path == "a":
            raise PermissionError(13, "Permission denied")
        raise ValueError("the file is empty")

    text = '[[key]]\nname="a"\nsecret_file="a"\n[[key]]\nname="b"\nsecret_file="b"'
    assert faults_of(text, read_secret=read) == [
        "line 3: key.secret_file: cannot read 'a': Permission denied",
        "line 6: key.secret_file: 'b': the file is empty",
    ]


# Faults: the text, and what is said of it


ADDRESS = 'an IP address (or localhost) and a port, such as "127.0.0.1:7070" or "[::1]:7070"'
NAME = "a name, 1 to 64 of A-Za-z0-9._:-"
PER_DAY = "targets by type, such as { url = 100000, dir = 50 }"
KEY = '[[key]]\nname = "k"\nsecret_file = "f"\n'

CORPUS: list[tuple[str, list[str]]] = [
    # TOML itself
    ("[engine]\nid e1", ["line 2: not TOML at column 4: Expected '=' after a key in a key/value pair"]),
    ('[engine]\nid = "e1', ["line 2: not TOML: Unterminated string"]),
    ("[engine]\nid = 'a'\nid = 'b'\n", ["line 3: not TOML at column 9: Cannot overwrite a value"]),
    # Names that are not known
    ("[engine]\nworker = 3", ["line 2: engine.worker: not a setting; did you mean engine.workers?"]),
    ("[engine]\n\n# x\nlistn = 3", ["line 4: engine.listn: not a setting; did you mean engine.listen?"]),
    (
        "[engine]\nretention_s = 60",
        ["line 2: engine.retention_s: not a setting; did you mean store.retention_s?"],
    ),
    ("[[proxy]]\nname = 'a'\ngruop = 'b'", ["line 3: proxy.gruop: not a setting; did you mean proxy.group?"]),
    ("\n[engin]\nid = 'e'", ["line 2: engin: not a section; did you mean [engine]?"]),
    ("[[proxies]]\nname = 'e'", ["line 1: proxies: not a section; did you mean [[proxy]]?"]),
    ("workers = 2", ["line 1: workers: not a section; did you mean engine.workers?"]),
    ("engine.liste.n = 2", ["line 1: engine.liste: not a setting; did you mean engine.listen?"]),
    # Tables of the wrong form
    ("engine = 3", ["line 1: engine: write it as one table, [engine]"]),
    ("[[engine]]\nid = 'x'", ["line 1: engine: write it as one table, [engine]"]),
    ("[key]\nname = 'x'", ["line 1: key: write it as tables, [[key]] before each"]),
    ("proxy = [1]", ["line 1: proxy: write it as tables, [[proxy]] before each"]),
    # Values
    ("[engine]\nid = ''", [f"line 2: engine.id: got '', wanted {NAME}"]),
    ("[engine]\nid = 'a b'", [f"line 2: engine.id: got 'a b', wanted {NAME}"]),
    ("[engine]\nlisten = 7070", [f"line 2: engine.listen: got 7070, wanted {ADDRESS}"]),
    ("[engine]\nlisten = ''", [f"line 2: engine.listen: got '', wanted {ADDRESS}"]),
    ("[engine]\nhttp = 'x'", [f"line 2: engine.http: got 'x', wanted {ADDRESS}, or \"\""]),
    ("[engine]\ndata = ''", ["line 2: engine.data: got '', wanted a path"]),
    ("[engine]\nworkers = 65", ["line 2: engine.workers: got 65, wanted a whole number, 0 to 64"]),
    ("[engine]\nworkers = -1", ["line 2: engine.workers: got -1, wanted a whole number, 0 to 64"]),
    ("[engine]\nworkers = 2.0", ["line 2: engine.workers: got 2.0, wanted a whole number, 0 to 64"]),
    ("[engine]\nworkers = true", ["line 2: engine.workers: got true, wanted a whole number, 0 to 64"]),
    ("[engine]\nworkers = '2'", ["line 2: engine.workers: got '2', wanted a whole number, 0 to 64"]),
    ("[engine]\nauth = 'on'", ["line 2: engine.auth: got 'on', wanted \"none\" or \"required\""]),
    ("[engine]\nopen_fleet = 1", ["line 2: engine.open_fleet: got 1, wanted true or false"]),
    (
        "[engine]\nline_max = 4095",
        ["line 2: engine.line_max: got 4095, wanted a whole number of bytes, 4,096 to 16,777,216"],
    ),
    (
        "[engine]\nstop_deadline_s = nan",
        ["line 2: engine.stop_deadline_s: got nan, wanted seconds, 0 to 3,600"],
    ),
    (
        "[engine]\nheartbeat_timeout_s = 0",
        ["line 2: engine.heartbeat_timeout_s: got 0, wanted seconds, 1 to 3,600"],
    ),
    ("[store]\nretention_s = 59", ["line 2: store.retention_s: got 59, wanted seconds, 60 to 315,360,000"]),
    ("[store]\nretention_s = inf", ["line 2: store.retention_s: got inf, wanted seconds, 60 to 315,360,000"]),
    (
        f"{KEY}domains = 'x'",
        ["line 4: key.domains: got 'x', wanted a list of domains, such as [\"example.com\"]"],
    ),
    (
        f"{KEY}domains = ['x', 'http://y']",
        [
            "line 4: key.domains: got ['x', 'http://y'], wanted a list of domains, such as "
            "[\"example.com\"] ('http://y' is not a domain)"
        ],
    ),
    (
        f"{KEY}rate = 0.5",
        ["line 4: key.rate: got 0.5, wanted a whole number of targets a second, 0 to 10,000,000"],
    ),
    (
        f"{KEY}in_flight = -1",
        ["line 4: key.in_flight: got -1, wanted a whole number of tasks, 0 to 1,000,000,000"],
    ),
    (f"{KEY}per_day = 5", [f"line 4: key.per_day: got 5, wanted {PER_DAY}"]),
    (
        f"{KEY}per_day = {{ page = 5 }}",
        [
            f"line 4: key.per_day: got {{'page': 5}}, wanted {PER_DAY} ('page' is no type; the types are "
            "url, dir, regex, tag, prefetch)"
        ],
    ),
    (
        f"{KEY}per_day = {{ url = true }}",
        [
            f"line 4: key.per_day: got {{'url': True}}, wanted {PER_DAY} "
            "(url is not a whole number, 0 to 1,000,000,000,000)"
        ],
    ),
    ("[[proxy]]\nname = 'a'\nlayer = 16", ["line 3: proxy.layer: got 16, wanted a whole number, 0 to 15"]),
    (f"[engine]\nid = '{'x' * 100}'", [f"line 2: engine.id: got '{'x' * 76}..., wanted {NAME}"]),
    # What must be there
    ("[[proxy]]\ngroup = 'a'", [f"line 1: proxy.name: missing; wanted {NAME}"]),
    ("[[key]]\nname = 'a'", ["line 1: key.secret_file: missing; wanted a path"]),
    (
        "[engine]\ndata = '${A}'",
        ["line 2: engine.data: got '${A}', wanted a path (A is not set in the environment)"],
    ),
    # Between settings
    (f"{KEY}burst = 5", ["line 4: key.burst: got 5, which says nothing without a key.rate"]),
    (
        '[engine]\nauth = "required"',
        ['line 2: engine.auth: "required", but there is no [[key]]; add one, or set auth = "none"'],
    ),
    (
        "[engine]\nlisten = '0.0.0.0:7070'",
        [
            "line 2: engine.auth: \"required\" because engine.listen = '0.0.0.0:7070' is not loopback, "
            'but there is no [[key]]; add one, or set auth = "none"'
        ],
    ),
    (
        "[engine]\nhttp = 'localhost:7070'",
        ["line 2: engine.http: 'localhost:7070' is engine.listen too; give each its own port"],
    ),
    (KEY + KEY, ["line 5: key.name: got 'k' a second time; names are unique"]),
    (
        "proxy = [{name = 'a'}, {name = 'a'}]",
        ["line 1: proxy.name: got 'a' a second time; names are unique"],
    ),
    (
        "[[proxy]]\nname = 'a'\ngroup = 'b'\n[[proxy]]\nname = 'b'",
        ["line 3: proxy.group: got 'b', which is a proxy's name too; a scope must tell them apart"],
    ),
    (
        "[[proxy]]\nname = 'default'",
        ["line 1: proxy.group: got 'default', which is a proxy's name too; a scope must tell them apart"],
    ),
    (
        f"[engine]\ndata = '{'d' * 97}'",
        [
            "line 2: engine.data: the admin socket's path would be 108 bytes, "
            "a Unix socket's has at most 107; set a shorter engine.admin"
        ],
    ),
    (
        f"[engine]\nadmin = '{'ä' * 54}'",
        [
            "line 2: engine.admin: the admin socket's path would be 108 bytes, "
            "a Unix socket's has at most 107; set a shorter engine.admin"
        ],
    ),
    # What may be a password is not quoted
    (
        "[store]\nurl = 'mysql://u:hush@h:3306'",
        [
            "line 2: store.url: no database is named; wanted mysql://USER:PASSWORD@HOST:PORT/DATABASE, "
            "DATABASE being 1 to 64 of A-Za-z0-9_$-"
        ],
    ),
    (
        "[store]\nurl = ''",
        ['line 2: store.url: no such store; wanted "sqlite:" or a URL that begins with mysql://'],
    ),
    (
        "[redis]\nurl = 'http://:hush@h'",
        ['line 2: redis.url: wanted "", or a URL that begins with redis://, rediss://, unix://'],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "faults"), CORPUS, ids=[text[:40] for text, _ in CORPUS])
def test_each_fault_is_named_with_its_line(text: str, faults: list[str]) -> None:
    assert faults_of(text) == faults


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    text = "\n\n".join(
        text for text, _ in CORPUS if text in ("[engin]\nid = 'e'", "[redis]\nurl = 'http://:hush@h'")
    )
    text = "[[key]]\nname = 'a b'\n[engine]\nid = 3\nworker = 1\nlisten = 'x'\n" + text
    assert [fault.split(":")[0:2] for fault in faults_of(text)] == [
        ["line 1", " key.secret_file"],
        ["line 2", " key.name"],
        ["line 4", " engine.id"],
        ["line 5", " engine.worker"],
        ["line 6", " engine.listen"],
        ["line 8", " redis.url"],
    ]


def test_a_fleet_that_no_packet_can_carry_is_refused() -> None:
    text = "".join(f'[[proxy]]\nname="pop{number:05}"\n' for number in range(5000))
    (fault,) = faults_of(text)
    assert fault.startswith("line 1: proxy: with 5000 proxies and 0 keys the configuration is 2")
    assert fault.endswith("bytes, at most 131,072 fit; list fewer, and set engine.open_fleet")


def test_what_is_accepted_fits_a_packet() -> None:
    assert c.CONFIG_MAX_BYTES < control.PACKET_MAX_BYTES - 4096


def test_a_configuration_is_a_value() -> None:
    config: Config = parse("")
    with pytest.raises(AttributeError):
        config.engine = config.engine
    assert parse("") == config
