"""proxyd.toml: what is read, and every way to get it wrong."""

from pathlib import Path

import pytest

from proxyd import settings
from proxyd.addresses import format_address, parse_address
from proxyd.caches.ats_rules import AtsRules
from proxyd.caches.nginx_files import NginxFiles
from proxyd.config import default_config, load
from proxyd.errors import ConfigError

GOOD = """\
[agent]
name = "pop1"
group = "eu"
layer = 1
engines = ["127.0.0.1:7070", "[::1]:7071"]
key = "k1"
secret_file = "secret"

[slow]
connections = 2
whole_timeout_s = 3

[[cache]]
name = "v1"
kind = "varnish"
address = "127.0.0.1:6081"

[[cache]]
name = "t1"
kind = "ats"
address = "cache.example:8080"
"""


def read(folder: Path, text: str) -> list[str]:
    """The faults, without the file's name."""
    path = folder / "proxyd.toml"
    path.write_text(text)
    (folder / "secret").write_text(" s3cret\n")
    (folder / "empty").write_text("\n")
    try:
        load(path)
    except ConfigError as error:
        return [fault.removeprefix(str(path)).removeprefix(":") for fault in error.faults]
    return []


def test_all_of_it(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == []
    config = load(tmp_path / "proxyd.toml")
    assert config.engines == [("127.0.0.1", 7070), ("::1", 7071)]
    assert (config.name, config.group, config.layer) == ("pop1", "eu", 1)
    assert (config.key, config.secret) == ("k1", b"s3cret")
    assert (config.slow.connections, config.slow.whole_timeout_s) == (2, 3.0)
    assert [(cache.name, cache.kind, cache.address) for cache in config.caches] == [
        ("v1", "varnish", ("127.0.0.1", 6081)),
        ("t1", "ats", ("cache.example", 8080)),
    ]


def test_what_prefetches_warm(tmp_path: Path) -> None:
    more = 'variants = [{ Accept-Encoding = "br" }, { User-Agent = "phone", X = "y" }]\nrange_bytes = 1024'
    assert read(tmp_path, GOOD.replace("whole_timeout_s = 3", more)) == []
    slow = load(tmp_path / "proxyd.toml").slow
    assert slow.variants == ((("Accept-Encoding", "br"),), (("User-Agent", "phone"), ("X", "y")))
    assert (slow.range_bytes, slow.per_host, slow.playlists) == (1024, 4, True)


def test_what_its_caches_health_check_sees(tmp_path: Path) -> None:
    more = 'caught_up_file = "run/fresh"\nhealth_listen = "127.0.0.1:8099"\ncaught_up_wait_s = 0\n'
    assert read(tmp_path, GOOD.replace("[slow]", more + "[slow]")) == []
    config = load(tmp_path / "proxyd.toml")
    assert config.caught_up_file == str(tmp_path / "run" / "fresh")
    assert (config.health_listen, config.caught_up_wait_s) == ("127.0.0.1:8099", 0.0)


def test_a_drop_needs_caches_that_can(tmp_path: Path) -> None:
    text = GOOD.replace("[slow]", "drop_after_s = 3600\n[slow]")
    assert read(tmp_path, text) == [
        "21: drop_after_s is set, but cache 't1' cannot drop all that it holds: without a file of"
        " rules (rules) nothing tells Traffic Server to drop all it holds; take it out"
    ]
    assert read(tmp_path, text.replace('"ats"', '"varnish"')) == []
    assert load(tmp_path / "proxyd.toml").drop_after_s == 3600
    assert read(tmp_path, GOOD.replace("[slow]", "drop_after_s = -1\n[slow]")) == [
        "9: drop_after_s: -1 is not 0 to 31622400"
    ]


NGINX = GOOD.replace('"ats"', '"nginx"')
FOLDER = 'path = "/var/cache/nginx/x"\nkey = "$host$request_uri"\n'


def test_an_nginx(tmp_path: Path) -> None:
    assert read(tmp_path, NGINX) == []
    assert load(tmp_path / "proxyd.toml").caches[1].files is None
    assert read(tmp_path, NGINX + FOLDER + 'levels = "2:2:1"\nvariants = false\n') == []
    files = NginxFiles("/var/cache/nginx/x", (2, 2, 1), "$host$request_uri", "", variants=False)
    assert load(tmp_path / "proxyd.toml").caches[1].files == files
    assert read(tmp_path, NGINX + 'path = "/c"\nproxy_host = "origin:8080"\nlevels = ""\n') == []
    files = NginxFiles("/c", (), "$scheme$proxy_host$request_uri", "origin:8080", variants=True)
    assert load(tmp_path / "proxyd.toml").caches[1].files == files
    assert read(tmp_path, NGINX + "purge = true\n") == []
    assert load(tmp_path / "proxyd.toml").caches[1].purge


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + 'path = "/c"\n', "22: path is for nginx only"),
        (NGINX + "variants = false\n", "22: variants says nothing without path"),
        (NGINX + 'path = "cache"\n', "22: path: 'cache' does not begin with /"),
        (NGINX + FOLDER + 'levels = "3"\n', "24: levels: '3' is not one to three of 1 and 2 with : between"),
        (NGINX + FOLDER + "purge = true\n", "24: path or purge, not both; path does more"),
        (NGINX + 'path = "/c"\n', "18: key: '$scheme$proxy_host$request_uri': $proxy_host stands in it: say"),
        (
            NGINX + 'path = "/c"\nkey = "$host$cookie_a$uri"\n',
            "23: key: '$host$cookie_a$uri': $cookie_a is not",
        ),
    ],
)
def test_what_of_an_nginx_does_not_go_together(tmp_path: Path, text: str, fault: str) -> None:
    [told] = read(tmp_path, text)
    assert told.startswith(fault)


def test_only_an_nginx_with_its_folder_can_drop(tmp_path: Path) -> None:
    text = NGINX.replace("[slow]", "drop_after_s = 3600\n[slow]")
    assert read(tmp_path, text + FOLDER) == []
    for more in ("", "purge = true\n"):
        [fault] = read(tmp_path, text + more)
        assert "cache 't1' cannot drop all that it holds: without its cache folder (path)" in fault


RULES = 'rules = "/var/r"\nrules_state = "/var/s"\n'


def test_a_traffic_server_with_rules(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == []
    assert load(tmp_path / "proxyd.toml").caches[1].rules is None
    assert read(tmp_path, GOOD + RULES) == []
    default = AtsRules(
        "/var/r",
        "/var/s",
        "/etc/trafficserver/remap.config",
        ("traffic_ctl", "config", "reload"),
        1000,
        604800,
        0.1,
    )
    assert load(tmp_path / "proxyd.toml").caches[1].rules == default
    more = 'remap = "/m"\nreload = ["sudo", "t"]\nrules_max = 5\nrules_keep_s = 60\nrules_skew_s = 1\n'
    assert read(tmp_path, GOOD + RULES + more) == []
    rules = AtsRules("/var/r", "/var/s", "/m", ("sudo", "t"), 5, 60, 1.0)
    assert load(tmp_path / "proxyd.toml").caches[1].rules == rules
    text = (GOOD + RULES).replace("[slow]", "drop_after_s = 3600\n[slow]")
    assert read(tmp_path, text) == []
    [fault] = read(tmp_path, text.replace(RULES, ""))
    assert "cache 't1' cannot drop all that it holds: without a file of rules (rules)" in fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (NGINX + 'rules = "/r"\n', "22: rules is for ats only"),
        (GOOD + 'remap = "/m"\n', "22: remap says nothing without rules"),
        (GOOD + 'rules = "/r"\n', "22: rules needs rules_state, the --state-file of regex_revalidate"),
        (GOOD + 'rules = "r"\n', "22: rules: 'r' does not begin with /"),
        (GOOD + RULES + "reload = []\n", "24: reload: [] is not a program and its arguments, 1 to 16 texts"),
        (GOOD + RULES + 'reload = ["a", 1]\n', "24: reload: ['a', 1] is not a program"),
        (GOOD + RULES + "rules_max = 0\n", "24: rules_max: 0 is not 1 to 10000"),
        (
            GOOD + RULES + '[[cache]]\nname = "t2"\nkind = "ats"\naddress = "h:1"\n'
            + RULES.replace("/var/s", "/var/s2"),
            "28: rules: /var/r is there twice; each has its own",
        ),
    ],
)  # fmt: skip
def test_what_of_a_traffic_server_does_not_go_together(tmp_path: Path, text: str, fault: str) -> None:
    [told] = read(tmp_path, text)
    assert told.startswith(fault)


def test_without_a_file() -> None:
    config = default_config()
    assert config.engines == [("127.0.0.1", 7070)]
    assert config.caches[0].address == ("127.0.0.1", 6081)
    assert config.name
    assert config.learn_engines


def test_a_secret_that_systemd_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    text = GOOD.replace('"secret"', '"${CREDENTIALS_DIRECTORY}/secret"')
    fault = "7: secret_file: ${CREDENTIALS_DIRECTORY}/secret cannot be read: No such file or directory"
    assert read(tmp_path, text) == [fault]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read(tmp_path, text) == []
    assert load(tmp_path / "proxyd.toml").secret == b"s3cret"


KNOWN = "varnish, ats, nginx, squid, http"
RANGE_TAKEN = "Range is the agent's to set; take it out"
VALUE_WANTED = "wanted 1 to 1024 of the characters 0x20 to 0x7e, no space around"
BAD = [
    ('kind = "ats"', 'kind = "apache"', f"20: kind: 'apache' is not one of {KNOWN}"),
    ('kind = "ats"\n', "", f"18: [[cache]] needs kind: {KNOWN}"),
    ("group =", "gruop =", "3: unknown key 'gruop' in [agent]; did you mean 'group'?"),
    ('address = "cache', 'adress = "cache', "21: unknown key 'adress' in [[cache]]; did you mean 'address'?"),
    ("[slow]", "[slwo]", "9: unknown section [slwo]; did you mean 'slow'?"),
    ("layer = 1", "layer = 16", "4: layer: 16 is not 0 to 15"),
    ("layer = 1", 'layer = "1"', "4: layer: got '1', wanted 0 to 15"),
    ("layer = 1", "layer = true", "4: layer: got True, wanted 0 to 15"),
    ("layer = 1", "learn_engines = 1", "4: learn_engines: got 1, wanted true or false"),
    ('"t1"', '"v1"', "19: two caches are named 'v1'"),
    ('"t1"', '"t 1"', "19: name: 't 1' is not 1 to 64 of A-Za-z0-9._:-"),
    ('"127.0.0.1:7070"', '"127.0.0.1"', "5: engines: '127.0.0.1' is not HOST:PORT"),
    ('"127.0.0.1:7070"', "7070", "5: engines: 7070 is not HOST:PORT"),
    ('"[::1]:7071"', '"127.0.0.1:7070"', "5: engines: an engine stands there twice"),
    ('["127.0.0.1:7070", "[::1]:7071"]', "[]", "5: engines: got 0 engines, wanted 1 to 64"),
    ('key = "k1"\n', "", "6: key and secret_file go together"),
    ('"secret"', '"nowhere"', "7: secret_file: nowhere cannot be read: No such file or directory"),
    ('"secret"', '"empty"', "7: secret_file: empty is empty"),
    ('name = "pop1"', 'name = "pop1', "2: Illegal character '\\n' (at line 2, column 13)"),
    ("[agent]", "[[agent]]", "1: [agent] is one section, in single brackets"),
    ("whole_timeout_s = 3", "whole_timeout_s = -1", "11: whole_timeout_s: -1.0 is not 0.1 to 86400"),
    ("whole_timeout_s", "patience_s", "11: unknown key 'patience_s' in [slow]; it is [breaker] wait_s now"),
    ("whole_timeout_s = 3", 'variants = [{Range = "x"}]', "11: variants: " + RANGE_TAKEN),
    ("whole_timeout_s = 3", 'variants = ["x"]', "11: variants: got 'x', wanted { NAME = \"value\" }"),
    ("whole_timeout_s = 3", 'variants = [{ "a b" = "x" }]', "11: variants: 'a b' is not a header's name"),
    ("whole_timeout_s = 3", r'variants = [{ A = "x\r\ny" }]', "11: variants: A: " + VALUE_WANTED),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "fault"), BAD, ids=lambda text: text[:30])
def test_each_fault_is_named_with_its_line(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert GOOD.count(old) >= 1
    assert fault in read(tmp_path, GOOD.replace(old, new, 1))


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("layer = 1", "layer = 99").replace('"ats"', '"apache"').replace("group", "gruop")
    assert len(read(tmp_path, text)) == 3


def test_no_cache(tmp_path: Path) -> None:
    assert read(tmp_path, '[agent]\nname = "a"\n') == [" no [[cache]]: an agent needs at least one to act on"]
    assert read(tmp_path, "[cache]\nname = 1\n")[0] == "1: [[cache]] stands in double brackets"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "nothing.toml")
    (tmp_path / "binary").write_bytes(b"a = 1\nb = \xff\n")
    with pytest.raises(ConfigError, match="binary:2: not UTF-8"):
        load(tmp_path / "binary")


@pytest.mark.parametrize("text", ["a:1", "127.0.0.1:65535", "[::1]:80", "cache.example:6081"])
def test_addresses(text: str) -> None:
    address = parse_address(text)
    assert address is not None
    assert format_address(address) == text


@pytest.mark.parametrize("text", ["", "a", ":1", "a:", "a:0", "a:65536", "::1:80", "a b:1", "a:x", "a:-1"])
def test_bad_addresses(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    "setting",
    settings.TABLE + settings.REQUEST_TABLE,
    ids=lambda setting: f"{setting.section}.{setting.key}",
)
def test_each_row_is_whole(setting: settings.Setting) -> None:
    assert setting.doc
    assert setting.wanted
    if setting.default is not settings.REQUIRED and setting.default is not None:
        assert type(setting.default) is setting.type
        assert setting.fault(setting.default) is None


def test_the_docs_show_the_table() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "agent.md"
    assert settings.render_reference() in docs.read_text(), "run: python -m proxyd.settings"
