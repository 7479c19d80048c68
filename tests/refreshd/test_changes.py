"""Two configurations are compared by the table of settings."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refreshd.changes import Changes, compare
from refreshd.config import Config, Key, Proxy, parse
from refreshd.settings import SETTINGS, Reload, Setting

DEFAULTS = parse("")
OTHER_VALUES = {
    "id": '"e2"', "listen": '"127.0.0.1:7071"', "http": '""', "data": '"/srv/refreshd"', "workers": "4",
    "auth": '"required"', "open_fleet": "false", "line_max": "8192", "admin": '"/run/admin.sock"',
    "connections_max": "5", "tasks_max": "6", "tasks_bytes_max": "2097152", "park_above": "3",
    "prefetch_bytes_per_s": "9",
    "saver_queue_max": "700",
    "stop_deadline_s": "8.5", "heartbeat_timeout_s": "9", "retention_s": "60",
    "advertise": '"10.0.0.1:7070"', "cluster": '"west"', "lease_s": "20",
}  # fmt: skip
A_KEY = '[[key]]\nname = "acme"\nsecret_file = "acme.key"\n'


def config_of(text: str, secret: bytes = b"open sesame") -> Config:
    return parse(text, read_secret=lambda _: secret)


def changed(before: str, after: str) -> Changes:
    return compare(config_of(before), config_of(after))


def test_a_configuration_is_like_itself() -> None:
    changes = compare(DEFAULTS, parse(""))
    assert changes.is_empty
    assert changes.summary() == "no setting changed"
    assert changes.lines() == []


@pytest.mark.parametrize("row", [row for row in SETTINGS if row.key in OTHER_VALUES], ids=lambda row: row.key)
def test_each_setting_has_the_class_of_its_row(row: Setting) -> None:
    text = f"[{row.section}]\n{row.key} = {OTHER_VALUES[row.key]}\n"
    # A key is there in both, as auth = "required" needs one.
    changes = changed(A_KEY, text + A_KEY)
    name = f"{row.section}.{row.key}"
    by_class = {
        Reload.IN_PLACE: changes.in_place,
        Reload.WORKERS: changes.workers,
        Reload.RESTART: changes.restart,
    }
    assert name in by_class.pop(row.reload)
    assert all(name not in names for names in by_class.values())


def test_every_setting_of_the_table_is_compared() -> None:
    """The URLs have the same name in two sections; they are compared below."""
    compared = {row.key for row in SETTINGS if row.section not in ("key", "proxy")}
    assert compared - set(OTHER_VALUES) == {"url"}


def test_what_was_and_what_is_are_shown() -> None:
    changes = changed("", '[engine]\nworkers = 4\nopen_fleet = false\nstop_deadline_s = 8.5\nid = "e2"')
    assert changes.lines() == [
        'engine.id: "e1" → "e2" (at a restart)',
        "engine.workers: 2 → 4 (at a reload, with new workers)",
        "engine.open_fleet: true → false (at a reload)",
        "engine.stop_deadline_s: 10 → 8.5 (at a reload)",
    ]
    assert changes.summary() == (
        "in place: engine.open_fleet, engine.stop_deadline_s; with new workers: engine.workers; "
        "restart: engine.id"
    )


def test_what_needs_a_restart_is_a_fault_with_its_line() -> None:
    text = '# ours\n[engine]\nworkers = 4\n\nlisten = "127.0.0.1:9"\n'
    assert changed("", text).restart_faults(text) == [
        'line 5: engine.listen: "127.0.0.1:7070" → "127.0.0.1:9" needs a restart of the engine; '
        "a reload changes nothing while this stands here"
    ]
    assert changed(text, "").restart_faults("")[0].startswith("line 1: engine.listen: ")


def test_keys_are_told_by_name_and_their_secret_is_not_shown() -> None:
    changes = compare(config_of(A_KEY), config_of(A_KEY, b"swordfish"))
    assert changes.lines() == ["key acme: secret changed (at a reload)"]
    more = A_KEY + 'domains = ["example.com"]\n[[key]]\nname = "new"\nsecret_file = "new.key"\n'
    assert changed(A_KEY, more).lines() == [
        'key acme: domains [] → ["example.com"] (at a reload)',
        "key new: added (at a reload)",
    ]
    assert changed(more, A_KEY).in_place == ("key acme", "key new")


def test_a_quota_changes_in_place() -> None:
    before = A_KEY + "rate = 5\nper_day = { url = 9 }\n"
    changes = changed(before, A_KEY + "rate = 6\nburst = 60\nper_day = { url = 9, dir = 1 }\n")
    assert changes.lines() == [
        'key acme: rate 5 → 6, burst 0 → 60, per_day {"url":9} → {"url":9,"dir":1} (at a reload)'
    ]
    assert changed(before, A_KEY + "per_day = { url = 9, tag = 0 }\nrate = 5\n").is_empty


def test_urls_with_a_password_are_not_shown() -> None:
    mysql = msgspec.structs.replace(DEFAULTS.store, url="mysql://u:hunter2@h/d")
    changes = compare(DEFAULTS, msgspec.structs.replace(DEFAULTS, store=mysql))
    assert changes.restart == ("store.url",)
    assert "hunter2" not in "".join(changes.lines() + changes.restart_faults(""))


def test_proxies_are_told_by_name_whatever_their_order() -> None:
    one, two = '[[proxy]]\nname = "p1"\ngroup = "eu"\n', '[[proxy]]\nname = "p2"\n'
    assert changed(one + two, two + one).is_empty
    moved = one.replace("eu", "us") + "layer = 1\n"
    assert changed(one + two, moved).lines() == [
        'proxy p1: group "eu" → "us", layer 0 → 1 (at a reload)',
        "proxy p2: removed (at a reload)",
    ]


def test_a_change_of_thousands_is_still_one_short_line() -> None:
    fleet = tuple(Proxy(name=f"p{n}", group="eu", layer=0) for n in range(2000))
    changes = compare(DEFAULTS, msgspec.structs.replace(DEFAULTS, proxies=fleet))
    assert len(changes.in_place) == 2000
    assert changes.summary().endswith(", proxy p7 and 1,992 more")
    domains = ", ".join(f'"d{n}.example"' for n in range(100))
    assert len(changed(A_KEY, A_KEY + f"domains = [{domains}]").lines()[0]) < 200


_secrets = st.sampled_from([b"s3cret-one", b"s3cret-two"])
_names = st.sampled_from(["a", "b", "c"])
_keys = st.dictionaries(_names, st.tuples(_secrets, st.sampled_from([(), ("example.com",)])))
_fleets = st.dictionaries(_names, st.tuples(st.sampled_from(["eu", "us"]), st.integers(0, 1)))


@st.composite
def _configs(draw: st.DrawFn) -> Config:
    engine = {"connections_max": draw(st.integers(1, 2)), "line_max": draw(st.integers(4096, 4097))}
    return msgspec.structs.replace(
        DEFAULTS,
        engine=msgspec.structs.replace(DEFAULTS.engine, **engine),
        keys=tuple(Key(name=n, secret=s, domains=d) for n, (s, d) in draw(_keys).items()),
        proxies=tuple(Proxy(name=n, group=g, layer=x) for n, (g, x) in draw(_fleets).items()),
    )


def _meaning(config: Config) -> tuple[object, ...]:
    tables = ({table.name: table for table in tables} for tables in (config.keys, config.proxies))
    return (config.engine, config.store, config.redis, *tables)


@given(_configs(), _configs())
def test_no_change_is_missed_or_made_up(old: Config, new: Config) -> None:
    there, back = compare(old, new), compare(new, old)
    assert there.is_empty == (_meaning(old) == _meaning(new))
    assert {change.name for change in there.all} == {change.name for change in back.all}
    assert len(there.all) == len(there.in_place) + len(there.workers) + len(there.restart) == len(back.all)
    assert "s3cret" not in "".join([*there.lines(), there.summary(), repr(there)])
